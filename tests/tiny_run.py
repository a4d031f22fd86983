"""A run so small that a step takes a fraction of a second, what it logs, and how states compare."""

import json
from pathlib import Path
from typing import Any

import torch

from ino.models.initial import find_initial, weights_for_vit
from ino.models.weights import Weights
from ino.train.config import (
    DataConfig,
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    ViewsConfig,
)


def tiny_config(videos: Path) -> TrainConfig:
    """Two steps an epoch, four epochs."""
    return TrainConfig(
        model=ModelConfig(arch="vit_nano", depth=3, out_dim=32, hidden_dim=24, bottleneck_dim=16),
        data=DataConfig(
            root=[str(videos)], frame_step=1, clips_per_video=1, batch_size=2, num_workers=0
        ),
        views=ViewsConfig(global_size=32, local_size=16, num_local=2),
        masking=MaskingConfig(probability=0.7),
        optim=OptimConfig(epochs=4, lr=0.05, warmup_epochs=1.0),
        run=RunConfig(accelerator="cpu", precision="32-true", save_every=3, log_every=1),
    )


def read_weights(path: Path) -> Weights:
    """What a run with one of ino's ViTs starts from."""
    return weights_for_vit(find_initial(str(path)))


TIMES = {"seconds", "seconds_left", "clips_per_second", "waiting"}


def lines_without_times(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, or of another file of JSON lines, but for what a clock says."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: x for name, x in line.items() if name not in TIMES} for line in lines]


def assert_equal_states(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Networks and centers of two checkpoints are equal to the bit."""
    for network in ("student", "teacher", "objective"):
        assert first[network].keys() == second[network].keys()
        for name, value in first[network].items():
            assert torch.equal(value, second[network][name]), f"{network}.{name}"


def assert_close_states(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Networks and centers of two checkpoints are equal to 1e-5, but for the biases of keys.

    A softmax over keys does not change with their bias: its gradient is rounding alone, from which
    AdamW makes steps of full size, and no output depends on it.
    """
    for network in ("student", "teacher", "objective"):
        assert first[network].keys() == second[network].keys()
        for name, value in first[network].items():
            found = second[network][name]
            if name.endswith("qkv.bias"):
                value, found = (x.unflatten(0, (3, -1))[[0, 2]] for x in (value, found))
            torch.testing.assert_close(
                found,
                value,
                atol=1e-5,
                rtol=0,
                msg=lambda text, name=name, network=network: f"{network}.{name}: {text}",
            )
