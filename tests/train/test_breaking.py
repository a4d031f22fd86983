"""What clusters, disks and people do to a run: told in a sentence, and the run is not lost."""

import errno
import os
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import torch

from ino.errors import CheckpointError, ConfigError, OutputError, StoppedError
from ino.models.weights import list_checkpoints, read_checkpoint
from ino.report.curves import plot_runs, read_history
from ino.system import atomic_path, folder_lock
from ino.train import run as setup
from ino.train.config import recipe_values, resolve
from ino.train.distributed import count_processes
from ino.train.loop import train
from ino.train.monitors import CollapseMonitor
from ino.train.run import _write
from processes import held_elsewhere
from tiny_run import read_weights, tiny_config

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def finished(videos, tmp_path_factory):
    config = tiny_config(videos)
    config.run.max_steps = 4
    out = tmp_path_factory.mktemp("finished") / "run"
    train(config, out=out)
    return out


@pytest.fixture
def done(config, finished, tmp_path):
    """A run of four steps with checkpoints after the third and the fourth."""
    config.run.max_steps = 4
    return shutil.copytree(finished, tmp_path / "run")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    """One byte in the middle, inside a tensor."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def encrypt(path):
    """The flag of the first entry in the zip's directory says that it is encrypted."""
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, encrypt, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_checkpoint_costs_only_its_steps(config, done, damage, caplog):
    newest = list_checkpoints(done)[-1]
    before = read_checkpoint(newest)["student"]
    damage(newest)
    train(config, out=done, resume=True)
    assert "the run continues from step_00000003.pt" in caplog.text
    after = read_checkpoint(newest)["student"]
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert newest.with_name("step_00000004.pt.damaged").exists()


def test_a_checkpoint_without_a_part_is_named(config, done):
    newest = list_checkpoints(done)[-1]
    content = read_checkpoint(newest)
    del content["optimizer"], content["step"]
    torch.save(content, newest)
    with pytest.raises(CheckpointError, match="it has no optimizer and no step"):
        train(config, out=done, resume=True)


def test_a_run_does_not_start_anew_when_all_checkpoints_are_damaged(config, done):
    names = [path.name for path in list_checkpoints(done)]
    for path in list_checkpoints(done):
        cut(path)
    with pytest.raises(CheckpointError, match="no older checkpoint is whole"):
        train(config, out=done, resume=True)
    assert [path.name for path in list_checkpoints(done)] == names


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff", b"model: [", b"- 1", b"a: 1", DEEP.encode()]
)
def test_a_damaged_config_is_told_by_the_checkpoint(config, done, content, caplog):
    path = done / "config.yaml"
    whole = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"has optim\.lr 0\.05, now it is 0\.1"):
        config.optim.lr = 0.1
        train(config, out=done, resume=True)
    config.optim.lr = 0.05
    train(config, out=done, resume=True)
    assert "the configuration is read from step_00000004.pt" in caplog.text
    assert path.read_bytes() == whole


def test_a_damaged_config_without_checkpoints_is_one_sentence(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: [")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        train(config, out=tmp_path / "run", resume=True)


def test_a_kill_at_any_place_of_the_preparation_can_be_resumed(config, tmp_path, monkeypatch):
    """The folder of checkpoints was made before config.yaml, and then neither way was open."""
    config.run.max_steps = 1
    monkeypatch.setattr(setup, "to_yaml", lambda *_, **__: os._exit(9))
    child = os.fork()
    if child == 0:
        train(config, out=tmp_path / "run")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    train(config, out=tmp_path / "run")


def test_a_log_that_is_no_text_is_cut_where_it_is_damaged(config, done):
    list_checkpoints(done)[-1].unlink()
    (done / "log.jsonl").write_bytes(b"\xff\xfe\n")
    train(config, out=done, resume=True)
    assert len((done / "log.jsonl").read_text().splitlines()) == 1


def test_a_folder_of_checkpoints_that_went_is_made_again(tmp_path):
    path = tmp_path / "checkpoints" / "step_00000001.pt"
    _write({"step": 1}, path)
    assert zipfile.ZipFile(path).testzip() is None
    with pytest.raises(OutputError, match="cannot write"):
        _write({"step": 1}, tmp_path / "gone" / "checkpoints" / "step_00000001.pt")


def test_two_runs_do_not_write_into_one_folder(config, tmp_path):
    out = tmp_path / "run"
    with held_elsewhere(out):
        for resume in (False, True):
            with pytest.raises(OutputError, match="another ino train is writing"):
                train(config, out=out, resume=resume)
    with folder_lock(out):
        pass


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_before_the_first_step_says_that_it_is_to_be_started_again(
    config, tmp_path, monkeypatch, name
):
    before = signal.getsignal(signal.Signals[name])

    def signalled(*_, **__):
        signal.raise_signal(signal.Signals[name])

    monkeypatch.setattr(setup, "build_data", signalled)
    with pytest.raises(StoppedError, match=f"by {name}") as stopped:
        train(config, out=tmp_path / "run")
    assert stopped.value.status == 75
    assert signal.getsignal(signal.Signals[name]) == before


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "patch_size", 0),
        ("run", "seed", 2**80),
        ("optim", "weight_decay_end", float("inf")),
        ("loss", "g2g", float("inf")),
        ("data", "root", [""]),
    ],
)
def test_values_that_nothing_can_use(config, section, field, value):
    setattr(getattr(config, section), field, value)
    with pytest.raises(ConfigError, match=rf"{section}\.{field}"):
        resolve(config)


