"""DAVIS from the data set to scores: propagate the first masks, then score what is on disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ino.data.label_png import read_labels, write_labels
from ino.data.vos import VideoSequence, read_davis
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
    """
    for sequence in sequences:
        folder = out / sequence.name
        folder.mkdir(parents=True, exist_ok=True)
        first = min(sequence.annotations)
        masks = {first: read_labels(sequence.annotations[first])}
        with closing(carry_masks(sequence.frames, masks, tracker=tracker)) as results:
            for path, labels in results:
                write_labels(folder / f"{path.stem}.png", labels)
                on_frame()
