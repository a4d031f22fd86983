"""Scores of masks, joints and parts: J, F, their recall and decay, PCK, and IoU of classes.

Arrays in, numbers out: files and data sets are in `ino.tasks`.

J (region similarity) and F (contour accuracy) are those of Perazzi et al., "A benchmark dataset and
evaluation methodology for video object segmentation", CVPR 2016, as the official evaluation of
DAVIS-2017 computes them. They are here twice: `region_similarity` and `contour_accuracy` are the
definitions, for two masks; `score_labels` gives the same numbers for all objects of a frame at
once, several times faster. Temporal stability T is not covered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from ino.data.label_maps import VOID
from ino.errors import ConfigError

Mask = Bool[np.ndarray, "height width"]
Labels = UInt8[np.ndarray, "height width"]


def region_similarity(prediction: Mask, truth: Mask, void: Mask | None = None) -> float:
    """J, the intersection over the union of two masks, in 0..1; 1 where both are empty.

    Pixels of `void` do not count.
    """
    intersection, union = prediction & truth, prediction | truth
    if void is not None:
        intersection, union = intersection & ~void, union & ~void
    num_union = np.count_nonzero(union)
    return float(np.count_nonzero(intersection) / num_union) if num_union else 1.0


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
    ours, theirs = boundary_map(prediction), boundary_map(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    radius = boundary_radius(*truth.shape, tolerance=tolerance)
    offsets = np.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)
    near_ours, near_theirs = (cv2.dilate(one.astype(np.uint8), disk) > 0 for one in (ours, theirs))
    precision, recall = near_theirs[ours].mean(), near_ours[theirs].mean()
    return _harmonic_mean(float(precision), float(recall))


def boundary_map(labels: Mask | Labels) -> Mask:
    """True on the one-pixel-wide boundary of a mask, or of any region of a label map.

    A pixel is on the boundary if it differs from its right, its lower or its lower right neighbor,
    as far as the image holds them; the last pixel of the image never is. A mask that fills the
    image has no boundary.
    """
    boundary = np.zeros(labels.shape, dtype=bool)
    np.not_equal(labels[:, :-1], labels[:, 1:], out=boundary[:, :-1])
    boundary[:-1] |= labels[:-1] != labels[1:]
    boundary[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return boundary


def boundary_radius(height: int, width: int, *, tolerance: float = 0.008) -> int:
    """How far two boundaries may lie apart and still match, in pixels: ceil(tolerance x diagonal).

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        tolerance: fraction of the diagonal.
    """
    return math.ceil(tolerance * math.sqrt(height**2 + width**2))


def _harmonic_mean(precision: float, recall: float) -> float:
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


@dataclass(frozen=True)
class Summary:
    """Scores of one object, summarized over frames.

    Attributes:
        mean: mean over the frames, 0..1.
        recall: fraction of frames with a score above 0.5.
        decay: mean over the first quarter of the frames minus that over the last quarter, -1..1.
    """

    mean: float
    recall: float
    decay: float


def summarize(values: Sequence[float] | Float[np.ndarray, " frames"]) -> Summary:
    """Mean, recall and decay of one object's scores.

    Quarters share the frame on their border, and their borders round half up, as in the official
    code; that code keeps them in 8 bits and is wrong above 256 frames, where this is right. NaN is
    left out of the means and counts as a miss in the recall.

    Args:
        values: one score per frame in 0..1, in the order of the frames.

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


def score_labels(
    prediction: Labels, truth: Labels, *, num_objects: int
) -> tuple[Float[np.ndarray, " objects"], Float[np.ndarray, " objects"]]:
    """J and F of the objects 1 to `num_objects`, each in 0..1.

    Each label map is read once, whatever the number of objects: J comes from one table of
    overlaps, and boundaries from the pixels where labels change, which are few.

    Args:
        prediction: labels 0 to `num_objects`.
        truth: any labels; those above `num_objects` are background, and pixels of 255 do not count.
        num_objects: 1 to 254.
    """
    counted = truth <= num_objects
    if not counted.all():
        if (void := truth == VOID).any():
            prediction = np.where(void, np.uint8(0), prediction)
        truth = np.where(counted, truth, np.uint8(0))
    radius = boundary_radius(*truth.shape)
    # Only the box that holds all objects counts, with one more pixel per side for their boundaries.
    left, top, width, height = cv2.boundingRect(np.bitwise_or(prediction, truth))
    box = slice(max(top - 1, 0), top + height + 1), slice(max(left - 1, 0), left + width + 1)
    prediction, truth = np.ascontiguousarray(prediction[box]), np.ascontiguousarray(truth[box])
    boundaries = zip(
        _boundaries(prediction, num_objects), _boundaries(truth, num_objects), strict=True
    )
    f = [boundary_f(ours, theirs, radius=radius) for ours, theirs in boundaries]
    return _similarities(prediction, truth, num_objects), np.array(f)


