"""Evaluation on DAVIS-2016, DAVIS-2017 and data sets in their layout: propagation and scores.

The semi-supervised task: the first annotation of a sequence is propagated through it, the objects
are those of that annotation, and the first and the last annotated frame are left out of the
scores. A folder of indexed PNGs on disk is the border between propagation and scoring. The
unsupervised and interactive tasks are not covered.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Unpack

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from ino.data.davis import VideoSequence, read_davis
from ino.data.images import image_size
from ino.data.label_maps import VOID, read_labels, read_raw_labels, resolve_void
from ino.errors import ConfigError, DatasetError, OutputError
from ino.metrics import Summary, summarize
from ino.propagate.protocols import Protocol, Size
from ino.propagate.tracker import Tracker
from ino.tables import fraction, percent, print_table, write_csv, write_json
from ino.tasks.results import (
    OnFrame,
    RunOptions,
    check_annotation_size,
    masks_are_whole,
    propagate_masks,
    propagated,
)
from ino.tasks.scoring import FramesToScore, score_sequences
from ino.tasks.submission import pack_submission


def evaluate_davis(
    root: Path | str,
    *,
    out: Path | str,
    tracker: Tracker,
    year: int = 2017,
    split: str = "val",
    resolution: str = "480p",
    sequences: Sequence[str] | None = None,
    **options: Unpack[RunOptions],
) -> "DavisScores | None":
    """Propagates the first masks of a DAVIS split and scores the result.

    Writes `predictions/SEQUENCE/FRAME.png`, `finished.txt` with the sequences that are done, the
    CSV files of the official evaluation, `scores.json` and `settings.json`. A run that was killed
    can be resumed.

    Where no later frames are annotated, as in test-dev and the challenges, nothing is scored and
    the result is None: `submission.zip` is for the server, and is written where all sequences of
    the list are done.

    Args:
        root: the data set.
        out: folder of the results.
        tracker: propagates the masks.
        year: 2016 or 2017.
        split: name of the list of sequences.
        resolution: name of the folder between Annotations and the sequences.
        sequences: those of the list to do; all where None.
        options: see `ino.tasks.results.RunOptions`.

    Raises:
        DatasetError: the data set is not as its layout says.
        ConfigError: see `ino.tasks.results.propagated`.
        OutputError: the same.
    """
    root, out = Path(root), Path(out)
    found = read_davis(root, year=year, split=split, resolution=resolution, sequences=sequences)
    for sequence in found:
        _given(sequence)  # what cannot be propagated is told before anything is written
    is_scored = any(map(has_truth, found))
    if is_scored:  # so is what cannot be scored
        for sequence in found:
            _check_truth(sequence)
    with propagated(
        found,
        out=out,
        task="davis",
        protocol=tracker.protocol,
        choices={"root": str(root), "year": year, "split": split, "resolution": resolution},
        propagate=partial(propagate_sequence, tracker=tracker),
        is_whole=partial(sequence_is_whole, size=tracker.protocol.data_size),
        **options,
    ) as (predictions, _):
        if not is_scored:
            if sequences is None:
                asked = {one.name: [frame.stem for frame in one.frames] for one in found}
                pack_submission(predictions, asked, out / "submission.zip", top="")
            return None
        scores = score_davis(
            predictions,
            root,
            year=year,
            split=split,
            resolution=resolution,
            sequences=sequences,
            data_size=tracker.protocol.data_size,
        )
        scores.write(out, split=split, protocol=tracker.protocol)
    return scores


def propagate_sequence(
    sequence: VideoSequence,
    predictions: Path,
    *,
    tracker: Tracker,
    on_frame: OnFrame = lambda: None,
) -> None:
    """Propagates the first annotation of a sequence, into `predictions`/SEQUENCE/FRAME.png.

    Masks have the size of the frames or, where they can be scored, the `data_size` of the protocol.

    Raises:
        DatasetError: it holds no object or is of another size than its frame.
        VideoError: a frame is broken or of another size than the first.
    """
    propagate_masks(
        sequence.frames,
        _given(sequence),
        predictions / sequence.name,
        tracker=tracker,
        wanted={frame.stem for frame in sequence.frames},
        on_frame=on_frame,
        # A server takes masks of the size of the frames.
        size=tracker.protocol.data_size if has_truth(sequence) else None,
    )


def sequence_is_whole(
    sequence: VideoSequence, predictions: Path, *, size: Size | None = None
) -> bool:
    """Whether the masks of all frames exist and are intact PNG files of that size, or, where it is
    None or nothing can be scored, of the size of the frames."""
    stems = (frame.stem for frame in sequence.frames)
    if size is None or not has_truth(sequence):
        size = image_size(sequence.frames[0])
    return masks_are_whole(predictions / sequence.name, stems, size=size)


def _given(sequence: VideoSequence) -> dict[int, Path]:
    """The first annotation by the number of its frame; raises DatasetError where it is unfit."""
    first = min(sequence.annotations)
    path = sequence.annotations[first]
    labels = read_labels(path)
    check_annotation_size(path, sequence.frames[first])
    if not ((labels > 0) & (labels != VOID)).any():
        raise DatasetError(
            f"{path} holds no object, but it is the mask that is propagated: copy the annotations "
            f"of {sequence.name} again"
        )
    return {first: path}


def has_truth(sequence: VideoSequence) -> bool:
    """Whether a frame is annotated between the first and the last one, which are not scored."""
    return len(sequence.annotations) > 2


def _check_truth(sequence: VideoSequence) -> None:
    if not has_truth(sequence):
        raise DatasetError(
            f"{sequence.name} has {len(sequence.annotations)} annotated frames, but at least 3 are "
            "needed, for the first and the last one are left out of the scores"
        )


def score_davis(
    predictions: Path | str,
    root: Path | str,
    *,
    year: int = 2017,
    split: str = "val",
    resolution: str = "480p",
    sequences: Sequence[str] | None = None,
    workers: int | None = None,
    data_size: Size | None = None,
) -> "DavisScores":
    """J and F of every object of a split, equal to those of the official evaluation.

    2017: the objects of a sequence are numbered from 1 to the highest number of its first
    annotation, and every one of them counts, as in davis2017-evaluation. 2016: all objects of a
    frame are one foreground, in the annotation as in the prediction. Both official evaluations, of
    2016 as of 2017, leave out the first frame, which is given, and the last one.

    Where only some frames are annotated, the annotated ones but the first and the last are scored.
    A file with 0 and 255 only is a mask of one object where the sequence has one. Elsewhere 255 in
    an annotation is void and does not count; DAVIS itself has no void in these two tasks.

    Args:
        predictions: folder with one folder per sequence, which holds an indexed PNG for each scored
            frame, named as the annotation; files beyond them are not read.
        root: the data set (see `ino.data.davis.read_davis`).
        year: 2016 or 2017.
        split: name of the list of sequences.
        resolution: name of the folder between Annotations and the sequences.
        sequences: the sequences of the list to score; all where None.
        workers: see `ino.tasks.scoring.score_sequences`.
        data_size: height and width to which annotations are brought by nearest neighbor, as by
            protocols that have one; None: they keep theirs.

    Raises:
        ConfigError: the year is another, or `workers` is below 1.
        DatasetError: the data set is incomplete, or a sequence has no frame or no object to score.
        MaskError: predictions are missing, broken, of another size than the annotation, or hold
            objects that the sequence does not have.
    """
    predictions, root = Path(predictions), Path(root)
    if year not in (2016, 2017):
        raise ConfigError(f"DAVIS has the years 2016 and 2017, but year is {year}")
    found = read_davis(root, year=year, split=split, resolution=resolution, sequences=sequences)
    if not found:
        raise DatasetError(f"no sequence of {root} is chosen: name at least one")
    frames = [
        _frames_to_score(one, predictions, one_object=year == 2016, size=data_size) for one in found
    ]
    with closing(score_sequences(predictions, frames, workers=workers)) as results:
        objects = [
            ObjectScore(sequence.name, number, j=summarize(j), f=summarize(f))
            for sequence, scores in zip(found, results, strict=True)
            for number, (j, f) in enumerate(zip(*scores, strict=True), start=1)
        ]
    return DavisScores(objects=tuple(objects))


def _frames_to_score(
    sequence: VideoSequence, predictions: Path, *, one_object: bool, size: Size | None
) -> FramesToScore:
    """The scored frames; reads the first annotation, whose objects are those of the sequence."""
    _check_truth(sequence)
    scored = list(sequence.annotations.values())[1:-1]
    first = sequence.annotations[0]
    raw = read_raw_labels(first)
    truth = resolve_void(raw)
    num_objects = int(truth[truth != VOID].max(initial=0))
    if num_objects == 0:
        raise DatasetError(f"{first} holds no object, so {sequence.name} has nothing to score")
    folder = predictions / sequence.name
    return FramesToScore(
        sequence.name,
        pairs=tuple((path, folder / path.name) for path in scored),
        objects=(1,) if one_object else tuple(range(1, num_objects + 1)),
        # The first annotation tells for all what 255 means: a later one may be all void.
        is_binary=truth is not raw,
        one_object=one_object,
        size=size,
    )


@dataclass(frozen=True)
class ObjectScore:
    """J and F of one object, summarized over the scored frames of its sequence."""

    sequence: str
    object_id: int
    j: Summary
    f: Summary


@dataclass(frozen=True)
class DavisScores:
    """The scores of all objects, in the order of the list; each mean is over objects.

    All numbers are fractions: means and recalls in 0..1, decays in -1..1.
    """

    objects: tuple[ObjectScore, ...]

    @property
    def jf_mean(self) -> float:
        """J&F, 0..1: the mean of J-Mean and F-Mean, by which DAVIS ranks methods."""
        return self.means()["J&F-Mean"]

    @property
    def j_mean(self) -> float:
        return self.means()["J-Mean"]

    @property
    def f_mean(self) -> float:
        return self.means()["F-Mean"]

    def by_sequence(self) -> dict[str, float]:
        """J&F of each sequence, the mean over its objects, from the best sequence to the worst."""
        found: dict[str, list[float]] = {}
        for one in self.objects:
            found.setdefault(one.sequence, []).append((one.j.mean + one.f.mean) / 2)
        means = {name: fmean(values) for name, values in found.items()}
        return dict(sorted(means.items(), key=lambda item: (-item[1], item[0])))

    def means(self) -> dict[str, float]:
        """The means over objects under the column names of the official evaluation."""
        j, f = _mean([one.j for one in self.objects]), _mean([one.f for one in self.objects])
        return dict(zip(_COLUMNS, _values(j, f), strict=True))

    def print_table(self, console: Console) -> None:
        """Prints one row per object and, below, the means over objects, in percent."""
        # Two lines per heading: the table fits into a terminal of 80 columns.
        rows = [["Sequence", "Object", *(name.replace("-", "\n") for name in _COLUMNS)]]
        for one in self.objects:
            values = map(percent, _values(one.j, one.f))
            rows.append([one.sequence, str(one.object_id), *values])
        rows.append(["mean", str(len(self.objects)), *map(percent, self.means().values())])
        print_table(rows, console, has_total=True)

    def write(self, folder: Path, *, split: str, protocol: Protocol | None) -> None:
        """Writes the two CSV files of davis2017-evaluation, global_results-<split>.csv and
        per-sequence_results-<split>.csv, and scores.json with all numbers in full precision.

        Args:
            folder: an existing folder; files of the same names are replaced.
            split: named in the file names.
            protocol: of the propagation, or None where it is not known.

        Raises:
            OutputError: a file cannot be written.
        """
        means = [_COLUMNS, [fraction(value) for value in self.means().values()]]
        write_csv(folder / f"global_results-{split}.csv", means)
        rows = [
            [f"{one.sequence}_{one.object_id}", fraction(one.j.mean), fraction(one.f.mean)]
            for one in self.objects
        ]
        write_csv(
            folder / f"per-sequence_results-{split}.csv", [["Sequence", "J-Mean", "F-Mean"], *rows]
        )
        content = {
            "protocol": None if protocol is None else protocol.as_dict(),
            "global": self.means(),
            "objects": [asdict(one) for one in self.objects],
        }
        write_json(folder / "scores.json", content)


_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")


def _values(j: Summary, f: Summary) -> tuple[float, ...]:
    """In the order of the columns."""
    return ((j.mean + f.mean) / 2, j.mean, j.recall, j.decay, f.mean, f.recall, f.decay)


def _mean(summaries: Sequence[Summary]) -> Summary:
    return Summary(
        mean=fmean(one.mean for one in summaries),
        recall=fmean(one.recall for one in summaries),
        decay=fmean(one.decay for one in summaries),
    )


def read_davis_scores(path: Path) -> DavisScores:
    """The scores in a scores.json that `DavisScores.write` wrote.

    Raises:
        OutputError: the file is missing, broken, or holds the scores of another data set.
    """
    try:
        return TypeAdapter(DavisScores).validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise OutputError(
            f"{path} does not exist: give the folder of an evaluation on DAVIS that is done"
        ) from error
    except ValidationError as error:
        raise OutputError(
            f"{path} does not hold scores on DAVIS: give the folder of such an evaluation"
        ) from error
