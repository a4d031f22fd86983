"""Weights to start training from: our own runs and the releases of INO, DINO and iBOT.

Recognised by the names of their tensors. A file holds a student and a teacher, or one network under
`state_dict` or `model`, or the tensors themselves; names may begin with `module.`, and those of the
backbone with `backbone.`. Heads are `head.` (DINO, iBOT, ours) or `headlist.headlist.0.` (INO).
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ino.errors import CheckpointError
from ino.models.checkpoints import are_tensors, find_checkpoint, networks_in
from ino.models.exported import is_exported
from ino.models.vit import ARCHITECTURES, PATCH_SIZES
from ino.models.weight_files import load_plain

_HEAD_PREFIXES = ("head.", "headlist.headlist.0.")
_GAIN, _DIRECTIONS = "last_layer.weight_g", "last_layer.weight_v"


class NetworkWeights(NamedTuple):
    """Weights of one network under our names; an empty head where the file has none.

    `head_fault` says why a head that the file has cannot be used, whatever our head is.
    """

    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    head_fault: str = ""


class Weights(NamedTuple):
    """What a file of weights holds; student and teacher are the same where it has one network."""

    path: Path
    sha256: str
    student: NetworkWeights
    teacher: NetworkWeights


def read_weights(path: Path) -> Weights:
    """The networks in a file of weights, or in the newest checkpoint of a run's folder.

    Raises:
        CheckpointError: it is missing, damaged, an export, would run code, or holds no ViT that is
            known.
    """
    if is_exported(path):
        raise CheckpointError(
            f"{path} is an export, which is for inference and has no head; start from the run that "
            "it was made of"
        )
    path = find_checkpoint(path)
    content = load_plain(path)
    read = {name: split_network(w, path) for name, w in networks_in(content).items()}
    student = read.get("student") or next(iter(read.values()))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(path, digest, student, read.get("teacher", student))


def describe(backbone: dict[str, Tensor]) -> str:
    """The options that build the network of these weights, or its sizes where none do."""
    dim = backbone["cls_token"].shape[-1]
    patch_size = backbone["patch_embed.proj.weight"].shape[-1]
    for name, sizes in ARCHITECTURES.items():
        if sizes["embed_dim"] == dim and patch_size in PATCH_SIZES:
            return f"--model.arch {name} --model.patch_size {patch_size}"
    return f"a ViT of width {dim} with patches of {patch_size} pixels, which is not known here"


def split_network(weights: Any, path: Path) -> NetworkWeights:
    """Backbone and head of one network, under our names.

    Raises:
        CheckpointError: they are no ViT.
    """
    if not are_tensors(weights):
        raise CheckpointError(
            f"{path} holds no network that is known: expected student, teacher, state_dict, model "
            "or tensors by name; give a run, or a release of INO, DINO or iBOT"
        )
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    head = {
        name.removeprefix(prefix): value
        for name, value in plain.items()
        for prefix in _HEAD_PREFIXES
        if name.startswith(prefix)
    }
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in plain.items()
        if not name.startswith(_HEAD_PREFIXES)
    }
    for name in ("masked_embed", "mask_token"):  # iBOT's name, ours
        if name in backbone and backbone[name].layout == torch.strided:
            backbone["mask_token"] = backbone.pop(name).reshape(1, 1, -1)
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= backbone.keys():
        raise CheckpointError(
            f"{path} holds no ViT: expected cls_token, pos_embed and patch_embed, found "
            f"{', '.join(list(backbone)[:3]) or 'nothing'}"
        )
    for name, value in backbone.items():
        is_plain = value.layout == torch.strided and value.device.type == "cpu"
        if not (is_plain and value.is_floating_point() and bool(value.isfinite().all())):
            raise CheckpointError(
                f"{path} cannot be used: expected finite numbers, but {name} holds others "
                f"({value.dtype}, {value.layout}); give weights of a training that went well"
            )
    return NetworkWeights(backbone, *_plain_head(head))


def _plain_head(head: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """A head whose last layer is a gain and directions, as directions alone; our gain is 1."""
    if _GAIN not in head:
        return head, ""
    head = dict(head)
    gain = head.pop(_GAIN)
    if _DIRECTIONS in head:
        head["last_layer.weight"] = head.pop(_DIRECTIONS)
    is_one = torch.allclose(gain, torch.ones_like(gain), atol=1e-4)
    return head, "" if is_one else "its last layer has gains other than 1"
