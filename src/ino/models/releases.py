"""Checkpoints that other projects released, told apart by the names of their tensors.

Each is loaded key by key: a tensor that is missing, unknown or of another shape is an error, and
what a release is known to hold beside the network that inference runs is named here.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ino.errors import CheckpointError
from ino.models.checkpoints import NetworkName
from ino.models.dense import Backbone
from ino.models.resnet_releases import RESNET_RELEASES, read_mast, read_resnet, read_vfs
from ino.models.vit_releases import read_dinov2, read_dinov3, read_vit

KNOWN = (
    "INO, DINO, iBOT, DINOv2, DINOv3, CRW, VFS, DUL, MAST, CorrFlow, TimeCycle, ContCorr and runs "
    "of ino train"
)


class Kind(NamedTuple):
    """A kind of release: the tensors that only it has, and how it is read."""

    name: str
    mark: str
    """Regular expression that one of the names has to match from its start."""
    read: Callable[..., Backbone]


_KINDS = (
    *(Kind(r.name, re.escape(r.prefix) + "conv1", read_resnet) for r in RESNET_RELEASES),
    Kind("CorrFlow", r"module\.feature_extraction\.conv1\.0", read_mast),
    Kind("MAST", r"feature_extraction\.conv1\.0", read_mast),
    Kind("VFS", r"backbone\.conv1\.conv\.", read_vfs),
    Kind("VFS", r"layer1\.0\.conv1\.weight", read_vfs),
    Kind("DINOv3", r"storage_tokens", read_dinov3),
    Kind("DINOv2", r"blocks\.0\.ls1\.gamma", read_dinov2),
    Kind("ViT", r"(backbone\.)?(cls_token|pos_embed|patch_embed\.proj\.)", read_vit),
)


def read_release(
    content: dict[str, Any], *, source: Path, network: NetworkName | None = None
) -> Backbone:
    """The backbone of a release, in evaluation mode.

    Args:
        content: of the file.
        source: for messages.
        network: of a file that has a student and a teacher; None for what its authors evaluate:
            the student of INO, the teacher of DINO and iBOT.

    Raises:
        CheckpointError: the kind is unknown, or its tensors are not exactly those it should have.
    """
    networks = _networks(content)
    names = next(iter(networks.values()), {})
    for kind in _KINDS:
        if any(_marks(kind, name) for name in names):
            if kind.read is read_vit:
                return read_vit(networks, source=source, network=network).eval()
            return kind.read(names, name=kind.name, source=source).eval()
    raise CheckpointError(
        f"{source} is of no kind that is known, which are {KNOWN}: its first keys are "
        f"{', '.join(list(names or content)[:3]) or 'none'}; weights for a model of timm are read "
        "by timm:NAME@FILE"
    )


def _marks(kind: Kind, name: str) -> bool:
    # MAST and CorrFlow have the same names but for this prefix.
    plain = name if kind.read is read_mast else name.removeprefix("module.")
    return re.match(kind.mark, plain) is not None


def _networks(content: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The tensors in a file: of student and teacher, or of one network, whose name is empty."""
    found = {name: content[name] for name in ("student", "teacher") if name in content}
    if not found:
        inner = (content[name] for name in ("state_dict", "model") if name in content)
        found = {"": next(inner, content)}
    return {name: weights for name, weights in found.items() if _are_tensors(weights)}


def _are_tensors(weights: Any) -> bool:
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )
