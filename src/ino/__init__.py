"""Dense features from unlabeled video; masks propagated through a video from one annotated frame.

The public names are imported on first use, so that `import ino` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as below, for type checkers and editors
    from ino.adaptation import adapt as adapt
    from ino.data.label_maps import read_labels as read_labels
    from ino.data.label_maps import write_labels as write_labels
    from ino.data.video import VideoWriter as VideoWriter
    from ino.data.video import read_frames as read_frames
    from ino.data.ytvos import read_ytvos_split as read_ytvos_split
    from ino.errors import InoError as InoError
    from ino.models.load import list_weights as list_weights
    from ino.models.load import load_backbone as load_backbone
    from ino.pretraining import pretrain as pretrain
    from ino.propagate.judge import judge_difference as judge_difference
    from ino.propagate.prompts import mask_from_prompt as mask_from_prompt
    from ino.propagate.protocols import get_protocol as get_protocol
    from ino.propagate.protocols import list_protocols as list_protocols
    from ino.propagate.tracker import Tracker as Tracker
    from ino.tasks.convert import convert_result as convert_result
    from ino.tasks.davis import evaluate_davis as evaluate_davis
    from ino.tasks.davis import score_davis as score_davis
    from ino.tasks.judge import judge as judge
    from ino.tasks.judge import judge_result as judge_result
    from ino.tasks.masks import read_masks as read_masks
    from ino.tasks.segment import segment_video as segment_video
    from ino.tasks.submission import check_submission as check_submission
    from ino.tasks.ytvos import evaluate_ytvos as evaluate_ytvos
    from ino.tasks.ytvos import score_ytvos as score_ytvos
    from ino.train.config import TrainConfig as TrainConfig
    from ino.train.config import load_recipe as load_recipe

__version__ = "0.1.0"

_MODULES = {
    "InoError": "ino.errors",
    "Tracker": "ino.propagate.tracker",
    "TrainConfig": "ino.train.config",
    "VideoWriter": "ino.data.video",
    "adapt": "ino.adaptation",
    "check_submission": "ino.tasks.submission",
    "convert_result": "ino.tasks.convert",
    "evaluate_davis": "ino.tasks.davis",
    "evaluate_ytvos": "ino.tasks.ytvos",
    "get_protocol": "ino.propagate.protocols",
    "judge": "ino.tasks.judge",
    "judge_difference": "ino.propagate.judge",
    "judge_result": "ino.tasks.judge",
    "list_protocols": "ino.propagate.protocols",
    "list_weights": "ino.models.load",
    "load_backbone": "ino.models.load",
    "load_recipe": "ino.train.config",
    "mask_from_prompt": "ino.propagate.prompts",
    "pretrain": "ino.pretraining",
    "read_frames": "ino.data.video",
    "read_labels": "ino.data.label_maps",
    "read_masks": "ino.tasks.masks",
    "read_ytvos_split": "ino.data.ytvos",
    "score_davis": "ino.tasks.davis",
    "score_ytvos": "ino.tasks.ytvos",
    "segment_video": "ino.tasks.segment",
    "write_labels": "ino.data.label_maps",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ino' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_MODULES, "__version__"])
