"""A function applied to many tasks by several processes, results in the order of the tasks.

The processes are plain children that talk over pipes. They never import the caller's `__main__`,
so a script without a guard, a notebook or a program read from standard input may call this, and
unlike forked ones they start without the locks and threads of the parent. They end with it.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from ino.data.label_maps import VOID, read_raw_labels, resolve_void
from ino.errors import InoError, MaskError
from ino.metrics import score_labels
from ino.system import available_cores

Task = TypeVar("Task")
Result = TypeVar("Result")

# Ctrl-C reaches a whole group of processes; it is the parent's to answer.
_CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import pickle
sys.path[:] = pickle.load(sys.stdin.buffer)
from ino.tasks.scoring import serve
serve()
"""


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int
) -> Generator[Result, None, None]:
    """The result of each task, in order. Close the iterator to stop all work at once.

    An exception of the function comes out unchanged, that of the first such task in order.

    Args:
        function: of a module that children can import, not of `__main__`; a partial of one too.
        tasks: what can be pickled.
        workers: processes; 1 runs the function here.

    Raises:
        InoError: a process was ended from outside.
    """
    workers = min(workers, len(tasks))
    if workers <= 1 or not sys.executable:
        yield from map(function, tasks)
        return
    children: list[subprocess.Popen[bytes]] = []
    free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def ask(task: Task) -> Result:
        child = free.get()
        try:
            return _ask(child, function, task)
        finally:
            free.put(child)

    pool = ThreadPoolExecutor(workers)  # its threads only wait for the children
    try:
        for _ in range(workers):
            children.append(_start())
            free.put(children[-1])
        yield from pool.map(ask, tasks)
    finally:
        for child in children:
            child.kill()  # which also ends the wait of its thread
        pool.shutdown(cancel_futures=True)
        for child in children:
            child.communicate()


def _start() -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    pickle.dump(sys.path, child.stdin)
    child.stdin.flush()
    return child


def _ask(child: subprocess.Popen[bytes], function: Callable[..., Any], task: Any) -> Any:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        pickle.dump((function, task), child.stdin)
        child.stdin.flush()
        result, error = pickle.load(child.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as gone:
        raise InoError(
            "one of the processes that share the work ended before it was done, perhaps for lack "
            "of memory: use fewer workers"
        ) from gone
    if error is not None:
        raise error
    return result


def serve() -> None:
    """What a child does: answers tasks from standard input until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    while True:
        try:
            function, task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = function(task), None
        except Exception as error:  # any: the parent raises it
            if not isinstance(error, InoError):
                error.add_note("".join(traceback.format_exception(error)))
            answer = None, error
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # the parent is gone
            os._exit(1)


# The frames of a sequence as portions of work, and their scores from files.
#
# A portion can be sent to another process; it names files and holds no image. Which frames and
# objects count is for each data set to say.


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
