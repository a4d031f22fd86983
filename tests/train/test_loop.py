"""Whole runs: repeatable, resumable after a kill, past numbers that are not finite."""

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from ino.errors import ConfigError, OutputError, TrainingError
from ino.models.weights import list_checkpoints, read_checkpoint
from ino.train import loop
from ino.train.config import LossConfig, TrainConfig, to_dict
from ino.train.loop import diagnosis, train
from ino.train.run import build_model
from processes import DEADLINE, start_training
from tiny_run import assert_close_states, assert_equal_states, lines_without_times


def last_state(run):
    return read_checkpoint(list_checkpoints(run)[-1])


def test_two_runs_are_equal_to_the_bit_and_their_logs_too(config, whole, tmp_path):
    again = read_checkpoint(train(config, out=tmp_path / "run"))
    assert_equal_states(last_state(whole), again)
    logs = [lines_without_times(run / "log.jsonl") for run in (whole, tmp_path / "run")]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == list(range(8))
    documented = re.findall(r"`(\w+)`", _log_table())
    assert {name for line in logs[0] for name in line} <= {*documented}


def _log_table() -> str:
    """The names of what a line of a log has, as two pages of the documentation list them."""
    rows = "".join(
        (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
        for page in ("data.md", "training.md")
    ).splitlines()
    return "\n".join(row.split("|")[1] for row in rows if row.startswith("| `"))


def test_another_seed_gives_other_weights(config, whole, tmp_path):
    config.run.seed, config.run.max_steps = 1, 1
    other = read_checkpoint(train(config, out=tmp_path / "run"))
    name = "head.last_layer.weight"
    assert not torch.equal(last_state(whole)["student"][name], other["student"][name])


def test_a_run_that_was_killed_ends_as_one_that_was_not(config, whole, tmp_path):
    config.run.save_every = 1
    out = tmp_path / "killed"
    process = start_training(config, out)
    deadline = time.monotonic() + DEADLINE
    while not list((out / "checkpoints").glob("step_*.pt")) and process.is_alive():
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    process.kill()
    process.join()
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')  # torn by the kill
    resumed = train(config, out=out, resume=True)
    assert_equal_states(last_state(whole), read_checkpoint(resumed))
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(8))


def test_a_run_resumes_in_the_middle_of_an_epoch(config, whole, tmp_path):
    short = config.with_values({"run.max_steps": 3})
    train(short, out=tmp_path / "parts")
    resumed = train(config, out=tmp_path / "parts", resume=True)
    assert_equal_states(last_state(whole), read_checkpoint(resumed))


def test_worker_processes_and_activation_checkpointing_change_nothing(config, whole, tmp_path):
    config.data.num_workers, config.run.activation_checkpointing = 2, True
    assert_equal_states(last_state(whole), read_checkpoint(train(config, out=tmp_path / "run")))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_parts_of_a_step_add_up(config, tmp_path, variant):
    """Centres and pairs are those of the whole step, however many parts it is gone through in."""
    config.variant = variant
    config.model.drop_path = 0.0  # drawn for each part
    config.model.depth = 12  # with 3, one weight in a million differs by 1.4e-5
    config.data.frame_step, config.data.fps = (0, 8.0) if variant == "released" else (1, 0.0)
    config.run.max_steps = 4
    whole = train(config, out=tmp_path / "whole")
    config.run.accumulate = config.data.batch_size
    parts = train(config, out=tmp_path / "parts")
    assert config.run.accumulate > 1
    assert_close_states(read_checkpoint(whole), read_checkpoint(parts))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs a C++ compiler")
def test_compiled_blocks_train_to_the_same(config, tmp_path):
    config.model.drop_path = 0.0
    config.run.max_steps = 3
    whole = train(config, out=tmp_path / "whole")
    config.run.compile = True
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(to_dict(config)))
    # In a process of its own, as shapes that are checked in tests cannot be compiled.
    command = [sys.executable, "-m", "ino", "train", str(recipe), "--out", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, env=environment, check=True, timeout=300)
    compiled = read_checkpoint(tmp_path / "run/checkpoints/step_00000003.pt")
    assert_close_states(read_checkpoint(whole), compiled)


