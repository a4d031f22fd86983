"""Global and local crops of the frames of clips, cut, resized, coloured and normalised in batches.

Geometry is drawn as torchvision's RandomResizedCrop draws it and resized bicubically with
antialiasing as Pillow does; colour follows torchvision's ColorJitter on float images, with
parameters drawn for each crop and operations in one random order a batch. Randomness comes from
one NumPy generator, so a step's views are a function of its seed on every device; with a
`ClipRandom`, the crops of a clip do not depend on the other clips of the process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from kornia.filters import gaussian_blur2d
from torch import Tensor

from ino.data.clip_random import stream_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ATTEMPTS = 10
BLUR_SIGMA = (0.1, 2.0)
GREY_WEIGHTS = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class CropGeometry:
    """How a crop is placed: pixels a side of the result, share of the frame's area, aspect."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Photometric:
    """Probabilities and strengths of flip and colour changes; all 0 leaves a crop as it is."""

    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.0


PLAIN = Photometric(flip=0.0, jitter=0.0, grey=0.0, blur=0.0)


def draw_box(
    rng: np.random.Generator, *, height: int, width: int, geometry: CropGeometry
) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of a random crop of a frame.

    Area and aspect are drawn up to ten times; if none fits, the largest centred crop whose aspect
    is within the range is taken, as torchvision does.
    """
    low, high = math.log(geometry.ratio[0]), math.log(geometry.ratio[1])
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*geometry.scale)
        aspect = math.exp(rng.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, geometry.ratio[0]), geometry.ratio[1])
    crop_width = min(width, round(height * aspect))
    crop_height = min(height, round(width / aspect))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resized_crop(
    frame: UInt8[Tensor, "height width 3"], box: tuple[int, int, int, int], *, size: int
) -> Float[Tensor, "3 size size"]:
    """A box of a frame resized to a square, values 0..255.

    On a CPU the rounding to whole levels is Pillow's; on other devices values are not rounded.
    """
    top, left, height, width = box
    crop = frame[top : top + height, left : left + width].permute(2, 0, 1)[None]
    if crop.device.type != "cpu":
        crop = crop.float()
    resized = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
    return resized[0].float().clamp(0, 255)


def make_crops(
    clips: Sequence[UInt8[Tensor, "time _ _ 3"]],
    *,
    geometry: CropGeometry,
    photometric: Photometric,
    num_crops: int,
    rng: np.random.Generator,
) -> Float[Tensor, "time {num_crops} clip 3 {geometry.size} {geometry.size}"]:
    """Random crops of every frame of every clip, normalised; every crop is drawn independently.

    Args:
        clips: frames of each clip; sizes may differ between clips.
        geometry: placement and size of the crops.
        photometric: flip and colour changes, drawn for each crop.
        num_crops: crops of each frame.
        rng: where all randomness comes from; images are drawn for with the clip running fastest.
    """
    crops = []
    for index in range(len(clips[0])):
        for _ in range(num_crops):
            for place, clip in enumerate(clips):
                height, width = clip.shape[1:3]
                stream = stream_of(rng, place)
                box = draw_box(stream, height=height, width=width, geometry=geometry)
                crops.append(resized_crop(clip[index], box, size=geometry.size))
    images = change_colours(torch.stack(crops) / 255, photometric, rng)
    return normalize(images).unflatten(0, (len(clips[0]), num_crops, len(clips)))


def change_colours(
    images: Float[Tensor, "batch 3 height width"],
    photometric: Photometric,
    rng: np.random.Generator,
) -> Float[Tensor, "batch 3 height width"]:
    """Images in 0..1, each flipped, jittered, greyed and blurred with its own draw."""
    num_images = len(images)

    def chosen(probability: float) -> Tensor:
        return torch.from_numpy(rng.random(num_images) < probability).to(images.device)

    flipped = chosen(photometric.flip)
    images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    jittered = torch.nonzero(chosen(photometric.jitter))[:, 0]
    factors = _draw_factors(num_images, photometric, rng)
    order = rng.permutation(len(factors))
    if len(jittered):
        chosen_factors = [factor[jittered.cpu()].to(images) for factor in factors]
        images = images.index_copy(0, jittered, _jitter(images[jittered], chosen_factors, order))
    grey = chosen(photometric.grey)
    weights = images.new_tensor(GREY_WEIGHTS)[:, None, None]
    luma = (images * weights).sum(dim=1, keepdim=True)
    images = torch.where(grey[:, None, None, None], luma, images)
    blurred = torch.nonzero(chosen(photometric.blur))[:, 0]
    sigma = torch.from_numpy(rng.uniform(*BLUR_SIGMA, num_images)).to(images)
    if len(blurred):
        sigmas = sigma[blurred, None].expand(-1, 2)
        side = min(13, 2 * (min(images.shape[-2:]) // 2) - 1)  # at most 3 sigma, padding fits
        smooth = gaussian_blur2d(images[blurred], (side, side), sigmas)
        images = images.index_copy(0, blurred, smooth)
    return images


def _draw_factors(
    num_images: int, photometric: Photometric, rng: np.random.Generator
) -> list[Float[Tensor, " image"]]:
    """Factors of brightness, contrast and saturation around 1, and turns of the hue around 1.

    Drawn for all images, changed or not, so that one image's draw does not move the others'.
    """
    names = ("brightness", "contrast", "saturation", "hue")
    strengths = [getattr(photometric, name) for name in names]
    return [torch.from_numpy(rng.uniform(1 - x, 1 + x, num_images)) for x in strengths]


def _jitter(
    images: Float[Tensor, "batch 3 height width"],
    factors: list[Float[Tensor, " batch"]],
    order: np.ndarray,
) -> Float[Tensor, "batch 3 height width"]:
    brightness, contrast, saturation = factors[:3]
    hue = (factors[3] - 1) * (2 * math.pi)  # a turn of the colour circle is 1
    operations = [
        lambda x: adjust_brightness_accumulative(x, brightness),
        lambda x: adjust_contrast_with_mean_subtraction(x, contrast),
        lambda x: adjust_saturation_with_gray_subtraction(x, saturation),
        lambda x: adjust_hue(x, hue),
    ]
    for index in order:
        images = operations[index](images)
    return images


def normalize(images: Float[Tensor, "*batch 3 height width"]) -> Tensor:
    """Images in 0..1 shifted and scaled by ImageNet's mean and standard deviation."""
    mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_STD)[:, None, None]
    return (images - mean) / std
