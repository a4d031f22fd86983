"""Checks of the frames and masks that are given to a tracker, and what masks hold."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

import numpy as np

from ino.errors import MaskError, VideoError

BACKGROUND = 0
VOID = 255


def entering_objects(masks: Mapping[int, np.ndarray], *, correct: bool) -> dict[int, list[int]]:
    """The ids that each mask introduces, ascending, by its frame's number.

    Args:
        masks: label maps by frame number.
        correct: whether masks are used that introduce none; else they get a warning.

    Raises:
        MaskError: there is no mask, or one is malformed or without objects.
    """
    if not isinstance(masks, Mapping):
        raise MaskError(
            f"masks are {type(masks).__name__}, but they must be given by the number of their "
            "frame, as in {0: mask}"
        )
    if not masks:
        raise MaskError("no mask was given, but at least one frame needs one; draw or give one")
    known: set[int] = set()
    entering = {}
    for index in masks:
        check_number(index)
    for index in sorted(masks):
        if index < 0:
            raise MaskError(f"a mask was given for frame {index}, but frames are counted from 0")
        found = object_ids(masks[index], index)
        entering[index] = [label for label in found if label not in known]
        known.update(found)
        if not entering[index] and not correct:
            warnings.warn(
                f"the mask of frame {index} holds only objects of earlier masks, so it is not "
                "used: later masks introduce objects but do not correct them unless asked to",
                stacklevel=3,
            )
    return entering


def object_ids(mask: np.ndarray, index: int) -> list[int]:
    """The ids of a mask's objects, ascending, without background and void.

    Raises:
        MaskError: it is no label map, or holds no object.
    """
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.uint8:
        raise MaskError(
            f"the mask of frame {index} must be uint8 height x width, one object number a pixel, "
            f"but it is {_kind(mask)}"
        )
    counts = np.bincount(mask.ravel(), minlength=256)
    ids = [int(label) for label in np.flatnonzero(counts) if label not in (BACKGROUND, VOID)]
    if not ids:
        raise MaskError(
            f"the mask of frame {index} holds no object; mark at least one with a number from 1 "
            "to 254 (255 is void)"
        )
    return ids


def check_number(index: object) -> None:
    """Raises MaskError unless it can be the number of a frame."""
    if not isinstance(index, Integral) or isinstance(index, bool):
        raise MaskError(
            f"a mask was given for frame {index!r}, but frames are whole numbers, counted from 0"
        )


def check_frames(frames: object, *, iterator: bool) -> None:
    """Raises VideoError unless frames can be taken from it one after the other, or by number."""
    if not isinstance(frames, Iterable if iterator else Sequence | np.ndarray):
        needed = "something to iterate over" if iterator else "a sequence, such as a list,"
        raise VideoError(f"frames are {type(frames).__name__}, but {needed} is needed")


def _kind(given: object) -> str:
    if isinstance(given, np.ndarray):
        return f"{given.dtype} of shape {given.shape}"
    return f"{type(given).__name__} and no array of numpy"


def without_void(mask: np.ndarray) -> np.ndarray:
    """The mask with background where it is void."""
    return np.where(mask == VOID, np.uint8(BACKGROUND), mask)


def check_frame(frame: np.ndarray, index: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """The frame's height and width, which are `size` unless that is None.

    Raises:
        VideoError: they are not, or it is no RGB image.
    """
    is_array = isinstance(frame, np.ndarray)
    if not is_array or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise VideoError(
            f"frame {index} must be uint8 height x width x 3 (RGB), but it is {_kind(frame)}"
        )
    found = (frame.shape[0], frame.shape[1])
    if size is not None and found != size:
        raise VideoError(
            f"frame {index} is {found[0]}x{found[1]} but the frames before it are "
            f"{size[0]}x{size[1]}; give a video of one size"
        )
    return found


def check_mask_size(mask: np.ndarray, index: int, size: tuple[int, int]) -> None:
    """Raises MaskError unless the mask has the frames' height and width."""
    if mask.shape != size:
        raise MaskError(
            f"the mask of frame {index} is {mask.shape[0]}x{mask.shape[1]} but the frames are "
            f"{size[0]}x{size[1]}; give a mask of the video's size"
        )


def check_end(masks: Mapping[int, np.ndarray], num_frames: int) -> None:
    """Raises MaskError if a mask belongs to a frame beyond the end of the video."""
    if (last := max(masks)) >= num_frames:
        raise MaskError(
            f"a mask was given for frame {last}, but the video has {num_frames} frames, counted "
            "from 0; give masks for its frames only"
        )
