"""VIP from the data set to mean IoU: carry the first part labels, then score what is on disk."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ino.data.frame_folder import image_size
from ino.data.label_png import read_raw_labels, write_labels
from ino.data.vip import PARTS, read_vip
from ino.data.vos import VideoSequence
from ino.errors import DatasetError
from ino.evaluate.dense_tables import write_parts_json
from ino.evaluate.parts import PartScores, score_parts
from ino.files import new_folder
from ino.pipeline.settings import OnFrame, write_settings
from ino.pipeline.soft_labels import LabelTracker
from ino.propagate.features import layer_stride
from ino.propagate.labels import harden_labels, soften_labels

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
        carry_parts(video, out=out / "predictions", tracker=tracker, on_frame=on_frame)
    scores = score_parts(out / "predictions", videos, names=PARTS, first_frame=first_frame)
    write_parts_json(scores, out / "scores.json")
    return scores


def carry_parts(
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
