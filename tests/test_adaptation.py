"""Weights that suit footage: what is learned and fitted, what is kept, and what is refused."""

import json
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch

from command import refused, run
from ino import adaptation as module
from ino.adaptation import (
    BEFORE,
    FITS,
    LEARNED,
    Footage,
    LinearMap,
    adapt,
    fit_maps,
    look_at,
    with_map,
    write_footage,
)
from ino.data.label_maps import write_labels
from ino.data.video import VideoWriter
from ino.demo.synthetic import generate_clip
from ino.errors import ConfigError, OutputError, VideoError
from ino.models.backbone import VitBackbone
from ino.models.load import load_backbone
from ino.propagate.judge import Difference, Judgement
from ino.propagate.protocols import get_protocol

WEIGHTS = "random:vit_nano/8"
CPU = torch.device("cpu")
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


def test_features_of_a_fitted_map():
    vit = load_vit(WEIGHTS)
    images = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    first, second = (
        LinearMap(torch.randn(96, generator=random), torch.randn(96, 96, generator=random))
        for _ in range(2)
    )
    with torch.no_grad():
        before, once = vit(images), with_map(vit, first)(images)
        torch.testing.assert_close(once, (before - first.mean) @ first.weight.T)
        twice = with_map(with_map(vit, first), second)(images)
        expected = (once - second.mean) @ second.weight.T
        torch.testing.assert_close(twice, expected, atol=1e-3, rtol=1e-4)
        assert torch.equal(before, vit(images))


def test_maps_make_equal_what_their_names_say():
    random = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.5, 3, 8)
    features = 4 + spread * torch.randn(4000, 8, generator=random)
    mixed = torch.randn(8, 8, generator=random)
    changes = torch.randn(4000, 8, generator=random) @ mixed
    deviations, whitened = fit_maps(Footage(features, changes)).values()
    found = (features - deviations.mean) @ deviations.weight.T
    assert found.mean(dim=0).abs().max() < 1e-4
    assert found.std(dim=0).max() / found.std(dim=0).min() < 1.3 < spread.max() / spread.min()
    covariance = changes.T @ changes / len(changes)
    shrunk = 0.3 * covariance / covariance.diagonal().mean() + 0.7 * torch.eye(8)
    weight = whitened.weight
    torch.testing.assert_close(weight @ shrunk @ weight.T, torch.eye(8), atol=1e-4, rtol=1e-4)
    # In the directions in which a feature changes most while its point moves, it counts least.
    least, *_, most = torch.linalg.eigh(covariance).eigenvectors.T
    assert (weight @ most).norm() < 0.7 * (weight @ least).norm()
    assert list(fit_maps(Footage(features, changes[:8]))) == [FITS[0]]


def test_changes_follow_the_motion(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (8, 32, 3)).astype(np.uint8)
    wide = cv2.resize(noise, (256, 64), interpolation=cv2.INTER_CUBIC)
    moving = [np.ascontiguousarray(wide[:, 8 * i : 8 * i + 128]) for i in range(9)]
    video = write_video(tmp_path / "moving.mp4", moving)
    options: Any = {"protocol": QUICK["protocol"], "device": torch.device("cpu")}
    footage = look_at(load_backbone("color"), [video], **options)
    at_rest = footage.features.std(dim=0).mean()
    assert len(footage.changes) > 200
    assert footage.changes.std(dim=0).mean() < 0.4 * at_rest


def test_what_is_better_is_kept_and_every_command_takes_it(footage, certain, tmp_path, capsys):
    video, mask = footage
    certain(+1)
    found = adapt([video], weights=WEIGHTS, out=tmp_path / "new", masks=[mask], **QUICK)
    assert [row.name for row in found.rows] == [BEFORE, *FITS]
    assert found.kept == FITS[0]
    assert found.helped
    images = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    before, after = load_backbone(WEIGHTS), load_backbone(found.weights)
    head = after.vit.head
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        expected = before(images, layer=7).movedim(1, -1) @ head.weight.T + head.bias
        torch.testing.assert_close(after(images, layer=7).movedim(1, -1), expected)
        model = timm.create_model(f"local-dir:{found.weights}", pretrained=True).eval()
        images = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(model(images), after.vit(images), atol=1e-4, rtol=1e-4)
    assert after.protocol == before.protocol
    segment = ("segment", video, "--mask", mask, "--weights", found.weights)
    small = ("--protocol", "ino-near", "--set", "short_side=64")
    assert run(*segment, *small, "--out", tmp_path / "s") == 0
    again = adapt([video], weights=found.weights, out=tmp_path / "more", masks=[mask], **QUICK)
    assert again.helped
    train = ("train", "demo", "--init", again.weights, "--model.depth", 12)
    train += ("--data.root", video, "--run.max_steps", 1, "--data.clips_per_video", 6)
    assert run(*train, "--data.frame_step", 1, "--out", tmp_path / "run") == 0


