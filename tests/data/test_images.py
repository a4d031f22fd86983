"""Folders, patterns and pages of images as videos: order, depth, what is refused."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from video_files import cut, moving_frames, read_until_error

from ino.data import images
from ino.data.images import image_size, open_sequence, read_image
from ino.data.video import VideoInfo, count_frames, is_video, read_clip, read_frames, read_info
from ino.data.video_index import find_videos
from ino.errors import VideoError

FRAMES = moving_frames(12)


def write_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for value, name in enumerate(names):
        Image.new("RGB", (12, 8), (value, 0, 0)).save(folder / name)
    return folder


def values_of(clip: np.ndarray) -> list[int]:
    return clip[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    "names",
    [
        [f"{n}.png" for n in range(1, 13)],  # 9 before 10
        [f"{n:05d}.png" for n in range(0, 60, 5)],  # YouTube-VOS
        [f"v2_{n:03d}_left.png" for n in range(990, 1010)],
        ["a.png", "b.png", "c.png"],
        ["09.png", "10.png", "011.png"],
    ],
)
def test_frames_come_in_natural_order(names, tmp_path):
    folder = write_images(tmp_path / "video", names)
    sequence = open_sequence(folder)
    assert [path.name for path in sequence] == names
    assert sequence[-1] == folder / names[-1]
    assert values_of(read_clip(folder, [len(names) - 1, 0])) == [len(names) - 1, 0]


def test_a_folder_is_listed_once_and_anew_when_it_changes(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "video", ["0.png", "1.png"])
    listed = []
    list_images = images.list_images

    def recording(path):
        listed.append(path)
        return list_images(path)

    monkeypatch.setattr(images, "list_images", recording)
    for _ in range(3):
        read_clip(folder, [1])
    assert listed == [folder]
    Image.new("RGB", (12, 8)).save(folder / "2.png")
    assert count_frames(folder) == 3
    assert listed == [folder, folder]


def test_only_the_images_of_a_clip_are_opened(tmp_path):
    folder = write_images(tmp_path / "video", [f"{n}.png" for n in range(9)])
    (folder / "5.png").write_text("broken, but of no clip")
    assert values_of(read_clip(folder, [1, 3, 3, 8])) == [1, 3, 3, 8]


def test_a_pattern_is_a_video(tmp_path):
    names = [f"left_{n:03d}.png" for n in (3, 4, 12)] + ["right_003.png", "left_12.png"]
    folder = write_images(tmp_path, names)
    pattern = folder / "left_%03d.png"
    assert is_video(pattern)
    assert find_videos([pattern]) == [str(pattern)]
    assert read_info(pattern).num_frames == 3
    assert values_of(np.stack(list(read_frames(pattern)))) == [0, 1, 2]
    assert values_of(read_clip(folder / "left_%d.png", [0])) == [4]


def test_a_pattern_that_names_nothing_is_told(tmp_path):
    write_images(tmp_path, ["a1.png"])
    with pytest.raises(VideoError, match=r"holds no image named as b%05d\.png"):
        read_clip(tmp_path / "b%05d.png", [0])


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    folder = write_images(tmp_path, ["a%d.png", "a1.png"])
    assert not is_video(folder / "a%d.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(12):  # without leading zeros: 10 sorts before 2 as text
        Image.fromarray(FRAMES[index]).save(folder / f"frame{index}.png")
    (folder / "notes.txt").write_text("not a frame")
    (folder / "._frame0.png").write_bytes(b"what a Mac leaves behind")
    return folder


def test_a_folder_of_images_is_a_video_in_natural_order(folder):
    np.testing.assert_array_equal(np.stack(list(read_frames(folder))), FRAMES[:12])
    np.testing.assert_array_equal(read_clip(folder, [11, 2]), [FRAMES[11], FRAMES[2]])
    assert read_info(folder) == VideoInfo(num_frames=12, fps=24.0, height=64, width=96)
    with pytest.raises(VideoError, match="has frames 0 to 11"):
        read_clip(folder, [12])


def test_an_image_of_another_size_is_named(folder):
    Image.fromarray(FRAMES[0][:50]).save(folder / "frame7.png")
    frames, error = read_until_error(folder)
    assert len(frames) == 7
    assert "frame7.png is 50x96" in str(error)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_broken_image_is_named(suffix, tmp_path):
    for index in range(7):
        Image.fromarray(FRAMES[index]).save(tmp_path / f"frame{index}.{suffix}")
    cut(tmp_path / f"frame5.{suffix}", tmp_path / f"frame5.{suffix}", fraction=0.6)
    frames, error = read_until_error(tmp_path)
    assert len(frames) == 5
    assert f"frame5.{suffix}" in str(error)


def test_sixteen_bit_images_keep_their_upper_eight_bits(tmp_path):
    thermal = (FRAMES[0][..., 0].astype(np.uint16) << 8) + 77
    Image.fromarray(thermal).save(tmp_path / "0.png")
    (frame,) = read_frames(tmp_path)
    np.testing.assert_array_equal(frame, FRAMES[0][..., :1].repeat(3, axis=2))


def test_a_single_image_that_would_be_nearly_black_is_refused(tmp_path):
    """Of a data set or a shard no span of the whole video is known."""
    values = np.full((16, 16), 4095, np.uint16)
    cv2.imwrite(str(tmp_path / "dark.png"), values)
    cv2.imwrite(str(tmp_path / "bright.png"), values * 16)
    with pytest.raises(VideoError, match="less than 15 of its 16 bits"):
        read_image(tmp_path / "dark.png", size=None)
    assert read_image(tmp_path / "bright.png", size=None).max() == 255


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(FRAMES[0]).save(tmp_path / "0.png", exif=exif)
    (frame,) = read_frames(tmp_path)
    np.testing.assert_array_equal(frame, np.rot90(FRAMES[0], -1))
    assert read_info(tmp_path) == VideoInfo(num_frames=1, fps=24.0, height=96, width=64)


def test_a_video_is_told_by_its_extension_and_a_folder_by_its_images(tmp_path):
    assert is_video(write_images(tmp_path / "frames", ["0.png"]))
    assert is_video(Path("clip.MP4"))
    assert is_video(Path("clip.webm"))
    assert not is_video(tmp_path)
    assert not is_video(Path("labels.csv"))
    assert not is_video(Path("._clip.mp4"))


def as_grey(values: np.ndarray) -> np.ndarray:
    """Three equal channels of uint8."""
    return np.rint(values).astype(np.uint8)[..., None].repeat(3, axis=-1)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_twelve_bits_are_scaled_by_what_all_frames_span(suffix, tmp_path, caplog):
    stack = np.random.default_rng(0).integers(300, 2000, (4, 8, 12), dtype=np.uint16)
    stack[2, 0, 0], stack[3, 0, 0] = 4000, 200
    for index, page in enumerate(stack):
        Image.fromarray(page).save(tmp_path / f"{index}{suffix}")
    expected = as_grey((stack - 200.0) / 3800 * 255)
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path))), expected)
    np.testing.assert_array_equal(read_clip(tmp_path, [1]), expected[[1]])
    assert "values from 200 to 4000 become 0 to 255" in caplog.text


def test_real_numbers_are_scaled_by_what_all_frames_span(tmp_path):
    stack = np.random.default_rng(0).normal(size=(3, 8, 12)).astype(np.float32)
    for index, page in enumerate(stack):
        Image.fromarray(page).save(tmp_path / f"{index}.tif")
    expected = as_grey((stack - stack.min()) / (stack.max() - stack.min()) * 255.0)
    frames = np.stack(list(read_frames(tmp_path)))
    assert np.abs(frames - expected.astype(int)).max() <= 1  # float32 and float64


def test_deep_colors_are_scaled_too(tmp_path):
    frames = [(frame.astype(np.uint16) + 100) * 8 for frame in FRAMES[:3]]
    for index, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frame[..., ::-1])
    low, high = np.min(frames), np.max(frames)
    expected = np.rint((np.stack(frames) - low) / (high - low) * 255.0).astype(np.uint8)
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path))), expected)


@pytest.mark.parametrize("name", ["stack.tif", "animated.webp", "animated.png"])
def test_the_pages_of_a_file_are_frames(name, tmp_path):
    path = tmp_path / name
    first, *others = [Image.fromarray(frame) for frame in FRAMES]
    first.save(path, save_all=True, append_images=others, lossless=True)
    assert read_info(path) == VideoInfo(num_frames=12, fps=24.0, height=64, width=96)
    np.testing.assert_array_equal(np.stack(list(read_frames(path))), FRAMES)
    np.testing.assert_array_equal(read_clip(path, [11, 2]), [FRAMES[11], FRAMES[2]])


def test_a_deep_stack_has_one_range(tmp_path):
    stack = np.random.default_rng(0).integers(100, 900, (5, 8, 12), dtype=np.uint16)
    first, *others = [Image.fromarray(page) for page in stack]
    first.save(tmp_path / "stack.tif", save_all=True, append_images=others)
    low, high = stack.min(), stack.max()
    expected = as_grey((stack - float(low)) / float(high - low) * 255)
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path / "stack.tif"))), expected)


def test_a_frame_whose_pages_would_be_lost_is_refused(tmp_path):
    pages = [Image.fromarray(frame) for frame in FRAMES[:3]]
    pages[0].save(tmp_path / "0.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(VideoError, match=r"0\.tif holds 3 pages"):
        list(read_frames(tmp_path))


def test_an_image_of_another_kind_is_no_frame_and_is_named(tmp_path, caplog):
    for index in range(3):
        Image.fromarray(FRAMES[index]).save(tmp_path / f"{index}.bmp")
    Image.new("L", (96, 64)).save(tmp_path / "0.png")
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path))), FRAMES[:3])
    assert "also holds 0.png: its frames are the 3 .bmp files" in caplog.text


def test_as_many_of_two_kinds_are_refused(tmp_path):
    write_images(tmp_path, ["0.png", "1.png", "0.jpg", "1.JPEG"])
    with pytest.raises(VideoError, match="as many"):
        list(read_frames(tmp_path))


def bomb_in_a_text(path: Path) -> None:
    """A chunk of text that unpacks to 64 MiB."""
    Image.fromarray(FRAMES[0]).save(path)
    content = path.read_bytes()
    data = b"a\0\1\0\0\0" + zlib.compress(bytes(1 << 26))
    check = struct.pack(">I", zlib.crc32(b"iTXt" + data))
    chunk = struct.pack(">I", len(data)) + b"iTXt" + data + check
    path.write_bytes(content[:33] + chunk + content[33:])


def broken_exif(path: Path) -> None:
    Image.fromarray(FRAMES[0]).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")


def too_large(path: Path) -> None:
    Image.new("1", (13000, 13000)).save(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("make", [bomb_in_a_text, too_large, os.mkfifo])
def test_a_hostile_image_is_told_in_one_sentence(make, tmp_path):
    path = tmp_path / "0.png"
    make(path)
    for read in (image_size, lambda path: read_image(path, size=None)):
        with pytest.raises(VideoError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_with_broken_exif_is_read_or_refused(tmp_path):
    broken_exif(tmp_path / "0.jpg")
    frames, error = read_until_error(tmp_path)
    assert len(frames) == 1 or "0.jpg" in str(error)


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_an_animation_lasts_as_long_as_its_frames_say(name, tmp_path):
    pages = [Image.fromarray(frame) for frame in FRAMES[:6]]
    times = [40, 40, 100, 40, 40, 100]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], duration=times)
    assert read_info(tmp_path / name).fps == pytest.approx(6 / 0.36)
    assert find_videos([tmp_path]) == [str(tmp_path / name)]


def test_a_file_of_pages_is_decoded_once(tmp_path, monkeypatch):
    pages = [Image.fromarray(frame) for frame in FRAMES]
    pages[0].save(tmp_path / "a.webp", save_all=True, append_images=pages[1:], lossless=True)
    np.testing.assert_array_equal(np.stack([*read_frames(tmp_path / "a.webp")]), FRAMES)
    opened, image_open = [], images.Image.open

    def recording(source, **options):
        opened.append(source)
        return image_open(source, **options)

    monkeypatch.setattr(images.Image, "open", recording)
    np.testing.assert_array_equal(np.stack([*read_frames(tmp_path / "a.webp")]), FRAMES)
    assert len(opened) == 1  # a frame of an animation is decoded from its start


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [(np.int32, 70_000, 900_000), (np.int32, -20_000, 20_000)]
)
def test_whole_numbers_beyond_16_bits_are_scaled_too(dtype, low, high, tmp_path):
    values = np.linspace(low, high, 24, dtype=dtype).reshape(4, 6)
    Image.fromarray(values).save(tmp_path / "0.tif")
    (frame,) = read_frames(tmp_path / "0.tif")
    np.testing.assert_array_equal(frame[..., 0].ravel()[[0, -1]], [0, 255])
    assert len(np.unique(frame)) == 24


def test_a_range_of_values_can_be_given(tmp_path, caplog):
    write_deep(tmp_path / "v", [100, 300, 60_000])  # the last one is a hot pixel
    frames = np.stack([*read_frames(tmp_path / "v", value_range=(100.0, 300.0))])
    assert values_of(frames) == [0, 255, 255]
    clip = read_clip(tmp_path / "v", [1, 0], value_range=(100.0, 500.0))
    assert values_of(clip) == [128, 0]
    assert not caplog.text


def write_deep(folder: Path, levels: list[int]) -> None:
    folder.mkdir()
    for number, level in enumerate(levels):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 12), level, np.uint16))


def write_stack(path: Path, *, description: str = "", num_pages: int = 6, reduced: int = 0) -> Path:
    pages = [Image.new("L", (12, 8), number) for number in range(num_pages)]
    for _ in range(reduced):
        pages.append(Image.new("L", (6, 4)))
        pages[-1].encoderinfo = {"tiffinfo": {254: 1}}
    info = {270: description} if description else {}
    pages[0].save(path, save_all=True, append_images=pages[1:], tiffinfo=info)
    return path


def test_smaller_copies_in_a_stack_are_no_frames(tmp_path, caplog):
    stack = write_stack(tmp_path / "a.tif", reduced=2)
    assert values_of(np.stack([*read_frames(stack)])) == [0, 1, 2, 3, 4, 5]
    assert "2 of its 8 pages are marked as smaller copies" in caplog.text


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ("ImageJ=1.54\nimages=6\nchannels=2\nframes=3\n", "2 channels and 3 frames in turn"),
        ("ImageJ=1.54\nimages=9\nframes=9\n", "tells of 9 images but has 6 pages"),
        ('<?xml?><OME><Pixels SizeC="1" SizeZ="2" SizeT="3"/></OME>', "2 slices and 3 frames"),
        ("ImageJ=1.54\nimages=6\nslices=6\n", None),
        ('<OME><Pixels SizeC="1" SizeZ="1" SizeT="6"/></OME>', None),
    ],
)
def test_a_stack_of_several_axes_is_refused(description, told, tmp_path):
    stack = write_stack(tmp_path / "a.tif", description=description)
    if told is None:
        assert count_frames(stack) == 6
    else:
        with pytest.raises(VideoError, match=told):
            read_info(stack)


def test_stacks_in_a_folder_are_videos(tmp_path):
    stacks = [write_stack(tmp_path / name) for name in ("a.tif", "b.tiff")]
    assert find_videos([tmp_path]) == [str(stack) for stack in stacks]
    assert find_videos([stacks[0]]) == [str(stacks[0])]


@pytest.mark.parametrize("value", [9, 274])
def test_an_unknown_orientation_turns_nothing(value, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.new("RGB", (12, 8)).save(tmp_path / "0.jpg", exif=exif)
    assert image_size(tmp_path / "0.jpg") == (8, 12)
    assert read_image(tmp_path / "0.jpg", size=(8, 12)).shape == (8, 12, 3)


@pytest.mark.parametrize("name", ["plot.tif", "plot.png"])
def test_postscript_is_not_run_whatever_its_name(name, tmp_path):
    (tmp_path / name).write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    for video in (tmp_path, tmp_path / name):
        with pytest.raises(VideoError, match="cannot be read"):
            list(read_frames(video))
