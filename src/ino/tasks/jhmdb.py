"""JHMDB: the joints of a person, propagated from the first frame of each test video; PCK.

Joints become maps of feature positions, one channel each, and maps become joints again, as in UVC
(Li et al., NeurIPS 2019) and CRW (Jabri et al., NeurIPS 2020).
"""

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from ino.data.images import image_size
from ino.data.jhmdb import NUM_JOINTS, PoseVideo, read_jhmdb, read_joints
from ino.errors import ConfigError, DatasetError
from ino.metrics import PckRule, correct_fraction, joint_errors
from ino.system import atomic_path
from ino.tables import percent, print_table, write_json
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.results import OnFrame, RunOptions, propagated

JOINT_NAMES = (
    *("neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip"),
    *("right elbow", "left elbow", "right knee", "left knee", "right wrist", "left wrist"),
    *("right ankle", "left ankle"),
)
"""In the order of the joints."""

RELEASED_RULE = PckRule()
"""What counts in the released codes."""


@dataclass(frozen=True)
class JointMaps:
    """How joints become maps and maps become joints.

    Attributes:
        sigma: standard deviation of a joint's Gaussian, feature positions.
        topk: positions whose weighted mean is the joint: 5 in UVC and VFS, 3 in CRW.
        cut: where Gaussians end. `both`: three standard deviations from the center, rounded up, on
            all sides. `released`: as the released codes draw them, one position less at the right
            and the bottom; near the left and the upper edge they move by one position.
    """

    sigma: float = 0.5
    topk: int = 5
    cut: Literal["both", "released"] = "both"

    def __post_init__(self) -> None:
        if not self.sigma > 0 or self.topk < 1:
            raise ConfigError(
                f"sigma of joint maps must be above 0 and topk 1 or more, but they are "
                f"{self.sigma} and {self.topk}"
            )


def joint_maps(protocol: str, *, topk: int = 5) -> JointMaps:
    """The maps by which the authors of a protocol evaluate, by its name."""
    return JointMaps(topk=topk, cut="released" if protocol in ("cropmae", "rvm") else "both")


def evaluate_jhmdb(
    root: Path,
    *,
    out: Path,
    tracker: LabelTracker,
    split: int = 1,
    maps: JointMaps | None = None,
    rule: PckRule = RELEASED_RULE,
    **options: Unpack[RunOptions],
) -> "PoseScores":
    """Propagates the first joints of each test video and scores the result.

    Writes `predictions/ACTION/VIDEO.npy` (frames x 15 x 2, column and row in pixels from 0, NaN
    where a joint was lost), `scores.json` and `settings.json`.

    Args:
        root: the data set.
        out: folder of the results.
        tracker: propagates the maps of joints; papers take an input size of 320.
        split: 1, 2 or 3.
        maps: how joints become maps and maps become joints; None for the protocol's (`joint_maps`).
        rule: what counts.
        options: see `ino.tasks.results.RunOptions`.

    Raises:
        DatasetError: the data set is not as its layout says.
        VideoError: a frame is broken or of another size than the first of its video.
        ConfigError: see `ino.tasks.results.propagated`.
        OutputError: the same.
    """
    maps = maps or joint_maps(tracker.protocol.name)
    videos = read_jhmdb(root, split=split)
    for video in videos:
        annotated_joints(video)  # a broken file is told before hours of work
    with propagated(
        videos,
        out=out,
        task="jhmdb",
        protocol=tracker.protocol,
        choices={
            "joint_maps": dataclasses.asdict(maps, dict_factory=_without_usual_cut),
            "pck": dataclasses.asdict(rule),
            "input_size": tracker.input_size,
        },
        propagate=partial(propagate_joints, tracker=tracker, maps=maps),
        is_whole=joints_are_whole,
        **options,
    ) as (predictions, _):
        scores = score_jhmdb(predictions, videos, rule=rule)
        scores.write(out)
    return scores


