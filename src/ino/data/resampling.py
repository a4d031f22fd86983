"""Boxes of frames resized to squares, many at once: bicubic, antialiased, rounded as Pillow does.

There are two ways to the same levels. `resize_one_by_one` calls torch's resize of bytes, the
fastest there is on a CPU. `resize_by_products` is two batched matrix products for all boxes of all
frames, with weights that are built on the device from the boxes: what a GPU is good at. Both differ
from Pillow by at most one level, where a value lies between two levels.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

_SHARPNESS = -0.5  # Keys' a, as in Pillow and in torch where it antialiases
_MAX_BYTES = 1 << 28  # of what the products hold at a time


def resize_boxes(
    clips: Sequence[UInt8[Tensor, "time _ _ 3"]],
    boxes: Int[np.ndarray, "time crops {len(clips)} 4"],
    flips: Bool[np.ndarray, "time crops {len(clips)}"],
    *,
    size: int,
) -> Float[Tensor, "time crops {len(clips)} 3 {size} {size}"]:
    """Each box of its frame as a square, mirrored where asked; whole levels 0..255, fp32.

    Args:
        clips: on one device; sizes may differ between clips.
        boxes: top, left, height and width in pixels, inside the frame of that time and clip.
        flips: whether the square is mirrored.
        size: pixels a side of the squares.
    """
    if clips[0].device.type == "cpu":
        return resize_one_by_one(clips, boxes, flips, size=size)
    return resize_by_products(clips, boxes, flips, size=size)


def resize_one_by_one(
    clips: Sequence[UInt8[Tensor, "time _ _ 3"]],
    boxes: Int[np.ndarray, "time crops {len(clips)} 4"],
    flips: Bool[np.ndarray, "time crops {len(clips)}"],
    *,
    size: int,
) -> Float[Tensor, "time crops {len(clips)} 3 {size} {size}"]:
    """What `resize_boxes` gives, in a loop over the boxes; frames are read where they lie."""
    squares = torch.empty((*flips.shape, 3, size, size), device=clips[0].device)
    for place in np.ndindex(flips.shape):
        time, _, clip = place
        top, left, height, width = boxes[place].tolist()
        pixels = clips[clip][time, top : top + height, left : left + width].permute(2, 0, 1)
        square = F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0]
        squares[place] = square.flip(-1) if flips[place] else square
    return squares


def resize_by_products(
    clips: Sequence[UInt8[Tensor, "time _ _ 3"]],
    boxes: Int[np.ndarray, "time crops {len(clips)} 4"],
    flips: Bool[np.ndarray, "time crops {len(clips)}"],
    *,
    size: int,
) -> Float[Tensor, "time crops {len(clips)} 3 {size} {size}"]:
    """What `resize_boxes` gives, by matrix products over whole frames, along rows, then columns.

    Frames of different sizes are padded to one; the device is not waited for.
    """
    frames = _pad_to_one_size(clips)  # (f, h, w, 3), f: time and clip
    numbers = np.concatenate([boxes, flips[..., None]], axis=-1)
    numbers = numbers.transpose(0, 2, 1, 3).reshape(len(frames), -1, 5)  # (f, k, 5)
    device = frames.device
    placed = torch.from_numpy(numbers.astype(np.float32)).to(device, non_blocking=True)
    squares = frames.new_empty((*placed.shape[:2], 3, size, size), dtype=torch.float32)
    for part in _parts(frames.shape, num_crops=placed.shape[1], size=size):
        squares[part] = _products(frames[part], placed[part], size=size)
    return squares.unflatten(0, (len(flips), len(clips))).transpose(1, 2)


def _products(
    frames: UInt8[Tensor, "f h w 3"], placed: Float[Tensor, "f k 5"], *, size: int
) -> Float[Tensor, "f k 3 {size} {size}"]:
    (num_frames, height, width), num_crops = frames.shape[:3], placed.shape[1]
    top, left, box_height, box_width, flip = placed.unbind(-1)  # (f, k) each
    across = bicubic_weights(left, box_width, flip, num_pixels=width, size=size)
    down = bicubic_weights(top, box_height, torch.zeros_like(flip), num_pixels=height, size=size)
    planes = frames.permute(0, 3, 1, 2).reshape(num_frames, 3 * height, width).float()
    rows = planes @ across.flatten(1, 2).mT  # (f, 3*h, k*size)
    rows = rows.add_(0.5).floor_().clamp_(0, 255).view(num_frames, 3, height, num_crops, size)
    rows = rows.permute(0, 3, 2, 1, 4).reshape(num_frames * num_crops, height, 3 * size)
    squares = down.flatten(0, 1) @ rows  # (f*k, size, 3*size)
    squares = squares.add_(0.5).floor_().clamp_(0, 255).view(num_frames, num_crops, size, 3, size)
    return squares.transpose(2, 3)


def bicubic_weights(
    start: Float[Tensor, "*batch"],
    extent: Float[Tensor, "*batch"],
    flip: Float[Tensor, "*batch"],
    *,
    num_pixels: int,
    size: int,
) -> Float[Tensor, "*batch {size} {num_pixels}"]:
    """What each pixel of a frame's side gives to each pixel of a square's; each row sums to 1.

    Keys' cubic (a = -1/2) around the centre of the square's pixel, as wide as that pixel where the
    box is larger than the square; pixels outside the box give nothing (Pillow, Resample.c).

    Args:
        start: first pixel of the box.
        extent: pixels of the box along this side.
        flip: 1 where the square is mirrored along this side, else 0.
        num_pixels: of the frame along this side.
        size: of the square.
    """
    start, extent, flip = (value[..., None, None] for value in (start, extent, flip))
    target = torch.arange(size, device=start.device, dtype=start.dtype)[:, None]
    target = target + flip * (size - 1 - 2 * target)
    pixels = torch.arange(num_pixels, device=start.device, dtype=start.dtype) - start
    scale = extent / size
    away = (pixels + 0.5 - (target + 0.5) * scale) / scale.clamp(min=1)
    weights = _cubic(away.abs_()) * ((pixels >= 0) & (pixels < extent))
    return weights.div_(weights.sum(-1, keepdim=True))


def _cubic(away: Tensor) -> Tensor:
    a = _SHARPNESS
    near = ((a + 2) * away - (a + 3)) * away.square() + 1
    far = a * (((away - 5) * away + 8) * away - 4)
    return torch.where(away < 1, near, torch.where(away < 2, far, 0.0))


def _pad_to_one_size(
    clips: Sequence[UInt8[Tensor, "time _ _ 3"]],
) -> UInt8[Tensor, "frames _ _ 3"]:
    """All frames, time by time and clip by clip, with zeros below and to the right."""
    height, width = (max(clip.shape[axis] for clip in clips) for axis in (1, 2))
    if all(clip.shape[1:3] == (height, width) for clip in clips):
        return torch.stack(list(clips), dim=1).flatten(0, 1)
    frames = clips[0].new_zeros((len(clips[0]), len(clips), height, width, 3))
    for index, clip in enumerate(clips):
        frames[:, index, : clip.shape[1], : clip.shape[2]] = clip
    return frames.flatten(0, 1)


def _parts(shape: Sequence[int], *, num_crops: int, size: int) -> Iterator[slice]:
    """Slices of frames such that what the products of one hold stays within bounds."""
    num_frames, height, width, _ = shape
    across = num_crops * size
    held = 4 * (3 * height * width + 6 * height * across + 3 * (height + width) * across)
    step = max(1, math.floor(_MAX_BYTES / held))
    return (slice(first, first + step) for first in range(0, num_frames, step))
