"""Files of weights: what is read of old releases, and that code in them never runs."""

import argparse
import collections
import pickle
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch

from ino.errors import CheckpointError
from ino.models import files
from ino.models.files import load_plain

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])


def written(content, folder: Path, *, zipped: bool) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
def test_what_releases_hold_beside_tensors(zipped, tmp_path):
    content = {
        "weights": collections.OrderedDict(a=torch.arange(3.0), b=torch.tensor(5)),
        "args": argparse.Namespace(lr=0.1, output=PosixPath("some") / "folder"),
        "lr": np.float64(0.25),
        "counts": [np.int64(3), np.float32(0.5), np.bool_(True)],
        "milestones": collections.Counter([5, 10]),
        "epoch": 3,
    }
    found = load_plain(written(content, tmp_path, zipped=zipped))
    assert found["weights"]["a"].tolist() == [0, 1, 2]
    assert found["args"].lr == 0.1
    assert str(found["args"].output) == "some/folder"
    assert (found["lr"], found["counts"]) == (content["lr"], content["counts"])
    assert found["milestones"] == content["milestones"]


def test_numpy_s_older_names_are_known(tmp_path):
    """numpy.core became numpy._core; files from before keep the old name."""
    path = written({"score": np.float64(0.25)}, tmp_path, zipped=False)
    whole = path.read_bytes()
    assert b"numpy._core.multiarray" in whole
    path.write_bytes(whole.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_plain(path) == {"score": 0.25}


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class Reading:
    """Would read a file by a class that is not on the list."""

    def __reduce__(self):
        return (np.fromfile, ("/dev/null",))


@FORMATS
def test_code_is_never_run_and_is_told_from_damage(zipped, tmp_path):
    mark = tmp_path / "executed"
    for trap in (Trap(mark), Reading()):
        path = written({"model": {"a": torch.zeros(2)}, "extra": trap}, tmp_path, zipped=zipped)
        with pytest.raises(CheckpointError, match="could run code"):
            load_plain(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_pickles_that_torch_did_not_write(protocol, tmp_path, recwarn):
    mark, path = tmp_path / "executed", tmp_path / "evil.pkl"
    whole = pickle.dumps({"model": Trap(mark)}, protocol=protocol)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="could run code"):
        load_plain(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"could run code|not a whole"):
        load_plain(path)
    assert not mark.exists()
    assert not recwarn.list


def test_paths_of_files_touch_nothing(tmp_path):
    """They become pure paths, which have no way to the disk."""
    found = load_plain(written({"at": tmp_path}, tmp_path, zipped=True))
    assert not hasattr(found["at"], "touch")


@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", b"\x00" * 100, b"junk", pickle.dumps({"a": 1})[:-3]]
)
def test_other_files_are_no_checkpoints(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{len(content)} bytes\) is not a whole checkpoint"):
        load_plain(path)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")]
)
@pytest.mark.parametrize("place", ["opening", "reading"])
def test_what_the_system_refuses_is_not_called_damage(tmp_path, monkeypatch, error, place):
    path = written({"a": torch.zeros(1)}, tmp_path, zipped=True)

    def refuse(*_, **__):
        raise error

    target, name = (Path, "open") if place == "opening" else (files.zipfile.ZipFile, "read")
    monkeypatch.setattr(target, name, refuse)
    with pytest.raises(OSError, match=error.strerror):
        load_plain(path)


def test_random_damage_is_always_one_error(tmp_path):
    path = written({"state_dict": {"a": torch.arange(50.0)}}, tmp_path, zipped=False)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    rng = np.random.default_rng(0)
    num_refused = 0
    for _ in range(200):
        damaged = whole.copy()
        places = rng.integers(0, len(whole), 5)
        damaged[places] = rng.integers(0, 256, 5)
        path.write_bytes(damaged.tobytes())
        try:
            load_plain(path)
        except CheckpointError:
            num_refused += 1
    assert num_refused > 50
