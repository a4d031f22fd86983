"""Frames come out whole, in order and under their numbers; faults are told in a sentence."""

import struct
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from video_files import (
    FASTSTART,
    cut,
    damage,
    moving_frames,
    read_until_error,
    write_sound,
    write_video,
)

from ino.data.decode import VideoFile
from ino.data.video import (
    VideoInfo,
    VideoWriter,
    count_frames,
    in_background,
    read_chosen,
    read_clip,
    read_frames,
    read_info,
)
from ino.data.video_index import read_header
from ino.demo.synthetic import generate_clip
from ino.errors import OutputError, VideoError

FRAMES = moving_frames(61)
MPEG4 = {"g": "12", "bf": "2"}
UNEVEN = np.random.default_rng(0).integers(10, 200, len(FRAMES)).cumsum().tolist()
KINDS = {
    "h264.mp4": {},
    "fragments.mp4": {"container": {"movflags": "+frag_keyframe+empty_moov"}},
    "open-gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=12:scenecut=0:bframes=2"}},
    "pyramid.mkv": {"options": {"g": "30", "bf": "6", "x264-params": "b-pyramid=normal"}},
    "short-gop.mp4": {"options": {"g": "3", "bf": "2"}},
    "intra.mov": {"options": {"g": "1"}},
    "h264.mkv": {},
    "h264.ts": {},
    "h264.avi": {},
    "uneven.mp4": {"times": UNEVEN},
    "mpeg4.avi": {"codec": "mpeg4", "options": MPEG4},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime"}},
    "images.gif": {"codec": "gif", "pixels": "rgb8", "options": {}},
}


@pytest.fixture(scope="module")
def h264(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "h264.mp4", FRAMES, container=FASTSTART)


def is_close(frame: np.ndarray, expected: np.ndarray, *, tolerance: float = 5.0) -> bool:
    same_shape = frame.shape == expected.shape
    return same_shape and bool(np.abs(frame - expected.astype(float)).mean() < tolerance)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def set_matrix(path: Path, *matrix: int) -> None:
    """Puts another display matrix of that 2x2 part into a file that turns its frames by 180."""
    content = path.read_bytes()
    one, two = 1 << 16, 1 << 30
    found = struct.pack(">9i", -one, 0, 0, 0, -one, 0, 0, 0, two)
    place = content.rindex(found[:20])
    a, b, c, d = (one * value for value in matrix)
    new = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(content[:place] + new + content[place + len(new) :])


def count_packets(monkeypatch) -> list[int]:
    """A list that grows by one for each packet that is read from now on."""
    counted: list[int] = []
    packets = VideoFile.packets

    def counting(self):
        for packet in packets(self):
            counted.append(packet.size)
            yield packet

    monkeypatch.setattr(VideoFile, "packets", counting)
    return counted


def test_frames_are_those_written_in_their_order(h264):
    frames = list(read_frames(h264))
    assert len(frames) == len(FRAMES)
    for frame, expected in zip(frames, FRAMES, strict=True):
        assert frame.dtype == np.uint8
        assert is_close(frame, expected)
    # The pattern moves: the neighbour is no match, so that an order that is off by one fails.
    assert not is_close(frames[10], FRAMES[11])


def test_reading_is_lazy(h264, monkeypatch):
    counted = count_packets(monkeypatch)
    next(read_frames(h264))
    assert len(counted) < len(FRAMES) - 10


def test_info_is_read_without_decoding_the_file(h264):
    assert read_info(h264) == VideoInfo(num_frames=61, fps=25.0, height=64, width=96)


@pytest.mark.parametrize("name", KINDS)
def test_clip_frames_equal_streamed_frames(name, tmp_path):
    path = write_video(tmp_path / name, FRAMES, **KINDS[name])
    expected = list(read_frames(path))
    assert len(expected) == len(FRAMES)
    assert read_info(path).num_frames == len(FRAMES)
    for index, frame in enumerate(expected):
        np.testing.assert_array_equal(read_clip(path, [index])[0], frame)
    for indices in ([0, 8, 16, 24], [40, 3, 3, 41], [60], list(range(61))):
        clip = read_clip(path, indices)
        np.testing.assert_array_equal(clip, np.stack([expected[i] for i in indices]))


def test_the_tested_h264_has_reordered_frames_and_several_key_frames(h264):
    with VideoFile(h264) as file:
        packets = list(file.packets())
    shown = [packet.pts for packet in packets]
    assert shown != sorted(shown)
    assert sum(packet.is_keyframe for packet in packets) >= 5


