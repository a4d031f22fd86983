"""Crops against Pillow and torchvision, colours against torchvision, and repeatable draws."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as reference

from ino.data.views import (
    PLAIN,
    CropGeometry,
    Photometric,
    change_colours,
    draw_box,
    make_crops,
    normalize,
    resized_crop,
)

LOCAL = CropGeometry(size=16, scale=(0.05, 0.8))


@pytest.fixture
def frame():
    """A smooth picture with edges, 60 x 80."""
    rows, columns = np.mgrid[:60, :80]
    channels = [rows * 4, columns * 3, 128 + 100 * np.sin(rows / 5 + columns / 3)]
    picture = np.stack(channels, axis=-1)
    picture[20:40, 30:50] = (250, 10, 90)
    return torch.from_numpy(picture.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("box", [(0, 0, 60, 80), (5, 10, 30, 41), (50, 70, 3, 4)])
@pytest.mark.parametrize("size", [16, 96])
def test_resized_crops_are_pillow_s(frame, box, size):
    top, left, height, width = box
    picture = Image.fromarray(frame.numpy()).crop((left, top, left + width, top + height))
    expected = np.array(picture.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
    found = resized_crop(frame, box, size=size).permute(1, 2, 0)
    assert np.abs(found.numpy() - expected).max() <= 1


def test_boxes_are_distributed_as_torchvision_s():
    rng = np.random.default_rng(0)
    ours = [draw_box(rng, height=256, width=340, geometry=LOCAL) for _ in range(3000)]
    image = torch.empty(3, 256, 340)
    theirs = [
        RandomResizedCrop.get_params(image, scale=[0.05, 0.8], ratio=[3 / 4, 4 / 3])
        for _ in range(3000)
    ]
    for column in range(4):
        found = np.quantile([box[column] for box in ours], [0.1, 0.5, 0.9])
        expected = np.quantile([box[column] for box in theirs], [0.1, 0.5, 0.9])
        np.testing.assert_allclose(found, expected, atol=8)


@pytest.mark.parametrize(("height", "width"), [(20, 400), (400, 20), (7, 7)])
def test_boxes_stay_inside_frames_of_any_shape(height, width):
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left, h, w = draw_box(
            rng, height=height, width=width, geometry=CropGeometry(size=32, scale=(0.8, 0.95))
        )
        assert h > 0 and top >= 0 and top + h <= height
        assert w > 0 and left >= 0 and left + w <= width


class Recorder(np.random.Generator):
    """A generator that remembers the factors it gave."""

    def __init__(self, bits):
        super().__init__(bits)
        self.drawn = []

    def uniform(self, *args):
        values = super().uniform(*args)
        self.drawn.append(values)
        return values


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change_is_torchvision_s(frame, monkeypatch, name):
    strengths = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    photometric = dataclasses.replace(PLAIN, jitter=1.0, **(strengths | {name: 0.4}))
    images = frame.permute(2, 0, 1).float()[None].repeat(4, 1, 1, 1) / 255
    rng = Recorder(np.random.PCG64(1))
    found = change_colours(images, photometric, rng)
    index = ["brightness", "contrast", "saturation", "hue"].index(name)
    for image, result, factor in zip(images, found, rng.drawn[index], strict=True):
        adjust = getattr(reference, f"adjust_{name}")
        expected = adjust(image, factor - 1 if name == "hue" else factor)
        torch.testing.assert_close(result, expected, atol=2e-3, rtol=0)


def test_nothing_changes_without_changes(frame):
    images = frame.permute(2, 0, 1).float()[None] / 255
    assert torch.equal(change_colours(images, PLAIN, np.random.default_rng(0)), images)


def test_flip_and_grey(frame):
    images = frame.permute(2, 0, 1).float()[None] / 255
    flipped = change_colours(images, dataclasses.replace(PLAIN, flip=1.0), np.random.default_rng(0))
    assert torch.equal(flipped, images.flip(-1))
    grey = change_colours(images, dataclasses.replace(PLAIN, grey=1.0), np.random.default_rng(0))
    assert torch.equal(grey[:, 0], grey[:, 1])
    expected = reference.rgb_to_grayscale(images, 3)
    torch.testing.assert_close(grey, expected, atol=1e-3, rtol=0)


def test_blur_keeps_the_mean_and_removes_detail():
    images = torch.rand(1, 3, 40, 40)
    blurred = change_colours(images, dataclasses.replace(PLAIN, blur=1.0), np.random.default_rng(0))
    torch.testing.assert_close(blurred.mean(), images.mean(), atol=5e-3, rtol=0)
    assert blurred.std() < images.std()


def test_crops_repeat_with_their_seed_and_come_in_order(frame):
    clips = [frame.expand(4, -1, -1, -1), frame[:50].expand(4, -1, -1, -1)]

    def draw(seed):
        return make_crops(
            clips,
            geometry=LOCAL,
            photometric=Photometric(blur=0.5),
            num_crops=3,
            rng=np.random.default_rng(seed),
        )

    crops = draw(0)
    assert crops.shape == (4, 3, 2, 3, 16, 16)
    assert torch.equal(crops, draw(0))
    assert not torch.equal(crops, draw(1))


def test_each_clip_keeps_its_place():
    clips = [torch.full((2, 32, 32, 3), value, dtype=torch.uint8) for value in (0, 128, 255)]
    crops = make_crops(
        clips, geometry=LOCAL, photometric=PLAIN, num_crops=2, rng=np.random.default_rng(0)
    )
    for index, value in enumerate((0.0, 128 / 255, 1.0)):
        expected = normalize(torch.full((3, 1, 1), value))
        torch.testing.assert_close(crops[:, :, index], expected.expand(2, 2, 3, 16, 16))
