"""The weights that a training starts from (`--init`), for ino's own ViTs and for networks of timm.

They may be a run, a checkpoint, an export or a release in a file, the weights that come with ino,
public weights by their short name, or a model of timm with its weights. What does not fit is an
error that says which network they are of. Heads come from runs of ino and from releases of INO,
DINO and iBOT, where they have the same sizes; the rest of such a run begins with random heads.
"""

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ino.errors import CheckpointError
from ino.models.backbone import HUBS, TIMM, build_timm, split_stride, split_weights, timm_tensors
from ino.models.files import load_plain
from ino.models.load import PUBLIC, bundled_folder, list_weights, load_backbone
from ino.models.masked_timm import MaskedTimm
from ino.models.peers import timm_advice
from ino.models.student_teacher import Network
from ino.models.weights import (
    FORMAT,
    NetworkWeights,
    Weights,
    are_tensors,
    check_exact,
    describe,
    exported_weights,
    find_checkpoint,
    is_exported,
    load_exactly,
    misfits,
    networks_in,
    split_network,
)

_NETWORK = "network."
"""What the names of a timm model's tensors begin with in our checkpoints."""


class Found(NamedTuple):
    """Networks under the names of their file: one, under the name "", or student and teacher."""

    path: Path
    sha256: str
    networks: Mapping[str, Any]
    model: str = ""
    """The model of timm that they are of, if that is known."""


def find_initial(name: str) -> Found:
    """Reads the weights of that name.

    Args:
        name: a path (a run, a checkpoint, an export, a release), a name that `ino weights` lists,
            or timm:MODEL or timm:MODEL@FILE.

    Raises:
        CheckpointError: there are no such weights, or they cannot be read.
        ConfigError: timm has no such model.
    """
    path = bundled_folder(name) or Path(name)
    if path.exists() and is_exported(path):
        backbone: Any = load_backbone(path)
        network = getattr(backbone, "vit", None) or backbone.network
        # An export has no mask token, and a map that was fitted to its features goes with them.
        left_out = ("mask_token", "head.weight", "head.bias")
        weights = {name: w for name, w in network.state_dict().items() if name not in left_out}
        file = exported_weights(path)
        return Found(path, _sha256(file), {"": weights})
    public = None if path.exists() else PUBLIC.get(name)
    if public is not None or name.startswith((TIMM, *HUBS)):
        text = TIMM + public.model if public else name
        named, file = split_weights(text)
        model, stride = split_stride(named.removeprefix(TIMM))
        network = build_timm(model, pretrained=file is None, weights=file, stride=stride).network
        weights = dict(network.state_dict())
        return Found(Path(name), _sha256(file) if file else "", {"": weights}, TIMM + model)
    near = difflib.get_close_matches(name, [*list_weights(), *PUBLIC], n=1)
    if not path.exists() and near:
        raise CheckpointError(
            f"init {name} is neither a file or folder nor weights that are known: did you mean "
            f"{near[0]}?"
        )
    path = find_checkpoint(path)
    content = load_plain(path)
    config = content.get("config") if content.get("format") == FORMAT else None
    model = config.get("model") if isinstance(config, dict) else None
    arch = str(model.get("arch", "")) if isinstance(model, dict) else ""
    known = arch if arch.startswith(TIMM) else ""
    return Found(path, _sha256(path), networks_in(content), known)


def weights_for_vit(found: Found) -> Weights:
    """The weights under the names of ino's ViT and head.

    Raises:
        CheckpointError: they are those of no ViT.
    """
    try:
        read = {key: split_network(w, found.path) for key, w in found.networks.items()}
    except CheckpointError as error:
        advice = _advice(found)
        raise CheckpointError(f"{error}{advice}" if advice else str(error)) from error
    return _both(found, read)


def weights_for_timm(found: Found, network: MaskedTimm) -> Weights:
    """The weights under the names of a network of timm as it is trained here.

    Raises:
        CheckpointError: they are of another family of networks.
    """
    return _both(found, {k: _split_timm(w, network, found) for k, w in found.networks.items()})


def fill(network: Network, weights: NetworkWeights, *, found: Found) -> tuple[list[str], bool]:
    """Loads backbone and head; returns what stays random, in words, and if there was a head.

    Raises:
        CheckpointError: the backbone is of another architecture; the message names tensors, and the
            options that build the network of these weights.
    """
    notes, source, own = [], found.path, network.backbone
    backbone = dict(weights.backbone)
    if "mask_token" not in backbone:
        backbone["mask_token"] = own.mask_token.data
        notes.append(f"{source} has no mask token: it starts random")
    try:
        check_exact(own, backbone, source=source)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_advice(found, weights.backbone)}") from error
    load_exactly(own, backbone, source=source)
    fault = weights.head_fault if weights.head else "there is none"
    if fault := fault or next(iter(misfits(network.head, weights.head)), ""):
        notes.append(f"the head of {source} is not used, {fault}: it starts random")
        return notes, False
    load_exactly(network.head, weights.head, source=source)
    return notes, True


def _both(found: Found, read: Mapping[str, NetworkWeights]) -> Weights:
    student = read.get("student") or next(iter(read.values()))
    return Weights(found.path, found.sha256, student, read.get("teacher", student))


def _split_timm(weights: Any, network: MaskedTimm, found: Found) -> NetworkWeights:
    if not are_tensors(weights):
        raise CheckpointError(
            f"{found.path} holds no network that is known: expected tensors by name, such as timm "
            "saves them, or a run of ino train"
        )
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items()}
    if any(name.startswith(_NETWORK) for name in backbone):  # a run of ino with a network of timm
        head = {k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")}
        own = {k: v for k, v in backbone.items() if k == "mask_token" or k.startswith(_NETWORK)}
        return NetworkWeights(own, head)
    tensors = timm_tensors(network.network, weights, name=network.arch, path=found.path)
    token = tensors.pop("mask_token", backbone.get("mask_token"))  # timm has no use for DINOv2's
    own = {f"{_NETWORK}{name}": value for name, value in tensors.items()}
    if token is not None and token.numel() == network.mask_token.numel():
        own["mask_token"] = token.reshape(network.mask_token.shape)
    return NetworkWeights(own, {})


def _advice(found: Found, backbone: Mapping[str, Tensor] | None = None) -> str:
    """The end of a sentence: which options build the network that the weights are of."""
    if found.model:
        return f"; its weights are --model.arch {found.model}"
    tensors = next(iter(found.networks.values()))
    advised = timm_advice(tensors, source=found.path) if are_tensors(tensors) else ""
    try:
        own = describe(dict(backbone), source=found.path) if backbone else ""
    except CheckpointError:
        own = ""
    if own.startswith("--") or not advised:
        return f"; its weights are {own}" if own else ""
    return f"; its weights are --model.arch {advised.split(' by ')[1].partition('@')[0]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