def test_processes_that_nobody_asked_for_are_not_started(config, monkeypatch):
    config.run.devices = 1000  # each was started, and the machine stood still
    with pytest.raises(ConfigError, match="cores"):
        count_processes(config.run)
    config.run.devices, config.run.num_nodes = 1, 2  # waited for the other machine for ever
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="no launcher started"):
        count_processes(config.run)


def test_a_recipe_without_end(tmp_path):
    (tmp_path / "recipe.yaml").write_text(DEEP)
    with pytest.raises(ConfigError, match="cannot be used"):
        recipe_values(str(tmp_path / "recipe.yaml"))


def test_what_is_no_number_is_no_collapse():
    monitor = CollapseMonitor(
        num_classes=8, num_views=4, num_patch_tokens=16, width=16, first_step=0
    )
    numbers = dict.fromkeys(("entropy_class", "information_class", "rank_patch"), float("nan"))
    assert not [words for step in range(9) for words in monitor.check(step, numbers)]


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights | {"pos_embed": torch.zeros(3)},
        lambda weights: weights | {"pos_embed": weights["pos_embed"] * float("nan")},
        lambda weights: weights | {"cls_token": weights["cls_token"].to(torch.complex64)},
        lambda weights: weights | {"mask_token": weights["mask_token"].to_sparse()},
        lambda weights: weights | {"cls_token": weights["cls_token"].to("meta")},
    ],
)
def test_weights_that_nothing_can_start_from(config, done, tmp_path, change):
    content = read_checkpoint(list_checkpoints(done)[-1])["student"]
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in content.items()
        if name.startswith("backbone.")
    }
    torch.save(change(backbone), tmp_path / "weights.pt")
    config.init = str(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError):
        train(config, out=tmp_path / "other")
    torch.save(backbone, tmp_path / "weights.pt")
    read_weights(tmp_path / "weights.pt")


def test_curves_of_damaged_logs(tmp_path):
    huge = "9" * 400
    lines = ['{"step": 1, "loss": ' + value + "}" for value in (huge, "1e308", "0")]
    lines += ['{"step": 1e300, "loss": 1}', '{"step": ' + huge + "}", DEEP]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert list(read_history(tmp_path, label="x").series) == ["step", "loss"]
    with pytest.raises(ConfigError, match="no number to plot"):
        plot_runs([tmp_path], out=tmp_path / "curves.png")
    run = tmp_path / r"a\frac$b$"
    run.mkdir()
    (run / "log.jsonl").write_text('{"step": 1, "loss": 2}\n')
    plot_runs([run], out=tmp_path / "curves.png")


def test_a_disk_that_takes_nothing_is_said_of_the_result(tmp_path, monkeypatch):
    """Not of the hidden file beside it, as when removing that failed, too."""

    def read_only(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "write_text", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with (
        pytest.raises(OutputError, match=r"cannot write \S*/x\.txt: Read-only file system"),
        atomic_path(tmp_path / "x.txt") as temporary,
    ):
        temporary.write_text("")
