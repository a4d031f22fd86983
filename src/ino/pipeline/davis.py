"""DAVIS from the data set to scores: propagate the first masks, then score what is on disk.

A run that was killed goes on where it stopped.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ino.data.frame_folder import image_size
from ino.data.label_png import VOID, is_whole_png, read_labels, write_labels
from ino.data.vos import VideoSequence, read_davis
from ino.errors import ConfigError, DatasetError
from ino.evaluate.davis import DavisScores, score_davis
from ino.evaluate.tables import write_csv, write_json
from ino.pipeline.carrying import carry_masks
from ino.pipeline.resuming import note_finished, open_folder, read_finished
from ino.pipeline.settings import OnFrame, settings_text
from ino.propagate.tracker import Tracker
from ino.train.folder_lock import folder_lock


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
    resume: bool = False,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> DavisScores:
    """Propagates the first masks of a DAVIS split and scores the result.

    Writes `predictions/SEQUENCE/FRAME.png`, `finished.txt` with the sequences that are done, the
    CSV files of the official evaluation, `scores.json` and `settings.json`.

    Args:
        root: the data set.
        out: folder of the results.
        tracker: carries the masks.
        year: 2016 or 2017.
        split: name of the list of sequences.
        resolution: name of the folder between Annotations and the sequences.
        sequences: those of the list to do; all where None.
        settings: stored beside the protocol and the data set, such as the name of the weights.
        resume: go on with what is in the folder, if it was made with the same settings.
        overwrite: accept a folder that holds something, and do all anew.
        on_frame: called after each frame, those of skipped sequences too.

    Raises:
        DatasetError: the data set is not as its layout says.
        ConfigError: `resume` and `overwrite` are both given.
        OutputError: the folder holds something and neither is on, it was made with other settings,
            another process has it, or it cannot be written.
    """
    if resume and overwrite:
        raise ConfigError("--resume keeps what is in the folder and --overwrite does not: give one")
    found = read_davis(root, year=year, split=split, resolution=resolution, sequences=sequences)
    for sequence in found:
        _check_given(sequence)
    predictions = out / "predictions"
    data = {"root": str(root), "year": year, "split": split, "resolution": resolution}
    text = settings_text(tracker.protocol, data | {**(settings or {})})
    with folder_lock(out, command="ino evaluate davis"):
        open_folder(out, text, resume=resume, overwrite=overwrite)
        for sequence in found:
            if sequence.name in read_finished(out) and sequence_is_whole(sequence, predictions):
                for _ in sequence.frames:
                    on_frame()
                continue
            propagate_sequences([sequence], out=predictions, tracker=tracker, on_frame=on_frame)
            note_finished(out, sequence.name)
        scores = score_davis(
            predictions, root, year=year, split=split, resolution=resolution, sequences=sequences
        )
        write_csv(scores, out, split=split)
        write_json(scores, out / "scores.json", protocol=dataclasses.asdict(tracker.protocol))
    return scores


def sequence_is_whole(sequence: VideoSequence, predictions: Path) -> bool:
    """Whether the masks of all frames are there, and whole still."""
    size = image_size(sequence.frames[0])
    masks = (predictions / sequence.name / f"{frame.stem}.png" for frame in sequence.frames)
    return all(is_whole_png(path, size=size) for path in masks)


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
