"""Resized boxes against Pillow, color changes against torchvision; no image affects another."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from ino.kernels.crops import (
    PLAIN,
    Changes,
    Photometric,
    bicubic_weights,
    change_colors,
    resize_boxes,
    resize_by_products,
    resize_one_by_one,
    sample_changes,
)

WAYS = [resize_one_by_one, resize_by_products]
HEIGHT, WIDTH = 60, 80


@pytest.fixture
def frame() -> np.ndarray:
    """Waves, an edge and a corner of noise, from 0 to 255."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    channels = [rows * 4, columns * 3, 128 + 100 * np.sin(rows / 5 + columns / 3)]
    picture = np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)
    picture[20:40, 30:50] = (250, 10, 90)
    picture[:16, :16] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    return picture


def pillow_square(frame: np.ndarray, box: tuple[int, ...], *, size: int) -> np.ndarray:
    """The box resized along rows, then along columns, as Pillow does at once before its version 13.

    From 13 on it takes tall boxes along their columns first.
    """
    top, left, height, width = box
    picture = Image.fromarray(frame).crop((left, top, left + width, top + height))
    picture = picture.resize((size, height), Image.Resampling.BICUBIC)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture).transpose(2, 0, 1).astype(np.float32)


def squares_of(way, frame: np.ndarray, boxes: list[tuple[int, ...]], *, size: int, flips=None):
    """A square for each box of one frame."""
    drawn = np.array(boxes).reshape(1, -1, 1, 4)
    flips = np.zeros(len(boxes), bool) if flips is None else flips
    clip = torch.from_numpy(frame)[None]
    return way([clip], drawn, flips.reshape(1, -1, 1), size=size)[0, :, 0]


def random_boxes(num_boxes: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(1)
    heights, widths = rng.integers(1, HEIGHT + 1, num_boxes), rng.integers(1, WIDTH + 1, num_boxes)
    tops = rng.integers(HEIGHT - heights + 1)
    lefts = rng.integers(WIDTH - widths + 1)
    return np.stack([tops, lefts, heights, widths], axis=-1).tolist()


EDGES = [
    (0, 0, HEIGHT, WIDTH),
    (0, 0, 1, 1),
    (HEIGHT - 1, WIDTH - 1, 1, 1),
    (7, 9, 1, 40),
    (0, WIDTH - 1, HEIGHT, 1),
    (44, 64, 16, 16),
    (0, 0, 16, 16),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [2, 7, 16, 96])
def test_squares_are_pillow_s(way, frame, size):
    boxes = EDGES + random_boxes(60)
    found = squares_of(way, frame, boxes, size=size)
    expected = np.stack([pillow_square(frame, box, size=size) for box in boxes])
    difference = np.abs(found.numpy() - expected)
    assert torch.equal(found, found.round())
    # torch rounds its weights to 16 bits: two levels in a pixel of ten thousand, where it enlarges.
    assert difference.max() <= (2 if way is resize_one_by_one else 1)
    assert (difference > 1).mean() < 1e-4
    assert (difference > 0).mean() < 0.02


def test_portrait_frames(frame):
    portrait = np.ascontiguousarray(frame.transpose(1, 0, 2))
    boxes = [(left, top, width, height) for top, left, height, width in random_boxes(20)]
    expected = np.stack([pillow_square(portrait, box, size=16) for box in boxes])
    for way in WAYS:
        found = squares_of(way, portrait, boxes, size=16)
        assert np.abs(found.numpy() - expected).max() <= 1


@pytest.mark.parametrize("way", WAYS)
def test_flipped_squares_are_mirrored(way, frame):
    boxes = random_boxes(12)
    flips = np.arange(12) % 3 == 0
    plain = squares_of(way, frame, boxes, size=16)
    found = squares_of(way, frame, boxes, size=16, flips=flips)
    for index, flip in enumerate(flips):
        assert torch.equal(found[index], plain[index].flip(-1) if flip else plain[index])


@pytest.mark.parametrize("way", WAYS)
def test_each_box_is_of_its_own_frame(way, frame):
    """Many clips of different sizes at once are as one box at a time."""
    rng = np.random.default_rng(0)
    sizes = [(60, 80), (80, 60), (50, 50)]
    clips = [
        torch.from_numpy(rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8))
        for height, width in sizes
    ]
    boxes = rng.integers(5, 25, (2, 4, 3, 4))
    flips = rng.random((2, 4, 3)) < 0.5
    found = way(clips, boxes, flips, size=12)
    assert found.shape == (2, 4, 3, 3, 12, 12)
    for time, crop, clip in np.ndindex(2, 4, 3):
        place = (slice(time, time + 1), slice(crop, crop + 1), slice(clip, clip + 1))
        alone = way([clips[clip][time : time + 1]], boxes[place], flips[place], size=12)
        assert torch.equal(found[time, crop, clip], alone[0, 0, 0])


def test_parts_change_nothing(frame, monkeypatch):
    boxes = np.array(random_boxes(12)).reshape(4, 3, 1, 4)
    clips = [torch.from_numpy(frame).expand(4, -1, -1, -1)]
    flips = np.zeros((4, 3, 1), bool)
    whole = resize_by_products(clips, boxes, flips, size=16)
    monkeypatch.setattr("ino.kernels.crops._MAX_BYTES", 1)
    assert torch.equal(resize_by_products(clips, boxes, flips, size=16), whole)


def test_a_cpu_goes_one_by_one(frame):
    boxes = random_boxes(5)
    one_by_one = squares_of(resize_one_by_one, frame, boxes, size=16)
    assert torch.equal(squares_of(resize_boxes, frame, boxes, size=16), one_by_one)


@pytest.mark.gpu
def test_products_on_a_gpu(frame):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    boxes = np.array(EDGES + random_boxes(13)).reshape(4, 5, 1, 4)
    clip = torch.from_numpy(frame).expand(4, -1, -1, -1)
    flips = np.arange(20).reshape(4, 5, 1) % 2 == 0
    expected = resize_by_products([clip], boxes, flips, size=16)
    found = resize_boxes([clip.cuda()], boxes, flips, size=16).cpu()
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-3


def test_weights_by_hand():
    """Four pixels made two: each a mean of four, under a cubic (a = -1/2) of twice the width."""
    start, extent, flip = torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([0.0])
    weights = bicubic_weights(start, extent, flip, num_pixels=6, size=2)[0]
    # Distances in units of two pixels: 0.25, 0.25, 0.75, 1.25 from the first target's center.
    near, middle, far = 0.8671875, 0.2265625, -0.0703125
    row = torch.tensor([0, near, near, middle, far, 0])
    torch.testing.assert_close(weights[0], row / row.sum())
    torch.testing.assert_close(weights[1], weights[0].flip(0))
    mirrored = bicubic_weights(start, extent, flip + 1, num_pixels=6, size=2)[0]
    assert torch.equal(mirrored, weights.flip(0))


# Colors


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