def test_the_network_learns_on_from_the_footage(footage, certain, tmp_path):
    video, mask = footage
    certain(+1)
    told: list[tuple[str, int]] = []
    options: Any = {**QUICK, "steps": 10, "on_progress": lambda *one: told.append(one)}
    found = adapt([video], weights=WEIGHTS, out=tmp_path / "new", masks=[mask], **options)
    names = [BEFORE, *FITS, LEARNED, *(f"{LEARNED}, {fit}" for fit in FITS)]
    assert [row.name for row in found.rows] == names
    assert told == [("learning", 10)] * 10 + [("judging", 6)] * 6
    networks = module.candidates(
        load_backbone(WEIGHTS), [video], steps=10, protocol=QUICK["protocol"], device=CPU
    )
    before, after = (networks[name].vit.state_dict() for name in (BEFORE, LEARNED))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"blocks.0.attn.qkv.weight", "blocks.11.mlp.fc2.weight"} <= moved
    assert max((before[n] - after[n]).abs().max() for n in moved - {"mask_token"}) < 0.05


def test_all_frames_are_learned_from_or_stretches_of_long_videos(tmp_path, monkeypatch):
    frames = generate_clip(3, num_frames=40, height=64, width=96, num_objects=1).frames
    with VideoWriter(tmp_path / "clip.mp4", fps=24.0) as writer:
        for frame in frames:
            writer.write(frame)
    folders = write_footage([tmp_path / "clip.mp4"], tmp_path / "all", clip_length=4)
    found = [[int(path.stem) for path in sorted(folder.iterdir())] for folder in folders]
    assert found == [list(range(0, 40, 2)), list(range(1, 40, 2))]
    monkeypatch.setattr(module, "MOST_FRAMES", 20)
    monkeypatch.setattr(module, "STRETCH", 5)
    folders = write_footage([tmp_path / "clip.mp4"], tmp_path / "some", clip_length=4)
    found = [[int(path.stem) for path in sorted(folder.iterdir())] for folder in folders]
    assert found == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9], [30, 32, 34, 36, 38], [31, 33, 35, 37, 39]]
    assert write_footage([tmp_path / "clip.mp4"], tmp_path / "none", clip_length=9) == []
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)
    with pytest.raises(OutputError, match="is the disk full"):
        write_footage([tmp_path / "clip.mp4"], tmp_path / "full", clip_length=4)


def test_weights_stay_where_nothing_is_better(footage, certain, tmp_path):
    video, mask = footage
    certain(-1)
    found = adapt([video], weights=WEIGHTS, out=tmp_path / "new", masks=[mask], **QUICK)
    assert found.kept == BEFORE
    before, after = load_vit(WEIGHTS), load_vit(found.weights)
    for name, value in before.state_dict().items():
        if name != "mask_token":
            assert torch.equal(value, after.state_dict()[name]), name


@pytest.mark.parametrize(("short_side", "judged"), [(64, 64), (960, 480)])
def test_networks_are_judged_at_the_size_of_the_protocol(
    short_side, judged, footage, tmp_path, monkeypatch
):
    video, mask = footage
    sides = []

    def judge(*_, short_side, **__):
        sides.append(short_side)
        return Judgement(0.5, 0.4, 0.6, {}, 2, np.ones((2, 4, 4), np.uint8), "mask")

    read = module.read_judged

    def read_judged(*given, short_side, **options):
        sides.append(short_side)
        return read(*given, short_side=short_side, **options)

    monkeypatch.setattr(module, "judge_clip", judge)
    monkeypatch.setattr(module, "read_judged", read_judged)
    protocol = get_protocol("ino-near", short_side=short_side)
    adapt([video], weights=WEIGHTS, out=tmp_path / "new", masks=[mask], protocol=protocol)
    assert sides == [judged] * 4


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
    assert "predicted" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / ".adapted" / "adapt.json").read_text())
    weights = json.loads((tmp_path / "out" / "settings.json").read_text())["weights"]
    adapted = str(tmp_path / "out" / ".adapted")
    assert weights == (WEIGHTS if report["kept"] == BEFORE else adapted)
    assert run(*arguments, "--out", tmp_path / "out") == 0
    assert "finished before" in capsys.readouterr().out
