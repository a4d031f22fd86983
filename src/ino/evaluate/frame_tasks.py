"""The frames of a sequence as portions of work, and their scores from files.

A portion can be sent to another process; it names files and holds no image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ino.data.label_png import VOID, read_raw_labels, resolve_void
from ino.data.vos import VideoSequence
from ino.errors import DatasetError, MaskError
from ino.evaluate.label_scores import score_labels

_FRAMES_PER_TASK = 16


@dataclass(frozen=True)
class FrameTask:
    """Some scored frames of a sequence.

    Attributes:
        sequence: its name.
        pairs: of an annotation and a prediction.
        num_objects: of the sequence.
        is_binary: 255 is the object where it stands alone, not void.
        one_object: all objects are one foreground.
        is_last: the sequence ends with these frames.
    """

    sequence: str
    pairs: tuple[tuple[Path, Path], ...]
    num_objects: int
    is_binary: bool
    one_object: bool
    is_last: bool


def split_frames(
    sequence: VideoSequence, scored: Sequence[Path], folder: Path, *, one_object: bool
) -> list[FrameTask]:
    """The scored frames of a sequence in portions, in order; reads its first annotation.

    Args:
        sequence: its first frame is annotated.
        scored: annotations to score, at least one.
        folder: of the predictions, which have the names of the annotations.
        one_object: all objects are one foreground.

    Raises:
        DatasetError: the first annotation holds no object.
        MaskError: it cannot be read.
    """
    first = sequence.annotations[0]
    raw = read_raw_labels(first)
    truth = resolve_void(raw)
    num_objects = int(truth[truth != VOID].max(initial=0))
    if num_objects == 0:
        raise DatasetError(f"{first} holds no object, so {sequence.name} has nothing to score")
    pairs = [(path, folder / path.name) for path in scored]
    starts = range(0, len(pairs), _FRAMES_PER_TASK)
    return [
        FrameTask(
            sequence=sequence.name,
            pairs=tuple(pairs[start : start + _FRAMES_PER_TASK]),
            num_objects=1 if one_object else num_objects,
            # The first annotation tells for all what 255 means: a later one may be all void.
            is_binary=truth is not raw,
            one_object=one_object,
            is_last=start == starts[-1],
        )
        for start in starts
    ]


def score_frames(task: FrameTask) -> Float[np.ndarray, "2 objects frames"]:
    """J and F of each object in each frame, one frame in memory at a time.

    Raises:
        MaskError: a file is missing or broken, a prediction is of another size than the annotation
            or holds objects that the sequence does not have.
    """
    scores = np.empty((2, task.num_objects, len(task.pairs)))
    for frame, (annotated, predicted) in enumerate(task.pairs):
        truth = read_raw_labels(annotated)
        if task.is_binary:
            truth = resolve_void(truth)
        prediction = _read_prediction(predicted, truth.shape)
        if task.one_object:
            truth = np.where(truth == VOID, truth, truth > 0).astype(np.uint8)
            prediction = (prediction > 0).view(np.uint8)
        elif task.num_objects == 1:
            prediction = resolve_void(prediction)
        _check_objects(prediction, task.num_objects, predicted)
        scores[:, :, frame] = score_labels(prediction, truth, num_objects=task.num_objects)
    return scores


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
