"""J and F of predicted masks on DAVIS-2016 and DAVIS-2017, or on any data set in that layout.

The semi-supervised task: the objects are those of the first annotation, and the first and the last
annotated frame are left out. Predictions are read from disk, one frame at a time; how they were
made is no concern of this module. The unsupervised and interactive tasks are not covered.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np

from ino.data.label_png import VOID, read_raw_labels, resolve_void
from ino.data.vos import VideoSequence, read_davis
from ino.errors import ConfigError, DatasetError, MaskError
from ino.evaluate.metrics import Summary, contour_accuracy, region_similarity, summarize

_MAX_WORKERS = 8


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
        workers: sequences scored at a time; where None, one a processor, at most 8. The result is
            the same for any number.
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
    score = partial(_score_sequence, predictions=predictions, one_object=year == 2016)
    num_workers = workers or min(os.cpu_count() or 1, _MAX_WORKERS)
    objects: list[ObjectScore] = []
    # Threads, for decoding and the metrics' array operations run outside Python's lock.
    with ThreadPoolExecutor(num_workers) as pool:
        for sequence, scores in zip(found, pool.map(score, found), strict=True):
            objects += scores
            if on_sequence is not None:
                on_sequence(sequence.name)
    return DavisScores(objects=tuple(objects))


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
            f"first of them {absent[0]}: it must hold one folder of PNG files a sequence"
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


def _score_sequence(
    sequence: VideoSequence, *, predictions: Path, one_object: bool
) -> list[ObjectScore]:
    first = sequence.annotations[0]
    raw = read_raw_labels(first)
    truth = resolve_void(raw)
    # The first annotation tells for all what 255 means: a later one may hold nothing but void.
    is_binary = truth is not raw
    num_objects = int(truth[truth != VOID].max(initial=0))
    if num_objects == 0:
        raise DatasetError(f"{first} holds no object, so {sequence.name} has nothing to score")
    if one_object:
        num_objects = 1
    scored = _scored(sequence)
    j = np.empty((num_objects, len(scored)))
    f = np.empty((num_objects, len(scored)))
    for frame, path in enumerate(scored):
        predicted = predictions / sequence.name / path.name
        truth = read_raw_labels(path)
        if is_binary:
            truth = resolve_void(truth)
        prediction = _read_prediction(predicted, truth.shape)
        void = truth == VOID
        ignored = void if void.any() else None
        if one_object:
            truth, prediction = truth > 0, prediction > 0  # void is left out by the metrics
        elif num_objects == 1:
            prediction = resolve_void(prediction)
        _check_objects(prediction, num_objects, predicted)
        for index in range(num_objects):
            masks = prediction == index + 1, truth == index + 1
            j[index, frame] = region_similarity(*masks, ignored)
            f[index, frame] = contour_accuracy(*masks, ignored)
    return [
        ObjectScore(sequence.name, index + 1, j=summarize(j[index]), f=summarize(f[index]))
        for index in range(num_objects)
    ]


def _read_prediction(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    prediction = read_raw_labels(path)
    if prediction.shape != shape:
        raise MaskError(
            f"{path} is {prediction.shape[0]}x{prediction.shape[1]} (height x width), but the "
            f"annotation is {shape[0]}x{shape[1]}: write predictions in the size of the annotation"
        )
    return prediction


def _check_objects(prediction: np.ndarray, num_objects: int, path: Path) -> None:
    if prediction.max() <= num_objects:
        return
    extra = ", ".join(str(label) for label in np.unique(prediction) if label > num_objects)
    raise MaskError(
        f"{path} holds the objects {extra}, but the first annotation of {path.parent.name} ends "
        f"with object {num_objects}: only the objects of the first frame are scored, so leave out "
        "all others"
    )