def test_compiling_without_a_compiler_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config.run.compile = True
    with pytest.raises(ConfigError, match=r"install g\+\+"):
        train(config, out=tmp_path / "run")


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_both_variants_learn_something(config, tmp_path, variant):
    config.variant, config.run.max_steps = variant, 3
    if variant == "released":
        config.data.frame_step, config.data.fps = 0, 8.0
    content = read_checkpoint(train(config, out=tmp_path / "run"))
    assert content["config"]["loss"]["out_mean"] == ("each" if variant == "paper" else "joint")
    first_weight = content["student"]["backbone.blocks.0.attn.qkv.weight"]
    assert not torch.equal(first_weight, content["teacher"]["backbone.blocks.0.attn.qkv.weight"])
    assert content["objective"]["class_center"].abs().max() > 0


def test_bf16_keeps_weights_and_centres_in_fp32(config, tmp_path):
    config.run.precision, config.run.max_steps = "bf16-mixed", 2
    content = read_checkpoint(train(config, out=tmp_path / "run"))
    assert {value.dtype for value in content["student"].values()} == {torch.float32}
    assert content["objective"]["patch_center"].dtype == torch.float32


@pytest.mark.parametrize("term", ["g2g", "l2g", "masked", "affinity"])
def test_each_term_works_alone(config, tmp_path, term):
    off = {"g2g": 0.0, "l2g": 0.0, "masked": 0.0, "affinity": 0.0}
    config.loss = LossConfig(**(off | {term: 1.0}))
    config.masking.probability, config.run.max_steps = 1.0, 2
    train(config, out=tmp_path / "run")
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        numbers = json.loads(line)
        assert numbers["loss"] == pytest.approx(numbers[term], rel=1e-6)
        assert numbers[term] > 0
        assert all(numbers[name] == 0 for name in off if name != term)


def test_the_last_layer_waits_for_an_epoch(config, tmp_path):
    config.run.max_steps = 2
    config.optim.warmup_epochs = 0.0
    start = read_checkpoint(train(config, out=tmp_path / "frozen"))["student"]
    config.optim.freeze_last_layer_epochs = 0
    free = read_checkpoint(train(config, out=tmp_path / "free"))["student"]
    torch.manual_seed(config.run.seed)
    initial = build_model(config.model).student.state_dict()
    name = "head.last_layer.weight"
    assert torch.equal(start[name], initial[name])
    assert not torch.equal(free[name], initial[name])


def test_a_folder_with_a_run_is_not_overwritten(config, tmp_path):
    config.run.max_steps = 1
    path = train(config, out=tmp_path / "run")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="--resume"):
        train(config, out=tmp_path / "run")
    assert path.read_bytes() == before


def test_a_run_resumes_only_with_its_own_configuration(config, tmp_path):
    config.run.max_steps = 1
    train(config, out=tmp_path / "run")
    config.optim.lr = 0.01
    with pytest.raises(ConfigError, match=r"optim\.lr 0\.05, now it is 0\.01"):
        train(config, out=tmp_path / "run", resume=True)


def test_too_few_clips_for_a_step_are_refused(config, tmp_path):
    config.data.batch_size = 6
    with pytest.raises(ConfigError, match="5 clips, fewer than the 6"):
        train(config, out=tmp_path / "run")


def test_videos_are_required(tmp_path):
    with pytest.raises(ConfigError, match=r"--data\.root"):
        train(TrainConfig(), out=tmp_path / "run")


@pytest.fixture
def inject(monkeypatch):
    """Puts a NaN into one pixel of the local crops of some steps."""
    original = loop.sample_views

    def at(*steps):
        def broken(*args, step, **kwargs):
            views = original(*args, step=step, **kwargs)
            if step in steps:
                views.local_crops[0, 0, 0, 0, 0, 0] = float("nan")
            return views

        monkeypatch.setattr(loop, "sample_views", broken)

    return at


