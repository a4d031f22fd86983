"""Region similarity J, contour accuracy F, and their summaries over the frames of an object.

Perazzi et al., "A benchmark dataset and evaluation methodology for video object segmentation",
CVPR 2016, as the official evaluation of DAVIS-2017 computes them. Arrays in, numbers out; files and
data sets are in ino.evaluate.davis. Temporal stability T is not covered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ino.evaluate.boundaries import Points, boundary_f

Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class Summary:
    """A score of one object over frames: the mean, the fraction of frames above 0.5 (recall), and
    the mean of the first quarter minus that of the last (decay)."""

    mean: float
    recall: float
    decay: float


def region_similarity(prediction: Mask, truth: Mask, void: Mask | None = None) -> float:
    """J, the intersection over the union of two masks, in 0..1; 1 where both are empty.

    Args:
        prediction: True on the predicted object.
        truth: True on the annotated object.
        void: True on pixels that do not count.
    """
    intersection, union = prediction & truth, prediction | truth
    if void is not None:
        intersection, union = intersection & ~void, union & ~void
    num_union = np.count_nonzero(union)
    return float(np.count_nonzero(intersection) / num_union) if num_union else 1.0


def boundary_map(mask: Mask) -> Mask:
    """True on the one-pixel-wide boundary of a mask.

    A pixel is on the boundary if it differs from its right, its lower or its lower right neighbour,
    as far as the image holds them; the last pixel of the image never is. A mask that fills the
    image has no boundary.
    """
    boundary = np.zeros_like(mask)
    boundary[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


def boundary_radius(height: int, width: int, *, tolerance: float = 0.008) -> int:
    """How far two boundaries may lie apart and still match, in pixels: ceil(tolerance x diagonal).

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        tolerance: fraction of the diagonal.
    """
    return math.ceil(tolerance * math.sqrt(height**2 + width**2))


def contour_accuracy(
    prediction: Mask, truth: Mask, void: Mask | None = None, *, tolerance: float = 0.008
) -> float:
    """F = 2 P R / (P + R), in 0..1, of the boundaries of two masks.

    The precision P is the fraction of the prediction's boundary within `boundary_radius` of the
    truth's, the recall R the other way round. F is 1 where neither mask has a boundary and 0 where
    only one has.

    Args:
        prediction: True on the predicted object.
        truth: True on the annotated object.
        void: True on pixels that do not count: background in both masks.
        tolerance: radius of the match as a fraction of the image diagonal.
    """
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    radius = boundary_radius(*truth.shape, tolerance=tolerance)
    ours, theirs = (Points(*boundary_map(mask).nonzero()) for mask in (prediction, truth))
    return boundary_f(ours, theirs, radius=radius)


def summarize(values: Sequence[float] | Float[np.ndarray, " frames"]) -> Summary:
    """Mean, recall and decay of one object's scores.

    Quarters share the frame on their border, and their borders round half up, as in the official
    code; that code keeps them in 8 bits and is wrong above 256 frames, where this is right. A value
    that is not a number is left out of the means and counts as a miss in the recall.

    Args:
        values: one score a frame in 0..1, in the order of the frames.

    Raises:
        ValueError: there is no number at all, or none in the first or the last quarter.
    """
    scores = np.asarray(values, dtype=np.float64)
    last = len(scores) - 1
    first_border, last_border = (last + 2) // 4, (3 * last + 2) // 4
    return Summary(
        mean=_mean(scores),
        recall=float(np.count_nonzero(scores > 0.5) / len(scores)),
        decay=_mean(scores[: first_border + 1]) - _mean(scores[last_border:]),
    )


def _mean(scores: Float[np.ndarray, " frames"]) -> float:
    numbers = scores[~np.isnan(scores)]
    if not len(numbers):
        raise ValueError(f"none of {len(scores)} scores is a number, so they have no mean")
    return float(numbers.mean())
