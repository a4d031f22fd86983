"""Labels over frames: tinted, outlined, and nothing else touched."""

import numpy as np
import pytest

from ino.data.label_maps import davis_palette
from ino.errors import ConfigError, MaskError
from ino.overlay import draw_overlay


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def labels():
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[5:20, 10:30] = 1
    labels[10:14, 15:20] = 0  # a hole
    labels[25:35, 30:50] = 7
    labels[:, 55:] = 255
    return labels


def test_objects_are_tinted_and_outlined(frame, labels):
    before = frame.copy()
    result = draw_overlay(frame, labels, opacity=0.25)
    palette = davis_palette()
    np.testing.assert_array_equal(frame, before)
    expected = np.rint(0.75 * frame[30, 40] + 0.25 * palette[7])
    np.testing.assert_array_equal(result[30, 40], expected)
    for label, row, column in ((7, 25, 30), (7, 34, 40), (1, 5, 10), (1, 9, 16)):
        np.testing.assert_array_equal(result[row, column], palette[label])


def test_background_and_void_are_untouched(frame, labels):
    result = draw_overlay(frame, labels)
    untouched = (labels == 0) | (labels == 255)
    # The inner outline of a hole lies on the object; OpenCV draws it there, too.
    np.testing.assert_array_equal(result[untouched], frame[untouched])


def test_opacity_from_outline_to_flat_color(frame, labels):
    outlined = draw_overlay(frame, labels, opacity=0.0)
    np.testing.assert_array_equal(outlined[30, 40], frame[30, 40])
    np.testing.assert_array_equal(outlined[25, 40], davis_palette()[7])
    flat = draw_overlay(frame, labels, opacity=1.0)
    assert (flat[labels == 1] == davis_palette()[1]).all()


def test_no_object_leaves_the_frame(frame):
    result = draw_overlay(frame, np.zeros((40, 60), dtype=np.uint8))
    np.testing.assert_array_equal(result, frame)
    assert not np.shares_memory(result, frame)


@pytest.mark.parametrize("labels", [np.zeros((40, 59), np.uint8), np.zeros((40, 60), np.float32)])
def test_labels_of_another_size_or_type_are_refused(frame, labels):
    with pytest.raises(MaskError, match=r"labels must be 40x60|must be uint8 height"):
        draw_overlay(frame, labels)


def test_opacity_out_of_range_is_refused(frame, labels):
    with pytest.raises(ConfigError, match=r"opacity of an overlay must be 0 to 1, but is 1\.5"):
        draw_overlay(frame, labels, opacity=1.5)


def test_a_caption_is_written_at_the_bottom_left():
    frame, labels = np.full((120, 160, 3), 90, np.uint8), np.zeros((120, 160), np.uint8)
    np.testing.assert_array_equal(draw_overlay(frame, labels), frame)
    rows, columns = np.nonzero((draw_overlay(frame, labels, caption="00007") != 90).any(axis=-1))
    assert len(rows) and rows.min() > 90 and columns.max() < 80
