"""Indexed PNGs: palette, round trip, the rule for 255, and every file that is refused."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ino.data.label_maps import (
    davis_palette,
    describe_objects,
    is_whole_png,
    labels_from_colors,
    read_labels,
    read_mask,
    read_raw_labels,
    resolve_void,
    write_labels,
)
from ino.errors import MaskError, OutputError


def save(path, values, *, dtype=np.uint8, file_format="PNG"):
    Image.fromarray(np.array(values, dtype=dtype)).save(path, format=file_format)
    return path


def test_palette_is_that_of_davis():
    palette = davis_palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128)}
    known |= {7: (128, 128, 128), 8: (64, 0, 0), 21: (128, 64, 128), 255: (224, 224, 192)}
    for label, color in known.items():
        assert tuple(palette[label]) == color
    assert len(np.unique(palette, axis=0)) == 256


@pytest.mark.real
def test_palette_is_the_one_of_the_official_files(shared_data):
    path = shared_data / "first-frames" / "Annotations" / "480p" / "gold-fish" / "00000.png"
    with Image.open(path) as image:
        stored = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(davis_palette()[: len(stored)], stored)
    assert set(np.unique(read_labels(path))) == {0, 1, 2, 3, 4, 5}


@settings(max_examples=30, deadline=None)
@given(labels=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_round_trip(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("labels") / "mask.png"
    write_labels(path, labels)
    np.testing.assert_array_equal(read_raw_labels(path), labels)
    np.testing.assert_array_equal(read_labels(path), resolve_void(labels))
    with Image.open(path) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), davis_palette()[labels])
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[0, 255], [255, 0]], [[0, 1], [1, 0]]),
        ([[255, 255]], [[1, 1]]),
        ([[0, 1, 255]], [[0, 1, 255]]),
        ([[3, 255]], [[3, 255]]),
        ([[0, 0]], [[0, 0]]),
        ([[0, 254]], [[0, 254]]),
    ],
)
def test_255_is_void_beside_objects_and_the_object_alone(tmp_path, labels, expected):
    labels = np.array(labels, dtype=np.uint8)
    before = labels.copy()
    assert resolve_void(labels).tolist() == expected
    np.testing.assert_array_equal(labels, before)
    assert read_labels(save(tmp_path / "mask.png", labels)).tolist() == expected


def test_grey_and_bilevel_and_16_bit_files_are_read(tmp_path):
    assert read_labels(save(tmp_path / "grey.png", [[0, 7]])).tolist() == [[0, 7]]
    assert read_labels(save(tmp_path / "bits.png", [[0, 1]], dtype=bool)).tolist() == [[0, 1]]
    wide = save(tmp_path / "wide.png", [[0, 7]], dtype=np.uint16)
    assert read_labels(wide).tolist() == [[0, 7]]
    assert read_labels(wide).dtype == np.uint8


def test_more_than_254_objects_are_refused(tmp_path):
    path = save(tmp_path / "mask.png", [[0, 300]], dtype=np.uint16)
    with pytest.raises(MaskError, match="values up to 300, but a mask has at most 254 objects"):
        read_labels(path)


@pytest.mark.parametrize("channels", [3, 4, 2])
def test_images_with_channels_are_refused(tmp_path, channels):
    path = save(tmp_path / "colour.png", np.full((4, 5, channels), 17))
    with pytest.raises(
        MaskError, match=r"of mode (RGB|RGBA|LA), .* save it as an indexed PNG"
    ) as e:
        read_labels(path)
    assert "palette (" not in str(e.value)


def test_a_colour_image_in_davis_colours_is_told_so(tmp_path):
    labels = np.array([[0, 1, 5], [200, 255, 1]], dtype=np.uint8)
    path = save(tmp_path / "colour.png", davis_palette()[labels])
    with pytest.raises(MaskError, match=r"objects: 1, 5, 200, 255\), so write_labels"):
        read_labels(path)
    np.testing.assert_array_equal(labels_from_colors(davis_palette()[labels]), labels)


def test_labels_of_all_colours():
    every = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(labels_from_colors(davis_palette()[every]), every)
    with pytest.raises(MaskError, match=r"\(255, 255, 255\) is not in the DAVIS palette"):
        labels_from_colors(np.full((1, 1, 3), 255, dtype=np.uint8))


def test_files_that_are_no_png_are_refused(tmp_path):
    with pytest.raises(MaskError, match="is not a file"):
        read_labels(tmp_path / "absent.png")
    with pytest.raises(MaskError, match="is not a file"):
        read_labels(tmp_path)
    garbage = tmp_path / "garbage.png"
    garbage.write_bytes(b"no image at all")
    with pytest.raises(MaskError, match="is not an image, but a mask is a PNG"):
        read_labels(garbage)
    (tmp_path / "empty.png").touch()
    with pytest.raises(MaskError, match="is not an image"):
        read_labels(tmp_path / "empty.png")
    with pytest.raises(MaskError, match="is a JPEG image, but a mask is a PNG"):
        read_labels(save(tmp_path / "photo.png", np.zeros((8, 8)), file_format="JPEG"))


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path, fraction):
    path = tmp_path / "mask.png"
    write_labels(path, np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(MaskError, match=r"mask\.png is (broken|not an image)"):
        read_labels(path)


def test_a_broken_chunk_and_a_bomb_of_text_are_refused(tmp_path):
    # Pillow reports these two as a SyntaxError and a ValueError.
    path = tmp_path / "mask.png"
    write_labels(path, np.random.default_rng(0).integers(0, 255, (400, 400), dtype=np.uint8))
    name = b"IDAT"
    head, first, second, *rest = path.read_bytes().split(name)
    path.write_bytes(name.join([head, first]) + b"\xf4\x01kN" + name.join([second, *rest]))
    with pytest.raises(MaskError, match=r"is broken \(broken PNG file"):
        read_labels(path)
    comment = PngInfo()
    comment.add_text("comment", "a" * 3_000_000, zip=True)
    Image.fromarray(np.ones((4, 4), dtype=np.uint8)).save(path, pnginfo=comment)
    with pytest.raises(MaskError, match="is broken"):
        read_labels(path)


def test_flipped_bytes_are_refused_or_read_but_never_another_error(tmp_path):
    path = tmp_path / "mask.png"
    rng = np.random.default_rng(1)
    write_labels(path, rng.integers(0, 255, (20, 20), dtype=np.uint8))
    whole = path.read_bytes()
    num_refused = 0
    for position in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[position] ^= 1 + int(rng.integers(255))
        path.write_bytes(broken)
        try:
            assert read_raw_labels(path).dtype == np.uint8
        except MaskError:
            num_refused += 1
    assert num_refused > 10


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((3, 3), 256), "numbers from 256 to 256"),
        (np.full((3, 3), -1), "numbers from -1 to -1"),
        (np.zeros((3, 3), dtype=float), "must be uint8 height x width"),
        (np.zeros((3, 3, 3), dtype=np.uint8), "must be uint8 height x width"),
        (np.zeros((0, 3), dtype=np.uint8), "a label map has pixels"),
    ],
)
def test_only_label_maps_are_written(tmp_path, labels, message):
    with pytest.raises(MaskError, match=message):
        write_labels(tmp_path / "mask.png", labels)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(OutputError, match="absent does not exist"):
        write_labels(tmp_path / "absent" / "mask.png", np.zeros((2, 2), dtype=np.uint8))


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "mask.png"
    write_labels(path, np.ones((2, 2), dtype=np.uint8))

    def full_disk(self, file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OutputError, match=r"mask\.png: No space left"):
        write_labels(path, np.zeros((2, 2), dtype=np.uint8))
    assert read_labels(path).tolist() == [[1, 1], [1, 1]]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_whole_is_noticed_without_decoding(tmp_path):
    """Cut at each byte, and with each byte changed."""
    path = tmp_path / "mask.png"
    write_labels(path, (np.arange(48).reshape(6, 8) % 5).astype(np.uint8))
    whole = path.read_bytes()
    assert is_whole_png(path, size=(6, 8))
    assert not is_whole_png(path, size=(8, 6))
    assert not is_whole_png(tmp_path / "absent.png", size=(6, 8))
    assert not is_whole_png(tmp_path, size=(6, 8))
    for place in range(len(whole) - 12):  # the last 12 bytes mark the end and hold no pixel
        for damaged in (
            whole[:place],
            whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        ):
            path.write_bytes(damaged)
            assert not is_whole_png(path, size=(6, 8)), place


def disk(height: int = 40, width: int = 60) -> np.ndarray:
    """How much of each pixel a disk covers, 0 to 1."""
    y, x = np.mgrid[:height, :width]
    return np.clip(12.5 - np.hypot(y - 20, x - 30), 0, 1)


@pytest.mark.parametrize("depth", [2, 4])
def test_grey_of_few_bits_is_read_as_stored(depth, tmp_path):
    labels = np.random.default_rng(0).integers(0, 2**depth, (6, 8)).astype(np.uint8)
    rows = [b"\0" + np.packbits(
        np.unpackbits(row[:, None], axis=1)[:, 8 - depth :].ravel()
    ).tobytes() for row in labels]  # fmt: skip
    header = struct.pack(">IIBBBBB", 8, 6, depth, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + check
    (tmp_path / "0.png").write_bytes(content)
    np.testing.assert_array_equal(read_raw_labels(tmp_path / "0.png"), labels)


def test_a_palette_in_another_order_keeps_black_as_background(tmp_path, caplog):
    labels = np.zeros((40, 60), np.uint8)
    labels[5:15, 5:15], labels[20:30, 20:40] = 1, 2
    image = Image.fromarray(davis_palette()[labels]).quantize(3)
    image.save(tmp_path / "0.png")
    assert image.getpixel((0, 0)) != 0  # Pillow sorts palettes by brightness
    np.testing.assert_array_equal(read_mask(tmp_path / "0.png"), labels)
    assert "(128, 0, 0) is object 1 (100 pixels)" in caplog.text


def test_a_usual_palette_is_read_by_its_indices(tmp_path, caplog):
    labels = np.zeros((40, 60), np.uint8)
    labels[5:15, 5:15], labels[20:30, 20:40] = 3, 7
    write_labels(tmp_path / "0.png", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "0.png"), labels)
    assert not caplog.text
    assert describe_objects(labels) == "object 3 (100 pixels, 4.2%), object 7 (200 pixels, 8.3%)"
    named = "object 3 (100 pixels, 4.2%), object 7 dog (200 pixels, 8.3%)"
    assert describe_objects(labels, {7: "dog"}) == named


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_drawing_of_one_color_is_one_object(mode, tmp_path):
    mask = disk() == 1
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    drawing = image.convert(mode)
    if mode != "RGB":  # on a white ground that is not seen
        drawing = Image.new(mode, image.size, (255,) * len(mode))
        drawing.putalpha(image)
    drawing.save(tmp_path / "0.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "0.png"), mask)


def test_colors_of_no_palette_are_numbered(tmp_path, caplog):
    colors = np.zeros((40, 60, 3), np.uint8)
    colors[5:15, 5:15], colors[20:30, 20:40] = (255, 200, 0), (0, 255, 10)
    Image.fromarray(colors).save(tmp_path / "0.png")
    labels = read_mask(tmp_path / "0.png")
    assert labels[6, 6] == 2 and labels[22, 22] == 1 and labels[0, 0] == 0
    assert "(0, 255, 10) is object 1 (200 pixels)" in caplog.text


def test_drawings_that_leave_a_doubt_are_refused(tmp_path):
    path = tmp_path / "0.png"
    Image.fromarray(np.rint(disk() * 255).astype(np.uint8)).resize((240, 160)).save(path)
    with pytest.raises(MaskError, match="soft edges"):
        read_mask(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
    with pytest.raises(MaskError, match="one color for each object"):
        read_mask(path)
    Image.new("RGB", (60, 40), (255, 255, 255)).save(path)
    with pytest.raises(MaskError, match="no black or transparent background"):
        read_mask(path)


def test_soft_edges_are_named(tmp_path, caplog):
    labels = np.where(disk() == 1, 1, np.where(disk() > 0, 64, 0)).astype(np.uint8)
    write_labels(tmp_path / "0.png", labels)
    read_mask(tmp_path / "0.png")
    assert f"64 ({(labels == 64).sum()} pixels)" in caplog.text


def test_a_small_object_alone_is_no_edge(tmp_path, caplog):
    labels = (disk() == 1).astype(np.uint8)
    labels[2, 2:5] = 2
    write_labels(tmp_path / "0.png", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "0.png"), labels)
    assert not caplog.text


@pytest.mark.parametrize("opacity", [255, 120])
def test_soft_transparency_is_cut_at_the_middle_and_told(opacity, tmp_path, caplog):
    alpha = cv2.GaussianBlur((disk() == 1).astype(np.uint8) * opacity, (0, 0), 1.5)
    drawing = np.dstack([np.full((*alpha.shape, 3), (255, 0, 0), np.uint8), alpha])
    Image.fromarray(drawing).save(tmp_path / "0.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "0.png"), alpha >= opacity / 2)
    assert "what is transparent is background" in caplog.text
    assert "pixels are half transparent" in caplog.text


def test_black_on_a_transparent_ground_is_refused(tmp_path):
    mask = disk() == 1
    drawing = np.dstack([np.zeros((*mask.shape, 3), np.uint8), mask.astype(np.uint8) * 255])
    Image.fromarray(drawing).save(tmp_path / "0.png")
    with pytest.raises(MaskError, match="both transparent and black pixels"):
        read_mask(tmp_path / "0.png")


def test_void_is_told_beside_the_objects():
    assert describe_objects(np.array([[0, 128], [255, 255]], np.uint8)) == (
        "object 128 (1 pixels, 25.0%), void (2 pixels of value 255, which belong to no object)"
    )