def test_clip_frames_are_exact_where_an_edit_list_hides_the_first_ones(h264, tmp_path):
    path = tmp_path / "edited.mp4"
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(h264)) as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                packet.pts -= 5 * 512
                packet.dts -= 5 * 512
                packet.stream = stream
                target.mux(packet)
    expected = list(read_frames(path))
    assert len(expected) == read_info(path).num_frames == len(FRAMES) - 5
    assert is_close(expected[0], FRAMES[5])
    for index in (0, 1, 7, 30, 55):
        np.testing.assert_array_equal(read_clip(path, [index])[0], expected[index])


def test_a_clip_decodes_from_the_key_frame_before_it_to_its_last_frame(h264, monkeypatch):
    read_clip(h264, [0])  # the times of all frames are remembered from now on
    counted = count_packets(monkeypatch)
    read_clip(h264, [26, 27])  # the key frame is 24; 27 is shown last and decoded first
    assert 2 <= len(counted) <= 5


def test_a_file_that_changed_is_read_anew(tmp_path):
    path = write_video(tmp_path / "video.mp4", FRAMES[:20])
    assert read_clip(path, [19]).shape == (1, 64, 96, 3)
    write_video(path, FRAMES[20:60])
    assert is_close(read_clip(path, [39])[0], FRAMES[59])


def test_chosen_frames_know_the_exact_length_and_rate(h264):
    asked = []

    def choose(num_frames, fps):
        asked.append((num_frames, fps))
        return [num_frames - 1]

    assert is_close(read_chosen(h264, choose)[0], FRAMES[-1])
    assert asked == [(61, 25.0)]


@pytest.mark.parametrize("indices", [[61], [-1], [3, 200]])
def test_a_frame_number_out_of_range_is_told(h264, indices):
    with pytest.raises(VideoError, match=r"has frames 0 to 60.*asked for"):
        read_clip(h264, indices)


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("odd.mp4", {"pixels": "yuv444p"}, (61, 97)),
        ("ten-bit.mp4", {"pixels": "yuv420p10le"}, (64, 96)),
        ("alpha.webm", {"codec": "libvpx-vp9", "pixels": "yuva420p", "options": {}}, (64, 96)),
        ("grey.mkv", {"codec": "ffv1", "pixels": "gray16le", "options": {}}, (64, 96)),
    ],
)
def test_unusual_pixels_become_rgb(name, kind, size, tmp_path):
    frames = moving_frames(5, height=size[0], width=size[1])
    if name.startswith("grey"):
        frames = [frame[..., :1].repeat(3, axis=2) for frame in frames]
    path = write_video(tmp_path / name, frames, **kind)
    for frame, expected in zip(read_frames(path), frames, strict=True):
        assert is_close(frame, expected)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_the_display_rotation_is_honoured(rotation, tmp_path):
    path = write_video(tmp_path / "phone.mp4", FRAMES[:4], rotation=rotation)
    expected = np.rot90(FRAMES[2], rotation // 90)
    assert is_close(list(read_frames(path))[2], expected)
    assert is_close(read_clip(path, [2])[0], expected)
    info = read_info(path)
    assert (info.height, info.width) == expected.shape[:2]


@pytest.mark.parametrize(
    ("matrix", "change"),
    [
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda frame: frame[::-1, ::-1].swapaxes(0, 1)),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
        ((0, 0, 0, 0), lambda frame: frame),
        ((1, 1, 1, 1), lambda frame: frame),
    ],
)
def test_a_mirrored_recording_is_shown_as_its_matrix_says(matrix, change, tmp_path, caplog):
    path = write_video(tmp_path / "phone.mp4", FRAMES[:4], rotation=180)
    set_matrix(path, *matrix)
    expected = change(FRAMES[2])
    assert is_close(list(read_frames(path))[2], expected)
    assert is_close(read_clip(path, [2])[0], expected)
    is_singular = matrix[0] * matrix[3] == matrix[1] * matrix[2]
    assert ("shown as stored" in caplog.text) == is_singular


def test_of_several_streams_the_best_is_read(tmp_path):
    """A second of thumbnail before the video, as action cameras write it."""
    path = tmp_path / "camera.mp4"
    with av.open(str(path), "w") as file:
        streams = []
        for height, width in ((16, 32), (64, 96)):
            stream = file.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        streams[1].disposition = Disposition.default
        for number, image in enumerate(FRAMES[:20]):
            for stream in streams[number > 0 :]:  # the thumbnail is one frame
                small = image[: stream.height, : stream.width].copy()
                file.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        for stream in streams:
            file.mux(stream.encode(None))
    info, header = read_info(path), read_header(path)
    assert (info.num_frames, info.height, info.width) == (20, 64, 96)
    assert (header.num_frames, header.height, header.width) == (20, 64, 96)
    assert is_close(read_clip(path, [7])[0], FRAMES[7])


