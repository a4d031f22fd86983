"""Whole runs: repeatable, resumable after a kill, stopped by numbers that are not finite."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from ino.errors import ConfigError, OutputError
from ino.models.weights import read_checkpoint
from ino.train.config import LossConfig, TrainConfig, to_dict
from ino.train.loop import train
from ino.train.run import build_model
from tiny_run import assert_close_states, assert_equal_states, lines_without_times


def test_two_runs_are_equal_to_the_bit_and_their_logs_too(config, tmp_path):
    states, logs = [], []
    for name in ("a", "b"):
        states.append(read_checkpoint(train(config, out=tmp_path / name)))
        logs.append(lines_without_times(tmp_path / name / "log.jsonl"))
    assert_equal_states(*states)
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


def test_another_seed_gives_other_weights(config, tmp_path):
    first = read_checkpoint(train(config, out=tmp_path / "a"))
    other = config.with_values({"run.seed": 1})
    second = read_checkpoint(train(other, out=tmp_path / "b"))
    name = "head.last_layer.weight"
    assert not torch.equal(first["student"][name], second["student"][name])


def test_a_run_that_was_killed_ends_as_one_that_was_not(config, tmp_path):
    whole = train(config, out=tmp_path / "whole")
    recipe = tmp_path / "recipe.yaml"
    slow = to_dict(config)
    slow["run"]["save_every"] = 1
    recipe.write_text(yaml.safe_dump(slow))
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "ino", "train", str(recipe), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list((out / "checkpoints").glob("step_*.pt"))) < 1 and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')  # torn by the kill
    resumed_config = config.with_values({"run.save_every": 1})
    resumed = train(resumed_config, out=out, resume=True)
    assert_equal_states(read_checkpoint(whole), read_checkpoint(resumed))
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(8))


def test_a_run_resumes_in_the_middle_of_an_epoch(config, tmp_path):
    whole = train(config, out=tmp_path / "whole")
    short = config.with_values({"run.max_steps": 3})
    train(short, out=tmp_path / "parts")
    resumed = train(config, out=tmp_path / "parts", resume=True)
    assert_equal_states(read_checkpoint(whole), read_checkpoint(resumed))


def test_worker_processes_change_nothing(config, tmp_path):
    alone = train(config, out=tmp_path / "alone")
    config.data.num_workers = 2
    assert_equal_states(
        read_checkpoint(alone), read_checkpoint(train(config, out=tmp_path / "workers"))
    )


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_parts_of_a_step_add_up(config, tmp_path, variant):
    """Centres and pairs are those of the whole step, however many parts it is gone through in."""
    config.variant = variant
    config.model.drop_path = 0.0  # drawn for each part
    config.data.frame_step, config.data.fps = (0, 8.0) if variant == "released" else (1, 0.0)
    whole = train(config, out=tmp_path / "whole")
    config.run.accumulate = config.data.batch_size
    parts = train(config, out=tmp_path / "parts")
    assert config.run.accumulate > 1
    assert_close_states(read_checkpoint(whole), read_checkpoint(parts))


def test_activation_checkpointing_changes_nothing(config, tmp_path):
    whole = train(config, out=tmp_path / "whole")
    config.run.activation_checkpointing = True
    again = train(config, out=tmp_path / "again")
    assert_equal_states(read_checkpoint(whole), read_checkpoint(again))


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
    config.variant = variant
    if variant == "released":
        config.data.frame_step, config.data.fps = 0, 8.0
    content = read_checkpoint(train(config, out=tmp_path / "run"))
    assert content["config"]["loss"]["out_mean"] == ("each" if variant == "paper" else "joint")
    first_weight = content["student"]["backbone.blocks.0.attn.qkv.weight"]
    assert not torch.equal(first_weight, content["teacher"]["backbone.blocks.0.attn.qkv.weight"])
    assert content["objective"]["class_center"].abs().max() > 0


def test_bf16_keeps_weights_and_centres_in_fp32(config, tmp_path):
    config.run.precision = "bf16-mixed"
    content = read_checkpoint(train(config, out=tmp_path / "run"))
    assert {value.dtype for value in content["student"].values()} == {torch.float32}
    assert content["objective"]["patch_center"].dtype == torch.float32


@pytest.mark.parametrize("term", ["g2g", "l2g", "masked", "affinity"])
def test_each_term_works_alone(config, tmp_path, term):
    off = {"g2g": 0.0, "l2g": 0.0, "masked": 0.0, "affinity": 0.0}
    config.loss = LossConfig(**(off | {term: 1.0}))
    config.masking.probability = 1.0
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
