"""Models of timm: feature maps have the size that strides say, and files are loaded key by key."""

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from released_files import drawn, formula_weights
from safetensors.torch import save_file
from test_releases import assert_near

from ino.errors import CheckpointError, ConfigError
from ino.models import backbone as timm_models
from ino.models.load import load_backbone
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker

FAMILIES = {
    "vit_tiny_patch16_224": (16, 12, None),
    "vit_tiny_patch16_dinov3_qkvb": (16, 12, None),
    "vit_medium_patch32_clip_224": (32, 12, None),
    "resnet10t": (32, 4, 1),
    "resnet18/8": (8, 4, 1),
    "convnext_atto": (32, 4, None),
    "convnext_atto/16": (16, 4, None),
    "swin_tiny_patch4_window7_224": (32, 4, None),
}
"""Stride of the last layer, layers, and what sides have to be multiples of (None: the stride)."""


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_feature_maps_have_the_size_that_strides_say(name):
    backbone = load_backbone(f"random:{name}")
    stride, num_layers, multiple = FAMILIES[name]
    assert (backbone.stride, backbone.num_layers, backbone.side_multiple) == (
        stride,
        num_layers,
        multiple,
    )
    for layer in {1, num_layers - 1, num_layers}:
        stride = backbone.strides[layer - 1]
        height, width = 3 * stride, 5 * stride
        if multiple == 1:
            height, width = height - 1, width - stride // 2
        found = backbone(torch.randn(2, 3, height, width), layer=layer)
        assert found.shape == (2, backbone.dims[layer - 1], 3, 5)
        assert found.isfinite().all()


@torch.no_grad()
def test_features_are_timm_s_own_and_later_blocks_do_not_run():
    backbone = load_backbone("random:vit_tiny_patch16_224", seed=3)
    images = torch.randn(1, 3, 64, 96)
    vit = backbone.network
    expected = vit.forward_intermediates(images, norm=True, intermediates_only=True)[6]
    for block in vit.blocks[7:]:
        block.forward = None
    assert torch.equal(backbone(images, layer=7), expected)
    other = load_backbone("random:vit_tiny_patch16_224", seed=4)
    assert not torch.equal(other(images, layer=7), expected)


@torch.no_grad()
def test_a_stride_by_dilation_keeps_what_lies_before_it():
    plain, dilated = (load_backbone(f"random:resnet18{end}", seed=1) for end in ("", "/8"))
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(plain(images, layer=2), dilated(images, layer=2))
    assert plain(images, layer=3).shape[2:] == (4, 6)
    assert dilated(images, layer=3).shape[2:] == (8, 12)


@torch.no_grad()
def test_timm_s_dinov2_reads_the_release_and_gives_its_features(golden, tmp_path):
    peers = golden("peer_features")
    path = tmp_path / "dinov2.pth"
    torch.save(formula_weights(peers, "dinov2_vits14"), path)
    backbone = load_backbone(f"timm:vit_small_patch14_dinov2@{path}")
    key = "dinov2_vits14/70x98"
    found = backbone(drawn(int(peers[f"{key}_seed"]), (1, 3, 70, 98)), layer=None)
    assert_near(found[0, :: int(peers[f"{key}_step"])], peers[f"{key}_feat"])


# ---- files


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(5)
    return timm.create_model("resnet10t").eval()


@pytest.mark.parametrize("form", ["plain", "state_dict", "safetensors"])
@torch.no_grad()
def test_a_file_of_a_timm_model(resnet, form, tmp_path):
    """With its classifier, which is left out."""
    weights = resnet.state_dict()
    path = tmp_path / "weights.bin"
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 1} if form == "state_dict" else weights, path)
    backbone = load_backbone(f"timm:resnet10t@{path}")
    images = torch.randn(1, 3, 64, 64)
    expected = resnet.forward_intermediates(images, intermediates_only=True)
    assert torch.equal(backbone(images, layer=3), expected[3])


def test_mae_s_decoder_is_left_out_by_name(tmp_path):
    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    extra = (
        "mask_token",
        "decoder_pos_embed",
        "decoder_blocks.0.norm1.weight",
        "decoder_norm.bias",
    )
    path = tmp_path / "mae.pth"
    torch.save({"model": weights | dict.fromkeys(extra, torch.zeros(2))}, path)
    backbone = load_backbone(f"timm:vit_tiny_patch16_224@{path}")
    assert torch.equal(backbone.network.pos_embed, weights["pos_embed"])
    torch.save({"model": weights | {"decoder": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match="unexpected decoder"):
        load_backbone(f"timm:vit_tiny_patch16_224@{path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": None}, "missing layer1.0.conv1.weight"),
        ({"projector.0.weight": torch.zeros(1)}, "unexpected projector.0.weight"),
        ({"layer1.0.bn1.weight": torch.zeros(3)}, r"layer1.0.bn1.weight is \(3,\)"),
    ],
)
def test_files_are_never_loaded_loosely(resnet, change, message, tmp_path):
    weights = {k: v for k, v in (resnet.state_dict() | change).items() if v is not None}
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(f"timm:resnet10t@{path}")


