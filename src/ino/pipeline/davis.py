"""DAVIS from the data set to scores: propagate the first masks, then score what is on disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ino.data.frame_folder import image_size
from ino.data.label_png import VOID, read_labels, write_labels
from ino.data.vos import VideoSequence, read_davis
from ino.errors import DatasetError
from ino.evaluate.davis import DavisScores, score_davis
from ino.evaluate.tables import write_csv, write_json
from ino.files import new_folder
from ino.pipeline.carrying import carry_masks
from ino.pipeline.settings import OnFrame, write_settings
from ino.propagate.tracker import Tracker


def evaluate_davis(
    root: Path,
    *,
    out: Path,
    tracker: Tracker,
    year: int = 2017,
    split: str = "val",
    resolution: str = "480p",
    sequences: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> DavisScores:
    """Propagates the first masks of a DAVIS split and scores the result.

    Writes `predictions/SEQUENCE/FRAME.png`, the CSV files of the official evaluation, `scores.json`
    and `settings.json`.

    Args:
        root: the data set.
        out: folder of the results.
        tracker: carries the masks.
        year: 2016 or 2017.
        split: name of the list of sequences.
        resolution: name of the folder between Annotations and the sequences.
        sequences: those of the list to do; all where None.
        settings: stored beside the protocol, such as the name of the weights.
        overwrite: accept a folder that holds something.
        on_frame: called after each frame.

    Raises:
        DatasetError: the data set is not as its layout says.
        OutputError: the folder holds something and `overwrite` is off, or cannot be written.
    """
    found = read_davis(root, year=year, split=split, resolution=resolution, sequences=sequences)
    new_folder(out, overwrite=overwrite)
    write_settings(out / "settings.json", tracker.protocol, settings)
    predictions = out / "predictions"
    propagate_sequences(found, out=predictions, tracker=tracker, on_frame=on_frame)
    scores = score_davis(
        predictions, root, year=year, split=split, resolution=resolution, sequences=sequences
    )
    write_csv(scores, out, split=split)
    write_json(scores, out / "scores.json", protocol=dataclasses.asdict(tracker.protocol))
    return scores


def propagate_sequences(
    sequences: Sequence[VideoSequence],
    *,
    out: Path,
    tracker: Tracker,
    on_frame: OnFrame = lambda: None,
) -> None:
    """Carries the given masks of each sequence through it, into `out`/SEQUENCE/FRAME.png.

    Only the annotation of a sequence's first annotated frame is given, as in DAVIS.

    Raises:
        DatasetError: such an annotation holds no object or is of another size than its frame; this
            is told before anything is carried.
    """
    for sequence in sequences:
        _check_given(sequence)
    for sequence in sequences:
        folder = out / sequence.name
        folder.mkdir(parents=True, exist_ok=True)
        first = min(sequence.annotations)
        masks = {first: read_labels(sequence.annotations[first])}
        with closing(carry_masks(sequence.frames, masks, tracker=tracker)) as results:
            for path, labels in results:
                write_labels(folder / f"{path.stem}.png", labels)
                on_frame()


def _check_given(sequence: VideoSequence) -> None:
    """Raises DatasetError unless the first annotation can be carried."""
    first = min(sequence.annotations)
    path, labels = sequence.annotations[first], read_labels(sequence.annotations[first])
    size = image_size(sequence.frames[first])
    if labels.shape != size:
        raise DatasetError(
            f"{path} is {labels.shape[0]}x{labels.shape[1]} (height x width), but its frame is "
            f"{size[0]}x{size[1]}: give annotations in the size of the frames"
        )
    if not ((labels > 0) & (labels != VOID)).any():
        raise DatasetError(
            f"{path} holds no object, but it is the mask that is carried: copy the annotations of "
            f"{sequence.name} again"
        )