def _similarities(
    prediction: Labels, truth: Labels, num_objects: int
) -> Float[np.ndarray, " objects"]:
    """J of each object, from the number of pixels of each pair of labels."""
    num_labels = num_objects + 1
    pairs = (truth.astype(np.uint16) * np.uint16(num_labels) + prediction).ravel()
    # Run lengths: labels change seldom, so far fewer numbers are counted than there are pixels.
    starts = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1])
    lengths = np.diff(starts, append=pairs.size)
    counts = np.bincount(pairs[starts], weights=lengths, minlength=num_labels**2)
    counts = counts.reshape(num_labels, num_labels)  # (truth, prediction)
    intersection = counts.diagonal()[1:]
    union = counts.sum(axis=0)[1:] + counts.sum(axis=1)[1:] - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


class Points(NamedTuple):
    """Pixels of an image, in any order, each once."""

    row: Int[np.ndarray, " points"]
    column: Int[np.ndarray, " points"]


def _boundaries(labels: Labels, num_objects: int) -> list[Points]:
    """The boundary of each object as `boundary_map` defines it.

    A pixel at which labels change is on the boundary of each label that it or one of its
    neighbors to the right, below and below right has.
    """
    height, width = labels.shape
    place = np.flatnonzero(boundary_map(labels))
    row, column = np.divmod(place, width)
    # A neighbor outside the image is replaced by one inside, which brings no label of its own.
    below, right = np.where(row < height - 1, width, 0), column < width - 1
    corners = [labels.ravel().take(place + step) for step in (0, right, below, below + right)]
    label_parts, point_parts = [], []
    for number, corner in enumerate(corners):
        is_new = corner > 0
        for earlier in corners[:number]:
            is_new &= corner != earlier
        chosen = np.flatnonzero(is_new)
        label_parts.append(corner[chosen])
        point_parts.append(chosen)
    label, point = np.concatenate(label_parts), np.concatenate(point_parts)
    order = np.argsort(label, kind="stable")
    borders = np.searchsorted(label[order], np.arange(2, num_objects + 1, dtype=np.uint8))
    return [Points(row[part], column[part]) for part in np.split(point[order], borders)]


Bits = UInt64[np.ndarray, "images height words"]
"""64 pixels of a row per number, the leftmost in the lowest bit."""

_WORD = 64


def boundary_f(ours: Points, theirs: Points, *, radius: int) -> float:
    """F = 2 P R / (P + R), in 0..1: P is the share of `ours` near `theirs`, R the reverse.

    A point is near another if their distance is at most the radius: the official evaluation
    dilates by a disk. Here the disk is a stack of rows, and rows are widened 64 pixels at a time,
    as bits; only the box that holds both boundaries is dilated.

    Args:
        ours: boundary of the prediction.
        theirs: boundary of the truth.
        radius: distance at which points still match, pixels.
    """
    num_ours, num_theirs = len(ours.row), len(theirs.row)
    if not num_ours or not num_theirs:
        return float(num_ours == num_theirs)
    bits = _as_bits(ours, theirs, radius=radius)
    # Each side is compared with the other's dilation.
    near = np.bitwise_count(bits & _dilate(bits, radius=radius)[::-1]).sum(axis=(1, 2))
    return _harmonic_mean(int(near[0]) / num_ours, int(near[1]) / num_theirs)


def _as_bits(ours: Points, theirs: Points, *, radius: int) -> Bits:
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


Joints = Float[np.ndarray, "frames joints 2"]
"""Column and row, pixels; NaN where a joint was lost."""


