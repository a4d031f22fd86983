"""The frames of a sequence as portions of work, and their scores from files.

A portion can be sent to another process; it names files and holds no image. Which frames and
objects count is for each data set to say.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ino.data.cores import available_cores
from ino.data.label_png import VOID, read_raw_labels, resolve_void
from ino.errors import MaskError
from ino.evaluate.label_scores import score_labels
from ino.evaluate.workers import run_tasks

_FRAMES_PER_TASK = 16
_FRAMES_PER_WORKER = 300
"""Frames that are worth another process, whose start takes about half a second."""


@dataclass(frozen=True)
class FrameTask:
    """Some scored frames of a sequence.

    Attributes:
        sequence: its name.
        pairs: of an annotation and a prediction.
        objects: that predictions may hold, ascending.
        is_binary: 255 is the object where it stands alone, not void.
        one_object: all objects are one foreground.
        is_last: the sequence ends with these frames.
    """

    sequence: str
    pairs: tuple[tuple[Path, Path], ...]
    objects: tuple[int, ...]
    is_binary: bool
    one_object: bool
    is_last: bool


def split_frames(
    sequence: str,
    pairs: Sequence[tuple[Path, Path]],
    *,
    objects: Sequence[int],
    is_binary: bool,
    one_object: bool = False,
) -> list[FrameTask]:
    """The frames of a sequence in portions, in order; the arguments are those of `FrameTask`."""
    starts = range(0, len(pairs), _FRAMES_PER_TASK)
    return [
        FrameTask(
            sequence=sequence,
            pairs=tuple(pairs[start : start + _FRAMES_PER_TASK]),
            objects=(1,) if one_object else tuple(objects),
            is_binary=is_binary,
            one_object=one_object,
            is_last=start == starts[-1],
        )
        for start in starts
    ]


def score_tasks(
    tasks: Sequence[FrameTask], *, workers: int | None
) -> Generator[tuple[str, Float[np.ndarray, "2 objects frames"]], None, None]:
    """Name and scores of each sequence, in order; row i holds object i + 1 (see `score_frames`).

    Args:
        tasks: those of a sequence follow each other.
        workers: processes that share the frames; where None, one a core, but fewer for few frames.

    Raises:
        MaskError: as `score_frames`.
    """
    if workers is None:
        num_frames = sum(len(task.pairs) for task in tasks)
        workers = min(available_cores(), 1 + num_frames // _FRAMES_PER_WORKER)
    parts: list[np.ndarray] = []
    with closing(run_tasks(score_frames, tasks, workers=workers)) as results:
        for task, part in zip(tasks, results, strict=True):
            parts.append(part)
            if task.is_last:
                yield task.sequence, np.concatenate(parts, axis=-1)
                parts.clear()


def score_frames(task: FrameTask) -> Float[np.ndarray, "2 objects frames"]:
    """J and F of the objects 1 to the highest number, one frame in memory at a time.

    Raises:
        MaskError: a file is missing or broken, a prediction is of another size than the annotation
            or holds objects that the sequence does not have.
    """
    num_objects = max(task.objects)
    scores = np.empty((2, num_objects, len(task.pairs)))
    for frame, (annotated, predicted) in enumerate(task.pairs):
        truth = read_raw_labels(annotated)
        if task.is_binary:
            truth = resolve_void(truth)
        prediction = _read_prediction(predicted, truth.shape)
        if task.one_object:
            truth = np.where(truth == VOID, truth, truth > 0).astype(np.uint8)
            prediction = (prediction > 0).view(np.uint8)
        elif task.objects == (1,):
            prediction = resolve_void(prediction)
        _check_objects(prediction, task, predicted)
        scores[:, :, frame] = score_labels(prediction, truth, num_objects=num_objects)
    return scores


def _read_prediction(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    prediction = read_raw_labels(path)
    if prediction.shape != shape:
        raise MaskError(
            f"{path} is {prediction.shape[0]}x{prediction.shape[1]} (height x width), but the "
            f"annotation is {shape[0]}x{shape[1]}: write predictions in the size of the annotation"
        )
    return prediction


def _check_objects(prediction: np.ndarray, task: FrameTask, path: Path) -> None:
    held = np.flatnonzero(np.bincount(prediction.ravel()))
    if extra := [str(label) for label in held if label and label not in task.objects]:
        raise MaskError(
            f"{path} holds the objects {', '.join(extra)}, but the scored objects of "
            f"{task.sequence} are {', '.join(map(str, task.objects))}: leave out all others"
        )
