"""PCK of joints on JHMDB, from files of predicted joints; how these were made is not known here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ino.data.frame_folder import image_size
from ino.data.jhmdb import NUM_JOINTS, PoseVideo, read_joints
from ino.errors import DatasetError
from ino.evaluate.pose import PckRule, PoseScores, joint_errors, score_joints

JOINT_NAMES = (
    *("neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip"),
    *("right elbow", "left elbow", "right knee", "left knee", "right wrist", "left wrist"),
    *("right ankle", "left ankle"),
)
"""In the order of the joints."""


def score_jhmdb(
    predictions: Path, videos: Sequence[PoseVideo], *, rule: PckRule | None = None
) -> PoseScores:
    """PCK over all videos.

    Where a video has more frames than joints, or the reverse, the shorter one counts.

    Args:
        predictions: folder with ACTION/VIDEO.npy, an array of frames x 15 x 2 each: column and row
            in pixels from 0, NaN where a joint was lost.
        videos: from `ino.data.jhmdb.read_jhmdb`.
        rule: what counts; as in the released codes where None.

    Raises:
        DatasetError: joints or predictions are missing, broken or of another shape.
        ConfigError: no joint counts.
    """
    rule = rule or PckRule()
    errors = []
    for video in videos:
        truth = video_joints(video)
        path = predictions / video.action / f"{video.name}.npy"
        predicted = _read_prediction(path, truth.shape)
        size = image_size(video.frames[0])
        errors.append(joint_errors(predicted, truth, image_size=size, rule=rule))
    return score_joints(errors, rule=rule)


def video_joints(video: PoseVideo) -> Float[np.ndarray, "frames 15 2"]:
    """The annotated joints, no more than there are frames.

    Raises:
        DatasetError: see `read_joints`.
    """
    return read_joints(video.joints)[: len(video.frames)]


def _read_prediction(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        predicted = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"{path} cannot be read as an array ({error}): write the predicted joints of the "
            "video there"
        ) from error
    if predicted.shape != shape or predicted.dtype.kind != "f":
        raise DatasetError(
            f"{path} is {' x '.join(map(str, predicted.shape))} of {predicted.dtype}, but floats "
            f"{' x '.join(map(str, shape))} (frames, {NUM_JOINTS} joints, column and row) are "
            "needed: predict every frame"
        )
    return predicted.astype(np.float64)
