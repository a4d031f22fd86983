"""Checkpoints that other projects released, told apart by the names of their tensors.

Each is loaded key by key: a tensor that is missing, unknown or of another shape is an error, and
what a release is known to hold beside the network that inference runs is named here.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ino.errors import CheckpointError
from ino.models.checkpoints import NetworkName, are_tensors, choose_network, networks_in
from ino.models.dense import Backbone
from ino.models.resnet_releases import CORRFLOW, MAST, PREFIXED, VFS, read_mast, read_resnet
from ino.models.vit_releases import is_of_ino, read_dinov2, read_dinov3, read_vit

KNOWN = (
    "INO, DINO, iBOT, DINOv2, DINOv3, CRW, VFS, DUL, MAST, CorrFlow, TimeCycle, ContCorr and runs "
    "of ino train"
)


class Kind(NamedTuple):
    """A kind of release, told by the tensors that only it has."""

    mark: str
    """Regular expression that one of the names has to match from its start."""
    read: Callable[..., Backbone]
    """Takes the tensors by name, and `source` for messages."""
    keeps_module: bool = False
    """`module.` before the names belongs to the mark."""

    def matches(self, name: str) -> bool:
        plain = name if self.keeps_module else name.removeprefix("module.")
        return re.match(self.mark, plain) is not None


_KINDS = (
    *(Kind(re.escape(r.prefix) + "conv1", partial(read_resnet, release=r)) for r in PREFIXED),
    # The same names but for this prefix.
    Kind(r"module\.feature_extraction\.conv1\.0", partial(read_mast, reading=CORRFLOW), True),
    Kind(r"feature_extraction\.conv1\.0", partial(read_mast, reading=MAST), True),
    Kind(r"backbone\.conv1\.conv\.", partial(read_resnet, release=VFS)),
    Kind(r"layer1\.0\.conv1\.weight", partial(read_resnet, release=VFS)),
    Kind(r"storage_tokens", read_dinov3),
    Kind(r"blocks\.0\.ls1\.gamma", read_dinov2),
    Kind(r"(backbone\.)?(cls_token|pos_embed|patch_embed\.proj\.)", read_vit),
)


def read_release(
    content: dict[str, Any], *, source: Path, network: NetworkName | None = None
) -> Backbone:
    """The backbone of a release, in evaluation mode.

    Args:
        content: of the file.
        source: for messages.
        network: of a file that has a student and a teacher; None for what its authors evaluate:
            the student of INO, the teacher of DINO and iBOT. A file of one network warns.

    Raises:
        CheckpointError: the kind is unknown, its tensors are not exactly those it should have, or
            the file does not hold the network.
    """
    networks = {name: w for name, w in networks_in(content).items() if are_tensors(w)}
    names = next(iter(networks.values()), {})
    for kind in _KINDS:
        if any(kind.matches(name) for name in names):
            is_ino = any(is_of_ino(weights) for weights in networks.values())
            usual = "student" if is_ino else "teacher"
            weights = choose_network(networks, network=network, usual=usual, source=source)
            return kind.read(weights, source=source).eval()
    raise CheckpointError(
        f"{source} is of no kind that is known, which are {KNOWN}: its first keys are "
        f"{', '.join(list(names or content)[:3]) or 'none'}; weights for a model of timm are read "
        "by timm:NAME@FILE"
    )
