"""PCK, the percentage of correct keypoints, of joints carried through videos.

Arrays in, numbers out. A joint is correct if it is no further from the truth than a fraction of the
person's size in that frame. The rule is that of the released evaluation of UVC (Li et al., NeurIPS
2019), CRW (Jabri et al., NeurIPS 2020) and VFS (Xu and Wang, ICCV 2021), which `PckRule` varies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from ino.errors import ConfigError

Joints = Float[np.ndarray, "frames joints 2"]
"""Column and row, pixels; NaN where a joint was lost."""


@dataclass(frozen=True)
class PckRule:
    """What counts, and by what distances are divided.

    Attributes:
        thresholds: fractions of the person's size.
        size: of the box around the annotated joints that count in a frame: its diagonal, as in all
            three released codes, or its longer side, which stands beside it there, switched off.
        scale: the person's size is this times that.
        lost: a joint whose map is empty is left out, of the box too, as in the released codes, or
            counts as wrong. A joint outside the first image has an empty map from the start.
        skip_outside: leave out joints that the annotation puts outside the image; the released
            codes count them.
        first_frame: count the frame that was given; VFS does, UVC and CRW do not.
    """

    thresholds: tuple[float, ...] = (0.1, 0.2)
    size: Literal["diagonal", "longer-side"] = "diagonal"
    scale: float = 0.6
    lost: Literal["skipped", "wrong"] = "skipped"
    skip_outside: bool = False
    first_frame: bool = False


@dataclass(frozen=True)
class PoseScores:
    """PCK of a data set.

    Attributes:
        by_joint: threshold to the fraction of each joint's frames, over all videos together, in
            which it is correct, 0..1; NaN for a joint that never counts.
        num_videos: that were scored.
        num_joints: frames times joints that counted.
    """

    by_joint: dict[float, tuple[float, ...]]
    num_videos: int
    num_joints: int

    def pck(self, threshold: float) -> float:
        """The mean over joints at one of the thresholds, 0..1."""
        return float(np.nanmean(self.by_joint[threshold]))


def joint_errors(
    predicted: Joints, truth: Joints, *, image_size: tuple[int, int], rule: PckRule
) -> Float[np.ndarray, "scored joints"]:
    """Distances over the person's size; NaN where a joint does not count, infinite where wrong.

    A person of size 0, with all joints that count in one place, is missed by any other place.

    Args:
        predicted: of one video.
        truth: the same frames; finite.
        image_size: height and width of the images, pixels.
        rule: what counts.
    """
    counts = _counted(predicted, truth, image_size, rule)
    lowest = np.where(counts[..., None], truth, np.inf).min(axis=1)
    highest = np.where(counts[..., None], truth, -np.inf).max(axis=1)
    sides = np.where(counts.any(axis=1, keepdims=True), highest - lowest, 0)  # (frames, 2)
    longest = np.hypot(*sides.T) if rule.size == "diagonal" else sides.max(axis=1)
    distance = np.linalg.norm(predicted - truth, axis=-1)
    distance = np.where(np.isnan(distance), np.inf, distance)
    size = np.broadcast_to(rule.scale * longest[:, None], distance.shape)
    errors = np.where(distance > 0, np.inf, 0.0)
    np.divide(distance, size, out=errors, where=size > 0)
    errors = np.where(counts, errors, np.nan)
    return errors if rule.first_frame else errors[1:]


def score_joints(errors: Sequence[Float[np.ndarray, "_ joints"]], *, rule: PckRule) -> PoseScores:
    """PCK over videos.

    Args:
        errors: of each video, from `joint_errors`.
        rule: the same.

    Raises:
        ConfigError: no joint of any frame counts.
    """
    together = np.concatenate(errors)
    counts = ~np.isnan(together)
    num_joints = counts.sum(axis=0)
    if not num_joints.any():
        raise ConfigError(
            "no joint of any frame counts: give videos of two or more frames with joints inside "
            "the first image"
        )
    with np.errstate(invalid="ignore"):  # 0 of 0 is NaN: a joint that never counts
        by_joint = {
            threshold: tuple(((together <= threshold) & counts).sum(axis=0) / num_joints)
            for threshold in rule.thresholds
        }
    return PoseScores(by_joint, num_videos=len(errors), num_joints=int(num_joints.sum()))


def _counted(
    predicted: Joints, truth: Joints, image_size: tuple[int, int], rule: PckRule
) -> Bool[np.ndarray, "frames joints"]:
    counts = np.ones(truth.shape[:2], dtype=bool)
    if rule.lost == "skipped":
        counts &= ~np.isnan(predicted).any(axis=-1)
    if rule.skip_outside:
        height, width = image_size
        counts &= ((truth >= 0) & (truth <= [width - 1, height - 1])).all(axis=-1)
    return counts
