"""Exported networks: a folder of weights and configuration that timm, hubs and ino read.

`model.safetensors` holds a plain ViT under timm's names, `config.json` what timm needs to build it
and, under `ino`, what ino needs besides. It is for inference: there is no head and no mask token.
`positions.safetensors` is there where the position embeddings that timm reads were resampled for
one size of image, and holds them as they were trained. `config.json` is written last, so a folder
without it is not whole.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ino.errors import CheckpointError
from ino.models.checkpoints import load_exactly, position_side
from ino.models.vit import VisionTransformer

FORMAT = "ino-export"
VERSION = 1

WEIGHTS, CONFIG, POSITIONS, CARD = (
    "model.safetensors",
    "config.json",
    "positions.safetensors",
    "README.md",
)
FEATURES_GRAPH, PROPAGATION_GRAPH = "features.onnx", "propagation.onnx"
FILES = (CONFIG, WEIGHTS, POSITIONS, CARD, FEATURES_GRAPH, PROPAGATION_GRAPH)


class Exported(NamedTuple):
    """What a folder holds: the network, by which deviation its images are normalised, the name of
    the protocol that suits it, and which network of a run it is; empty where that is not told."""

    vit: VisionTransformer
    std: tuple[float, float, float]
    protocol: str
    network: str


def is_exported(path: Path) -> bool:
    """Whether a path is the folder of an export, or its file of weights.

    Raises:
        CheckpointError: it is a file of the name that exports give their weights, without a
            configuration beside it that tells whose they are.
    """
    try:
        return "ino" in _read_config(_folder(path))
    except CheckpointError as error:
        if path.name == WEIGHTS and path.is_file():
            raise CheckpointError(
                f"{path} may be the weights of an export, whose {CONFIG} tells how they are read "
                f"and must lie beside them ({error.__cause__ or error}): copy the whole folder, or "
                "rename weights that are of another project"
            ) from error
        return False


def exported_weights(path: Path) -> Path:
    """The file of weights of an export, given by its folder or by that file."""
    return _folder(path) / WEIGHTS


def read_exported(path: Path) -> Exported:
    """The network of an export, in evaluation mode.

    Args:
        path: the folder, or its file of weights.

    Raises:
        CheckpointError: a file is missing, damaged, or of another version or export.
    """
    folder = _folder(path)
    config = _read_config(folder)
    try:
        own, model = config["ino"], config["model_args"]
        found = own["format"], own["format_version"]
        std = [float(value) for value in config["pretrained_cfg"]["std"]]
        sums, num_heads = dict(own["sha256"]), model["num_heads"]
        protocol, of_run = str(own.get("protocol", "ino-davis")), str(own.get("network", ""))
        sizes = {name: model[name] for name in ("embed_dim", "depth", "patch_size")}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} is damaged: {error}; export it again") from error
    if found != (FORMAT, VERSION):
        raise CheckpointError(
            f"{folder / CONFIG} is {found[0]} version {found[1]}, this ino reads {FORMAT} version "
            f"{VERSION}; use the ino that wrote it ({own.get('ino')})"
        )
    weights = _read_tensors(folder / WEIGHTS, sha256=sums.get(WEIGHTS))
    if POSITIONS in sums:
        weights |= _read_tensors(folder / POSITIONS, sha256=sums[POSITIONS])
    # Before anything is built of such sizes.
    known = _sizes(weights)
    has_heads = type(num_heads) is int and num_heads > 0 and known["embed_dim"] % num_heads == 0
    if sizes != known or len(std) != 3 or not has_heads:
        raise CheckpointError(
            f"{folder / CONFIG} does not tell of the weights beside it: expected {known}, three "
            f"deviations and a number of heads that divides the width, found {sizes}, {std} and "
            f"{num_heads}; export it again"
        )
    vit = VisionTransformer(
        embed_dim=known["embed_dim"],
        depth=known["depth"],
        patch_size=known["patch_size"],
        num_heads=num_heads,
        position_side=position_side(weights),
    )
    # Nothing is masked at inference.
    weights["mask_token"] = torch.zeros_like(vit.mask_token)
    load_exactly(vit, {n: w.float() for n, w in weights.items()}, source=folder / WEIGHTS)
    return Exported(vit.eval(), (std[0], std[1], std[2]), protocol, of_run)


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What weights tell of the network that they are of; zeros where they tell nothing."""
    patch = weights.get("patch_embed.proj.weight", torch.empty(0, 0))
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    return {"embed_dim": patch.shape[0], "depth": len(blocks), "patch_size": patch.shape[-1]}


def _read_tensors(path: Path, *, sha256: str | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a whole export: {path.name} is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(
            f"{path} ({len(content)} bytes) is not the file that {CONFIG} beside it was written "
            "with: copy or download the whole folder again"
        )
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} holds no tensors ({error}); export it again") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no configuration")
    return content


def _folder(path: Path) -> Path:
    return path.parent if path.name == WEIGHTS else path
