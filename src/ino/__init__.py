"""Dense features from unlabeled video; masks carried through a video from one annotated frame."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ino.data.label_maps import read_labels, write_labels
    from ino.data.video import VideoWriter, read_frames
    from ino.models.load import load_backbone
    from ino.propagate.protocols import get_protocol
    from ino.propagate.tracker import Tracker
    from ino.tasks.davis import evaluate_davis, score_davis
    from ino.tasks.segment import segment_video
    from ino.tasks.submission import check_submission
    from ino.tasks.ytvos import evaluate_ytvos, score_ytvos
    from ino.train.config import TrainConfig

_HOMES = {
    "TrainConfig": "ino.train.config",
    "Tracker": "ino.propagate.tracker",
    "VideoWriter": "ino.data.video",
    "check_submission": "ino.tasks.submission",
    "evaluate_davis": "ino.tasks.davis",
    "evaluate_ytvos": "ino.tasks.ytvos",
    "get_protocol": "ino.propagate.protocols",
    "load_backbone": "ino.models.load",
    "read_frames": "ino.data.video",
    "read_labels": "ino.data.label_maps",
    "score_davis": "ino.tasks.davis",
    "score_ytvos": "ino.tasks.ytvos",
    "segment_video": "ino.tasks.segment",
    "write_labels": "ino.data.label_maps",
}

__all__ = [
    "Tracker",
    "TrainConfig",
    "VideoWriter",
    "check_submission",
    "evaluate_davis",
    "evaluate_ytvos",
    "get_protocol",
    "load_backbone",
    "read_frames",
    "read_labels",
    "score_davis",
    "score_ytvos",
    "segment_video",
    "write_labels",
]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import ino` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ino' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
