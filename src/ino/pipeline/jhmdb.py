"""JHMDB from the data set to PCK: carry the first joints, then score what is on disk."""

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ino.data.frame_folder import image_size
from ino.data.jhmdb import PoseVideo, read_jhmdb
from ino.evaluate.dense_tables import write_pose_json
from ino.evaluate.jhmdb import score_jhmdb, video_joints
from ino.evaluate.pose import PckRule, PoseScores
from ino.files import atomic_path, new_folder
from ino.pipeline.settings import OnFrame, write_settings
from ino.pipeline.soft_labels import LabelTracker
from ino.propagate.joint_maps import JointMaps, draw_joints, locate_joints


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
        joints = carry_joints(video, tracker=tracker, maps=maps, on_frame=on_frame)
        with atomic_path(folder / f"{video.name}.npy") as temporary:
            np.save(temporary, joints, allow_pickle=False)
    scores = score_jhmdb(out / "predictions", videos, rule=rule)
    write_pose_json(scores, out / "scores.json")
    return scores


def carry_joints(
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