def damaged_inside(path: Path, whole: Path) -> int:
    """Fills a packet of a copy with bytes that no decoder takes; its number."""
    with av.open(str(whole)) as file:  # entries are only valid while it is open
        entries = list(file.streams.video[0].index_entries)
        number = next(n for n in range(20, 40) if not entries[n].is_keyframe)
    damage(path, whole, number)
    return number


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_damage_inside_a_video_costs_one_frame_and_is_told(num_threads, h264, tmp_path, caplog):
    path = tmp_path / "damaged.mp4"
    damaged_inside(path, h264)
    with VideoFile(path, num_threads=num_threads) as file:
        frames = [file.to_rgb(frame) for frame in file.decoded()]
        assert file.num_lost == 1
        assert "1 cannot be decoded" in file.damage
    assert len(frames) == len(FRAMES) - 1
    np.testing.assert_array_equal(frames[:12], list(read_frames(h264))[:12])
    assert is_close(frames[-1], FRAMES[-1])
    assert len(list(read_frames(path))) == len(FRAMES)
    assert "is damaged" in caplog.text


def test_a_clip_that_damage_touches_is_refused(h264, tmp_path):
    path = tmp_path / "damaged.mp4"
    number = damaged_inside(path, h264)
    with pytest.raises(VideoError, match="is damaged"):
        read_clip(path, range(number - 2, number + 3))
    assert is_close(read_clip(path, [3])[0], FRAMES[3])


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "uneven.mp4"])
@pytest.mark.parametrize("numbers", [[25], [24], [30, 31, 59, 60]])
def test_after_damage_frames_keep_their_numbers(numbers, name, tmp_path, caplog):
    """Whether they are read one after another or by number; packet 24 is a key frame."""
    path = write_video(tmp_path / name, FRAMES, **KINDS[name])
    content = path.read_bytes()
    with VideoFile(path) as file:
        packets = [bytes(packet) for packet in file.packets()]
    for number in numbers:
        assert content.count(packets[number]) == 1
        content = content.replace(packets[number], b"\xff" * len(packets[number]))
    path.write_bytes(content)
    frames = list(read_frames(path))
    assert len(frames) == count_frames(path) == len(FRAMES)
    assert is_close(frames[20], FRAMES[20])
    assert is_close(frames[50], FRAMES[50])
    caplog.clear()
    clip = read_clip(path, range(len(FRAMES)), fill=True)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(clip, frames)
    for index in (20, 32, 33, 40):  # from the key frame before
        np.testing.assert_array_equal(read_clip(path, [index], fill=True)[0], frames[index])


def test_a_transport_stream_goes_on_after_a_lost_packet(tmp_path, caplog):
    whole = write_video(tmp_path / "whole.ts", FRAMES)
    content = whole.read_bytes()
    middle = len(content) // 188 // 2 * 188
    path = tmp_path / "lossy.ts"
    path.write_bytes(content[:middle] + content[middle + 188 :])
    frames = list(read_frames(path))
    assert len(frames) >= len(FRAMES) - 2
    assert is_close(frames[-1], FRAMES[-1])
    assert "is damaged" in caplog.text


def test_joined_transport_streams_have_the_frames_of_both(tmp_path):
    """At the joint times go back, so that no time tells which frame it is."""
    first = write_video(tmp_path / "first.ts", FRAMES[:30])
    second = write_video(tmp_path / "second.ts", FRAMES[30:])
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    frames = list(read_frames(path))
    assert len(frames) == count_frames(path) >= len(FRAMES) - 1
    assert is_close(frames[-1], FRAMES[-1])
    for index in (3, 24, 32, 38, 50):
        np.testing.assert_array_equal(read_clip(path, [index])[0], frames[index])


def test_the_times_of_frames_decide_about_the_rate(tmp_path):
    """Browsers write WebM without a rate, from which FFmpeg guesses a far too high one."""
    times = np.random.default_rng(1).integers(40, 100, len(FRAMES)).cumsum().tolist()
    path = write_video(tmp_path / "browser.webm", FRAMES, codec="libvpx", options={}, times=times)
    expected = (len(FRAMES) - 1) / (times[-1] - times[0]) * 1000
    assert read_info(path).fps == pytest.approx(expected, rel=0.01)
    found = []
    read_chosen(path, lambda num_frames, fps: found.append(fps) or [0])
    assert found == [pytest.approx(expected, rel=0.01)]