def assert_equal(first, second) -> None:
    assert_equal_states(first, second)
    states = (torch.utils._pytree.tree_leaves(one["optimizer"]) for one in (first, second))
    for one, other in zip(*states, strict=True):
        assert one == other if not isinstance(one, torch.Tensor) else torch.equal(one, other)


def test_a_bad_step_changes_nothing_but_the_rates(config, tmp_path, inject):
    config.run.max_steps = 3
    before = read_checkpoint(train(config, out=tmp_path / "before"))
    inject(3)
    config.run.max_steps = 4
    after = read_checkpoint(train(config, out=tmp_path / "after"))
    for content in (before, after):
        content["optimizer"]["param_groups"] = []  # the rates that were set for the step
    assert_equal(before, after)
    assert before["objective"]["class_center"].abs().max() > 0
    line = json.loads((tmp_path / "after" / "log.jsonl").read_text().splitlines()[3])
    assert line["skipped"] == 1
    assert line["l2g"] is None


def test_a_run_goes_on_after_bad_steps(config, tmp_path, inject):
    inject(2, 4, 5)
    content = read_checkpoint(train(config, out=tmp_path / "run"))
    assert all(value.isfinite().all() for value in content["student"].values())
    lines = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 0, 1, 2, 0, 0]


def test_five_bad_steps_go_back_to_the_last_checkpoint_with_later_clips(
    config, tmp_path, inject, caplog
):
    config.run.save_every = 2
    inject(3, 4, 5, 6, 7)
    config.optim.epochs = 5
    config.run.max_steps = 10
    end = read_checkpoint(train(config, out=tmp_path / "run"))
    (line,) = (text for text in caplog.messages if "going back to" in text)
    assert "l2g is nan at step 7, and 5 steps in a row" in line
    assert "going back to step_00000002.pt" in line
    assert end["step"] == 10
    # A run that is killed on the way, also between the bad steps, ends the same.
    for stop in (5, 8):
        short = copy.deepcopy(config)
        short.run.max_steps = stop
        train(short, out=tmp_path / str(stop))
        (tmp_path / str(stop) / "checkpoints" / f"step_{stop:08d}.pt").unlink()
        resumed = train(config, out=tmp_path / str(stop), resume=True)
        assert_equal(end, read_checkpoint(resumed))


def test_numbers_that_stay_bad_stop_the_run_with_a_diagnosis(config, tmp_path, inject):
    config.optim.epochs = 8
    inject(*range(4, 16))
    with pytest.raises(TrainingError) as stopped:
        train(config, out=tmp_path / "run")
    message = str(stopped.value)
    assert "the term l2g is nan at step 13, and 5 steps in a row" in message
    assert "again after going back to step_00000003.pt, which is whole" in message
    assert "lr " in message
    assert "gradient norm nan" in message
    assert "optim.lr" in message
    (left,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert read_checkpoint(left)["step"] == 3


def test_without_a_checkpoint_bad_steps_stop_the_run(config, tmp_path, inject):
    inject(*range(8))
    with pytest.raises(TrainingError, match=r"at step 4, .*no checkpoint to go back to"):
        train(config, out=tmp_path / "run")


def test_a_learning_rate_that_breaks_the_weights_ends_in_words(config, tmp_path):
    config.optim.lr, config.optim.epochs, config.optim.clip_grad = 1e38, 12, 0.0
    config.optim.warmup_epochs = 0.0
    with pytest.raises(TrainingError, match=r"at step \d+, .*\(lr .*lower optim\.lr"):
        train(config, out=tmp_path / "run")


def test_gradients_are_named_where_the_loss_is_finite():
    numbers = dict.fromkeys(("loss", "g2g", "l2g", "masked", "affinity"), 1.0)
    numbers |= {"grad_norm": math.inf, "skipped": 5.0, "lr": 0.1}
    assert diagnosis(numbers, step=7).startswith("the norm of the gradients is inf at step 7")
