"""Weights that are fitted to footage: what changes, what is kept, and what is refused."""

import json
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from command import refused, run
from ino import adaptation as module
from ino.adaptation import BEFORE, FITS, adapt, fit_norm
from ino.data.label_maps import write_labels
from ino.data.video import VideoWriter
from ino.demo.synthetic import generate_clip
from ino.errors import ConfigError, OutputError, VideoError
from ino.models.backbone import VitBackbone
from ino.models.load import load_backbone
from ino.propagate.judge import Difference
from ino.propagate.protocols import get_protocol

WEIGHTS = "random:vit_nano/8"
QUICK: Any = {"protocol": get_protocol("ino-near", short_side=64), "device": "cpu"}


def load_vit(weights):
    backbone = load_backbone(weights)
    assert isinstance(backbone, VitBackbone)
    return backbone.vit


def write_video(path, frames):
    with VideoWriter(path, fps=8.0) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage")
    clip = generate_clip(3, num_frames=9, height=64, width=96, num_objects=1)
    write_labels(folder / "first.png", clip.labels[0])
    return write_video(folder / "clip.mp4", clip.frames), str(folder / "first.png")


@pytest.fixture
def certain(monkeypatch):
    """The judge is certain of differences: `certain(sign)` says of which."""

    def choose(sign):
        def difference(first, second):
            mean = sign * sum(one is not other for one, other in zip(first, second, strict=True))
            return Difference(mean, mean - 0.5, mean + 0.5)

        monkeypatch.setattr(module, "mean_difference", difference)

    return choose


def test_features_of_the_fitted_norm():
    vit = load_vit(WEIGHTS)
    images = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    mean, deviation = torch.linspace(-1, 1, 96), torch.linspace(0.5, 2, 96)
    with torch.no_grad():
        before, after = vit(images), fit_norm(vit, mean=mean, deviation=deviation)(images)
        torch.testing.assert_close(after, (before - mean) / deviation, atol=1e-5, rtol=1e-5)
        assert torch.equal(before, vit(images))


def test_what_is_better_is_kept_and_every_command_takes_it(footage, certain, tmp_path, capsys):
    video, mask = footage
    certain(+1)
    found = adapt([video], weights=WEIGHTS, out=tmp_path / "new", masks=[mask], **QUICK)
    assert [row.name for row in found.rows] == [BEFORE, *FITS]
    assert found.kept == next(iter(FITS))
    assert found.helped
    images = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    before, after = load_backbone(WEIGHTS), load_backbone(found.weights)
    moved = before(images, layer=7) - after(images, layer=7)
    shift = moved.mean(dim=(0, 2, 3))
    torch.testing.assert_close(
        moved, shift[None, :, None, None].expand_as(moved), atol=1e-5, rtol=0
    )
    assert shift.abs().max() > 0.1
    assert after.protocol == before.protocol
    assert (
        run(
            "segment",
            video,
            "--mask",
            mask,
            "--weights",
            found.weights,
            "--protocol",
            "ino-near",
            "--set",
            "short_side=64",
            "--out",
            tmp_path / "s",
        )
        == 0
    )


def test_weights_stay_where_nothing_is_better(footage, certain, tmp_path):
    video, mask = footage
    certain(-1)
    found = adapt([video], weights=WEIGHTS, out=tmp_path / "new", masks=[mask], **QUICK)
    assert found.kept == BEFORE
    before, after = load_vit(WEIGHTS), load_vit(found.weights)
    for name, value in before.state_dict().items():
        if name != "mask_token":
            assert torch.equal(value, after.state_dict()[name]), name


def test_a_result_is_reused_and_another_one_is_not_overwritten(footage, tmp_path, monkeypatch):
    video, mask = footage
    options: Any = {"weights": WEIGHTS, "out": tmp_path / "new", **QUICK}
    first = adapt([video], masks=[mask], **options)
    with monkeypatch.context() as patched:
        patched.setattr(module, "judge_clip", None)
        assert adapt([video], masks=[mask], **options) == first
    with pytest.raises(OutputError, match="is not empty"):
        adapt([video], **options)
    (tmp_path / "new" / "adapt.json").write_text("{")
    with pytest.raises(OutputError, match="is not empty"):
        adapt([video], masks=[mask], **options)


def test_footage_that_nothing_can_be_learned_from(footage, tmp_path, capsys):
    video, _ = footage
    still = np.zeros((64, 96, 3), np.uint8)
    cv2.circle(still, (45, 30), 15, (200, 30, 90), -1)
    options: Any = {"weights": WEIGHTS, "out": tmp_path / "new", **QUICK}
    short = write_video(tmp_path / "short.mp4", [still] * 4)
    with pytest.raises(VideoError, match=r"0\.5 seconds are too short.*the weights stay"):
        adapt([short], **options)
    still = write_video(tmp_path / "still.mp4", [still] * 12)
    with pytest.raises(VideoError, match=r"does not move.*the weights stay"):
        adapt([still], **options)
    with pytest.raises(ConfigError, match="color cannot be adapted"):
        adapt([video], **options | {"weights": "color"})
    assert not (tmp_path / "new").exists()
    assert "does not move" in refused(
        capsys, "adapt", still, "--weights", WEIGHTS, "--out", tmp_path / "new"
    )


def test_segment_adapts_first(footage, tmp_path, capsys):
    video, mask = footage
    arguments = (
        "segment",
        video,
        "--mask",
        mask,
        "--adapt",
        "--weights",
        WEIGHTS,
        "--protocol",
        "ino-near",
        "--set",
        "short_side=64",
    )
    assert run(*arguments, "--out", tmp_path / "out") == 0
    assert "predicted J&F" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / ".adapted" / "adapt.json").read_text())
    weights = json.loads((tmp_path / "out" / "settings.json").read_text())["weights"]
    adapted = str(tmp_path / "out" / ".adapted")
    assert weights == (WEIGHTS if report["kept"] == BEFORE else adapted)
    assert run(*arguments, "--out", tmp_path / "out") == 0
    assert "finished before" in capsys.readouterr().out
