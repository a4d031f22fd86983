"""Data sets as a suite sees them: videos that are carried one by one, and scores once all are.

Files are those of `ino evaluate`; a video's own files tell whether it is whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ino.data.davis import VideoSequence, read_davis
from ino.data.jhmdb import PoseVideo, read_jhmdb
from ino.data.vip import read_vip
from ino.data.ytvos import YtvosVideo, read_ytvos_split
from ino.experiments.suite_file import RowConfig
from ino.models.backbone import choose_device
from ino.models.load import load_backbone
from ino.propagate.protocols import Protocol
from ino.propagate.tracker import Tracker
from ino.tasks.davis import (
    propagate_sequence,
    score_davis,
    sequence_is_whole,
)
from ino.tasks.jhmdb import JointMaps, joints_are_whole, propagate_joints, score_jhmdb
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.results import read_means
from ino.tasks.vip import propagate_parts, score_vip
from ino.tasks.ytvos import finish_split, propagate_video, video_is_whole

Video = VideoSequence | YtvosVideo | PoseVideo
Score = Callable[[RowConfig, Protocol, Path, "int | None"], None]


@dataclass(frozen=True)
class DataSet:
    """How one data set is read, carried and scored.

    Attributes:
        scores: names in a suite's table, and in the `global` part of scores.json.
        choices: fields of a row that only some data sets have.
        split: that is taken where none is given.
        input_size: side of the square input that papers take, pixels; None: by protocol.
        read: the videos of a row, root and split filled in.
        carry: labels of one video into the row's folder.
        is_whole: whether they are all there.
        score: of a row whose videos are all carried, into its folder.
    """

    scores: dict[str, str]
    choices: tuple[str, ...]
    split: str | int
    input_size: int | None
    read: Callable[[RowConfig], Sequence[Any]]
    carry: Callable[[RowConfig, Any, Any, Path], None]
    is_whole: Callable[[Any, Path], bool]
    score: Score


def video_name(video: Video) -> str:
    """By which a video is noted as done."""
    return f"{video.action}/{video.name}" if isinstance(video, PoseVideo) else video.name


def make_tracker(row: RowConfig, protocol: Protocol, *, device: str) -> Tracker | LabelTracker:
    """What carries the labels of a row; reads its weights.

    Raises:
        InoError: the weights, the device or the protocol cannot be used.
    """
    which: dict[str, Any] = {} if row.network is None else {"network": row.network}
    backbone = load_backbone(row.weights or "", seed=row.seed, **which)
    if DATA_SETS[row.data].input_size is None:
        return Tracker(backbone, protocol=protocol, device=device, precision=row.precision)
    return LabelTracker(
        backbone,
        protocol,
        device=choose_device(device),
        precision=row.precision,
        input_size=row.input_size or None,
    )


def read_scores(folder: Path, row: RowConfig) -> dict[str, float]:
    """The scores of a row in percent, by their names in the table; none where there is no truth."""
    found = read_means(folder / "scores.json") or {}
    names = DATA_SETS[row.data].scores
    return {name: 100 * found[key] for name, key in names.items() if key in found}


def _davis_choice(row: RowConfig) -> dict[str, Any]:
    names = ("year", "split", "resolution", "sequences")
    return {name: getattr(row, name) for name in names}


def _read_davis(row: RowConfig) -> list[VideoSequence]:
    return read_davis(Path(row.root or ""), **_davis_choice(row))


def _propagate_davis(row: RowConfig, video: VideoSequence, tracker: Tracker, folder: Path) -> None:
    propagate_sequence(video, folder / "predictions", tracker=tracker)


def _has_whole_frames(video: VideoSequence, folder: Path) -> bool:
    return sequence_is_whole(video, folder / "predictions")


def _has_all_frames(video: VideoSequence, folder: Path) -> bool:
    masks = folder / "predictions" / video.name
    return all((masks / f"{frame.stem}.png").is_file() for frame in video.frames)


def _score_davis(row: RowConfig, protocol: Protocol, folder: Path, workers: int | None) -> None:
    root, choice = Path(row.root or ""), _davis_choice(row)
    scores = score_davis(folder / "predictions", root, workers=workers, **choice)
    scores.write(folder, split=str(row.split), protocol=protocol)


def _read_ytvos(row: RowConfig) -> Sequence[YtvosVideo]:
    return _ytvos_split(row).videos


def _ytvos_split(row: RowConfig) -> Any:
    return read_ytvos_split(Path(row.root or ""), split=str(row.split), videos=row.sequences)


def _has_masks(video: YtvosVideo, folder: Path) -> bool:
    return video_is_whole(video, folder / "predictions")


def _propagate_ytvos(row: RowConfig, video: YtvosVideo, tracker: Tracker, folder: Path) -> None:
    propagate_video(video, folder / "predictions", tracker=tracker)


def _score_ytvos(row: RowConfig, protocol: Protocol, folder: Path, workers: int | None) -> None:
    finish_split(_ytvos_split(row), folder, protocol=protocol, workers=workers)


def _read_jhmdb(row: RowConfig) -> list[PoseVideo]:
    return read_jhmdb(Path(row.root or ""), split=int(row.split or 1))


def _has_joints(video: PoseVideo, folder: Path) -> bool:
    return joints_are_whole(video, folder / "predictions")


def _propagate_jhmdb(row: RowConfig, video: PoseVideo, tracker: LabelTracker, folder: Path) -> None:
    maps = JointMaps(topk=row.joint_topk)
    propagate_joints(video, folder / "predictions", tracker=tracker, maps=maps)


def _score_jhmdb(row: RowConfig, protocol: Protocol, folder: Path, workers: int | None) -> None:
    scores = score_jhmdb(folder / "predictions", _read_jhmdb(row))
    scores.write(folder)


def _read_vip(row: RowConfig) -> list[VideoSequence]:
    return read_vip(Path(row.root or ""), split=str(row.split))


def _propagate_vip(
    row: RowConfig, video: VideoSequence, tracker: LabelTracker, folder: Path
) -> None:
    propagate_parts(video, folder / "predictions", tracker=tracker)


def _score_vip(row: RowConfig, protocol: Protocol, folder: Path, workers: int | None) -> None:
    scores = score_vip(folder / "predictions", _read_vip(row))
    scores.write(folder)


DATA_SETS = {
    "davis": DataSet(
        scores={
            "J&F": "J&F-Mean",
            "J": "J-Mean",
            "J recall": "J-Recall",
            "F": "F-Mean",
            "F recall": "F-Recall",
        },
        choices=("year", "resolution", "sequences"),
        split="val",
        input_size=None,
        read=_read_davis,
        carry=_propagate_davis,
        is_whole=_has_whole_frames,
        score=_score_davis,
    ),
    "ytvos": DataSet(
        scores={
            "mean": "Overall",
            "J seen": "J-Seen",
            "F seen": "F-Seen",
            "J unseen": "J-Unseen",
            "F unseen": "F-Unseen",
            "all J&F": "J&F-All",
        },
        choices=("sequences",),
        split="valid",
        input_size=None,
        read=_read_ytvos,
        carry=_propagate_ytvos,
        is_whole=_has_masks,
        score=_score_ytvos,
    ),
    "jhmdb": DataSet(
        scores={"PCK@0.1": "PCK@0.1", "PCK@0.2": "PCK@0.2"},
        choices=("input_size", "joint_topk"),
        split=1,
        input_size=320,
        read=_read_jhmdb,
        carry=_propagate_jhmdb,
        is_whole=_has_joints,
        score=_score_jhmdb,
    ),
    "vip": DataSet(
        scores={"mIoU": "mIoU"},
        choices=("input_size",),
        split="val",
        input_size=560,
        read=_read_vip,
        carry=_propagate_vip,
        is_whole=_has_all_frames,
        score=_score_vip,
    ),
}
"""By the name that rows give."""
