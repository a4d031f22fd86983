"""A run is pulled from under its feet in every way, and loses nothing."""

import json
import os
import random
import signal
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from ino.data.clips import ClipSampler
from ino.errors import OutputError, StoppedError, TrainingError
from ino.models.weights import list_checkpoints, read_checkpoint
from ino.train import loop
from ino.train import run as run_module
from ino.train.data import Clips, batches
from ino.train.loop import train
from processes import DEADLINE, start_processes, start_training, wait
from tiny_run import assert_equal_states


def assert_same_run(whole: Path, out: Path, *, num_steps: int = 8) -> None:
    """Both runs ended with equal states, each step is logged once, and no scraps are left."""
    first, second = (read_checkpoint(list_checkpoints(folder)[-1]) for folder in (whole, out))
    assert first["step"] == second["step"] == num_steps
    assert_equal_states(first, second)
    lines = (out / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(num_steps))
    assert all(path.name.startswith("step_") for path in (out / "checkpoints").iterdir())


def num_logged(out: Path) -> int:
    log = out / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(config, tmp_path):
    config.optim.epochs, config.run.save_every = 15, 2
    train(config, out=tmp_path / "whole")
    out = tmp_path / "killed"
    moments = random.Random(0)
    for kill in range(20):
        process = start_training(config, out, resume=kill > 0)
        # Half of them as soon as a step is logged, near a checkpoint; half at any time.
        seen, deadline = num_logged(out), time.monotonic() + DEADLINE
        while kill % 2 and num_logged(out) == seen and process.is_alive():
            assert time.monotonic() < deadline
        time.sleep(moments.uniform(0.0, 0.3 if kill % 2 else 2.0))
        process.kill()
        process.join()
        for path in list_checkpoints(out):
            read_checkpoint(path)
    assert wait([start_training(config, out, resume=True)]) == [0]
    assert_same_run(tmp_path / "whole", out, num_steps=30)


def test_a_kill_while_saving_leaves_whole_checkpoints(config, whole, tmp_path):
    out = tmp_path / "killed"
    assert wait([start_training(config, out, fault="die while saving")]) == [-signal.SIGKILL]
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names[-1] == "step_00000003.pt"
    assert names[0].startswith(".step_00000006")
    assert read_checkpoint(out / "checkpoints" / names[-1])["step"] == 3
    train(config, out=out, resume=True)
    assert_same_run(whole, out)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_saves_after_the_step(config, whole, tmp_path, monkeypatch, name, status):
    out = tmp_path / "stopped"
    original = loop.sample_views

    def signalled(*args, step, **kwargs):
        if step == 4:
            os.kill(os.getpid(), signal.Signals[name])
        return original(*args, step=step, **kwargs)

    before = signal.getsignal(signal.Signals[name])
    monkeypatch.setattr(loop, "sample_views", signalled)
    with pytest.raises(StoppedError, match=rf"by {name}; .*step_00000005\.pt is saved") as stopped:
        train(config, out=out)
    assert stopped.value.status == status
    assert signal.getsignal(signal.Signals[name]) == before
    monkeypatch.setattr(loop, "sample_views", original)
    train(config, out=out, resume=True)
    assert_same_run(whole, out)


@pytest.mark.slow
def test_processes_agree_on_the_step_to_stop_at(config, tmp_path):
    config.data.batch_size, config.optim.epochs = 1, 40
    out = tmp_path / "run"
    processes = start_processes(config, out, number=2)
    deadline = time.monotonic() + DEADLINE
    while num_logged(out) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(processes[1].pid, signal.SIGTERM)  # one of them alone
    assert wait(processes) == [75, 75]
    assert read_checkpoint(list_checkpoints(out)[-1])["step"] == num_logged(out) < 80


def test_a_decoding_process_that_is_killed_is_replaced(config, tmp_path, monkeypatch, caplog):
    config.data.num_workers = 1
    config.run.max_steps = 4
    train(config, out=tmp_path / "whole")
    original = loop.sample_views

    def murderous(*args, step, **kwargs):
        if step == 0:
            for child in active_children():
                child.kill()
        return original(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "sample_views", murderous)
    train(config, out=tmp_path / "run")
    assert "a process that decodes died" in caplog.text
    assert_same_run(tmp_path / "whole", tmp_path / "run", num_steps=4)


def test_decoding_processes_that_keep_dying_stop_the_run():
    class Dying(DataLoader):
        def __iter__(self):
            raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")

    sampler = ClipSampler(4, batch_size=2, seed=0)
    loader = Dying([0, 1], num_workers=1)
    with pytest.raises(TrainingError, match=r"died 4 times near step 0.*data\.num_workers"):
        next(batches(Clips(loader, sampler, "", {}), first_step=0, num_steps=2))


def test_an_error_of_a_worker_is_no_death(config, tmp_path, monkeypatch):
    config.data.num_workers = 1

    def broken(self, key):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("ino.data.clips.ClipDataset.__getitem__", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        train(config, out=tmp_path / "run")


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    config, whole, tmp_path, monkeypatch, caplog
):
    original = run_module.torch.save

    def full_once(content, path):
        if content["step"] == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        original(content, path)

    monkeypatch.setattr(run_module.torch, "save", full_once)
    train(config, out=tmp_path / "run")
    assert "No space left on device; the run goes on" in caplog.text
    assert_same_run(whole, tmp_path / "run")


def test_a_disk_that_stays_full_ends_the_run_in_one_line(config, tmp_path, monkeypatch):
    """And says what there is to resume from, which may be nothing."""
    config.run.max_steps = 3
    train(config, out=tmp_path / "run")
    config.run.max_steps = 5

    def full(content, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(run_module.torch, "save", full)
    with pytest.raises(OutputError, match=r"No space left.*; step_00000003\.pt is whole"):
        train(config, out=tmp_path / "run", resume=True)
    with pytest.raises(OutputError, match=r"No space left.*; no checkpoint was written: make room"):
        train(config, out=tmp_path / "other")
    (left,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert read_checkpoint(left)["step"] == 3


@pytest.mark.slow
def test_a_write_that_fails_in_the_middle_is_told_and_leaves_nothing(config, tmp_path):
    assert wait([start_training(config, tmp_path / "run", fault="full disk")]) == [2]
    assert "cannot write" in (tmp_path / "run.error").read_text()
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
