import numpy as np
import pytest

from ino.propagate.labels import resize_mask, restore_mask


def test_masks_of_the_input_s_size_stay_as_they_are():
    mask = np.arange(42, dtype=np.uint8).reshape(6, 7)
    np.testing.assert_array_equal(resize_mask(mask, whole=(6, 7), size=(6, 7)), mask)
    np.testing.assert_array_equal(restore_mask(mask, whole=(6, 7), size=(6, 7)), mask)


def test_a_cropped_mask_comes_back_with_repeated_edges():
    """Two rows at the bottom; of five columns, two at the left and three at the right."""
    mask = np.arange(42, dtype=np.uint8).reshape(6, 7)
    cropped = resize_mask(mask, whole=(6, 7), size=(4, 2))
    np.testing.assert_array_equal(cropped, mask[:4, :2])
    restored = restore_mask(cropped, whole=(6, 7), size=(6, 7))
    rows = [0, 7, 14, 21, 21, 21]
    expected = [[row, row, row, row + 1, row + 1, row + 1, row + 1] for row in rows]
    assert restored.tolist() == expected


def test_a_davis_frame_of_corrflow_gets_three_columns_on_each_side():
    cropped = np.arange(848, dtype=np.uint16).astype(np.uint8)[None].repeat(480, axis=0)
    restored = restore_mask(cropped, whole=(480, 854), size=(480, 854))
    np.testing.assert_array_equal(restored[:, 3:-3], cropped)


@pytest.mark.parametrize("factor", [2, 3])
def test_an_enlarged_mask_returns_to_the_video_s_size(factor):
    mask = np.random.default_rng(0).integers(0, 5, (6, 7), dtype=np.uint8)
    whole = (6 * factor, 7 * factor)
    large = resize_mask(mask, whole=whole, size=whole)
    np.testing.assert_array_equal(large, np.kron(mask, np.ones((factor, factor), np.uint8)))
    np.testing.assert_array_equal(restore_mask(large, whole=whole, size=(6, 7)), mask)