def _without_usual_cut(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Settings as they were recorded before there was another cut."""
    return {name: value for name, value in fields if (name, value) != ("cut", "both")}


def propagate_joints(
    video: PoseVideo,
    predictions: Path,
    *,
    tracker: LabelTracker,
    maps: JointMaps,
    on_frame: OnFrame = lambda: None,
) -> None:
    """Propagates the joints of the first frame, into `predictions`/ACTION/VIDEO.npy."""
    truth, size = annotated_joints(video), image_size(video.frames[0])

    def first(grid: tuple[int, int]) -> Tensor:
        return joints_to_maps(
            truth[0], image_size=size, grid=grid, maps=maps, device=tracker.device
        )

    found = []
    with closing(tracker.track(video.frames[: len(truth)], first)) as results:
        for soft in results:
            found.append(maps_to_joints(soft, image_size=size, maps=maps))
            on_frame()
    path = _joints_path(video, predictions)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.save(temporary, np.stack(found), allow_pickle=False)


def joints_are_whole(video: PoseVideo, predictions: Path) -> bool:
    """Whether the file of predicted joints is there; it appears whole or not at all."""
    return _joints_path(video, predictions).is_file()


def _joints_path(video: PoseVideo, predictions: Path) -> Path:
    return predictions / video.action / f"{video.name}.npy"


def annotated_joints(video: PoseVideo) -> Float[np.ndarray, "frames 15 2"]:
    """The annotated joints, cut to the number of frames: column and row in pixels, from 0.

    Raises:
        DatasetError: see `read_joints`.
    """
    return read_joints(video.joints)[: len(video.frames)]


def joints_to_maps(
    joints: Float[np.ndarray, "joints 2"],
    *,
    image_size: tuple[int, int],
    grid: tuple[int, int],
    maps: JointMaps,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "rows columns channel"]:
    """A Gaussian of height 1 for each joint; the first channel is 1 where all of them are 0.

    The Gaussian is centered on the feature position nearest to the joint and cut off as `maps`
    says. The map of a joint far enough outside the image is empty.

    Args:
        joints: column and row in the image, pixels from 0.
        image_size: height and width, pixels.
        grid: rows and columns of the feature map.
        maps: the standard deviation, and where it is cut off.
        device: where the result will be.
    """
    (height, width), (rows, columns) = image_size, grid
    place = joints * [columns / width, rows / height]
    if maps.cut == "released":
        first = np.trunc(place - 3 * maps.sigma)
        last = np.trunc(place + 3 * maps.sigma + 1) - 1
        center = first + (6 * maps.sigma + 1) // 2
    else:
        center, reach = np.floor(place + 0.5), np.ceil(3 * maps.sigma)
        first, last = center - reach, center + reach
    bell = []
    for axis, count in ((1, rows), (0, columns)):
        middle, low, high = (one[:, axis, None] for one in (center, first, last))
        at = np.arange(count)[None]  # (joints, positions)
        height_there = np.exp(-((at - middle) ** 2) / (2 * maps.sigma**2))
        bell.append(height_there * ((low <= at) & (at <= high)))
    drawn = bell[0].T[:, None] * bell[1].T[None]  # (rows, columns, joints)
    empty = (drawn.sum(axis=-1, keepdims=True) == 0).astype(float)
    channels = np.concatenate([empty, drawn], axis=-1)
    return torch.from_numpy(channels.astype(np.float32)).to(device)


def maps_to_joints(
    soft: Float[Tensor, "rows columns channel"], *, image_size: tuple[int, int], maps: JointMaps
) -> Float[np.ndarray, "joints 2"]:
    """Column and row of each joint, pixels from 0; NaN where its channel is empty.

    The mean of the positions of the highest values, weighted by them. The first channel is the
    background. Position i of n is pixel i / n times the side, the reverse of `joints_to_maps`.

    Args:
        soft: labels that began as `joints_to_maps`.
        image_size: height and width, pixels.
        maps: the number of positions.
    """
    rows, columns = soft.shape[:2]
    flat = soft[..., 1:].flatten(0, 1).double()
    value, place = flat.topk(min(maps.topk, len(flat)), dim=0)
    weight = value / value.sum(dim=0)  # 0 / 0 where the channel is empty
    column, row = ((axis * weight).sum(dim=0) for axis in (place % columns, place // columns))
    height, width = image_size
    joints = torch.stack([column * (width / columns), row * (height / rows)], dim=-1)
    return joints.cpu().numpy()


def score_jhmdb(
    predictions: Path, videos: Sequence[PoseVideo], *, rule: PckRule = RELEASED_RULE
) -> "PoseScores":
    """PCK over all videos.

    Where a video has more frames than joints, or the reverse, the shorter one counts.

    Args:
        predictions: folder with ACTION/VIDEO.npy, an array of frames x 15 x 2 each: column and row
            in pixels from 0, NaN where a joint was lost.
        videos: from `ino.data.jhmdb.read_jhmdb`.
        rule: what counts, by default as in the released codes.

    Raises:
        DatasetError: joints or predictions are missing, broken or of another shape.
        ConfigError: no joint counts.
    """
    errors = []
    for video in videos:
        truth = annotated_joints(video)
        predicted = _read_prediction(_joints_path(video, predictions), truth.shape)
        size = image_size(video.frames[0])
        errors.append(joint_errors(predicted, truth, image_size=size, rule=rule))
    together = np.concatenate(errors)
    return PoseScores(
        by_joint={
            threshold: tuple(correct_fraction(together, threshold).tolist())
            for threshold in rule.thresholds
        },
        num_videos=len(videos),
        num_joints=int(np.count_nonzero(~np.isnan(together))),
    )


def _read_prediction(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        # Mapped, so that a header that claims terabytes takes no memory.
        predicted = np.lib.format.open_memmap(path, mode="r")
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

    def means(self) -> dict[str, float]:
        """The means over joints, fractions by name, such as PCK@0.1."""
        return {
            f"PCK@{threshold:g}": float(np.nanmean(values))
            for threshold, values in self.by_joint.items()
        }

    def print_table(self, console: Console) -> None:
        """Prints one row per joint and, below, the mean over joints, in percent."""
        means = self.means()
        rows = [["Joint", *means]]
        for name, *values in zip(JOINT_NAMES, *self.by_joint.values(), strict=True):
            rows.append([name, *map(percent, values)])
        rows.append(["mean", *map(percent, means.values())])
        print_table(rows, console, has_total=True)

    def write(self, folder: Path) -> None:
        """Writes scores.json with all numbers in full precision, as fractions; null for a joint
        that never counts.

        Raises:
            OutputError: the file cannot be written.
        """
        means = self.means()
        by_name = {
            name: dict(zip(JOINT_NAMES, values, strict=True))
            for name, values in zip(means, self.by_joint.values(), strict=True)
        }
        content = {
            "global": means,
            "joints": by_name,
            "num_videos": self.num_videos,
            "num_joints": self.num_joints,
        }
        write_json(folder / "scores.json", content)
