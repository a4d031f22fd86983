"""Checkpoints of people's own trainings, whose names have prefixes, and what messages advise."""

import re

import pytest
import timm
import torch

from ino.errors import CheckpointError
from ino.models.load import load_backbone
from ino.models.vit import VisionTransformer, build_vit
from tiny_run import read_weights


def under(prefix: str, weights: dict) -> dict:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def saved(content, folder):
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def dinov2():
    vit = VisionTransformer(
        embed_dim=96, num_heads=3, depth=4, patch_size=14, position_grid_side=4, layer_scale=True
    )
    return dict(vit.state_dict())


@pytest.mark.parametrize("form", ["teacher", "flat", "chunked", "compiled", "lightning"])
def test_trainings_of_dinov2(dinov2, form, tmp_path, caplog):
    network = under("backbone.", dinov2) | {"dino_head.mlp.0.weight": torch.zeros(2, 2)}
    other = {name: torch.zeros_like(value) for name, value in network.items()}
    both = under("student.", other) | under("teacher.", network)
    if form == "chunked":
        both = {
            re.sub(r"blocks\.(\d)\.", r"blocks.\1.\1.", name): value for name, value in both.items()
        }
    content = {
        "teacher": {"teacher": network},
        "flat": {"model": both | {"dino_loss.center": torch.zeros(1)}, "iteration": 3},
        "chunked": {"model": both},
        "compiled": {
            "teacher": {
                n.replace("backbone.", "backbone._orig_mod."): v for n, v in network.items()
            }
        },
        "lightning": {"state_dict": under("model.", both)},
    }[form]
    path = saved(content, tmp_path)
    found = load_backbone(path)
    assert found.protocol == "dinov3"
    assert all(torch.equal(value, dinov2[n]) for n, value in found.vit.state_dict().items())
    if form == "flat":
        assert not load_backbone(path, network="student").vit.cls_token.any()
    assert not caplog.messages


@pytest.mark.parametrize("key", ["model_ema", "ema", "state_dict_ema", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "encoder.net."])
def test_a_vit_under_any_one_prefix(key, prefix, tmp_path, caplog):
    weights = dict(build_vit("vit_nano", patch_size=16).state_dict())
    extra = {"projector.weight": torch.zeros(2)} if prefix == "encoder.net." else {}
    path = saved({key: under(prefix, weights) | extra, "epoch": 3}, tmp_path)
    found = load_backbone(path).vit.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert read_weights(path).student.backbone.keys() == weights.keys()
    assert ("left out (projector.weight)" in caplog.text) == bool(extra)


def test_weights_as_trained_come_before_their_averages(tmp_path):
    weights = dict(build_vit("vit_nano", patch_size=16).state_dict())
    averages = {name: value + 1 for name, value in weights.items()}
    path = saved({"model_ema": averages, "model": weights}, tmp_path)
    assert torch.equal(load_backbone(path).vit.cls_token, weights["cls_token"])


def test_several_networks_are_not_chosen_from(tmp_path):
    weights = dict(build_vit("vit_nano", patch_size=16).state_dict())
    path = saved(under("base.", weights) | under("momentum.", weights), tmp_path)
    with pytest.raises(CheckpointError, match=r"several ViTs, under the names 'base\.', 'moment"):
        load_backbone(path)


@pytest.fixture(scope="module")
def resnet():
    return dict(timm.create_model("resnet18", num_classes=0).state_dict())


@pytest.mark.parametrize("prefix", ["module.pre.", "module.encoder_q.", "_orig_mod.", "a.b.c."])
def test_a_model_of_timm_under_any_one_prefix(resnet, prefix, tmp_path):
    content = under(prefix, resnet) | {"module.head.0.weight": torch.zeros(3)}
    if prefix == "_orig_mod.":
        del content["module.head.0.weight"]
    path = saved({"state_dict": content}, tmp_path)
    found = load_backbone(f"timm:resnet18@{path}").network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in resnet.items())
    del content[f"{prefix}bn1.bias"]
    with pytest.raises(CheckpointError, match=r"missing bn1\.bias|missing .*; unexpected "):
        load_backbone(f"timm:resnet18@{saved(content, tmp_path)}")


def vit_with_classifier() -> dict:
    return dict(timm.create_model("vit_tiny_patch16_224").state_dict())


def dinov2_with_registers() -> dict:
    weights = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56).state_dict()
    grid = weights["pos_embed"]
    weights["pos_embed"] = torch.cat([weights["cls_token"], grid], dim=1)
    weights["register_tokens"] = weights.pop("reg_token")
    weights["mask_token"] = torch.zeros(1, 384)
    return under("teacher.backbone.", dict(weights)) | {"teacher.dino_head.w": torch.zeros(1)}


def resnet_with_classifier() -> dict:
    return dict(timm.create_model("resnet18").state_dict())


def resnet_under_a_prefix() -> dict:
    return under("module.pre.", dict(timm.create_model("resnet50", num_classes=0).state_dict()))


@pytest.mark.parametrize(
    "build",
    [vit_with_classifier, dinov2_with_registers, resnet_with_classifier, resnet_under_a_prefix],
)
def test_what_a_message_advises_works(build, tmp_path):
    path = saved({"model": build()}, tmp_path)
    with pytest.raises(CheckpointError, match="read it by timm:") as caught:
        load_backbone(path)
    advised = str(caught.value).split("read it by ")[1]
    assert load_backbone(advised).num_layers > 1


def test_training_is_not_advised_to_build_what_it_cannot(dinov2, tmp_path):
    from ino.models.weights import describe

    path = saved(dinov2, tmp_path)
    found = describe(read_weights(path).student.backbone, source=path)
    assert "which `ino train` does not build" in found
