"""The numbers of a run reach the disk, and a disk that takes none does not end the run."""

import json
import math

import pytest

from ino.errors import OutputError
from ino.models.weights import list_checkpoints
from ino.train import monitors
from ino.train.log import LogFile
from ino.train.loop import train


def read(path) -> list[dict]:
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_what_is_no_finite_number_is_null(tmp_path):
    file = LogFile(tmp_path / "log.jsonl", first_step=0)
    file.write({"step": 0, "loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    file.close()
    assert read(tmp_path / "log.jsonl") == [{"step": 0, "loss": None, "grad_norm": None, "lr": 0.1}]


def test_lines_that_a_full_disk_refuses_come_later_and_whole(tmp_path, caplog):
    class Disk:
        """Takes 20 bytes, then nothing, then everything."""

        def __init__(self, file):
            self.file, self.room = file, 20

        def write(self, content):
            if not self.room:
                raise OSError(28, "No space left on device")
            written = self.file.write(content[: self.room])
            self.room -= written
            return written

    file = LogFile(tmp_path / "log.jsonl", first_step=0)
    disk = file._file = Disk(file._file)
    for step in range(3):
        file.write({"step": step, "loss": 1.0})
    assert (tmp_path / "log.jsonl").stat().st_size == 20
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    disk.room = 10**6
    file.write({"step": 3, "loss": 1.0})
    assert [line["step"] for line in read(tmp_path / "log.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize("broken", ["tensorboard", "pictures"])
def test_a_full_disk_costs_what_is_looked_at_and_not_the_run(
    config, tmp_path, monkeypatch, caplog, broken
):
    def full(*args, **kwargs):
        if broken == "pictures":
            raise OutputError("cannot write a picture: No space left on device")
        raise OSError(28, "No space left on device")

    if broken == "pictures":
        monkeypatch.setattr(monitors, "atomic_path", full)
    else:
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    config.run.max_steps, config.run.pictures_every = 3, 1
    train(config, out=tmp_path / "run")
    assert "No space left on device" in caplog.text
    assert len(read(tmp_path / "run/log.jsonl")) == 3
    assert list_checkpoints(tmp_path / "run")


def test_a_score_that_cannot_be_written_costs_the_score(config, tmp_path, caplog):
    def evaluate(weights, step):
        if step == 2:
            raise OutputError("cannot write a mask: No space left on device")
        return {"eval_jf": 40.0}

    config.run.max_steps, config.run.eval_every = 3, 1
    train(config, out=tmp_path / "run", evaluate=evaluate)
    assert ["eval_jf" in line for line in read(tmp_path / "run/log.jsonl")] == [True, False, True]
    assert "the run goes on without scores" in caplog.text