@pytest.mark.parametrize("fps", [1 / 3600, 1 / 15, 0.7, 29.97, 240.0])
def test_a_video_is_written_at_any_rate(fps, tmp_path):
    path = tmp_path / "overlay.mp4"
    with VideoWriter(path, fps=fps) as writer:
        for frame in FRAMES[:5]:
            writer.write(frame)
    # Below one frame a second, a whole number of seconds lies between two.
    assert read_info(path).fps == pytest.approx(fps, rel=0.5 if 0.1 < fps < 1 else 0.001)
    assert len(list(read_frames(path))) == 5


def test_names_that_look_like_protocols_are_names(h264, tmp_path, monkeypatch):
    (tmp_path / "http:video.mp4").write_bytes(h264.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert is_close(next(read_frames(Path("http:video.mp4"))), FRAMES[0])


def test_a_file_cut_in_half_gives_its_whole_frames_and_then_says_so(h264, tmp_path):
    path = cut(tmp_path / "half.mp4", h264)
    frames, error = read_until_error(path)
    assert 10 < len(frames) < 50
    assert f"{path} breaks off after {len(frames)} frames" in str(error)
    # The last ones lean on a frame that is not there.
    for frame, expected in zip(frames[:-3], read_frames(h264), strict=False):
        np.testing.assert_array_equal(frame, expected)
    with pytest.raises(VideoError, match="breaks off after"):
        read_clip(path, [0])


@pytest.mark.parametrize("name", ["h264.mkv", "fragments.mp4", "mpeg4.avi", "vp9.webm"])
def test_other_containers_cut_in_half_say_so(name, tmp_path):
    path = cut(tmp_path / name, write_video(tmp_path / f"whole-{name}", FRAMES, **KINDS[name]))
    with pytest.raises(VideoError, match="breaks off after"):
        list(read_frames(path))
    with pytest.raises(VideoError, match="breaks off after"):
        read_clip(path, [0])


@pytest.mark.parametrize("seed", range(12))
def test_damaged_bytes_raise_nothing_but_video_errors(seed, h264, tmp_path):
    rng = np.random.default_rng(seed)
    content = np.frombuffer(h264.read_bytes(), np.uint8).copy()
    places = rng.integers(0, len(content), 40)
    content[places] = rng.integers(0, 256, 40)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content.tobytes())
    frames, _ = read_until_error(path)
    assert len(frames) <= len(FRAMES)
    try:
        read_clip(path, [5, 30])
    except VideoError as error:
        assert str(path) in str(error)


def make_empty(path):
    path.touch()


def make_text(path):
    path.write_text("This is no video. " * 100)


def make_playlist(path):
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://192.0.2.1/video.ts\n")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.mp4", lambda path: None, "does not exist"),
        ("empty.mp4", make_empty, "is empty"),
        ("text.mp4", make_text, "cannot be read as a video"),
        ("playlist.m3u8", make_playlist, "cannot be read as a video"),
        ("sound.mp4", write_sound, "holds no pictures"),
        ("folder", Path.mkdir, "holds no image"),
    ],
)
def test_what_is_no_video_is_told_in_one_sentence(name, make, message, tmp_path):
    path = tmp_path / name
    make(path)
    for read in (read_info, lambda path: list(read_frames(path)), lambda p: read_clip(p, [0])):
        with pytest.raises(VideoError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
    ],
)
def test_a_playlist_is_not_followed_whatever_its_name(text, tmp_path):
    secret = write_video(tmp_path / "secret.ts", FRAMES[:4])
    playlist = tmp_path / "harmless.mp4"
    playlist.write_text(text.format(secret.name))
    for read in (read_info, lambda path: list(read_frames(path)), lambda p: read_clip(p, [0])):
        with pytest.raises(VideoError, match="cannot be read as a video"):
            read(playlist)


def test_a_song_with_a_cover_holds_no_pictures(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", rate=48000, layout="mono")
        cover = file.add_stream("png", width=32, height=32, pix_fmt="rgb24")
        cover.disposition = Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(FRAMES[0][:32, :32].copy(), format="rgb24")
        file.mux(cover.encode(image))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        file.mux(sound.encode(frame))
        file.mux(sound.encode(None))
    with pytest.raises(VideoError, match="holds no pictures"):
        next(read_frames(path))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 97)])