# ---- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:mixer_s32_224", "no feature maps for images of any size"),
        ("random:swin_tiny_patch4_window7_224/8", "stride of .* cannot be chosen"),
        ("random:vit_tiny_patch16_224/8", "stride of .* cannot be chosen"),
        ("random:dla34/16", "stride of .* cannot be chosen"),
        ("random:vovnet39a/8", "stride of .* cannot be chosen"),
        ("timm:dla34/16", "stride of .* cannot be chosen"),
        ("random:resnet18/7", "choose 8, 16 or 32"),
        ("timm:resnet81", "no model 'resnet81'; near to it are resnet18"),
        ("timm:resnet18.nothing_in1k", "no weights 'nothing_in1k' of resnet18; it has a1_in1k"),
        ("timm:resnet14", "no model|no weights"),
    ],
)
def test_names_that_cannot_be_used(name, message, monkeypatch):
    monkeypatch.setattr(timm_models, "_is_reachable", lambda address: False)
    with pytest.raises(ConfigError, match=message):
        load_backbone(name)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"]
)
def test_files_of_another_family(resnet, name, tmp_path):
    """Timm's conversions look for the tensors of their family, each with an error of its own."""
    weights = {"conv1.weight": torch.zeros(1), "patch_embed.proj.weight": torch.zeros(2)}
    path = tmp_path / "weights.pth"
    for content in (weights, dict(resnet.state_dict())):
        torch.save(content, path)
        with pytest.raises(
            CheckpointError, match=r"weights\.pth (holds no weights of|is of another)"
        ):
            load_backbone(f"timm:{name}@{path}")


@pytest.mark.parametrize("form", ["student", "teacher", "both"])
def test_the_networks_of_a_file_for_timm(resnet, form, tmp_path, caplog):
    networks = {
        "student": resnet.state_dict(),
        "teacher": {name: value + 1 for name, value in resnet.state_dict().items()},
    }
    path = tmp_path / "a@b.pth"
    torch.save(networks if form == "both" else {form: networks[form]}, path)
    name = f"timm:resnet10t@{path}"
    for asked in ("student", "teacher"):
        if form in (asked, "both"):
            found = load_backbone(name, network=asked).network.state_dict()
            assert torch.equal(found["bn1.bias"], networks[asked]["bn1.bias"])
        else:
            with pytest.raises(CheckpointError, match=f"holds the {form} and no {asked}"):
                load_backbone(name, network=asked)
    usual = load_backbone(name).network.state_dict()["bn1.bias"]
    assert torch.equal(usual, networks["teacher" if form == "both" else form]["bn1.bias"])
    assert not caplog.messages


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_backbone(f"timm:resnet10t@{tmp_path / 'nothing.pth'}")


@pytest.mark.parametrize(
    "name",
    ["timm:resnet18", "resnet18.a1_in1k", "timm:hf-hub:timm/none", "hf-hub:timm/none"],
)
def test_without_a_network_a_fetch_ends_at_once_in_one_sentence(name, monkeypatch, tmp_path):
    def unknown(*_):
        raise OSError("name or service not known")

    before = constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_models, "getproxies", dict)
    monkeypatch.setattr(timm_models.socket, "getaddrinfo", unknown)
    with pytest.raises(CheckpointError, match=r"could not be fetched \(.*@FILE") as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value)
    assert before == constants.HF_HUB_OFFLINE


def test_random_weights_and_files_ask_no_network(resnet, tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(timm_models, "_is_reachable", asked)
    torch.save(resnet.state_dict(), tmp_path / "weights.pth")
    load_backbone("random:resnet10t")
    load_backbone(f"timm:resnet10t@{tmp_path / 'weights.pth'}")


def test_a_model_that_only_its_hub_describes_is_refused_in_one_sentence(monkeypatch):
    def unknown(*_, **__):
        raise OSError("not found")

    monkeypatch.setattr(timm_models, "_is_reachable", lambda address: False)
    monkeypatch.setattr(timm_models.timm, "create_model", unknown)
    with pytest.raises(ConfigError, match=r"description of hf-hub:a/b .*\(not found\): check"):
        timm_models.create_timm("hf-hub:a/b")


def test_one_try_of_a_fetch_asks_once(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_models, "_is_reachable", lambda address: bool(asked.append(address)))
    with pytest.raises(CheckpointError, match="could not be fetched"):
        load_backbone("timm:resnet18.a1_in1k")
    assert len(asked) == 1


def test_a_model_warns_who_asks_for_one_of_two_networks(resnet, monkeypatch, caplog):
    monkeypatch.setattr(timm_models, "_create", lambda *_, **__: resnet)
    load_backbone("timm:resnet10t", network="student")
    assert "timm:resnet10t has one network" in caplog.messages[0]


@torch.no_grad()
def test_trackers_take_any_of_them():
    """A pyramid at a layer before its last: that layer's stride is the grid's."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 45, 83, 3), dtype=np.uint8)
    mask = np.zeros((45, 83), dtype=np.uint8)
    mask[10:30, 20:50] = 1
    grids = {("resnet10t", 2): (6, 11), ("convnext_atto", 2): (5, 10)}
    for (name, layer), grid in grids.items():
        protocol = get_protocol("crw", layer=layer)
        tracker = Tracker(load_backbone(f"random:{name}"), protocol=protocol)
        assert tracker._extractor(frames[0]).shape[:2] == grid
        found = list(tracker.track(frames, {0: mask}))
        assert [labels.shape for labels in found] == [(45, 83)] * 3
