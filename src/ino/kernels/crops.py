"""Boxes of frames resized to squares and their colors changed, many at once.

Resizing is bicubic, antialiased and rounded as in Pillow. There are two ways to the same levels:
`resize_one_by_one` calls torch's resize of bytes, the fastest there is on a CPU;
`resize_by_products` is two batched matrix products for all boxes of all frames, with weights that
are built on the device from the boxes, which is what a GPU is good at. Both differ from Pillow by
at most one level, where a value lies between two levels.

Color changes are torchvision's on float images, clamped to the range after each; the order of the
four of the jitter is sampled for each image, as in its ColorJitter. All random numbers are known on
the CPU, so images are sorted by when their hue turns and each step works on slices: no image pays
for a change that it does not have, and the device is never waited for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

_SHARPNESS = -0.5  # Keys' a, as in Pillow and in torch where it antialiases
_MAX_BYTES = 1 << 28  # of what the products hold at a time
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # Pillow's; torchvision's 0.2989 makes white darker
_BLUR_REACH = 6  # pixels: at most 3 of the largest sigma of the paper's code, 2
_NUM_JITTERS = 4
_TINY = 1e-20
_NEVER = _NUM_JITTERS  # when the hue of an image that is not jittered turns


def resize_boxes(
    clips: Sequence[UInt8[Tensor, "time _ _ 3"]],
    boxes: Int[np.ndarray, "time crops {len(clips)} 4"],
    flips: Bool[np.ndarray, "time crops {len(clips)}"],
    *,
    size: int,
) -> Float[Tensor, "time crops {len(clips)} 3 {size} {size}"]:
    """Crops: each box resized to a square and flipped if asked; integer values 0..255 in fp32.

    Args:
        clips: on one device; sizes may differ between clips.
        boxes: top, left, height and width in pixels, inside the frame of that time and clip.
        flips: whether the square is mirrored.
        size: side of the squares in pixels.
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

    Keys' cubic (a = -1/2) around the center of the square's pixel, as wide as that pixel where the
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


@dataclass(frozen=True)
class Photometric:
    """Probabilities of flip, jitter, grey and blur, strengths of the jitter, sigma of the blur in
    pixels; with all probabilities 0 a crop stays as it is."""

    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)


PLAIN = Photometric(flip=0.0, jitter=0.0, grey=0.0, blur=0.0)


@dataclass(frozen=True)
class Changes:
    """What is done to each image, all but its flip.

    Attributes:
        factors: of brightness, contrast and saturation; 1 changes nothing.
        hue: turns of the color circle.
        order: the operations of the jitter as they are done: 0 brightness, 1 contrast,
            2 saturation, 3 hue.
        jittered: whether factors and hue count.
        grey: whether color is dropped after that.
        sigma: of the blur after that, in pixels; 0 for none.
    """

    factors: Float[np.ndarray, "*images 3"]
    hue: Float[np.ndarray, "*images"]
    order: Int[np.ndarray, "*images 4"]
    jittered: Bool[np.ndarray, "*images"]
    grey: Bool[np.ndarray, "*images"]
    sigma: Float[np.ndarray, "*images"]

    def of(self, images: tuple[slice, ...]) -> "Changes":
        """The changes of a subset of the images."""
        return Changes(**{name: values[images] for name, values in vars(self).items()})

    @classmethod
    def stacked(cls, parts: "Sequence[Changes]", *, axis: int) -> "Changes":
        """The changes of several groups of images, stacked along a new image axis."""
        names = vars(parts[0])
        return cls(**{n: np.stack([vars(p)[n] for p in parts], axis=axis) for n in names})


