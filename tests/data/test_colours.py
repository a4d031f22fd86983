"""Colour changes against torchvision and against what they say; images do not touch each other."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from ino.kernels.crops import PLAIN, Changes, Photometric, change_colors, sample_changes

ALL = Photometric(jitter=0.8, hue=0.5, brightness=1.5, grey=0.3, blur=0.5)


@pytest.fixture
def levels() -> torch.Tensor:
    """Noise, waves, greys, equal channels, pure colours, black and white; 0..255."""
    torch.manual_seed(0)
    images = 255 * torch.rand(12, 3, 20, 24)
    rows = torch.arange(20.0)[:, None]
    images[1:4] = 127.5 + 127.5 * torch.sin(rows / 5 + torch.arange(72).view(3, 1, 24) / 7)
    images[4] = images[4, :1]
    images[5, 0] = images[5, 1]
    images[6, 2] = images[6, 0]
    images[7] = 255 * torch.randint(2, (3, 20, 24))
    images[8:10] = torch.tensor([0.0, 255.0])[:, None, None, None]
    return images


def expected(image: torch.Tensor, changes: Changes, index: int) -> torch.Tensor:
    """One image by torchvision, operation by operation."""
    image = image / 255
    operations = [
        lambda x: reference.adjust_brightness(x, changes.factors[index, 0]),
        lambda x: reference.adjust_contrast(x, changes.factors[index, 1]),
        lambda x: reference.adjust_saturation(x, changes.factors[index, 2]),
        lambda x: reference.adjust_hue(x, changes.hue[index]),
    ]
    if changes.jittered[index]:
        for operation in changes.order[index]:
            image = operations[operation](image)
    if changes.grey[index]:
        image = reference.rgb_to_grayscale(image, 3)
    if changes.sigma[index]:
        image = reference.gaussian_blur(image, [13, 13], [changes.sigma[index]] * 2)
    return image * 255


@pytest.mark.parametrize("seed", range(4))
def test_changes_are_torchvision_s(levels, seed, monkeypatch):
    """In each image's own order, whatever is done to the others."""
    # It weighs red by 0.2989, Pillow by 0.299.
    monkeypatch.setattr("ino.kernels.crops.GREY_WEIGHTS", (0.2989, 0.587, 0.114))
    changes = sample_changes(np.random.default_rng(seed), (12,), photometric=ALL)
    assert len({tuple(order) for order in changes.order}) > 6
    found = change_colors(levels.clone(), changes)
    for index, image in enumerate(levels):
        torch.testing.assert_close(
            found[index], expected(image, changes, index), atol=2e-3, rtol=0, msg=f"image {index}"
        )


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_one_change_alone(levels, name):
    strengths = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    photometric = dataclasses.replace(PLAIN, jitter=1.0, **(strengths | {name: 0.4}))
    changes = sample_changes(np.random.default_rng(1), (12,), photometric=photometric)
    found = change_colors(levels.clone(), changes)
    for index, image in enumerate(levels):
        wanted = expected(image, changes, index)
        torch.testing.assert_close(found[index], wanted, atol=0.03, rtol=0)  # 1e-4 of the range
    assert (found - levels).abs().amax((1, 2, 3))[0] > 1


def test_grey_is_pillow_s_and_keeps_white():
    levels = torch.tensor([[255.0, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    changes = sample_changes(
        np.random.default_rng(0), (4,), photometric=dataclasses.replace(PLAIN, grey=1.0)
    )
    found = change_colors(levels[..., None, None], changes)[..., 0, 0]
    luma = torch.tensor([255.0, 0.299 * 255, 0.587 * 255, 0.114 * 255])
    torch.testing.assert_close(found, luma[:, None].expand(-1, 3))


def test_an_image_does_not_depend_on_the_others(levels):
    shape = (3, 2, 2)
    changes = sample_changes(np.random.default_rng(0), shape, photometric=ALL)
    found = change_colors(levels.clone(), changes).view(*shape, 3, 20, 24)
    for place in np.ndindex(shape):
        one = tuple(slice(index, index + 1) for index in place)
        alone = change_colors(levels.view(*shape, 3, 20, 24)[place][None], changes.of(one))
        torch.testing.assert_close(alone[0], found[place], atol=1e-3, rtol=1e-6)


def test_nothing_changes_without_changes(levels):
    changes = sample_changes(np.random.default_rng(0), (12,), photometric=PLAIN)
    assert torch.equal(change_colors(levels.clone(), changes), levels)


def test_images_without_changes_keep_their_levels(levels):
    changes = sample_changes(np.random.default_rng(0), (12,), photometric=ALL)
    untouched = ~changes.jittered & ~changes.grey & (changes.sigma == 0)
    assert 0 < untouched.sum() < 12
    found = change_colors(levels.clone(), changes)
    assert torch.equal(found[untouched], levels[untouched])


def test_threads_change_nothing():
    levels = 255 * torch.rand(1, 3, 224, 224)  # torch would share the mean among threads
    changes = sample_changes(
        np.random.default_rng(0), (1,), photometric=Photometric(jitter=1.0, blur=1.0)
    )
    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        results.append(change_colors(levels.clone(), changes))
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_blur_of_small_images(size):
    photometric = dataclasses.replace(PLAIN, blur=1.0)
    changes = sample_changes(np.random.default_rng(0), (2,), photometric=photometric)
    flat = torch.full((2, 3, size, size + 1), 7.0)
    torch.testing.assert_close(change_colors(flat.clone(), changes), flat)


def test_draws_are_torchvision_s():
    """Shares, ranges and orders of many draws."""
    photometric = Photometric(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, blur=0.5)
    changes = sample_changes(np.random.default_rng(0), (100, 200), photometric=photometric)
    for drawn, share in (
        (changes.jittered, 0.8),
        (changes.grey, 0.2),
        (changes.sigma > 0, 0.5),
    ):
        assert drawn.mean() == pytest.approx(share, abs=0.02)
    ranges = [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2)]
    drawn = [*np.moveaxis(changes.factors, -1, 0), changes.hue, changes.sigma[changes.sigma > 0]]
    for values, (low, high) in zip(drawn, [*ranges, (-0.1, 0.1), (0.1, 2.0)], strict=True):
        assert low <= values.min() and values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    orders, counts = np.unique(changes.order.reshape(-1, 4), axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.abs(counts / 20000 - 1 / 24).max() < 0.006
