import numpy as np
import pytest
import torch

from ino.propagate.labels import (
    enlarge_channel,
    harden_labels,
    resize_mask,
    restore_mask,
    soften_labels,
    stretch_labels,
)


def one_hot(labels, ids):
    return torch.from_numpy(np.stack([labels == label for label in ids], axis=-1)).float()


def test_masks_are_reduced_as_in_the_released_code(golden):
    numbers = golden("prop_random")
    expected = torch.from_numpy(numbers["mask0_down"])[0].permute(1, 2, 0)
    first = soften_labels(numbers["gt0"], ids=[0, 1, 2], grid=(15, 20))
    late = soften_labels(numbers["gt5"], ids=[3], grid=(15, 20))
    torch.testing.assert_close(torch.cat([first, late], dim=-1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "normalize"), [("up_example", False), ("up_norm_example", True)])
def test_channels_are_enlarged_as_in_the_released_code(golden, name, normalize):
    """The golden example is every 7th pixel of the map after the first frame of r12_k5_two."""
    numbers = golden("prop_random")
    for soft, expected in zip(numbers["r12_k5_two_soft"][0], numbers[name], strict=True):
        enlarged = enlarge_channel(torch.from_numpy(soft), size=(120, 160), normalize=normalize)
        torch.testing.assert_close(
            enlarged[::7, ::7], torch.from_numpy(expected), rtol=0, atol=1e-6
        )


def test_ids_come_back_whatever_their_order():
    labels = np.array([[0, 0, 9], [9, 200, 200]], dtype=np.uint8)
    ids = [0, 200, 9]
    soft = one_hot(labels, ids)
    result = harden_labels(soft, ids=ids, stride=1, size=(2, 3), normalize=False)
    np.testing.assert_array_equal(result, labels)


def test_of_equal_channels_the_smallest_label_wins():
    soft = torch.full((2, 2, 3), 0.5)
    result = harden_labels(soft, ids=[7, 3, 5], stride=2, size=(4, 4), normalize=False)
    assert (result == 3).all()


def test_normalisation_lifts_a_weak_channel():
    """A channel of at most 0.4 beats 0.6 where it has its maximum and the other its minimum."""
    soft = torch.tensor([[[0.9, 0.1], [0.6, 0.4]]])
    plain = harden_labels(soft, ids=[0, 1], stride=8, size=(8, 16), normalize=False)
    stretched = harden_labels(soft, ids=[0, 1], stride=8, size=(8, 16), normalize=True)
    assert not plain.any()
    assert stretched[:, 12:].all()
    assert not stretched[:, :4].any()


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_an_object_that_fills_the_frame_stays(noise):
    """Stretching a constant channel would give 0/0, or the pattern of its rounding."""
    soft = torch.tensor([0.0, 1.0]).expand(4, 5, 2).clone()
    soft[1, 2, 1] -= noise
    result = harden_labels(soft, ids=[0, 6], stride=8, size=(33, 41), normalize=True)
    assert (result == 6).all()


def test_what_rounding_left_of_a_constant_is_not_stretched():
    soft = torch.tensor([1.0, 0.25]).expand(4, 5, 2).clone()
    soft[1, 2, 0] -= 1e-7
    assert stretch_labels(soft, over="grid").equal(soft)
    soft[1, 2, 1] += 0.01
    stretched = stretch_labels(soft, over="grid")
    assert stretched[..., 0].equal(soft[..., 0])
    assert stretched[..., 1].sum() == stretched[1, 2, 1] == 1


def test_254_objects():
    labels = (np.arange(15 * 17) % 255).reshape(15, 17).astype(np.uint8)
    ids = list(range(255))
    soft = soften_labels(labels, ids=ids, grid=(15, 17))
    result = harden_labels(soft, ids=ids, stride=1, size=(15, 17), normalize=False)
    np.testing.assert_array_equal(result, labels)


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


def test_nearest_or_most_keeps_what_nearest_loses_and_is_equal_elsewhere():
    labels = np.zeros((32, 32), dtype=np.uint8)
    labels[:16, :16] = 1  # four features of 8 x 8
    labels[17, 17:20] = 2
    labels[18, 21] = 3  # in the same feature, which is the only one of object 2
    ids = [0, 1, 2, 3]
    plain = soften_labels(labels, ids=ids, grid=(4, 4), method="nearest")
    kept = soften_labels(labels, ids=ids, grid=(4, 4), method="nearest-or-most")
    assert not plain[..., 2:].any()
    assert kept[..., 2].nonzero().tolist() == [[2, 2]]
    assert not kept[..., 3].any()
    np.testing.assert_array_equal(kept[..., 1], plain[..., 1])
    alone = np.where(labels == 1, labels, 0)
    nearest, most = (
        soften_labels(alone, ids=[0, 1], grid=(4, 4), method=method)
        for method in ("nearest", "nearest-or-most")
    )
    np.testing.assert_array_equal(nearest, most)