def sample_changes(
    rng: np.random.Generator, shape: tuple[int, ...], *, photometric: Photometric
) -> Changes:
    """Changes of each image, as torchvision samples them: uniform factors in a uniform order."""
    strengths = np.array([photometric.brightness, photometric.contrast, photometric.saturation])
    jittered = rng.random(shape) < photometric.jitter
    factors = rng.uniform(np.maximum(0, 1 - strengths), 1 + strengths, (*shape, 3))
    hue = rng.uniform(-photometric.hue, photometric.hue, shape)
    order = rng.permuted(np.tile(np.arange(_NUM_JITTERS), (*shape, 1)), axis=-1)
    grey = rng.random(shape) < photometric.grey
    blurred = rng.random(shape) < photometric.blur
    sigma = np.where(blurred, rng.uniform(*photometric.blur_sigma, shape), 0.0)
    return Changes(factors, hue, order, jittered, grey, sigma)


def change_colors(
    levels: Float32[Tensor, "images 3 height width"], changes: Changes
) -> Float32[Tensor, "images 3 height width"]:
    """Images with levels 0..255 after their changes; the input itself where there are none."""
    if not (changes.jittered.any() or changes.grey.any() or changes.sigma.any()):
        return levels
    plan = _plan(changes)
    numbers = torch.from_numpy(plan.numbers).to(levels.device, non_blocking=True)
    ranks, places, grey, blurred = numbers[:, :4].long().unbind(1)
    levels = levels.index_select(0, ranks)  # a copy, which is changed in place
    if plan.turns[-1]:
        _jitter(levels, numbers[:, 4:], plan.turns)
    if plan.num_grey:
        rows = grey[: plan.num_grey]
        luma = _luma(levels.index_select(0, rows))[:, None].expand(-1, 3, -1, -1)
        levels.index_copy_(0, rows, luma)
    if plan.num_blurred:
        rows = blurred[: plan.num_blurred]
        levels.index_copy_(0, rows, blur(levels.index_select(0, rows), numbers[rows, -1]))
    return levels.index_select(0, places)


class _Plan(NamedTuple):
    """Changes as numbers for the device, images sorted by when their hue turns.

    `numbers` has one row per image in sorted order: its rank and place (below), the rows of grey
    and of blurred images, then for each of three blends the factor of the image itself, of its luma
    and of its mean luma; the turn of hue in sixths of the circle; sigma. `turns` tells where in
    sorted order the images begin whose hue turns before blend 0, 1, 2 and after all, and where
    those end.
    """

    numbers: Float32[np.ndarray, "images numbers"]
    turns: list[int]
    num_grey: int
    num_blurred: int


def _plan(changes: Changes) -> _Plan:
    num_images = changes.hue.size
    turn = np.where(changes.jittered, np.argmax(changes.order == 3, axis=-1), _NEVER).ravel()
    ranks = np.argsort(turn, kind="stable")  # of the image at each place of the sorted order
    blended = changes.order[changes.order != 3].reshape(num_images, 3)
    own = np.take_along_axis(changes.factors.reshape(num_images, 3), blended, axis=1)
    luma = np.where(blended == 2, 1 - own, 0)
    mean = np.where(blended == 1, 1 - own, 0)
    numbers = np.zeros((num_images, 15), np.float32)
    numbers[:, 0] = ranks
    numbers[ranks, 1] = np.arange(num_images)
    sigma = changes.sigma.ravel()[ranks]
    grey, blurred = np.flatnonzero(changes.grey.ravel()[ranks]), np.flatnonzero(sigma)
    numbers[: len(grey), 2] = grey
    numbers[: len(blurred), 3] = blurred
    numbers[:, 4:13] = np.stack([own, luma, mean], axis=-1)[ranks].reshape(num_images, 9)
    numbers[:, 13] = 6 * changes.hue.ravel()[ranks]
    numbers[:, 14] = sigma
    turns = np.searchsorted(turn[ranks], np.arange(_NUM_JITTERS + 1)).tolist()
    return _Plan(numbers, turns, len(grey), len(blurred))


def _jitter(
    levels: Float32[Tensor, "images 3 height width"],
    numbers: Float32[Tensor, "images numbers"],
    turns: list[int],
) -> None:
    """Changes the sorted images in place: three blends, and the turn of hue between them."""
    for step in range(_NUM_JITTERS):
        turned = slice(turns[step], turns[step + 1])
        if turned.stop > turned.start:
            turn_hue(levels[turned], numbers[turned, 9])
        if step < 3:
            blended = slice(0, turns[-1])
            blend(levels[blended], *numbers[blended, 3 * step : 3 * step + 3].unbind(1))


