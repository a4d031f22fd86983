"""Statistics by hand, warnings for collapses that are forced, and the picture of the views."""

import json
import logging
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.demo.synthetic import generate_clip, write_videos
from ino.models.student_teacher import Views
from ino.models.vit import build_vit
from ino.train.loop import train
from ino.train.monitors import (
    GAP,
    MIN_SIDE,
    PATIENCE,
    CollapseMonitor,
    contact_sheet,
    divergences,
    effective_rank,
    feature_statistics,
    target_statistics,
)


def test_uniform_targets_have_full_entropy_and_no_information():
    found = target_statistics(torch.full((2, 3, 8), 1 / 8), name="class")
    assert found["entropy_class"].item() == pytest.approx(math.log(8))
    assert found["information_class"].item() == pytest.approx(0, abs=1e-6)


def test_one_class_for_all_has_neither_and_one_class_each_has_all_information():
    constant = torch.zeros(4, 8)
    constant[:, 2] = 1
    found = target_statistics(constant, name="patch")
    assert found == {"entropy_patch": 0, "information_patch": 0}
    found = target_statistics(torch.eye(4, 8), name="patch")
    assert found["entropy_patch"] == 0
    assert found["information_patch"].item() == pytest.approx(math.log(4))


def test_a_term_is_entropy_and_divergence():
    target, student = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.2, 0.2, 0.6])
    cross_entropy = -(target * student.log()).sum().item()
    entropy = target_statistics(target[None], name="class")["entropy_class"].item()
    kl = (target * (target / student).log()).sum().item()
    found = divergences({"g2g": cross_entropy, "l2g": 0.0, "entropy_class": entropy, "masked": 1.0})
    assert found == {"kl_g2g": pytest.approx(kl, abs=1e-6)}


def test_rank_counts_directions():
    assert effective_rank(torch.ones(50, 6)).item() == pytest.approx(1)
    assert effective_rank(torch.eye(6).repeat(4, 1)).item() == pytest.approx(6)
    assert effective_rank(torch.eye(6)[:, :4]).item() == pytest.approx(4)
    # Singular values 3 and 1: probabilities 3/4 and 1/4.
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    for matrix in (
        torch.tensor([[3.0, 0, 0], [0, 1, 0]]),
        torch.tensor([[3.0, 0], [0, 1], [0, 0]]),
    ):
        assert effective_rank(matrix).item() == pytest.approx(expected)


def test_features_of_equal_pictures_have_no_spread():
    vit = build_vit("vit_nano", patch_size=8).eval()
    same = feature_statistics(vit, torch.randn(1, 1, 3, 32, 32).expand(2, 3, -1, -1, -1))
    assert same["std_class"].item() == pytest.approx(0, abs=1e-5)
    other = feature_statistics(vit, torch.randn(2, 3, 3, 32, 32))
    assert 0 < other["std_class"] < 1
    assert 0 < other["std_patch"] <= 1
    assert 1 < other["rank_patch"] <= vit.embed_dim


def monitor() -> CollapseMonitor:
    return CollapseMonitor(
        num_classes=64, num_views=16, num_patch_tokens=800, width=100, first_step=10
    )


HEALTHY = {
    "entropy_class": 2.0,
    "information_class": 0.8,
    "entropy_patch": 1.5,
    "information_patch": 1.5,
    "rank_patch": 40.0,
}


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (
            {"entropy_class": 4.15},
            r"class tokens are nearly uniform \(entropy 4\.15 of at most 4\.16",
        ),
        ({"entropy_patch": 4.15}, "patch tokens are nearly uniform"),
        ({"information_class": 0.01}, "class tokens are nearly the same"),
        ({"information_patch": -1e-7}, "patch tokens are nearly the same"),
        ({"rank_patch": 2.0}, r"effective rank 2\.0 of 100"),
    ],
)
def test_each_collapse_is_told_once_an_episode(numbers, words):
    judge = monitor()
    collapsed = HEALTHY | numbers
    assert not any(judge.check(step, collapsed) for step in range(10))
    found = [judge.check(step, collapsed) for step in range(10, 20)]
    told = [index for index, lines in enumerate(found) if lines]
    assert told == [PATIENCE - 1]
    (line,) = found[PATIENCE - 1]
    assert re.search(words, line) and line.startswith(f"at step {10 + PATIENCE - 1} ")
    assert not judge.check(20, HEALTHY)
    again = [judge.check(step, collapsed) for step in range(21, 30)]
    assert sum(map(bool, again)) == 1


def test_patch_tokens_can_tell_more_than_there_are_views():
    """2 views of 2 tokens, each with a class of its own: log 4 nats and not log 2."""
    targets = torch.eye(4).unflatten(0, (2, 1, 2))  # (time, batch, masked, classes)
    most = math.log(4)
    assert target_statistics(targets, name="patch")["information_patch"].item() == (
        pytest.approx(most)
    )
    judge = CollapseMonitor(num_classes=9, num_views=2, num_patch_tokens=4, width=100, first_step=0)
    for information, warns in ((0.019 * most, True), (0.021 * most, False)):
        found = [judge.check(step, {"information_patch": information}) for step in range(PATIENCE)]
        assert any(found) == warns
    # Of class tokens there is one for each view.
    found = [judge.check(step, {"information_class": 0.019 * most}) for step in range(PATIENCE)]
    assert not any(found)


