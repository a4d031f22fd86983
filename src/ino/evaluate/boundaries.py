"""F of two boundaries given as points: which points have one of the other boundary near them.

A point is near another if their distance is at most the radius, exactly: the test of the official
evaluation, which dilates by a disk. Here the disk is a pile of rows, and rows are widened 64 pixels
at a time, as bits; only the box that holds both boundaries is looked at.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

Bits = UInt64[np.ndarray, "images height words"]
"""64 pixels of a row a number, the leftmost in the lowest bit."""

_WORD = 64


class Points(NamedTuple):
    """Pixels of an image, in any order, each once."""

    row: Int[np.ndarray, " points"]
    column: Int[np.ndarray, " points"]


def boundary_f(ours: Points, theirs: Points, *, radius: int) -> float:
    """F = 2 P R / (P + R), in 0..1: P is the share of `ours` near `theirs`, R the reverse.

    F is 1 where there is no point at all and 0 where only one side has points.

    Args:
        ours: boundary of the prediction.
        theirs: boundary of the truth.
        radius: distance at which points still match, pixels.
    """
    num_ours, num_theirs = len(ours.row), len(theirs.row)
    if not num_ours or not num_theirs:
        return 1.0 if num_ours == num_theirs else 0.0
    drawn = _draw(ours, theirs, radius=radius)
    # Each side is compared with the other's dilation.
    near = np.bitwise_count(drawn & _dilate(drawn, radius=radius)[::-1]).sum(axis=(1, 2))
    precision, recall = int(near[0]) / num_ours, int(near[1]) / num_theirs
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _draw(ours: Points, theirs: Points, *, radius: int) -> Bits:
    """Both as images of the box that holds them; what a row gains at its ends is never a pixel."""
    top = min(ours.row.min(), theirs.row.min())
    left = min(ours.column.min(), theirs.column.min())
    height = int(max(ours.row.max(), theirs.row.max()) - top) + 1
    width = int(max(ours.column.max(), theirs.column.max()) - left) + 1
    num_words = math.ceil((width + radius) / _WORD)
    pixels = np.zeros((2, height, num_words * _WORD), dtype=bool)
    for image, points in zip(pixels, (ours, theirs), strict=True):
        image[points.row - top, points.column - left] = True
    return np.packbits(pixels, axis=-1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def _dilate(images: Bits, *, radius: int) -> Bits:
    """1 within `radius` of a 1 of the same image, in the columns that hold pixels."""
    height = images.shape[1]
    result = np.zeros_like(images)
    widened, reach = images, 0
    for offset in range(radius, -1, -1):  # rows of the disk, from its top, the narrowest
        needed = math.isqrt(radius**2 - offset**2)
        while reach < needed:
            # Copies further apart than they are wide would leave gaps.
            step = min(needed - reach, 2 * reach + 1, _WORD - 1)
            widened = _widen(widened, step)
            reach += step
        if offset == 0:
            result |= widened
        elif offset < height:
            result[:, offset:] |= widened[:, :-offset]
            result[:, :-offset] |= widened[:, offset:]
    return result


def _widen(images: Bits, step: int) -> Bits:
    """The images and copies of them, `step` (1 to 63) pixels to the left and to the right."""
    flat = images.ravel()
    forth, back = np.uint64(step), np.uint64(_WORD - step)
    result = flat << forth
    result |= flat >> forth
    result |= flat
    result[1:] |= flat[:-1] >> back
    result[:-1] |= flat[1:] << back
    return result.reshape(images.shape)
