"""Generated videos, and a run on them so small that a step takes a fraction of a second."""

from pathlib import Path

import numpy as np
import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from ino.data.video import VideoWriter
from ino.train.config import TrainConfig
from ino.train.loop import train
from tiny_run import tiny_config


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """Five videos of moving noise, 12 frames of 48 x 64 pixels."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(5):
        ground = np.random.default_rng(index).integers(0, 255, (48, 80, 3), dtype=np.uint8)
        with VideoWriter(folder / f"{index}.mp4", fps=8.0) as writer:
            for frame in range(12):
                writer.write(np.ascontiguousarray(ground[:, frame : frame + 64]))
    return folder


@pytest.fixture
def config(videos) -> TrainConfig:
    """Two steps an epoch, four epochs."""
    return tiny_config(videos)


@pytest.fixture(scope="session")
def whole(videos, tmp_path_factory) -> Path:
    """The folder of the run of `config` that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_config(videos), out=out)
    return out


@pytest.fixture(autouse=True)
def first_process(monkeypatch) -> None:
    """Loggers of Lightning write nothing where an earlier test left another rank behind."""
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)
