"""Labels drawn over frames, and images put side by side. Pictures to look at, not to score."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from ino.data.label_maps import VOID, davis_palette
from ino.errors import ConfigError, MaskError

PIXELS_PER_LINE = 480
"""Contours are one pixel wide for each of this many pixels of the shorter side, begun."""


def draw_overlay(
    frame: UInt8[np.ndarray, "height width 3"],
    labels: np.ndarray,
    *,
    opacity: float = 0.5,
) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the frame with each object tinted and outlined in its colour of the DAVIS palette.

    Background and void (255) are left as they are.

    Args:
        frame: RGB.
        labels: uint8, of the frame's height and width.
        opacity: of the tint, 0 (outlines only) to 1 (flat colours).

    Raises:
        MaskError: the labels are of another type or size than the frame.
        ConfigError: the opacity is out of range.
    """
    if not 0 <= opacity <= 1:
        raise ConfigError(f"the opacity of an overlay must be 0 to 1, but is {opacity}")
    if labels.dtype != np.uint8 or labels.shape != frame.shape[:2]:
        raise MaskError(
            f"labels must be uint8 {frame.shape[0]}x{frame.shape[1]} as the frame is, but they are "
            f"{labels.dtype} of shape {labels.shape}; give labels of the frame's size"
        )
    palette = davis_palette()
    marked = (labels != 0) & (labels != VOID)
    result = frame.copy()
    tinted = (1 - opacity) * frame[marked] + opacity * palette[labels[marked]]
    result[marked] = np.rint(tinted).astype(np.uint8)
    thickness = -(-min(labels.shape) // PIXELS_PER_LINE)
    for label in np.unique(labels[marked]):
        contours, _ = cv2.findContours(
            (labels == label).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        colour = tuple(int(value) for value in palette[label])
        cv2.drawContours(result, contours, -1, color=colour, thickness=thickness)
    return result


def film_strip(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    height: int | None = None,
    gap: int = 4,
    background: int = 255,
) -> UInt8[np.ndarray, "height_all width_all 3"]:
    """One picture of all images, row by row, each image of the same height.

    Images keep their proportions; rows that are narrower than the widest end in background.

    Args:
        rows: RGB images, uint8, of any sizes.
        height: of each image, pixels; by default that of the lowest one.
        gap: pixels between images and between rows; there is none around the picture.
        background: grey value of gaps and ends, 0 to 255.

    Raises:
        ConfigError: there is no image, or an option is out of range.
    """
    if not rows or not all(rows):
        raise ConfigError("a film strip needs at least one image in each row")
    if height is None:
        height = int(min(image.shape[0] for row in rows for image in row))
    if height < 1 or gap < 0 or not 0 <= background <= 255:
        raise ConfigError(
            "a film strip needs a height of 1 or more, a gap of 0 or more and a background of 0 to "
            f"255, but they are {height}, {gap} and {background}"
        )
    fitted = [[_fit_height(image, height) for image in row] for row in rows]
    widths = [sum(image.shape[1] for image in row) + gap * (len(row) - 1) for row in fitted]
    shape = (height * len(rows) + gap * (len(rows) - 1), max(widths), 3)
    strip = np.full(shape, background, dtype=np.uint8)
    for number, row in enumerate(fitted):
        top, left = number * (height + gap), 0
        for image in row:
            strip[top : top + height, left : left + image.shape[1]] = image
            left += image.shape[1] + gap
    return strip


def _fit_height(image: np.ndarray, height: int) -> np.ndarray:
    if image.shape[0] == height:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    shrinks = height < image.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)
