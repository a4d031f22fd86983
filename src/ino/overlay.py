"""Label maps drawn over frames. Pictures to look at, not to score."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from ino.data.label_maps import VOID, as_labels, davis_palette
from ino.errors import ConfigError, MaskError

_FONT = cv2.FONT_HERSHEY_SIMPLEX
PIXELS_PER_LINE = 480
"""Outlines are one pixel wide for every 480 pixels of the shorter side, rounded up."""


def draw_overlay(
    frame: UInt8[np.ndarray, "height width 3"],
    labels: Any,
    *,
    opacity: float = 0.5,
    caption: str = "",
    names: Mapping[int, str] | None = None,
    palette: UInt8[np.ndarray, "256 3"] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the frame with each object tinted and outlined in its color.

    Background and void (255) are left as they are.

    Args:
        frame: RGB.
        labels: a label map of the frame's height and width.
        opacity: of the tint, 0 (outlines only) to 1 (flat colors).
        caption: written at the bottom left, such as the number of the frame.
        names: of objects, each written at the middle of its object.
        palette: the RGB color of each label; None for the DAVIS palette.

    Raises:
        MaskError: the labels are of another type or size than the frame.
        ConfigError: the opacity is out of range.
    """
    if not 0 <= opacity <= 1:
        raise ConfigError(f"the opacity of an overlay must be 0 to 1, but is {opacity}")
    labels = as_labels(labels, "the label map of an overlay")
    if labels.shape != frame.shape[:2]:
        raise MaskError(
            f"labels must be {frame.shape[0]}x{frame.shape[1]} as the frame is, but they are "
            f"{labels.shape[0]}x{labels.shape[1]}; give labels of the frame's size"
        )
    palette = davis_palette() if palette is None else palette
    marked = (labels != 0) & (labels != VOID)
    result = frame.copy()
    tinted = (1 - opacity) * frame[marked] + opacity * palette[labels[marked]]
    result[marked] = np.rint(tinted).astype(np.uint8)
    thickness = -(-min(labels.shape) // PIXELS_PER_LINE)
    for label in np.unique(labels[marked]):
        contours, _ = cv2.findContours(
            (labels == label).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(result, contours, -1, color=palette[label].tolist(), thickness=thickness)
    for label, name in (names or {}).items():
        rows, columns = np.nonzero(labels == label)
        if len(rows):
            (width, height), _ = cv2.getTextSize(name, _FONT, 0.5 * thickness, thickness)
            left = int(columns.mean()) - width // 2
            left = max(0, min(left, labels.shape[1] - width))
            _write_text(result, name, (left, int(rows.mean()) + height // 2), thickness)
    _write_text(result, caption, (4 * thickness, len(labels) - 5 * thickness), thickness)
    return result


def _write_text(image: np.ndarray, text: str, place: tuple[int, int], thickness: int) -> None:
    """White with a black outline; letters that the font lacks become question marks."""
    for color, width in (((0, 0, 0), 3 * thickness), ((255, 255, 255), thickness)):
        cv2.putText(image, text, place, _FONT, 0.5 * thickness, color, width, cv2.LINE_AA)