def test_written_frames_come_back(height, width, tmp_path):
    frames = moving_frames(20, height=height, width=width)
    path = tmp_path / "out.mp4"
    with VideoWriter(path, fps=12.5) as writer:
        for frame in frames:
            writer.write(frame)
        assert not path.exists()
    assert names_in(tmp_path) == ["out.mp4"]
    assert read_info(path) == VideoInfo(20, 12.5, height + height % 2, width + width % 2)
    for frame, expected in zip(read_frames(path), frames, strict=True):
        assert is_close(frame[:height, :width], expected)
        np.testing.assert_allclose(frame[height:], frame[height - 1 : height][: height % 2], atol=8)


def test_what_is_written_plays_in_a_browser_in_true_colours(tmp_path):
    path = tmp_path / "out.mp4"
    colours = [(220, 30, 30), (30, 200, 40), (30, 40, 210), (240, 240, 240), (10, 10, 10)]
    frame = np.repeat(np.array(colours, np.uint8), 32, axis=0)[None].repeat(64, axis=0)
    with VideoWriter(path, fps=30000 / 1001) as writer:
        writer.write(frame)
    with VideoFile(path) as file:
        context = file.stream.codec_context
        assert (context.codec.canonical_name, context.pix_fmt) == ("h264", "yuv420p")
        assert context.colorspace == context.color_primaries == context.color_trc == 1
        assert file.stream.average_rate == Fraction(30000, 1001)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    inside = np.s_[:, 8::32]  # away from the edges between colours
    np.testing.assert_allclose(next(read_frames(path))[inside], frame[inside], atol=4)


def test_a_writer_that_is_interrupted_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"the old result")
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, fps=25.0) as writer:
        writer.write(FRAMES[0])
        raise KeyboardInterrupt
    assert path.read_bytes() == b"the old result"
    assert names_in(tmp_path) == ["out.mp4"]


def test_a_writer_says_why_it_cannot_write(tmp_path):
    with (
        pytest.raises(OutputError, match=r"the folder .*missing does not exist"),
        VideoWriter(tmp_path / "missing" / "out.mp4", fps=25.0),
    ):
        pass
    with pytest.raises(OutputError, match="no frame"), VideoWriter(tmp_path / "a.mp4", fps=25.0):
        pass
    with (
        pytest.raises(OutputError, match=r"frame 1 has the shape \(32, 96, 3\)"),
        VideoWriter(tmp_path / "a.mp4", fps=25.0) as writer,
    ):
        writer.write(FRAMES[0])
        writer.write(FRAMES[1][:32])
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OutputError, match="frames per second"):
            VideoWriter(tmp_path / "a.mp4", fps=fps)
    assert names_in(tmp_path) == []


@pytest.mark.real
def test_real_clips_are_exact(shared_data):
    paths = sorted((shared_data / "videos" / "permissive").glob("*.mp4"))[::30]
    rng = np.random.default_rng(0)
    for path in paths:
        frames = list(read_frames(path))
        assert len(frames) == read_info(path).num_frames
        indices = rng.integers(0, len(frames), 6).tolist()
        np.testing.assert_array_equal(
            read_clip(path, indices), np.stack([frames[index] for index in indices])
        )


def test_the_same_frames_give_the_same_file(tmp_path):
    """So that training on generated video repeats itself."""
    clip = generate_clip(1, num_frames=16, height=128, width=160)
    path = tmp_path / "video.mp4"
    found = set()
    for _ in range(10):
        with VideoWriter(path, fps=8.0) as writer:
            for frame in clip.frames:
                writer.write(frame)
        found.add(path.read_bytes())
    assert len(found) == 1


# In the background


def test_items_come_in_order():
    assert list(in_background(iter(range(50)))) == list(range(50))


def test_only_a_few_are_made_ahead():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    results = in_background(items(), ahead=3)
    assert next(results) == 0
    time.sleep(0.3)
    assert len(made) <= 6  # one was taken, three wait, one is being put
    results.close()


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("broken")

    results = in_background(items())
    assert next(results) == 1
    with pytest.raises(ValueError, match="broken"):
        next(results)


def test_the_thread_ends_when_the_result_is_closed():
    before = threading.active_count()
    results = in_background(iter(range(10_000)))
    next(results)
    assert threading.active_count() == before + 1
    results.close()
    assert threading.active_count() == before


def test_closing_reaches_through_threads_behind_threads():
    """The source is closed by the thread that reads it, and no thread is left."""
    closed = []

    def source():
        try:
            yield from range(10_000)
        finally:
            closed.append(threading.current_thread())

    before = threading.active_count()
    results = in_background(item for item in in_background(source()))
    next(results)
    results.close()
    assert threading.active_count() == before
    assert len(closed) == 1
    assert closed[0] is not threading.current_thread()
