"""Runs that start from weights instead of random numbers, and the best checkpoint."""

import hashlib
from contextlib import ExitStack

import pytest
import torch
import yaml

from ino.errors import CheckpointError, InoError
from ino.models.backbone import warn_of_slow_bf16
from ino.models.load import DEFAULT, load_backbone
from ino.models.vit import build_vit, sincos_positions
from ino.models.weights import list_checkpoints, read_checkpoint
from ino.train.config import resolve
from ino.train.loop import train
from ino.train.run import best_score, build_networks, build_run, save_best


@pytest.fixture
def released(tmp_path):
    """A backbone as DINO releases it: a grid for 224 pixels, no mask token, no head."""
    weights = build_vit("vit_nano", depth=3, position_grid_side=28).state_dict()
    del weights["mask_token"]
    path = tmp_path / "released.pth"
    torch.save(weights, path)
    return path


def test_an_own_run_gives_student_teacher_and_heads(config, tmp_path):
    config.run.max_steps = 3
    earlier = read_checkpoint(train(config, out=tmp_path / "first"))
    config.init = str(tmp_path / "first")
    model, origin = build_networks(config, saved=None)
    for network in ("student", "teacher"):
        weights = getattr(model, network).state_dict()
        assert all(torch.equal(weights[name], value) for name, value in earlier[network].items())
    assert origin.notes == ()
    assert not torch.equal(
        earlier["student"]["head.mlp.0.weight"], earlier["teacher"]["head.mlp.0.weight"]
    )


def test_a_release_starts_a_run_that_resumes(config, released, tmp_path, caplog):
    config.init = str(released)
    config.run.max_steps = 2
    out = tmp_path / "run"
    train(config, out=out)
    assert "no mask token: it starts random" in caplog.text
    assert "the head of" in caplog.text
    assert "there is none: it starts random" in caplog.text
    digest = hashlib.sha256(released.read_bytes()).hexdigest()
    text = (out / "config.yaml").read_text()
    assert text.startswith(f"# started from {released}, sha256 {digest}\n")
    assert yaml.safe_load(text)["init"] == str(released)
    released.unlink()  # a checkpoint holds all that is needed
    config.run.max_steps = 3
    content = read_checkpoint(train(config, out=out, resume=True))
    assert content["student"]["backbone.pos_embed"].shape == (1, 785, 96)
    assert (content["step"], content["init"]["sha256"]) == (3, digest)
    assert (out / "config.yaml").read_text().startswith(f"# started from {released}, sha256")


def test_learning_starts_at_the_weights(config, released, tmp_path):
    config.init, config.run.max_steps, config.optim.lr = str(released), 1, 0.0
    content = read_checkpoint(train(config, out=tmp_path / "run"))
    for name, value in torch.load(released).items():
        for network in ("student", "teacher"):
            assert torch.equal(content[network][f"backbone.{name}"], value)


def test_another_architecture_says_which_options_fit(config, released):
    config.init, config.model.arch = str(released), "vit_tiny"
    with pytest.raises(CheckpointError, match=r"--model\.arch vit_nano --model\.patch_size 8"):
        build_networks(config, saved=None)


def test_unknown_tensors_are_an_error(config, released):
    weights = torch.load(released)
    torch.save(weights | {"blocks.0.gamma": torch.zeros(1)}, released)
    config.init = str(released)
    with pytest.raises(CheckpointError, match=r"unexpected blocks\.0\.gamma"):
        build_networks(config, saved=None)


def test_heads_of_other_sizes_start_random(config, tmp_path):
    config.run.max_steps = 1
    train(config, out=tmp_path / "first")
    config.init, config.model.out_dim = str(tmp_path / "first"), 48
    _, origin = build_networks(config, saved=None)
    (note,) = origin.notes
    assert r"last_layer.weight is (32, 16) instead of (48, 16): it starts random" in note


def test_the_weights_in_the_box_start_a_run(config):
    config.init = DEFAULT
    with pytest.raises(CheckpointError, match=r"--model\.arch vit_tiny .* --model\.depth 4$"):
        build_networks(config, saved=None)
    config.model.arch, config.model.depth = "vit_tiny", 4
    model, origin = build_networks(config, saved=None)
    for name, value in load_backbone(DEFAULT).vit.state_dict().items():
        is_equal = torch.equal(model.teacher.backbone.state_dict()[name], value)
        assert is_equal == (name != "mask_token")
    assert origin.fresh_head
    assert len(origin.notes) == 2  # mask token and head start random


def test_positions_are_those_of_the_start_and_sines_and_cosines_without_one(config, released):
    config.model.positions = "sincos"
    model, _ = build_networks(config, saved=None)
    for network in (model.student, model.teacher):
        positions = network.backbone.pos_embed.detach()[0, 1:]
        expected = sincos_positions(round(len(positions) ** 0.5), dim=96)
        assert torch.equal(positions, expected)
    config.init = str(released)
    model, _ = build_networks(config, saved=None)
    theirs = torch.load(released)["pos_embed"]
    for network in (model.student, model.teacher):
        assert torch.equal(network.backbone.pos_embed.detach(), theirs)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dino-s88", "did you mean dino-s8"),
        ("timm:vit_tiny_patch16_225", "near to it are vit_tiny_patch16_224"),
    ],
)
def test_names_of_weights_that_are_not_there(config, name, words):
    config.init = name
    with pytest.raises(InoError, match=words):
        build_networks(config, saved=None)


def test_weights_that_cannot_be_used_leave_no_folder(config, tmp_path):
    config.init = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint found at .*nowhere"):
        train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_best_is_kept_beside_the_newest(config, tmp_path):
    best = tmp_path / "run/checkpoints/best.pt"
    with ExitStack() as held:
        run = build_run(resolve(config), out=tmp_path / "run", resume=False, held=held)
        assert best_score(best) == float("-inf")
        given = [(1, 0.4), (2, 0.3), (3, 0.4), (4, float("nan")), (5, 0.5)]
        kept = [save_best(run, step=step, score=score) for step, score in given]
        assert kept == [True, False, False, False, True]
        assert best_score(best) == 0.5
        assert read_checkpoint(best)["step"] == 5
        assert list_checkpoints(tmp_path / "run") == []  # no run resumes from it
        best.write_bytes(best.read_bytes()[:100])
        assert save_best(run, step=6, score=0.1)  # a damaged one is replaced
        assert best_score(best) == 0.1


@pytest.mark.parametrize("precision", ["auto", "bf16-mixed"])
def test_bf16_on_a_cpu_without_it_is_warned_of(config, tmp_path, precision, monkeypatch, caplog):
    for module in ("models.backbone", "train.distributed"):
        monkeypatch.setattr(f"ino.{module}.computes_in_bf16", lambda device: False)
    warn_of_slow_bf16.cache_clear()
    config.run.precision = precision
    with ExitStack() as held:
        build_run(resolve(config), out=tmp_path / "run", resume=False, held=held)
    warns = "this CPU has no instructions for bf16" in caplog.text
    assert warns == (precision == "bf16-mixed")
