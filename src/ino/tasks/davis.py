"""J and F of predicted masks on DAVIS-2016 and DAVIS-2017, or on any data set in that layout.

The semi-supervised task: the objects are those of the first annotation, and the first and the last
annotated frame are left out. Predictions are read from disk, one frame at a time; how they were
made is no concern of this module. The unsupervised and interactive tasks are not covered.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ino import __version__
from ino.data.davis import VideoSequence, read_davis
from ino.data.label_maps import (
    VOID,
    is_whole_png,
    read_labels,
    read_raw_labels,
    resolve_void,
    write_labels,
)
from ino.data.video import image_size
from ino.errors import ConfigError, DatasetError, MaskError, OutputError
from ino.metrics import Summary, summarize
from ino.propagate.tracker import Tracker
from ino.system import folder_lock, write_text
from ino.tables import write_rows
from ino.tasks.results import (
    OnFrame,
    note_finished,
    open_folder,
    propagate_masks,
    read_finished,
    settings_text,
)
from ino.tasks.scoring import FrameTask, score_tasks, split_frames


@dataclass(frozen=True)
class ObjectScore:
    """J and F of one object, summarised over the scored frames of its sequence."""

    sequence: str
    object_id: int
    j: Summary
    f: Summary


@dataclass(frozen=True)
class DavisScores:
    """The scores of all objects, in the order of the list; each mean below is over objects.

    All numbers are fractions: means and recalls in 0..1, decays in -1..1.
    """

    objects: tuple[ObjectScore, ...]

    @property
    def jf_mean(self) -> float:
        """J&F, the mean of the two means: the number that DAVIS ranks by."""
        return (self.j_mean + self.f_mean) / 2

    @property
    def j_mean(self) -> float:
        return fmean(score.j.mean for score in self.objects)

    @property
    def j_recall(self) -> float:
        return fmean(score.j.recall for score in self.objects)

    @property
    def j_decay(self) -> float:
        return fmean(score.j.decay for score in self.objects)

    @property
    def f_mean(self) -> float:
        return fmean(score.f.mean for score in self.objects)

    @property
    def f_recall(self) -> float:
        return fmean(score.f.recall for score in self.objects)

    @property
    def f_decay(self) -> float:
        return fmean(score.f.decay for score in self.objects)

    def by_sequence(self) -> dict[str, float]:
        """J&F of each sequence, the mean over its objects, from the best sequence to the worst."""
        found: dict[str, list[float]] = {}
        for one in self.objects:
            found.setdefault(one.sequence, []).append((one.j.mean + one.f.mean) / 2)
        means = {name: fmean(values) for name, values in found.items()}
        return dict(sorted(means.items(), key=lambda item: (-item[1], item[0])))


def score_davis(
    predictions: Path,
    root: Path,
    *,
    year: int = 2017,
    split: str = "val",
    resolution: str = "480p",
    sequences: Sequence[str] | None = None,
    workers: int | None = None,
    on_sequence: Callable[[str], None] | None = None,
) -> DavisScores:
    """J and F of every object of a split, equal to those of the official evaluation.

    2017: the objects of a sequence are numbered from 1 to the highest number of its first
    annotation, and every one of them counts, as in davis2017-evaluation. 2016: all objects of a
    frame are one foreground, in the annotation as in the prediction. Both official evaluations, of
    2016 as of 2017, leave out the first frame, which is given, and the last one.

    Where only some frames are annotated, the annotated ones but the first and the last are scored.
    A file with 0 and 255 only is a mask of one object where the sequence has one. Elsewhere 255 in
    an annotation is void and does not count; DAVIS itself has no void in these two tasks.

    Args:
        predictions: folder with a folder a sequence, which holds an indexed PNG for each scored
            frame, named as the annotation; files beyond them are not read.
        root: the data set (see `ino.data.davis.read_davis`).
        year: 2016 or 2017.
        split: name of the list of sequences.
        resolution: name of the folder between Annotations and the sequences.
        sequences: the sequences of the list to score; all where None.
        workers: processes that share the frames, each with one frame in memory; 1 works in this
            process. Where None, one a core, but fewer for few frames. The result is the same for
            any number.
        on_sequence: called with the name of each sequence once it is scored, in order.

    Raises:
        ConfigError: the year is another, or `workers` is below 1.
        DatasetError: the data set is incomplete, or a sequence has no frame or no object to score.
        MaskError: predictions are missing, broken, of another size than the annotation, or hold
            objects that the sequence does not have.
    """
    if year not in (2016, 2017):
        raise ConfigError(f"DAVIS has the years 2016 and 2017, but year is {year}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is at least 1, but it is {workers}")
    found = read_davis(root, year=year, split=split, resolution=resolution, sequences=sequences)
    if not found:
        raise DatasetError(f"no sequence of {root} is chosen: name at least one")
    _check_complete(found, predictions)
    tasks = [
        task
        for one in found
        for task in _tasks(one, predictions / one.name, one_object=year == 2016)
    ]
    objects: list[ObjectScore] = []
    with closing(score_tasks(tasks, workers=workers)) as results:
        for name, scores in results:
            objects += _summaries(name, scores)
            if on_sequence is not None:
                on_sequence(name)
    return DavisScores(objects=tuple(objects))


def _tasks(sequence: VideoSequence, folder: Path, *, one_object: bool) -> list[FrameTask]:
    """The scored frames; reads the first annotation, whose objects are those of the sequence."""
    first = sequence.annotations[0]
    raw = read_raw_labels(first)
    truth = resolve_void(raw)
    num_objects = int(truth[truth != VOID].max(initial=0))
    if num_objects == 0:
        raise DatasetError(f"{first} holds no object, so {sequence.name} has nothing to score")
    return split_frames(
        sequence.name,
        [(path, folder / path.name) for path in _scored(sequence)],
        objects=range(1, num_objects + 1),
        # The first annotation tells for all what 255 means: a later one may be all void.
        is_binary=truth is not raw,
        one_object=one_object,
    )


def _scored(sequence: VideoSequence) -> list[Path]:
    """The annotations that are scored."""
    return list(sequence.annotations.values())[1:-1]


def _check_complete(sequences: Sequence[VideoSequence], predictions: Path) -> None:
    """Everything that can be told without opening an image, before anything is scored."""
    if not predictions.is_dir():
        raise MaskError(f"{predictions} is not a folder: give the folder of the predicted masks")
    absent = [one.name for one in sequences if not (predictions / one.name).is_dir()]
    if absent:
        raise MaskError(
            f"{predictions} has no folder for {len(absent)} of {len(sequences)} sequences, the "
            f"first of them {absent[0]}: it must hold one folder of PNG files a sequence; choose "
            "those that it has with --sequences"
        )
    for sequence in sequences:
        scored = _scored(sequence)
        if not scored:
            raise DatasetError(
                f"{sequence.name} has {len(sequence.annotations)} annotated frames, but at least 3 "
                "are needed, for the first and the last one are left out of the scores"
            )
        folder = predictions / sequence.name
        missing = [truth.name for truth in scored if not (folder / truth.name).is_file()]
        if missing:
            raise MaskError(
                f"{sequence.name} lacks the predictions of {len(missing)} of {len(scored)} frames, "
                f"the first of them {folder / missing[0]}: predict every frame"
            )


def _summaries(sequence: str, scores: Float[np.ndarray, "2 objects frames"]) -> list[ObjectScore]:
    pairs = zip(*scores, strict=True)
    return [
        ObjectScore(sequence, number, j=summarize(j), f=summarize(f))
        for number, (j, f) in enumerate(pairs, start=1)
    ]


# DAVIS scores as a printed table, as the CSV files of the official evaluation, and as JSON.
#
# Only formatting: nothing is computed. The page with pictures is in ino.report.sections.


def global_scores(scores: DavisScores) -> dict[str, float]:
    """The means over objects under the column names of the official evaluation, as fractions."""
    return {
        "J&F-Mean": scores.jf_mean,
        "J-Mean": scores.j_mean,
        "J-Recall": scores.j_recall,
        "J-Decay": scores.j_decay,
        "F-Mean": scores.f_mean,
        "F-Recall": scores.f_recall,
        "F-Decay": scores.f_decay,
    }


def print_scores(scores: DavisScores, console: Console) -> None:
    """Prints a row an object and, below, the means over objects, in percent."""
    totals = global_scores(scores)
    # Two lines a heading and little padding: the table fits into a terminal of 80 columns.
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, show_footer=True)
    table.add_column("Sequence", footer="mean")
    table.add_column("Object", footer=str(len(scores.objects)), justify="right")
    for name, value in totals.items():
        table.add_column(name.replace("-", "\n"), footer=_percent(value), justify="right")
    for score in scores.objects:
        j, f = score.j, score.f
        values = ((j.mean + f.mean) / 2, j.mean, j.recall, j.decay, f.mean, f.recall, f.decay)
        table.add_row(score.sequence, str(score.object_id), *map(_percent, values))
    console.print(table)


def write_csv(scores: DavisScores, folder: Path, *, split: str = "val") -> tuple[Path, Path]:
    """The two files of davis2017-evaluation, fractions with three decimals.

    Args:
        scores: of one data set.
        folder: an existing folder; files of the same names are replaced.
        split: named in the file names.

    Returns:
        The paths of global_results-<split>.csv and per-sequence_results-<split>.csv.

    Raises:
        OutputError: a file cannot be written.
    """
    totals = global_scores(scores)
    whole = folder / f"global_results-{split}.csv"
    write_rows(whole, [list(totals), [_fraction(value) for value in totals.values()]])
    single = folder / f"per-sequence_results-{split}.csv"
    rows = [
        [f"{one.sequence}_{one.object_id}", _fraction(one.j.mean), _fraction(one.f.mean)]
        for one in scores.objects
    ]
    write_rows(single, [["Sequence", "J-Mean", "F-Mean"], *rows])
    return whole, single


def write_json(scores: DavisScores, path: Path, *, protocol: Mapping[str, Any] | None) -> None:
    """All scores in full precision, with the version of this software and how masks were made.

    Args:
        scores: of one data set.
        path: where the file will be; an existing one is replaced.
        protocol: the settings of the propagation, or None where they are not known. A value that
            JSON does not have, such as a path, is written as text.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {
        "software": {"name": "ino", "version": __version__},
        "protocol": None if protocol is None else dict(protocol),
        "global": global_scores(scores),
        "objects": [asdict(score) for score in scores.objects],
    }
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_text(path, text)


