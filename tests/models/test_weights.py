"""Files of weights that a run can start from, under the names of their projects."""

import argparse
import hashlib

import pytest
import torch

from ino.errors import CheckpointError
from ino.models.vit import ProjectionHead, build_vit
from ino.models.weights import (
    describe,
    position_grid_side,
    read_checkpoint,
    read_vit_backbone,
)
from tiny_run import read_weights

SIZES = {"out_dim": 12, "hidden_dim": 16, "bottleneck_dim": 8}


@pytest.fixture
def backbone():
    return dict(build_vit("vit_nano", patch_size=16, position_grid_side=14).state_dict())


@pytest.fixture
def head():
    return dict(ProjectionHead(96, **SIZES).state_dict())


def released(backbone: dict, head: dict, *, prefix: str, head_prefix: str, gain: float = 1.0):
    """A network as DINO, iBOT and INO store it: without mask token, the last layer in two parts."""
    weights = {f"{prefix}backbone.{name}": value for name, value in backbone.items()}
    named = {f"{prefix}{head_prefix}{name}": value for name, value in head.items()}
    directions = named.pop(f"{prefix}{head_prefix}last_layer.weight")
    named[f"{prefix}{head_prefix}last_layer.weight_v"] = directions
    named[f"{prefix}{head_prefix}last_layer.weight_g"] = torch.full((12, 1), gain)
    return weights | named


def written(content, folder):
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("head_prefix", ["head.", "headlist.headlist.0."])
def test_releases_with_student_teacher_and_head_are_read(backbone, head, tmp_path, head_prefix):
    other = {name: value + 1 for name, value in backbone.items()}
    content = {
        "student": released(backbone, head, prefix="module.", head_prefix=head_prefix),
        "teacher": released(other, head, prefix="", head_prefix=head_prefix),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, arch="vit"),
    }
    path = written(content, tmp_path)
    weights = read_weights(path)
    assert_equal(weights.student.backbone, backbone)
    assert_equal(weights.teacher.backbone, other)
    assert_equal(weights.student.head, head)
    assert weights.student.head_fault == ""
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "teacher only"])
def test_a_single_network_is_student_and_teacher(backbone, tmp_path, form):
    content = {
        "plain": backbone,
        "state_dict": {"state_dict": backbone, "epoch": 3},
        "model": {"model": backbone, "epoch": 3},
        "teacher only": {"teacher": backbone},
    }[form]
    path = written(content, tmp_path)
    weights = read_weights(path)
    assert_equal(weights.student.backbone, backbone)
    assert weights.student is weights.teacher
    assert weights.student.head == {}
    assert position_grid_side(weights.student.backbone) == 14
    found = describe(weights.student.backbone, source=path)
    assert found == "--model.arch vit_nano --model.patch_size 16"


def test_ibot_s_mask_token_has_its_place(backbone, tmp_path):
    token = backbone.pop("mask_token")
    backbone["masked_embed"] = token.reshape(1, -1)
    weights = read_weights(written(backbone, tmp_path))
    assert torch.equal(weights.student.backbone["mask_token"], token)


def test_a_head_with_gains_is_not_ours(backbone, head, tmp_path):
    content = released(backbone, head, prefix="", head_prefix="head.", gain=2.0)
    assert "gains" in read_weights(written(content, tmp_path)).student.head_fault


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_code_is_never_run(backbone, tmp_path):
    path = written(backbone | {"args": Trap(tmp_path / "executed")}, tmp_path)
    with pytest.raises(CheckpointError, match="could run code"):
        read_weights(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"student": {"conv1.weight": torch.zeros(1)}}, "no ViT: .* found conv1.weight"),
        ({"epoch": 3}, "no network that is known"),
        ({"student": 3}, "no network that is known"),
        ([1, 2], "expected a dictionary"),
    ],
)
def test_files_of_another_kind_are_refused(content, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read_weights(written(content, tmp_path))


def test_grids_that_are_not_square_are_refused():
    with pytest.raises(CheckpointError, match="7 patches"):
        position_grid_side({"pos_embed": torch.zeros(1, 8, 4)})


def test_a_run_s_checkpoint_keeps_the_grid_that_it_started_with(backbone, tmp_path):
    weights = {f"backbone.{name}": value for name, value in backbone.items()}
    model = {"arch": "vit_nano", "patch_size": 16}
    content = {"format": "ino-training-run", "version": 1, "config": {"model": model}}
    path = written(content | {"student": weights}, tmp_path)
    vit = read_vit_backbone(read_checkpoint(path), source=path)
    assert torch.equal(vit.pos_embed, backbone["pos_embed"])
