"""Global and local crops of the frames of clips: cut, resized, colored and normalized in batches.

Section 3.2. Geometry is sampled as torchvision's RandomResizedCrop samples it; `ino.kernels.crops`
resizes as Pillow does and changes colors as torchvision does. Everything is sampled for each crop
from one NumPy generator per clip, so a step's views are a function of its seeds on every device,
and no random number waits for the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ino.kernels.crops import Changes, Photometric, change_colors, resize_boxes, sample_changes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_NUM_ATTEMPTS = 10
_CACHE_BYTES = 6 << 20


@dataclass(frozen=True)
class CropGeometry:
    """Side of a crop in pixels, ranges of its share of the frame's area and of width / height."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


def sample_boxes(
    rng: np.random.Generator,
    *,
    heights: Int[np.ndarray, "*batch"],
    widths: Int[np.ndarray, "*batch"],
    geometry: CropGeometry,
) -> Int[np.ndarray, "*batch 4"]:
    """Top, left, height and width in pixels of a random crop of each frame.

    Area and aspect are sampled up to ten times; if no crop fits, the largest centered crop whose
    aspect is within the range is taken, as torchvision does.

    Args:
        rng: the source of all randomness.
        heights, widths: of the frames, in pixels.
        geometry: ranges of area and aspect.
    """
    shape = (*heights.shape, _NUM_ATTEMPTS)
    area = (heights * widths)[..., None] * rng.uniform(*geometry.scale, shape)
    low, high = geometry.ratio
    aspect = np.exp(rng.uniform(math.log(low), math.log(high), shape))
    crop_heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    crop_widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    fits = (crop_heights > 0) & (crop_heights <= heights[..., None])
    fits &= (crop_widths > 0) & (crop_widths <= widths[..., None])
    first = fits.argmax(axis=-1)[..., None]
    places = rng.random((2, *heights.shape))

    found = fits.any(axis=-1)
    aspect = np.clip(widths / heights, low, high)
    centered_heights = np.minimum(heights, np.rint(widths / aspect).astype(np.int64))
    centered_widths = np.minimum(widths, np.rint(heights * aspect).astype(np.int64))
    crop_heights = np.take_along_axis(crop_heights, first, axis=-1)[..., 0]
    crop_widths = np.take_along_axis(crop_widths, first, axis=-1)[..., 0]
    crop_heights = np.where(found, crop_heights, centered_heights)
    crop_widths = np.where(found, crop_widths, centered_widths)
    free_rows, free_columns = heights - crop_heights, widths - crop_widths
    tops = np.where(found, np.floor(places[0] * (free_rows + 1)), free_rows // 2)
    lefts = np.where(found, np.floor(places[1] * (free_columns + 1)), free_columns // 2)
    return np.stack([tops, lefts, crop_heights, crop_widths], axis=-1).astype(np.int64)


def make_crops(
    clips: Sequence[UInt8[Tensor, "time _ _ 3"]],
    *,
    geometry: CropGeometry,
    photometric: Photometric,
    num_crops: int,
    rng: Sequence[np.random.Generator],
) -> Float[Tensor, "time {num_crops} clip 3 {geometry.size} {geometry.size}"]:
    """Random crops of every frame of every clip, normalized; every crop is sampled independently.

    Args:
        clips: frames of each clip, on one device; sizes may differ between clips.
        geometry: placement and size of the crops.
        photometric: flip and color changes, sampled for each crop.
        num_crops: crops of each frame.
        rng: of each clip, whose crops then do not depend on which other clips there are.
    """
    samples = []
    for stream, clip in zip(rng, clips, strict=True):
        shape = (len(clip), num_crops)
        heights, widths = (np.full(shape, side) for side in clip.shape[1:3])
        boxes = sample_boxes(stream, heights=heights, widths=widths, geometry=geometry)
        flips = stream.random(shape) < photometric.flip
        samples.append((boxes, flips, sample_changes(stream, shape, photometric=photometric)))
    boxes = np.stack([one[0] for one in samples], axis=2)
    flips = np.stack([one[1] for one in samples], axis=2)
    changes = Changes.stacked([one[2] for one in samples], axis=2)

    crops = torch.empty(
        (len(clips[0]), num_crops, len(clips), 3, geometry.size, geometry.size),
        device=clips[0].device,
    )
    step = len(clips)
    if crops.device.type == "cpu":  # it is fastest with what its cache holds
        step = max(1, _CACHE_BYTES * len(clips) // (crops.numel() * crops.element_size()))
    for first in range(0, len(clips), step):
        part = (slice(None), slice(None), slice(first, first + step))
        levels = resize_boxes(clips[part[2]], boxes[part], flips[part], size=geometry.size)
        levels = change_colors(levels.flatten(0, 2), changes.of(part))
        crops[part] = normalize(levels).view_as(crops[part])
    return crops


def normalize(
    levels: Float[Tensor, "images 3 height width"],
) -> Float[Tensor, "images 3 height width"]:
    """Images with levels 0..255, shifted and scaled by ImageNet's mean and deviation in place."""
    # Numbers, not tensors of three: making those on a device waits for it.
    for plane, mean, std in zip(levels.unbind(1), IMAGENET_MEAN, IMAGENET_STD, strict=True):
        plane.sub_(255 * mean).div_(255 * std)
    return levels