def test_steps_without_numbers_do_not_end_an_episode():
    judge = monitor()
    lines = [
        line
        for step in range(10, 40)
        for line in judge.check(step, {"rank_patch": 1.0} if step % 5 == 0 else {"loss": 1.0})
    ]
    assert len(lines) == 1


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    clips = {f"{s}": generate_clip(s, num_frames=8, height=64, width=88) for s in range(8)}
    write_videos(clips, folder)
    return folder


@pytest.fixture
def learning(config, scenes):
    """A run that learns from scenes for 40 steps, with a look every second step."""
    model = {"out_dim": 64, "hidden_dim": 48, "bottleneck_dim": 24, "drop_path": 0.0}
    views = {"global_size": 48, "local_size": 24, "color_on_global": False}
    optim = {"epochs": 20, "lr": 0.02, "warmup_epochs": 4.0, "teacher_momentum": 0.99}
    run = {"log_every": 2, "save_every": 100, "pictures_every": 0}
    data = {"root": [str(scenes)], "batch_size": 4}
    other = {"masking.probability": 1.0, "loss.teacher_temperature": 0.03}
    return config.with_values(
        {"model": model, "views": views, "optim": optim, "run": run, "data": data} | other
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({}, "", id="healthy"),
        pytest.param(
            {"loss.center_momentum": 1.0, "optim.teacher_momentum": 0.5, "optim.lr": 0.05},
            "class tokens are nearly the same",
            id="fixed center",
        ),
        pytest.param({"loss.teacher_temperature": 1.0}, "nearly uniform", id="hot"),
        pytest.param({"optim.lr": 5.0}, "nearly", id="too fast"),
    ],
)
@pytest.mark.slow
def test_forced_collapses_warn_and_a_healthy_run_does_not(
    learning, tmp_path, caplog, monkeypatch, changes, words
):
    monkeypatch.setattr(logging.getLogger("ino"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="ino"):
        train(learning.with_values(changes), out=tmp_path / "run")
    told = [record.getMessage() for record in caplog.records]
    assert any(words in line for line in told) if words else not told


def test_a_run_logs_what_is_looked_at_on_due_steps_only(config, tmp_path):
    config.run.log_every, config.masking.probability = 3, 1.0
    train(config, out=tmp_path / "run")
    lines = [json.loads(x) for x in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    costly = {
        *("entropy_class", "information_class", "entropy_patch", "information_patch"),
        *("std_class", "std_patch", "rank_patch", "kl_g2g", "kl_l2g", "kl_masked"),
        *("clips_per_second", "waiting", "seconds_left"),
    }
    for line in lines:
        assert costly & set(line) == (costly if line["step"] % 3 == 0 else set())
        assert {"loss", "lr", "weight_decay", "teacher_momentum", "grad_norm"} <= set(line)
    for line in lines[::3]:
        assert line["g2g"] == pytest.approx(line["entropy_class"] + line["kl_g2g"])
        assert line["kl_g2g"] > -1e-5 and line["kl_masked"] > -1e-5
        assert 0 <= line["waiting"] <= 1
    assert lines[6]["seconds_left"] < lines[0]["seconds_left"]


def test_looking_changes_nothing_of_what_is_learnt(config, tmp_path):
    paths = []
    for every in (1, 100):
        config.run.log_every, config.run.pictures_every, config.run.max_steps = every, every, 3
        paths.append(train(config, out=tmp_path / str(every)))
    first, second = (torch.load(path, weights_only=True)["student"] for path in paths)
    assert all(torch.equal(first[name], second[name]) for name in first)


MEAN, STD = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))


def normalised(levels):
    return (levels / 255 - MEAN) / STD


def test_pixels_come_back_and_masked_patches_are_grey():
    levels = torch.randint(0, 256, (2, 1, 3, MIN_SIDE, MIN_SIDE)).float()
    masked = torch.tensor([[1, 20]])  # first row, second column; second row, first column
    sheet = contact_sheet(Views(normalised(levels), None, masked), patch_size=8)
    for frame in range(2):
        left = GAP + frame * (MIN_SIDE + GAP)
        shown = sheet[GAP : GAP + MIN_SIDE, left : left + MIN_SIDE]
        expected = levels[frame, 0].permute(1, 2, 0).numpy().astype(np.uint8)
        expected[:8, 8:16] = expected[8:16, :8] = 128
        np.testing.assert_array_equal(shown, expected)


def test_local_crops_stand_below_their_frame():
    frames = normalised(torch.zeros(2, 1, 3, MIN_SIDE, MIN_SIDE))
    local = normalised(torch.full((2, 3, 1, 3, 64, 64), 200.0))
    local[1] = normalised(torch.full((3, 1, 3, 64, 64), 100.0))
    sheet = contact_sheet(Views(frames, local), patch_size=8)
    row = sheet[GAP + MIN_SIDE + GAP]
    assert (row[GAP : GAP + 64] == 200).all()
    assert (row[MIN_SIDE + 2 * GAP :][:64] == 100).all()


@pytest.mark.parametrize("in_generative", [True, False])
def test_a_run_leaves_pictures_as_often_as_asked(config, tmp_path, in_generative):
    config.run.pictures_every, config.run.max_steps = 3, 4
    config.masking.probability = float(in_generative)
    train(config, out=tmp_path / "run")
    pictures = sorted((tmp_path / "run/pictures").iterdir())
    assert [path.name for path in pictures] == [f"step_{step:08d}.png" for step in (0, 3)]
    assert np.asarray(Image.open(pictures[0])).shape[1] > 4 * MIN_SIDE
    config.run.pictures_every, config.run.max_steps = 0, 1
    train(config, out=tmp_path / "none")
    assert not (tmp_path / "none/pictures").exists()
