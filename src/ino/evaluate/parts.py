"""Mean intersection over union of part labels, over all pixels of a data set together.

As UVC (Li et al., NeurIPS 2019) and VFS (Xu and Wang, ICCV 2021) score VIP: one table of labels for
all frames, the first ones included, and the mean over the classes that occur.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from ino.data.label_png import read_raw_labels
from ino.data.vos import VideoSequence
from ino.errors import DatasetError, MaskError

Confusion = Int[np.ndarray, "classes classes"]
"""Pixels by class of the truth (row) and of the prediction (column)."""


@dataclass(frozen=True)
class PartScores:
    """Scores of a data set, all fractions 0..1.

    Attributes:
        names: of the classes.
        iou: intersection over union of each class; NaN where no pixel has or is given it.
        mean_iou: the mean over the other classes.
        accuracy: the fraction of annotated pixels that are right.
        num_frames: that were scored.
    """

    names: tuple[str, ...]
    iou: tuple[float, ...]
    mean_iou: float
    accuracy: float
    num_frames: int


def count_labels(
    prediction: UInt8[np.ndarray, "height width"],
    truth: UInt8[np.ndarray, "height width"],
    *,
    num_classes: int,
) -> Confusion:
    """The table of one frame; pixels whose truth is no class do not count.

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


def score_parts(
    predictions: Path,
    videos: Sequence[VideoSequence],
    *,
    names: Sequence[str],
    first_frame: bool = True,
    on_frame: Callable[[], None] = lambda: None,
) -> PartScores:
    """Scores of a folder of label maps, one frame in memory at a time.

    Args:
        predictions: folder with VIDEO/FRAME.png for each annotated frame.
        videos: with their annotations.
        names: of the classes 0, 1 and so on.
        first_frame: count the frame that was given, as the released codes do.
        on_frame: called after each scored frame.

    Raises:
        DatasetError: no frame is annotated that would be scored.
        MaskError: a label map is missing, broken, of another size than the annotation, or holds a
            label without a name.
    """
    total = np.zeros((len(names), len(names)), dtype=np.int64)
    num_frames = 0
    for video in videos:
        for frame, path in video.annotations.items():
            if frame == 0 and not first_frame:
                continue
            predicted = predictions / video.name / f"{video.frames[frame].stem}.png"
            total += _count_file(predicted, path, num_classes=len(names))
            num_frames += 1
            on_frame()
    if not total.any():
        raise DatasetError(
            "no annotated pixel is left to score: annotate frames after the first one"
        )
    iou = class_iou(total)
    return PartScores(
        names=tuple(names),
        iou=tuple(iou.tolist()),
        mean_iou=float(np.nanmean(iou)),
        accuracy=float(total.diagonal().sum() / total.sum()),
        num_frames=num_frames,
    )


def _count_file(predicted: Path, annotated: Path, *, num_classes: int) -> Confusion:
    truth, prediction = read_raw_labels(annotated), read_raw_labels(predicted)
    if prediction.shape != truth.shape:
        raise MaskError(
            f"{predicted} is {prediction.shape[0]}x{prediction.shape[1]} (height x width), but the "
            f"annotation {annotated} is {truth.shape[0]}x{truth.shape[1]}: give both in one size"
        )
    if (highest := int(prediction.max())) >= num_classes:
        raise MaskError(
            f"{predicted} holds the label {highest}, but the labels are 0 to {num_classes - 1}: "
            "write labels of parts"
        )
    return count_labels(prediction, truth, num_classes=num_classes)
