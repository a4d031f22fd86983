"""Several processes train to what one trains to, and may continue each other's runs."""

import copy
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from lightning.fabric import Fabric

from ino.errors import ConfigError, OutputError
from ino.models.weights import list_checkpoints, read_checkpoint
from ino.train.config import RunConfig, to_dict
from ino.train.distributed import broadcast_from_first, build_fabric, count_processes, launch_name
from ino.train.loop import train
from processes import DEADLINE, start_processes, torchrun_environments, wait
from tiny_run import assert_close_states, tiny_config

TOLERANCE = 1e-5


def four_steps(config):
    """Drops no path: each process would drop its own."""
    config.model.drop_path = 0.0
    config.optim.lr = 0.02
    config.run.max_steps = 4
    config.run.save_every = 2
    return config


@pytest.fixture
def config(config):
    return four_steps(config)


def of_each(config, *, number: int):
    """The same global batch over so many processes."""
    shared = copy.deepcopy(config)
    shared.data.batch_size = config.data.batch_size // number
    return shared


@pytest.fixture(scope="module")
def alone(videos, tmp_path_factory) -> dict:
    """What one process trains to."""
    config = four_steps(tiny_config(videos))
    return read_checkpoint(train(config, out=tmp_path_factory.mktemp("alone") / "run"))


@pytest.mark.parametrize("strategy", ["auto", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(config, alone, tmp_path, strategy):
    config.run.strategy = strategy
    two = start_processes(of_each(config, number=2), tmp_path / "two", number=2)
    assert wait(two) == [0, 0]
    together = read_checkpoint(list_checkpoints(tmp_path / "two")[-1])
    assert together["step"] == alone["step"] == 4
    assert_close_states(alone, together)
    moments = (content["optimizer"]["state"] for content in (alone, together))
    for first, second in zip(*(list(one.values()) for one in moments), strict=True):
        torch.testing.assert_close(first, second, atol=TOLERANCE, rtol=0)


def test_a_run_continues_with_another_number_of_processes(config, alone, tmp_path):
    out = tmp_path / "changed"
    short = copy.deepcopy(config)
    short.run.max_steps = 2
    train(short, out=out)
    two = start_processes(of_each(config, number=2), out, number=2, resume=True)
    assert wait(two) == [0, 0]
    assert_close_states(alone, read_checkpoint(list_checkpoints(out)[-1]))


def test_another_global_batch_is_refused(config, tmp_path):
    config.run.max_steps = 1
    train(config, out=tmp_path / "run")
    config.data.batch_size = 1
    with pytest.raises(ConfigError, match=r"has 2 clips, now it would have 1 .*batch_size 2 to"):
        train(config, out=tmp_path / "run", resume=True)


def test_processes_are_those_of_torchrun(monkeypatch):
    for name, value in torchrun_environments(4)[2].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert count_processes(RunConfig()) == (4, 2)
    fabric = build_fabric(RunConfig(accelerator="cpu", strategy="ddp"))
    assert (fabric.world_size, fabric.local_rank) == (8, 2)
    with pytest.raises(ConfigError, match=r"run\.devices is 3, but the launcher .* started 4"):
        count_processes(RunConfig(devices=3))


def test_processes_are_those_of_slurm(monkeypatch):
    slurm = {"NTASKS": "8", "NTASKS_PER_NODE": "4", "NNODES": "2", "PROCID": "6", "LOCALID": "2"}
    slurm |= {"NODEID": "1", "JOB_NAME": "ino", "JOB_ID": "123456", "NODELIST": "gpu[07-08]"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert count_processes(RunConfig()) == (4, 2)
    fabric = build_fabric(RunConfig(accelerator="cpu", strategy="ddp"))
    environment = fabric.strategy.cluster_environment
    assert (environment.world_size(), environment.global_rank()) == (8, 6)
    assert (environment.local_rank(), environment.main_address) == (2, "gpu07")
    assert launch_name() == "slurm 123456"


def test_without_a_launcher_there_is_one_process():
    assert count_processes(RunConfig()) == (1, 1)
    assert count_processes(RunConfig(devices=2)) == (2, 1)


@pytest.mark.parametrize("fault", [OutputError("full"), OSError(5, "broken disk", "runs")])
def test_no_process_waits_for_a_first_one_that_failed(fault):
    first, other = (Mock(spec=Fabric, is_global_zero=is_first) for is_first in (True, False))
    first.broadcast = lambda found: found
    other.broadcast = lambda found: fault
    for fabric in (first, other):
        with pytest.raises(type(fault), match=re.escape(str(fault))):
            broadcast_from_first(fabric, Mock(side_effect=fault))


def test_only_a_restart_of_its_own_launch_resumes_unasked(config, tmp_path, monkeypatch):
    out = tmp_path / "run"
    config.run.max_steps = 1
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    train(config, out=out)
    config.run.max_steps = 2
    with pytest.raises(OutputError, match="--resume"):
        train(config, out=out)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert read_checkpoint(train(config, out=out))["step"] == 2
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(OutputError, match="--resume"):
        train(config, out=out)


@pytest.mark.slow
def test_a_worker_that_dies_under_torchrun_restarts_and_ends_the_same(config, tmp_path):
    config.run.max_steps, config.run.save_every = 8, 1
    whole = train(config, out=tmp_path / "whole")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(to_dict(of_each(config, number=2))))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "--max-restarts", "2", "-m", "ino", "train"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(recipe), "--out", str(out)]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, env=environment, stderr=errors)
        for num_killed in range(2):
            wait_until(lambda n=num_killed: newest_step(out) >= 2 + 2 * n, process)
            workers = children_of(process.pid)
            assert len(workers) == 2
            os.kill(workers[num_killed], signal.SIGKILL)
            wait_until(lambda old=workers: old[0] not in children_of(process.pid), process)
        assert process.wait(DEADLINE) == 0, (tmp_path / "errors").read_text()
    assert_close_states(read_checkpoint(whole), read_checkpoint(list_checkpoints(out)[-1]))


def newest_step(out) -> int:
    return max((int(path.stem.split("_")[1]) for path in list_checkpoints(out)), default=0)


def wait_until(holds, process) -> None:
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
