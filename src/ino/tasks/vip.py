"""VIP: the parts of people, propagated from the first frame of each video; mean IoU.

As UVC (Li et al., NeurIPS 2019) and VFS (Xu and Wang, ICCV 2021) score it: one confusion matrix for
all frames, the first ones included, and the mean over the classes that occur.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from rich.console import Console
from torch import Tensor

from ino.data.davis import VideoSequence
from ino.data.images import image_size
from ino.data.label_maps import BACKGROUND, read_raw_labels, write_labels
from ino.data.vip import PARTS, read_vip
from ino.errors import DatasetError, MaskError
from ino.metrics import Confusion, class_iou, count_labels
from ino.propagate.labels import harden_labels, resize_mask, restore_mask, soften_labels
from ino.tables import percent, print_table, write_json
from ino.tasks.davis import sequence_is_whole
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.results import OnFrame, RunOptions, check_annotation_size, propagated
from ino.tasks.scoring import read_pair


def evaluate_vip(
    root: Path,
    *,
    out: Path,
    tracker: LabelTracker,
    split: str = "val",
    first_frame: bool = True,
    **options: Unpack[RunOptions],
) -> "PartScores":
    """Propagates the first part labels of each video of a split and scores the result.

    Writes `predictions/VIDEO/FRAME.png`, `scores.json` and `settings.json`.

    Args:
        root: the data set.
        out: folder of the results.
        tracker: propagates the labels; papers take an input size of 560.
        split: name of the list.
        first_frame: score the frame that was given too, as the released codes do.
        options: see `ino.tasks.results.RunOptions`.

    Raises:
        DatasetError: the data set is not as its layout says, or an annotation is of another size
            than its frame.
        MaskError: an annotation is broken.
        VideoError: a frame is broken or of another size than the first of its video.
        ConfigError: see `ino.tasks.results.propagated`.
        OutputError: the same.
    """
    videos = read_vip(root, split=split)
    for video in videos:  # before anything is propagated
        for frame, path in video.annotations.items():
            check_annotation_size(path, video.frames[frame])
    with propagated(
        videos,
        out=out,
        task="vip",
        protocol=tracker.protocol,
        choices={"input_size": tracker.input_size, "first_frame": first_frame},
        propagate=partial(propagate_parts, tracker=tracker),
        is_whole=parts_are_whole,
        **options,
    ) as (predictions, _):
        scores = score_vip(predictions, videos, first_frame=first_frame)
        scores.write(out)
    return scores


def propagate_parts(
    video: VideoSequence,
    predictions: Path,
    *,
    tracker: LabelTracker,
    on_frame: OnFrame = lambda: None,
) -> None:
    """Propagates the labels of the first frame, into `predictions`/VIDEO/FRAME.png.

    What is no part in that frame, such as void, is background.
    """
    protocol, size = tracker.protocol, image_size(video.frames[0])
    given = read_raw_labels(video.annotations[0])
    given = np.where(given < len(PARTS), given, np.uint8(BACKGROUND))
    ids = sorted({BACKGROUND, *map(int, np.unique(given))})
    folder = predictions / video.name
    folder.mkdir(parents=True, exist_ok=True)
    whole, compared = tracker.mask_sizes(size)
    reduced = resize_mask(given, whole=whole, size=compared, how=protocol.mask_to_input)

    def first(grid: tuple[int, int]) -> Tensor:
        return soften_labels(
            reduced, ids=ids, grid=grid, method=protocol.mask_down, device=tracker.device
        )

    with closing(tracker.track(video.frames, first)) as results:
        for number, (path, soft) in enumerate(zip(video.frames, results, strict=True)):
            labels = harden_labels(
                soft,
                ids=ids,
                stride=tracker.stride,
                size=compared,
                method=protocol.mask_up,
                normalize=protocol.normalize_output,
            )
            labels = restore_mask(labels, whole=whole, size=size, how=protocol.mask_from_input)
            keep = number == 0 and protocol.keep_given
            write_labels(folder / f"{path.stem}.png", given if keep else labels)
            on_frame()


parts_are_whole = sequence_is_whole
"""Whether the label maps of all frames exist and are intact PNG files."""


def score_vip(
    predictions: Path, videos: Sequence[VideoSequence], *, first_frame: bool = True
) -> "PartScores":
    """Scores of a folder of label maps, one frame in memory at a time.

    Args:
        predictions: folder with VIDEO/FRAME.png for each annotated frame.
        videos: with their annotations.
        first_frame: count the frame that was given, as the released codes do.

    Raises:
        DatasetError: no frame is annotated that would be scored.
        MaskError: a label map is missing, broken, of another size than the annotation, or holds a
            label that is no part.
    """
    pairs = [
        (predictions / video.name / f"{video.frames[frame].stem}.png", path)
        for video in videos
        for frame, path in video.annotations.items()
        if frame > 0 or first_frame
    ]
    total = np.zeros((len(PARTS), len(PARTS)), dtype=np.int64)
    for predicted, annotated in pairs:
        total += _count_file(predicted, annotated)
    if not total.any():
        raise DatasetError(
            "no annotated pixel is left to score: annotate frames after the first one"
        )
    iou = class_iou(total)
    return PartScores(
        iou=tuple(iou.tolist()),
        mean_iou=float(np.nanmean(iou)),
        accuracy=float(total.diagonal().sum() / total.sum()),
        num_frames=len(pairs),
    )


def _count_file(predicted: Path, annotated: Path) -> Confusion:
    prediction, truth = read_pair(predicted, annotated)
    if (highest := int(prediction.max())) >= len(PARTS):
        raise MaskError(
            f"{predicted} holds the label {highest}, but the labels are 0 to {len(PARTS) - 1}: "
            "write labels of parts"
        )
    return count_labels(prediction, truth, num_classes=len(PARTS))


@dataclass(frozen=True)
class PartScores:
    """Scores of a data set, all fractions 0..1.

    Attributes:
        iou: intersection over union of each part, in the order of `ino.data.vip.PARTS`; NaN for a
            part that occurs neither in the annotations nor in the predictions.
        mean_iou: the mean over the parts that occur.
        accuracy: the fraction of annotated pixels with the right label.
        num_frames: that were scored.
    """

    iou: tuple[float, ...]
    mean_iou: float
    accuracy: float
    num_frames: int

    def means(self) -> dict[str, float]:
        """The scores over all parts, fractions by name."""
        return {"mIoU": self.mean_iou, "accuracy": self.accuracy}

    def print_table(self, console: Console) -> None:
        """Prints one row per part that occurs and, below, the mean over these, in percent."""
        pairs = zip(PARTS, self.iou, strict=True)
        rows = [[name, percent(iou)] for name, iou in pairs if not math.isnan(iou)]
        rows = [["Part", "IoU"], *rows, ["mean", percent(self.mean_iou)]]
        print_table(rows, console, has_total=True)

    def write(self, folder: Path) -> None:
        """Writes scores.json with all numbers in full precision, as fractions; null for a part that
        does not occur.

        Raises:
            OutputError: the file cannot be written.
        """
        content = {
            "global": self.means(),
            "parts": {"IoU": dict(zip(PARTS, self.iou, strict=True))},
            "num_frames": self.num_frames,
        }
        write_json(folder / "scores.json", content)
