"""Joints as maps of feature positions, a channel each, and back to joints.

As UVC (Li et al., NeurIPS 2019) and CRW (Jabri et al., NeurIPS 2020) do for JHMDB.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ino.data.jhmdb import NUM_JOINTS, PoseVideo, read_jhmdb, read_joints
from ino.data.video import image_size
from ino.errors import ConfigError, DatasetError
from ino.metrics import PckRule, PoseScores, joint_errors, score_joints
from ino.system import atomic_path, new_folder
from ino.tables import named_scores, percent, write_scores
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.results import OnFrame, write_settings


@dataclass(frozen=True)
class JointMaps:
    """How joints become maps and maps become joints.

    Attributes:
        sigma: standard deviation of a joint's Gaussian, feature positions.
        topk: positions whose weighted mean is the joint: 5 in UVC and VFS, 3 in CRW.
    """

    sigma: float = 0.5
    topk: int = 5

    def __post_init__(self) -> None:
        if not self.sigma > 0 or self.topk < 1:
            raise ConfigError(
                f"sigma of joint maps must be above 0 and topk 1 or more, but they are "
                f"{self.sigma} and {self.topk}"
            )


def draw_joints(
    joints: Float[np.ndarray, "joints 2"],
    *,
    image_size: tuple[int, int],
    grid: tuple[int, int],
    maps: JointMaps,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "rows columns channel"]:
    """A Gaussian of height 1 for each joint; the first channel is 1 where all of them are 0.

    It is centred on the nearest position and ends three standard deviations from there (rounded
    up), so the map of a joint outside the image is empty.

    Args:
        joints: column and row in the image, pixels from 0.
        image_size: height and width, pixels.
        grid: rows and columns of the feature map.
        maps: the standard deviation.
        device: where the result will be.
    """
    (height, width), (rows, columns) = image_size, grid
    center = np.floor(joints * [columns / width, rows / height] + 0.5)
    across = np.arange(columns)[None, :] - center[:, :1]  # (joints, columns)
    down = np.arange(rows)[None, :] - center[:, 1:]
    reach = np.ceil(3 * maps.sigma)
    bell = [np.exp(-(d**2) / (2 * maps.sigma**2)) * (abs(d) <= reach) for d in (down, across)]
    drawn = bell[0].T[:, None] * bell[1].T[None]  # (rows, columns, joints)
    empty = (drawn.sum(axis=-1, keepdims=True) == 0).astype(float)
    channels = np.concatenate([empty, drawn], axis=-1)
    return torch.from_numpy(channels.astype(np.float32)).to(device)


def locate_joints(
    soft: Float[Tensor, "rows columns channel"], *, image_size: tuple[int, int], maps: JointMaps
) -> Float[np.ndarray, "joints 2"]:
    """Column and row of each joint, pixels from 0; NaN where its channel is empty.

    The mean of the positions of the highest values, weighted by them. The first channel is the
    background. Position i of n is pixel i / n times the side, the reverse of `draw_joints`.

    Args:
        soft: labels that began as `draw_joints`.
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


# PCK of joints on JHMDB, from files of predicted joints; how these were made is not known here.


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


# PCK as tables.


def print_pose(scores: PoseScores, console: Console) -> None:
    """Prints a row a joint and, below, the mean over joints, in percent."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, show_footer=True)
    table.add_column("Joint", footer="mean")
    for threshold in scores.by_joint:
        table.add_column(
            f"PCK@{threshold:g}", footer=percent(scores.pck(threshold)), justify="right"
        )
    for name, *values in zip(JOINT_NAMES, *scores.by_joint.values(), strict=True):
        table.add_row(name, *map(percent, values))
    console.print(table)


def write_pose_json(scores: PoseScores, path: Path) -> None:
    """All scores in full precision, as fractions; null for a joint that never counts.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {
        "global": {f"PCK@{value:g}": scores.pck(value) for value in scores.by_joint},
        "joints": {
            f"PCK@{threshold:g}": named_scores(JOINT_NAMES, values)
            for threshold, values in scores.by_joint.items()
        },
        "num_videos": scores.num_videos,
        "num_joints": scores.num_joints,
    }
    write_scores(path, content)


# JHMDB from the data set to PCK: carry the first joints, then score what is on disk.


def evaluate_jhmdb(
    root: Path,
    *,
    out: Path,
    tracker: LabelTracker,
    split: int = 1,
    maps: JointMaps | None = None,
    rule: PckRule | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> PoseScores:
    """Carries the first joints of each test video and scores the result.

    Writes `predictions/ACTION/VIDEO.npy` (frames x 15 x 2, column and row in pixels from 0, NaN
    where a joint was lost), `scores.json` and `settings.json`.

    Args:
        root: the data set.
        out: folder of the results.
        tracker: carries the maps of joints; papers take an input size of 320.
        split: 1, 2 or 3.
        maps: how joints become maps and maps become joints.
        rule: what counts.
        settings: stored beside the protocol, such as the name of the weights.
        overwrite: accept a folder that holds something.
        on_frame: called after each frame.

    Raises:
        DatasetError: the data set is not as its layout says.
        VideoError: a frame is broken or of another size than the first of its video.
        OutputError: the folder holds something and `overwrite` is off, or cannot be written.
    """
    maps, rule = maps or JointMaps(), rule or PckRule()
    videos = read_jhmdb(root, split=split)
    for video in videos:
        video_joints(video)  # a broken file is told before hours of work
    new_folder(out, overwrite=overwrite)
    choices = {"joint_maps": dataclasses.asdict(maps), "pck": dataclasses.asdict(rule)}
    write_settings(
        out / "settings.json",
        tracker.protocol,
        {**(settings or {}), **choices, "input_size": tracker.input_size},
    )
    for video in videos:
        folder = out / "predictions" / video.action
        folder.mkdir(parents=True, exist_ok=True)
        joints = propagate_joints(video, tracker=tracker, maps=maps, on_frame=on_frame)
        with atomic_path(folder / f"{video.name}.npy") as temporary:
            np.save(temporary, joints, allow_pickle=False)
    scores = score_jhmdb(out / "predictions", videos, rule=rule)
    write_pose_json(scores, out / "scores.json")
    return scores


def propagate_joints(
    video: PoseVideo, *, tracker: LabelTracker, maps: JointMaps, on_frame: OnFrame = lambda: None
) -> np.ndarray:
    """Column and row of each joint in each annotated frame (frames x 15 x 2), pixels from 0."""
    truth = video_joints(video)
    size = image_size(video.frames[0])
    found = []
    tracked = tracker.track(
        video.frames[: len(truth)],
        lambda grid: draw_joints(
            truth[0], image_size=size, grid=grid, maps=maps, device=tracker.device
        ),
    )
    with closing(tracked) as results:
        for soft in results:
            found.append(locate_joints(soft, image_size=size, maps=maps))
            on_frame()
    return np.stack(found)
