"""Boxes as torchvision samples them, crops that repeat and keep their places."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from ino.data.clips import clip_generators
from ino.data.views import CropGeometry, make_crops, normalize, sample_boxes
from ino.kernels.crops import PLAIN, Photometric, resize_by_products

LOCAL = CropGeometry(size=16, scale=(0.05, 0.8))


@pytest.fixture
def frame():
    """A smooth picture with an edge, 60 x 80."""
    rows, columns = np.mgrid[:60, :80]
    channels = [rows * 4, columns * 3, 128 + 100 * np.sin(rows / 5 + columns / 3)]
    picture = np.stack(channels, axis=-1)
    picture[20:40, 30:50] = (250, 10, 90)
    return torch.from_numpy(picture.clip(0, 255).astype(np.uint8))


def boxes_of(height: int, width: int, *, num_boxes: int, geometry: CropGeometry) -> np.ndarray:
    heights, widths = np.full(num_boxes, height), np.full(num_boxes, width)
    rng = np.random.default_rng(0)
    return sample_boxes(rng, heights=heights, widths=widths, geometry=geometry)


def test_boxes_are_distributed_as_torchvision_s():
    ours = boxes_of(256, 340, num_boxes=3000, geometry=LOCAL)
    image = torch.empty(3, 256, 340)
    theirs = [
        RandomResizedCrop.get_params(image, scale=[0.05, 0.8], ratio=[3 / 4, 4 / 3])
        for _ in range(3000)
    ]
    quantiles = [0.1, 0.5, 0.9]
    found, expected = (np.quantile(boxes, quantiles, axis=0) for boxes in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=8)


@pytest.mark.parametrize(
    ("height", "width"), [(20, 400), (400, 20), (7, 7), (1, 1), (1, 50), (256, 340)]
)
@pytest.mark.parametrize("scale", [(0.8, 0.95), (0.001, 0.01)])
def test_boxes_stay_inside_frames_of_any_shape(height, width, scale):
    boxes = boxes_of(height, width, num_boxes=200, geometry=CropGeometry(size=32, scale=scale))
    tops, lefts, heights, widths = boxes.T
    assert heights.min() > 0 and tops.min() >= 0 and (tops + heights).max() <= height
    assert widths.min() > 0 and lefts.min() >= 0 and (lefts + widths).max() <= width


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(20, 400, (0, 186, 20, 27)), (400, 20, (186, 0, 27, 20))],
)
def test_where_no_box_fits_the_largest_in_the_middle_is_taken(height, width, expected):
    geometry = CropGeometry(size=32, scale=(0.8, 0.95))
    boxes = boxes_of(height, width, num_boxes=20, geometry=geometry)
    assert {tuple(box) for box in boxes.tolist()} == {expected}


def test_crops_repeat_with_their_seed_and_come_in_order(frame):
    clips = [frame.expand(4, -1, -1, -1), frame[:50].expand(4, -1, -1, -1)]

    def crop(seed):
        return make_crops(
            clips,
            geometry=LOCAL,
            photometric=Photometric(blur=0.5),
            num_crops=3,
            rng=clip_generators([seed], num_clips=len(clips)),
        )

    crops = crop(0)
    assert crops.shape == (4, 3, 2, 3, 16, 16)
    assert torch.equal(crops, crop(0))
    assert not torch.equal(crops, crop(1))


def test_each_clip_keeps_its_place():
    clips = [torch.full((2, 32, 32, 3), value, dtype=torch.uint8) for value in (0, 128, 255)]
    clips[0][1] = 64
    crops = make_crops(
        clips,
        geometry=LOCAL,
        photometric=PLAIN,
        num_crops=2,
        rng=clip_generators([0], num_clips=len(clips)),
    )
    for (time, index), level in np.ndenumerate([[0, 128, 255], [64, 128, 255]]):
        expected = normalize(torch.full((1, 3, 1, 1), float(level)))
        torch.testing.assert_close(crops[time, :, index], expected.expand(2, 3, 16, 16))


def test_crops_are_flipped_by_their_own_draw(frame):
    """Of a picture that grows brighter to the right, about half grow darker."""
    ramp = (torch.arange(80) * 3).to(torch.uint8).expand(4, 60, 80)[..., None].expand(-1, -1, -1, 3)
    crops = make_crops(
        [ramp],
        geometry=LOCAL,
        photometric=dataclasses.replace(PLAIN, flip=0.5),
        num_crops=50,
        rng=clip_generators([0], num_clips=1),
    )
    is_flipped = crops[..., 0] > crops[..., -1]
    assert 0.35 < is_flipped.float().mean() < 0.65


def test_normalized_by_imagenet_s_numbers():
    levels = torch.tensor([0.485, 0.456, 0.406])[:, None, None] * 255
    torch.testing.assert_close(normalize(levels[None].clone()), torch.zeros(1, 3, 1, 1))
    one_more = levels[None] + 255 * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(normalize(one_more), torch.ones(1, 3, 1, 1))


def crops_on(device: str, frame: torch.Tensor) -> torch.Tensor:
    clips = [frame.expand(4, -1, -1, -1), frame[:50].expand(4, -1, -1, -1)]
    return make_crops(
        [clip.to(device) for clip in clips],
        geometry=LOCAL,
        photometric=Photometric(blur=0.5),
        num_crops=3,
        rng=clip_generators([0], num_clips=len(clips)),
    )


def assert_close_in_levels(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Rarely a level before the colors, which changes of color may double or triple."""
    levels = (found - expected).abs() * 0.224 * 255
    assert levels.max() < 6
    assert levels.mean() < 0.03


def test_crops_by_products_are_the_same(frame, monkeypatch):
    expected = crops_on("cpu", frame)
    monkeypatch.setattr("ino.data.views.resize_boxes", resize_by_products)
    assert_close_in_levels(crops_on("cpu", frame), expected)


@pytest.mark.gpu
def test_crops_on_a_gpu_are_those_of_a_cpu(frame):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    crops_on("cuda", frame)  # the first call may wait for libraries to load
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = crops_on("cuda", frame)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close_in_levels(found.cpu(), crops_on("cpu", frame))


def test_parts_change_nothing(frame, monkeypatch):
    """Clips that are made into crops one after the other give what all at once give."""
    clips = [frame.expand(2, -1, -1, -1), frame[:50].expand(2, -1, -1, -1), frame[None].flip(1)]
    clips[2] = clips[2].expand(2, -1, -1, -1)

    def crop():
        return make_crops(
            clips,
            geometry=LOCAL,
            photometric=Photometric(blur=0.5),
            num_crops=3,
            rng=clip_generators([0], num_clips=len(clips)),
        )

    at_once = crop()
    monkeypatch.setattr("ino.data.views._CACHE_BYTES", 1)
    torch.testing.assert_close(crop(), at_once, atol=1e-5, rtol=0)
