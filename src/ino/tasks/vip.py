"""Mean IoU of VIP from folders of label maps."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ino.data.davis import VideoSequence
from ino.data.label_maps import read_raw_labels, write_labels
from ino.data.video import image_size
from ino.data.vip import PARTS, read_vip
from ino.errors import DatasetError, MaskError
from ino.metrics import Confusion, PartScores, class_iou, count_labels
from ino.propagate.features import layer_stride
from ino.propagate.labels import harden_labels, soften_labels
from ino.system import new_folder
from ino.tables import named_scores, percent, write_scores
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.results import OnFrame, write_settings


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


# IoU as tables.


def print_parts(scores: PartScores, console: Console) -> None:
    """Prints a row a class that occurs and, below, the mean over these, in percent."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, show_footer=True)
    table.add_column("Part", footer="mean")
    table.add_column("IoU", footer=percent(scores.mean_iou), justify="right")
    for name, iou in zip(scores.names, scores.iou, strict=True):
        if not math.isnan(iou):
            table.add_row(name, percent(iou))
    console.print(table)


def write_parts_json(scores: PartScores, path: Path) -> None:
    """All scores in full precision, as fractions; null for a class that does not occur.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {
        "global": {"mIoU": scores.mean_iou, "accuracy": scores.accuracy},
        "parts": {"IoU": named_scores(scores.names, scores.iou)},
        "num_frames": scores.num_frames,
    }
    write_scores(path, content)


# VIP from the data set to mean IoU: carry the first part labels, then score what is on disk.


BACKGROUND = 0


def evaluate_vip(
    root: Path,
    *,
    out: Path,
    tracker: LabelTracker,
    split: str = "val",
    first_frame: bool = True,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> PartScores:
    """Carries the first part labels of each video of a split and scores the result.

    Writes `predictions/VIDEO/FRAME.png`, `scores.json` and `settings.json`.

    Args:
        root: the data set.
        out: folder of the results.
        tracker: carries the labels; papers take an input size of 560.
        split: name of the list.
        first_frame: score the frame that was given too, as the released codes do.
        settings: stored beside the protocol, such as the name of the weights.
        overwrite: accept a folder that holds something.
        on_frame: called after each frame.

    Raises:
        DatasetError: the data set is not as its layout says, or an annotation is of another size
            than its frame.
        MaskError: an annotation is broken.
        VideoError: a frame is broken or of another size than the first of its video.
        OutputError: the folder holds something and `overwrite` is off, or cannot be written.
    """
    videos = read_vip(root, split=split)
    _check_sizes(videos)
    new_folder(out, overwrite=overwrite)
    write_settings(
        out / "settings.json",
        tracker.protocol,
        {**(settings or {}), "input_size": tracker.input_size, "first_frame": first_frame},
    )
    for video in videos:
        propagate_parts(video, out=out / "predictions", tracker=tracker, on_frame=on_frame)
    scores = score_parts(out / "predictions", videos, names=PARTS, first_frame=first_frame)
    write_parts_json(scores, out / "scores.json")
    return scores


def propagate_parts(
    video: VideoSequence, *, out: Path, tracker: LabelTracker, on_frame: OnFrame = lambda: None
) -> None:
    """Carries the labels of a video's first frame into `out`/VIDEO/FRAME.png."""
    size = image_size(video.frames[0])
    given = _first_labels(video)
    ids = sorted({BACKGROUND, *map(int, np.unique(given))})
    protocol = tracker.protocol
    folder = out / video.name
    folder.mkdir(parents=True, exist_ok=True)
    tracked = tracker.track(
        video.frames,
        lambda grid: soften_labels(
            given, ids=ids, grid=grid, method=protocol.mask_down, device=tracker.device
        ),
    )
    with closing(tracked) as results:
        for number, (path, soft) in enumerate(zip(video.frames, results, strict=True)):
            labels = harden_labels(
                soft,
                ids=ids,
                stride=layer_stride(tracker.backbone, protocol.layer),
                size=size,
                method=protocol.mask_up,
                normalize=protocol.normalize_output,
            )
            keep = number == 0 and protocol.keep_given
            write_labels(folder / f"{path.stem}.png", given if keep else labels)
            on_frame()


def _check_sizes(videos: Sequence[VideoSequence]) -> None:
    """Before anything is carried; only the heads of files are read."""
    for video in videos:
        for frame, path in video.annotations.items():
            found, expected = image_size(path), image_size(video.frames[frame])
            if found != expected:
                raise DatasetError(
                    f"{path} is {found[0]}x{found[1]} (height x width), but its frame is "
                    f"{expected[0]}x{expected[1]}: give annotations in the size of the frames"
                )


def _first_labels(video: VideoSequence) -> np.ndarray:
    """The labels of the first frame; what is no part, such as void, is background."""
    labels = read_raw_labels(video.annotations[0])
    return np.where(labels < len(PARTS), labels, np.uint8(BACKGROUND))
