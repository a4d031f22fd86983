"""Files of weights that are missing, damaged, hostile or of another architecture."""

import pickle
from pathlib import Path

import pytest
import torch

from ino.errors import CheckpointError
from ino.models import load
from ino.models.load import load_backbone
from ino.models.vit import build_vit
from ino.models.weights import FORMAT, VERSION, find_checkpoint, read_checkpoint, read_vit_backbone


@pytest.fixture
def content():
    vit = build_vit("vit_nano")
    weights = {f"backbone.{name}": value for name, value in vit.state_dict().items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": {"model": {"arch": "vit_nano", "patch_size": 8}},
        "student": weights | {"head.mlp.0.bias": torch.zeros(3)},
        "teacher": {name: value + 1 for name, value in weights.items()},
    }


def written(content, folder: Path) -> Path:
    path = folder / "checkpoints" / "step_00000001.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    return path


def load_vit(path: Path, *, network="student"):
    path = find_checkpoint(path)
    return read_vit_backbone(read_checkpoint(path), source=path, network=network)


@pytest.mark.parametrize("give_folder", [True, False])
def test_student_and_teacher_are_read(content, tmp_path, give_folder):
    path = written(content, tmp_path)
    for network in ("student", "teacher"):
        vit = load_vit(tmp_path if give_folder else path, network=network)
        expected = content[network]["backbone.cls_token"]
        assert torch.equal(vit.cls_token, expected)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["zip", "plain"])
def test_a_pickle_with_code_is_never_run(content, tmp_path, form):
    mark = tmp_path / "executed"
    content["extra"] = Trap(mark)
    path = written(content, tmp_path)
    if form == "plain":
        path.write_bytes(pickle.dumps(content["extra"]))
    with pytest.raises(CheckpointError):
        load_vit(path)
    assert not mark.exists()
    if form == "zip":
        with pytest.raises(CheckpointError, match="could run code"):
            load_vit(path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files_are_refused(content, tmp_path, keep):
    path = written(content, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with pytest.raises(CheckpointError, match=r"not a whole checkpoint"):
        load_vit(path)


def test_another_architecture_names_keys(content, tmp_path):
    content["config"]["model"]["arch"] = "vit_tiny"
    with pytest.raises(
        CheckpointError, match=r"cls_token is \(1, 1, 96\) instead of \(1, 1, 192\)"
    ):
        load_vit(written(content, tmp_path))


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_missing_and_unexpected_keys_are_named(content, tmp_path, fault):
    if fault == "missing":
        del content["student"]["backbone.mask_token"]
    else:
        content["student"]["backbone.extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=rf"{fault} (mask_token|extra)"):
        load_vit(written(content, tmp_path))


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 99}, {"config": 3}])
def test_files_of_another_kind_are_refused(content, tmp_path, change):
    with pytest.raises(CheckpointError):
        load_vit(written(content | change, tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"student": [1]},
        {"student": {"backbone.cls_token": 3}},
        {"student": {1: torch.zeros(1)}},
        {"config": {"model": {"arch": ["vit_nano"], "patch_size": 8}}},
        {"config": {"model": {"arch": "vit_nano", "patch_size": 8.0}}},
        {"config": {"model": {"arch": "vit_nano", "patch_size": [8]}}},
    ],
)
def test_values_of_another_kind_are_damage(content, tmp_path, change):
    path = written(content | change, tmp_path)
    with pytest.raises(CheckpointError, match="it is damaged"):
        load_backbone(path)


def test_a_checkpoint_is_read_once(content, tmp_path, monkeypatch):
    path, count = written(content, tmp_path), []
    read = load.load_plain
    monkeypatch.setattr(load, "load_plain", lambda path: count.append(1) or read(path))
    load_backbone(path)
    assert len(count) == 1


def test_missing_files_and_empty_folders(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint found"):
        load_vit(tmp_path)
    with pytest.raises(CheckpointError, match="neither a file"):
        load_backbone(str(tmp_path / "nothing.pt"))