def blend(
    levels: Float32[Tensor, "images 3 height width"],
    own: Float32[Tensor, "images"],
    luma: Float32[Tensor, "images"],
    mean: Float32[Tensor, "images"],
) -> None:
    """Changes images in place to own * image + luma * its luma + mean * the mean of its luma.

    That is brightness (own), contrast (own and mean add to 1) and saturation (own and luma do).
    """
    own, luma, mean = (value[:, None, None] for value in (own, luma, mean))
    offset = _luma(levels)
    # In two steps: the mean of a single image in one depends on the number of threads.
    average = offset.mean(2, keepdim=True).mean(1, keepdim=True).mul_(mean)
    offset.mul_(luma).add_(average)
    torch.addcmul(offset[:, None], levels, own[:, None], out=levels)
    levels.clamp_(0, 255)


def turn_hue(
    levels: Float32[Tensor, "images 3 height width"], sixths: Float32[Tensor, "images"]
) -> None:
    """Changes images in place: hue of HSV turned by so many sixths of the circle.

    With hue t in sixths (0 red, 2 green, 4 blue), value v and chroma c, the channel at hue n is
    v - c clamp(d - 1, 0, 1), d the distance of t and n on the circle.
    """
    red, green, blue = levels.unbind(1)
    value, least = levels.amax(1), levels.amin(1)
    chroma = value - least
    # Without branches: the distance from red is 1 + (green + blue - red - least) / chroma, and
    # green or blue, whichever is more, tells the side.
    hue = torch.sub(green, red).add_(blue).sub_(least).div_(chroma.clamp(min=_TINY)).add_(1)
    hue.copysign_(green - blue).add_(sixths[:, None, None])
    hue.sub_((hue / 6).floor_(), alpha=6)  # 0..6
    distances = torch.empty_like(levels)
    torch.sub(hue, 3, out=distances[:, 0])  # from the other side of the circle
    torch.sub(hue, 2, out=distances[:, 1])
    torch.sub(hue, 4, out=distances[:, 2])
    distances.abs_()
    distances[:, 0].neg_().add_(3)
    distances.clamp_(1, 2)
    value.add_(chroma)
    torch.addcmul(value[:, None], chroma[:, None], distances, value=-1, out=levels)


def blur(
    levels: Float32[Tensor, "images 3 height width"], sigma: Float32[Tensor, "images"]
) -> Float32[Tensor, "images 3 height width"]:
    """Images after a Gaussian filter of at most 13 x 13 pixels, mirrored at their borders."""
    height, width = levels.shape[-2:]
    across, down = _blur_weights(sigma, width), _blur_weights(sigma, height)
    rows = (levels.flatten(1, 2) @ across.mT).view_as(levels)
    return down[:, None] @ rows


def _blur_weights(
    sigma: Float32[Tensor, "images"], size: int
) -> Float32[Tensor, "images {size} {size}"]:
    """What each of `size` pixels in a row (last) gives to each."""
    reach = max(0, min(_BLUR_REACH, size // 2 - 1))  # the mirror fits
    away = torch.arange(-reach, reach + 1, device=sigma.device)
    kernels = torch.softmax(-0.5 * (away / sigma[:, None]).square(), dim=1)
    identity = torch.eye(size, device=sigma.device)
    mirrored = F.pad(identity[None], (reach, reach), mode="reflect")[0]  # (from, reach + to)
    taps = mirrored.unfold(1, size, 1)  # (from, tap, to)
    return torch.einsum("nk,fkt->ntf", kernels, taps)


def _luma(
    levels: Float32[Tensor, "images 3 height width"],
) -> Float32[Tensor, "images height width"]:
    red, green, blue = levels.unbind(1)
    return (
        (red * GREY_WEIGHTS[0]).add_(green, alpha=GREY_WEIGHTS[1]).add_(blue, alpha=GREY_WEIGHTS[2])
    )
