"""J and F of predicted masks on DAVIS-2016 and DAVIS-2017, or on any data set in that layout.

The semi-supervised task: the objects are those of the first annotation, and the first and the last
annotated frame are left out. Predictions are read from disk, one frame at a time; how they were
made is no concern of this module. The unsupervised and interactive tasks are not covered.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import Float

from ino.data.label_png import VOID, read_raw_labels, resolve_void
from ino.data.vos import VideoSequence, read_davis
from ino.errors import ConfigError, DatasetError, MaskError
from ino.evaluate.frame_tasks import FrameTask, score_tasks, split_frames
from ino.evaluate.metrics import Summary, summarize


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
        root: the data set (see `ino.data.vos.read_davis`).
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
