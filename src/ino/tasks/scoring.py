"""Computes J and F of folders of masks, with several processes.

Each data set decides which frames and objects are scored. Processes are sent paths, not images.
"""

import math
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from loky import BrokenProcessPool, ProcessPoolExecutor
from PIL import Image

from ino.data.label_maps import VOID, read_raw_labels, resolve_void
from ino.errors import ConfigError, InoError, MaskError
from ino.metrics import score_labels
from ino.system import available_cores

_FRAMES_PER_TASK = 16
_FRAMES_PER_WORKER = 300
"""Frames that are worth another process, whose start takes about half a second."""

_MORE_LABELS = 20
"""A mask with more labels than the annotation and these is taken for a probability map."""

_IDLE_SECONDS = 10
"""After which a worker ends by itself, for its parent may have been killed."""

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FramesToScore:
    """The scored frames of a sequence.

    Attributes:
        sequence: its name.
        pairs: paths of the annotation and of the prediction of each frame.
        objects: ids that predictions may contain, ascending.
        is_binary: annotations have one object, and 255 means that object if no other label occurs.
        one_object: merge all objects into one foreground, as in DAVIS-2016.
        size: height and width to which annotations are brought by nearest neighbor; None: they
            keep theirs.
    """

    sequence: str
    pairs: tuple[tuple[Path, Path], ...]
    objects: tuple[int, ...]
    is_binary: bool
    one_object: bool = False
    size: tuple[int, int] | None = None


def score_sequences(
    predictions: Path, sequences: Sequence[FramesToScore], *, workers: int | None = None
) -> Generator[Float[np.ndarray, "2 objects frames"]]:
    """J and F of each sequence, in order; row i holds object i + 1.

    Args:
        predictions: folder with one folder per sequence.
        sequences: each with at least one frame.
        workers: processes that share the frames, each with one frame in memory; 1 works in this
            process. Where None, one per core, but fewer for few frames. The result is the same for
            any number.

    Raises:
        ConfigError: `workers` is below 1.
        MaskError: a file is missing or broken, a prediction is of another size than the annotation
            or holds objects that the sequence does not have.
    """
    if workers is None:
        num_frames = sum(len(one.pairs) for one in sequences)
        workers = min(available_cores(), 1 + num_frames // _FRAMES_PER_WORKER)
    if workers < 1:
        raise ConfigError(f"workers is at least 1, but it is {workers}")
    _check_complete(predictions, sequences)
    portions = [
        replace(one, pairs=one.pairs[start : start + _FRAMES_PER_TASK])
        for one in sequences
        for start in range(0, len(one.pairs), _FRAMES_PER_TASK)
    ]
    with closing(map_in_processes(_score_frames, portions, workers=workers)) as results:
        for one in sequences:
            parts = islice(results, math.ceil(len(one.pairs) / _FRAMES_PER_TASK))
            yield np.concatenate(list(parts), axis=-1)


def _check_complete(predictions: Path, sequences: Sequence[FramesToScore]) -> None:
    """What can be told without opening an image, before anything is scored."""
    if not predictions.is_dir():
        raise MaskError(f"{predictions} is not a folder: give the folder of the predicted masks")
    absent = [one.sequence for one in sequences if not (predictions / one.sequence).is_dir()]
    if absent:
        raise MaskError(
            f"{predictions} has no folder for {len(absent)} of {len(sequences)} sequences, the "
            f"first of them {absent[0]}: it must hold one folder of PNG files per sequence; choose "
            "those that it has with --sequences"
        )
    for one in sequences:
        if missing := [path for _, path in one.pairs if not path.is_file()]:
            raise MaskError(
                f"{one.sequence} lacks the predictions of {len(missing)} of {len(one.pairs)} "
                f"frames, the first of them {missing[0]}: predict every annotated frame"
            )


def map_in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int
) -> Generator[Result]:
    """The result of each task, in order. Close the iterator to stop all work at once.

    An exception of the function comes out unchanged, that of the first such task in order. Workers
    never import the caller's `__main__`, so a script without a guard or a notebook may call this.

    Args:
        function: of a module that workers can import.
        tasks: what can be pickled.
        workers: processes; 1 runs the function here.

    Raises:
        InoError: a process was ended from outside.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Ctrl-C reaches a whole group of processes; it is the parent's to answer.
    pool = ProcessPoolExecutor(
        workers,
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
        timeout=_IDLE_SECONDS,
    )
    try:
        futures = deque(pool.submit(function, task) for task in tasks)
        while futures:
            yield futures.popleft().result()
    except BrokenProcessPool as error:
        raise InoError(
            "one of the processes that share the work ended before it was done, perhaps for lack "
            "of memory: use fewer workers"
        ) from error
    finally:
        pool.shutdown(kill_workers=True)


def read_pair(
    predicted: Path, annotated: Path, *, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The label maps of a prediction and of its annotation, as stored; the annotation brought to
    `size` by nearest neighbor, unless that is None.

    Raises:
        MaskError: a file is missing or broken, or they are of two sizes.
    """
    prediction, truth = read_raw_labels(predicted), read_raw_labels(annotated)
    if size is not None and truth.shape != size:
        nearest = Image.Resampling.NEAREST
        truth = np.array(Image.fromarray(truth).resize((size[1], size[0]), nearest))
    if prediction.shape != truth.shape:
        raise MaskError(
            f"{predicted} is {prediction.shape[0]}x{prediction.shape[1]} (height x width), but the "
            f"annotation {annotated} is {truth.shape[0]}x{truth.shape[1]}: write predictions in "
            "the size of the annotation"
        )
    return prediction, truth


def _check_levels(prediction: np.ndarray, truth: np.ndarray, path: Path) -> None:
    """Refuses a probability map, which has many more levels than there are objects."""
    levels, objects = (np.count_nonzero(np.bincount(one.ravel())) for one in (prediction, truth))
    if levels > objects + _MORE_LABELS:
        raise MaskError(
            f"{path} holds {levels} levels where the annotation has {objects} labels, as a "
            "probability map does: write a mask with one object number per pixel, for instance 1 "
            "where the probability is above one half"
        )


def _score_frames(frames: FramesToScore) -> Float[np.ndarray, "2 objects frames"]:
    """One frame in memory at a time."""
    num_objects = max(frames.objects)
    scores = np.empty((2, num_objects, len(frames.pairs)))
    for number, (annotated, predicted) in enumerate(frames.pairs):
        prediction, truth = read_pair(predicted, annotated, size=frames.size)
        _check_levels(prediction, truth, predicted)
        if frames.is_binary:
            truth = resolve_void(truth)
        if frames.one_object:
            truth = np.where(truth == VOID, truth, truth > 0).astype(np.uint8)
            prediction = (prediction > 0).view(np.uint8)
        elif frames.objects == (1,):
            prediction = resolve_void(prediction)
        held = np.flatnonzero(np.bincount(prediction.ravel()))
        if extra := [str(label) for label in held if label and label not in frames.objects]:
            raise MaskError(
                f"{predicted} holds the objects {', '.join(extra)}, but the scored objects of "
                f"{frames.sequence} are {', '.join(map(str, frames.objects))}: leave out all others"
            )
        scores[:, :, number] = score_labels(prediction, truth, num_objects=num_objects)
    return scores