@dataclass(frozen=True)
class PckRule:
    """Which joints count for PCK, and by what distances are divided.

    A joint is correct if its distance to the truth is at most a fraction of the person's size in
    that frame. The defaults are those of the released evaluation of UVC (Li et al., NeurIPS 2019),
    CRW (Jabri et al., NeurIPS 2020) and VFS (Xu and Wang, ICCV 2021).

    Attributes:
        thresholds: fractions of the person's size.
        size: which length of the box around the counted joints of a frame is used: its diagonal, as
            in the three released codes, or its longer side, which is commented out in them.
        scale: the person's size is this factor times that length.
        lost: whether a joint whose map is empty is skipped, also in the box, as in the released
            codes, or counts as wrong. The map of a joint far outside the first image is empty
            throughout.
        skip_outside: leave out joints that the annotation puts outside the image; the released
            codes count them.
        first_frame: count the frame that was given; VFS does, UVC and CRW do not.
    """

    thresholds: tuple[float, ...] = (0.1, 0.2)
    size: Literal["diagonal", "longer-side"] = "diagonal"
    scale: float = 0.6
    lost: Literal["skipped", "wrong"] = "skipped"
    skip_outside: bool = False
    first_frame: bool = False


def joint_errors(
    predicted: Joints, truth: Joints, *, image_size: tuple[int, int], rule: PckRule
) -> Float[np.ndarray, "scored joints"]:
    """Distance of each joint to the truth, divided by the person's size in that frame.

    NaN where a joint does not count. Infinite where a lost joint counts as wrong, and where the
    person's size is 0 and the joint is not exactly at the true place.

    Args:
        predicted: joints of one video.
        truth: annotated joints of the same frames; finite.
        image_size: height and width of the images, in pixels.
        rule: which joints count. Unless `rule.first_frame` is set, the first frame is dropped, so
            the result has one frame less.
    """
    counts = np.ones(truth.shape[:2], dtype=bool)
    if rule.lost == "skipped":
        counts &= ~np.isnan(predicted).any(axis=-1)
    if rule.skip_outside:
        height, width = image_size
        counts &= ((truth >= 0) & (truth <= [width - 1, height - 1])).all(axis=-1)
    lowest = np.where(counts[..., None], truth, np.inf).min(axis=1)
    highest = np.where(counts[..., None], truth, -np.inf).max(axis=1)
    sides = np.where(counts.any(axis=1, keepdims=True), highest - lowest, 0)  # (frames, 2)
    longest = np.hypot(*sides.T) if rule.size == "diagonal" else sides.max(axis=1)
    distance = np.linalg.norm(predicted - truth, axis=-1)
    distance = np.where(np.isnan(distance), np.inf, distance)
    size = np.broadcast_to(rule.scale * longest[:, None], distance.shape)
    errors = np.where(distance > 0, np.inf, 0.0)
    np.divide(distance, size, out=errors, where=size > 0)
    errors = np.where(counts, errors, np.nan)
    return errors if rule.first_frame else errors[1:]


def correct_fraction(
    errors: Float[np.ndarray, "scored joints"], threshold: float
) -> Float[np.ndarray, " joints"]:
    """PCK of each joint: the fraction of its frames with an error up to the threshold, 0..1; NaN
    for a joint that never counts.

    Args:
        errors: from `joint_errors`, of all frames of all videos together.
        threshold: fraction of the person's size.

    Raises:
        ConfigError: no joint of any frame counts.
    """
    num_counted = np.count_nonzero(~np.isnan(errors), axis=0)
    if not num_counted.any():
        raise ConfigError(
            "no joint of any frame counts: give videos of two or more frames with joints inside "
            "the first image"
        )
    with np.errstate(invalid="ignore"):  # 0 of 0 is NaN
        return np.count_nonzero(errors <= threshold, axis=0) / num_counted


Confusion = Int[np.ndarray, "classes classes"]
"""Pixels by class of the truth (row) and of the prediction (column)."""


def count_labels(prediction: Labels, truth: Labels, *, num_classes: int) -> Confusion:
    """The confusion matrix of one frame; pixels whose truth is no class do not count.

    Args:
        prediction: labels below `num_classes`.
        truth: any labels.
        num_classes: with the background.
    """
    counted = truth < num_classes
    pairs = truth[counted].astype(np.int64) * num_classes + prediction[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(confusion: Confusion) -> Float[np.ndarray, " classes"]:
    """Intersection over union of each class, 0..1; NaN for one that does not occur."""
    right = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    return np.where(union > 0, right / np.maximum(union, 1), np.nan)
