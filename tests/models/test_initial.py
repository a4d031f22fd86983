"""Weights of other projects as the start of a training (`--init`), as their releases have them."""

import pytest
import timm
import torch
from huggingface_hub import constants
from released_files import formula_weights, released
from safetensors.torch import save_file

from ino.errors import CheckpointError
from ino.models.load import PUBLIC, load_backbone
from ino.models.vit import build_vit
from ino.train.config import ModelConfig, TrainConfig
from ino.train.run import build_networks

SMALL_HEAD = {"out_dim": 8, "hidden_dim": 8, "bottleneck_dim": 8, "drop_path": 0.0}


def started(init, arch, **options):
    """The networks of a run that starts from weights, and what is said of them."""
    model = ModelConfig(arch=arch, **SMALL_HEAD, **options)
    networks, origin = build_networks(TrainConfig(init=str(init), model=model), saved=None)
    assert origin.fresh_head
    for (name, one), other in zip(
        networks.student.backbone.state_dict().items(),
        networks.teacher.backbone.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one, other), name
    return networks.teacher.backbone, " ".join(origin.notes)


def of_timm(model):
    return timm.create_model(model).state_dict()


def of_mae(model):
    weights = timm.create_model(model, num_classes=0).state_dict()
    more = {"mask_token": torch.ones(1, 1, 48), "decoder_embed.weight": torch.zeros(48, 64)}
    return {"model": {**weights, **more}}


def of_dino(model):
    weights = build_vit("vit_tiny", patch_size=16, position_grid_side=14).state_dict()
    return {"teacher": {f"module.backbone.{k}": v for k, v in weights.items()}}


@pytest.mark.parametrize(
    ("build", "model"),
    [(of_timm, "test_vit"), (of_mae, "test_vit"), (of_dino, "vit_tiny_patch16_224")],
)
def test_weights_of_others_start_a_network_of_timm(build, model, tmp_path):
    content = build(model)
    torch.save(content, tmp_path / "weights.pth")
    backbone, notes = started(tmp_path / "weights.pth", f"timm:{model}")
    theirs = content.get("model", content.get("teacher", content))
    for name, value in backbone.network.state_dict().items():
        key = f"module.backbone.{name}" if build is of_dino else name
        assert torch.equal(value, theirs[key]), name
    assert ("no mask token" not in notes) == (build is of_dino)


def test_the_release_of_dinov2(golden, tmp_path):
    weights = formula_weights(golden("peer_features"), "dinov2_vits14")
    torch.save(released("dinov2", weights), tmp_path / "weights.pth")
    backbone, notes = started(tmp_path / "weights.pth", "timm:vit_small_patch14_dinov2")
    for name, value in backbone.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert torch.equal(backbone.mask_token.flatten(), weights["mask_token"].flatten())
    assert "no mask token" not in notes


@torch.no_grad()
def test_the_release_of_dinov3(golden, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(released("dinov3", formula_weights(golden("peer_features"), "dinov3_vits16")), path)
    backbone, _ = started(path, "timm:vit_small_patch16_dinov3_qkvb")
    images = torch.randn(1, 3, 32, 48)
    expected = load_backbone(path)(images, layer=None)
    found = backbone.eval()(images)[:, 1:].transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_form_of_clip(tmp_path):
    """Tensors under the names of OpenAI's and OpenCLIP's files, with those of the text."""
    model = "vit_xsmall_patch16_clip_224"
    weights = timm.create_model(model, num_classes=0).state_dict()
    pairs = {
        "patch_embed.proj.": "conv1.",
        "norm_pre.": "ln_pre.",
        "norm.": "ln_post.",
        "blocks.": "transformer.resblocks.",
        ".norm1.": ".ln_1.",
        ".norm2.": ".ln_2.",
        ".attn.qkv.": ".attn.in_proj_",
        ".attn.proj.": ".attn.out_proj.",
        ".mlp.fc1.": ".mlp.c_fc.",
        ".mlp.fc2.": ".mlp.c_proj.",
    }
    theirs = {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.bias": torch.ones(8)}
    for name, value in weights.items():
        key = name
        for ours, other in pairs.items():
            if key.startswith(ours) or ours.startswith("."):
                key = key.replace(ours, other)
        theirs[f"visual.{key}"] = value
    theirs["visual.class_embedding"] = theirs.pop("visual.cls_token").flatten()
    theirs["visual.positional_embedding"] = theirs.pop("visual.pos_embed")[0]
    theirs["visual.proj"] = torch.zeros(256, 8)
    torch.save(theirs, tmp_path / "weights.pt")
    backbone, notes = started(tmp_path / "weights.pt", f"timm:{model}")
    for name, value in backbone.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert "no mask token" in notes


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("dino-s16", {"arch": "vit_small", "patch_size": 16}, marks=pytest.mark.slow),
        ("dinov2-s14", {"arch": "timm:vit_small_patch14_dinov2.lvd142m"}),
        pytest.param(
            "dinov3-s16",
            {"arch": "timm:vit_small_patch16_dinov3_qkvb.lvd1689m"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_public_weights_by_their_name(name, options, tmp_path, monkeypatch):
    """A cache of the hub has tensors of the model's shapes; nothing is fetched."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="check the network"):
        started(name, **options)
    model = PUBLIC[name].model
    weights = timm.create_model(model, num_classes=0).state_dict()
    hub = tmp_path / f"models--{timm.get_pretrained_cfg(model).hf_hub_id.replace('/', '--')}"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text("0" * 40)
    (hub / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(weights, hub / "snapshots" / ("0" * 40) / "model.safetensors")
    backbone, notes = started(name, **options)
    found = getattr(backbone, "network", backbone).state_dict()
    for key, value in weights.items():
        assert torch.equal(value.flatten(), found[key].flatten()), key
    assert "no mask token" in notes


def test_weights_of_another_network(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "weights.pth")
    config = TrainConfig(
        init=str(tmp_path / "weights.pth"), model=ModelConfig(arch="vit_nano", **SMALL_HEAD)
    )
    with pytest.raises(CheckpointError, match=r"no ViT.*--model\.arch timm:resnet18$"):
        build_networks(config, saved=None)
    config.model.arch = "timm:resnet34"
    with pytest.raises(
        CheckpointError, match=r"missing network\.layer.*--model\.arch timm:resnet18$"
    ):
        build_networks(config, saved=None)
