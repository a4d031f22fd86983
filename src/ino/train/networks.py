"""The networks of a run: random, or started from weights."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ino.errors import CheckpointError, ConfigError
from ino.models.checkpoints import check_exact, position_side, read_checkpoint
from ino.models.head import ProjectionHead
from ino.models.student_teacher import Network, StudentTeacher
from ino.models.vit import build_vit
from ino.models.weights import NetworkWeights, describe, read_weights
from ino.train.config import ModelConfig, TrainConfig


class Origin(NamedTuple):
    """From which weights a run started; no path for random ones."""

    path: str = ""
    sha256: str = ""
    notes: tuple[str, ...] = ()


def build_networks(config: TrainConfig, *, saved: Path | None) -> tuple[StudentTeacher, Origin]:
    """Student and teacher as the run starts, or of the shapes of a checkpoint that is restored.

    `config.init` names the weights to start from: the backbones and, where their shapes fit, the
    heads of student and teacher. The centres are not taken: they belong to the videos of a run.

    Raises:
        CheckpointError: the weights cannot be used, or are of another architecture.
    """
    if saved is not None:
        content = read_checkpoint(saved)
        prefix = "backbone."
        side = position_side({k.removeprefix(prefix): v for k, v in content["student"].items()})
        return build_model(config.model, side=side), Origin(**content.get("init", {}))
    if not config.init:
        return build_model(config.model), Origin()
    weights = read_weights(Path(config.init))
    model = build_model(config.model, side=position_side(weights.student.backbone))
    notes = _fill(model.student, weights.student, weights.path)
    _fill(model.teacher, weights.teacher, weights.path)
    return model, Origin(str(weights.path), weights.sha256, tuple(notes))


def build_model(config: ModelConfig, *, side: int | None = None) -> StudentTeacher:
    """Student and teacher with equal random weights.

    Args:
        config: of the networks.
        side: positions a side of the grid of position embeddings; None for the usual one.
    """
    backbone = build_vit(
        config.arch,
        patch_size=config.patch_size,
        drop_path=config.drop_path,
        position_side=side,
    )
    head = ProjectionHead(
        backbone.embed_dim,
        out_dim=config.out_dim,
        hidden_dim=config.hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
    )
    return StudentTeacher(backbone, head)


def compile_blocks(model: StudentTeacher, device: torch.device) -> None:
    """Has torch compile the blocks of both networks where they stand; their names stay.

    Not the last of each, whose shapes follow the number of masked positions of a step.

    Raises:
        ConfigError: there is no C++ compiler, which compiling for a CPU needs.
    """
    compilers = [os.environ.get("CXX") or "g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ConfigError(
            "run.compile needs a C++ compiler on a CPU and none was found: install g++ or clang, "
            "or leave run.compile off"
        )
    for network in (model.student, model.teacher):
        for block in list(network.backbone.blocks)[:-1]:
            block.compile()


def _fill(network: Network, weights: NetworkWeights, source: Path) -> list[str]:
    """Loads what there is and says what stays random."""
    notes = []
    backbone = dict(weights.backbone)
    if "mask_token" not in backbone:
        backbone["mask_token"] = network.backbone.mask_token.data
        notes.append(f"{source} has no mask token: it starts random")
    try:
        check_exact(network.backbone, backbone, source=source)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; its weights are {describe(backbone)}") from error
    network.backbone.load_state_dict(backbone)
    if fault := weights.head_fault or _misfit(network.head, weights.head):
        notes.append(f"the head of {source} is not used, {fault}: it starts random")
    else:
        network.head.load_state_dict(weights.head)
    return notes


def _misfit(head: nn.Module, weights: dict[str, Tensor]) -> str:
    """Why weights are not those of the head; empty where they are."""
    if not weights:
        return "there is none"
    for name, value in head.state_dict().items():
        if name not in weights:
            return f"{name} is missing"
        if weights[name].shape != value.shape:
            return f"{name} is {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
    extra = weights.keys() - head.state_dict().keys()
    return f"{min(extra)} is no part of ours" if extra else ""
