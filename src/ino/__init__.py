"""Dense features from unlabeled video; masks carried through a video from one annotated frame."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ino.data.label_png import read_labels, write_labels
    from ino.data.video import VideoWriter, read_frames
    from ino.evaluate.davis import score_davis
    from ino.evaluate.submission import check_submission
    from ino.evaluate.ytvos import score_ytvos
    from ino.models.backbones import load_backbone
    from ino.pipeline.davis import evaluate_davis
    from ino.pipeline.segment import segment_video
    from ino.pipeline.ytvos import evaluate_ytvos
    from ino.propagate.protocols import get_protocol
    from ino.propagate.tracker import Tracker
    from ino.train.config import TrainConfig

_HOMES = {
    "TrainConfig": "ino.train.config",
    "Tracker": "ino.propagate.tracker",
    "VideoWriter": "ino.data.video",
    "check_submission": "ino.evaluate.submission",
    "evaluate_davis": "ino.pipeline.davis",
    "evaluate_ytvos": "ino.pipeline.ytvos",
    "get_protocol": "ino.propagate.protocols",
    "load_backbone": "ino.models.backbones",
    "read_frames": "ino.data.video",
    "read_labels": "ino.data.label_png",
    "score_davis": "ino.evaluate.davis",
    "score_ytvos": "ino.evaluate.ytvos",
    "segment_video": "ino.pipeline.segment",
    "write_labels": "ino.data.label_png",
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
