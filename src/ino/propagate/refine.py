"""Labels of pixels from those of features, refined by how pixels moved since the frame before.

A feature covers a patch of pixels, so that outlines made from features alone are coarse. Here the
label map of the frame before is moved along the optical flow and mixed with what the features say,
as far as the flow can be trusted. OpenCV's DIS computes the flow; nothing is learned.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ino.propagate.labels import enlarge_channel
from ino.propagate.protocols import MaskUp

FLOW_SIDE = 480
"""Flow is computed where the shorter side of a frame has at most this many pixels."""

COLOR_SCALE = 12.0
"""Difference of colors, 0..255, at which the trust in the flow has fallen to 1 / e."""

RETURN_SCALE = 2.0
"""Pixels by which the flow back misses a pixel, at which the trust has fallen to 1 / e."""


class Motion(NamedTuple):
    """Where each pixel of a frame was in the frame before.

    Attributes:
        column, row: places in the frame before, pixels; they may lie outside of it.
        trust: 0..1; 0 where the place lies outside.
    """

    column: Float[np.ndarray, "height width"]
    row: Float[np.ndarray, "height width"]
    trust: Float[np.ndarray, "height width"]


def estimate_motion(
    before: UInt8[np.ndarray, "height width 3"], frame: UInt8[np.ndarray, "height width 3"]
) -> Motion:
    """The motion from one frame to the next, both RGB.

    With d the mean difference of color, in a square of 7 x 7 pixels, between a pixel and where it
    was, and e the distance by which the flow back misses the pixel, the trust is
    exp(-d / COLOR_SCALE - e / RETURN_SCALE).
    """
    height, width = frame.shape[:2]
    scale = min(1.0, FLOW_SIDE / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    old, new = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in (before, frame))
    forward, backward = _flow(old, new), _flow(new, old)  # to `new`, and back to `old`
    column, row = _moved(backward)
    then, back = (_read(image, column, row) for image in (old, forward))
    difference = np.abs(then.astype(np.float32) - new).mean(axis=-1)
    missed = np.hypot(*np.moveaxis(back + backward, -1, 0))
    trust = np.exp(-cv2.blur(difference, (7, 7)) / COLOR_SCALE - missed / RETURN_SCALE)
    trust *= (column >= 0) & (column < size[0]) & (row >= 0) & (row < size[1])
    if scale < 1:
        backward, trust = (cv2.resize(one, (width, height)) for one in (backward, trust))
        ratio = np.array([width / size[0], height / size[1]], dtype=np.float32)
        column, row = _moved(backward * ratio)
    return Motion(column, row, trust.astype(np.float32))


class RefinedLabels(NamedTuple):
    """Labels that follow the motion.

    Attributes:
        labels: the label of each pixel.
        confidence: of that label, 0..1.
        soft: the values of all labels, 0..1, averaged over the area of each feature; of channels
            with one label, the first one has it.
    """

    labels: UInt8[np.ndarray, "height width"]
    confidence: Float[np.ndarray, "height width"]
    soft: Float[Tensor, "rows columns channel"]


_SMALLEST = 16
"""Sides below this are too short for DIS."""


def _flow(start: np.ndarray, end: np.ndarray) -> Float[np.ndarray, "height width 2"]:
    """For each pixel of `start`: columns and rows to its place in `end`."""
    if min(start.shape[:2]) < _SMALLEST:
        return np.zeros((*start.shape[:2], 2), dtype=np.float32)
    grey = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in (start, end))
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return dis.calc(*grey, None)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _moved(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    return columns + flow[..., 0], rows + flow[..., 1]


def _read(image: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    return cv2.remap(image, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def refine_labels(
    soft: Float[Tensor, "rows columns channel"],
    motion: Motion,
    before: UInt8[np.ndarray, "height width"],
    *,
    ids: Sequence[int],
    share: float,
    method: MaskUp = "bilinear",
    normalize: bool = False,
) -> RefinedLabels:
    """Labels of pixels, from those of features and from how pixels moved.

    With p the enlarged soft label of a channel over the sum of those of all channels, m the share
    of its label around the place where the pixel was, and a = `share` times the trust in that
    place, the value of a label is (1 - a) p + a m. The largest one wins, and that number is its
    confidence; of equal ones, the smallest label.

    Args:
        soft: soft labels of the features.
        motion: from the frame before to this one.
        before: label map of the frame before.
        ids: label of each channel.
        share: of the moved label map where the flow is trusted, 0..1.
        method, normalize: how soft labels are enlarged, see `harden_labels`.
    """
    size = (before.shape[0], before.shape[1])

    def enlarged(channel: int) -> np.ndarray:
        value = enlarge_channel(soft[..., channel], size=size, method=method, normalize=normalize)
        return value.float().numpy(force=True)

    total = np.full(size, np.finfo(np.float32).tiny, dtype=np.float32)
    for channel in range(len(ids)):
        total += enlarged(channel)
    moved_share = share * motion.trust
    kept_share = (1 - moved_share) / total
    best, labels = np.full(size, -1, dtype=np.float32), np.zeros(size, dtype=np.uint8)
    averaged = np.zeros(soft.shape, dtype=np.float32)
    for label in sorted(set(ids)):
        moved = _read((before == label).astype(np.float32), motion.column, motion.row)
        value = moved_share * moved
        channels = [channel for channel, one in enumerate(ids) if one == label]
        for channel in channels:
            value += kept_share * enlarged(channel)
        better = value > best
        best, labels = np.where(better, value, best), np.where(better, np.uint8(label), labels)
        grid = (soft.shape[1], soft.shape[0])
        averaged[..., channels[0]] = cv2.resize(value, grid, interpolation=cv2.INTER_AREA)
    return RefinedLabels(labels, best, torch.from_numpy(averaged).to(soft.device))