def read_means(path: Path) -> dict[str, float] | None:
    """The means over objects in a file of scores, as fractions by column name.

    Means without a truth are left out. None where the file is missing or damaged: whoever made it
    can make it again.
    """
    try:
        means = json.loads(path.read_text(encoding="utf-8"))["global"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(means, dict):
        return None
    return {name: value for name, value in means.items() if value is not None}


def read_json(path: Path) -> DavisScores:
    """The scores that `write_json` wrote.

    Raises:
        OutputError: the file is missing, broken, or holds the scores of another data set.
    """
    try:
        objects = json.loads(path.read_text(encoding="utf-8"))["objects"]
        return DavisScores(
            tuple(
                ObjectScore(
                    one["sequence"], one["object_id"], j=Summary(**one["j"]), f=Summary(**one["f"])
                )
                for one in objects
            )
        )
    except FileNotFoundError as error:
        raise OutputError(
            f"{path} does not exist: give the folder of an evaluation on DAVIS that is done"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{path} does not hold scores on DAVIS: give the folder of such an evaluation"
        ) from error


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _fraction(value: float) -> str:
    return f"{value:.3f}"


# DAVIS from the data set to scores: propagate the first masks, then score what is on disk.
#
# A run that was killed goes on where it stopped.


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
        write_json(scores, out / "scores.json", protocol=tracker.protocol.as_dict())
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
        with closing(propagate_masks(sequence.frames, masks, tracker=tracker)) as results:
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
