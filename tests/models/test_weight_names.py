"""What --weights says is read in one way: by the backbone, the fingerprint and experiments."""

import hashlib

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from ino.errors import CheckpointError
from ino.experiments.plan import find_weights
from ino.experiments.rows import DavisRow, Experiment
from ino.models.backbone import split_weights
from ino.models.load import PUBLIC, load_backbone
from ino.propagate.protocols import get_protocol
from ino.tasks.results import fingerprint

NO_FILES = Experiment(rows={"a": None})


@pytest.mark.parametrize(
    ("text", "name", "file"),
    [
        ("timm:resnet18@a/w.pth", "timm:resnet18", "a/w.pth"),
        ("timm:resnet18/8@/x@y/w@2.pth", "timm:resnet18/8", "/x@y/w@2.pth"),
        ("timm:resnet18", "timm:resnet18", None),
        ("/x@y/w.pth", "/x@y/w.pth", None),
        ("resnet18@w.pth", "resnet18@w.pth", None),
        ("color", "color", None),
    ],
)
def test_only_a_model_of_timm_has_a_file_behind_its_first_at(text, name, file):
    found, path = split_weights(text)
    assert (found, path and str(path)) == (name, file)


@pytest.mark.parametrize("model", ["", "timm:resnet10t@"])
def test_an_at_in_a_path_is_a_part_of_the_path(model, tmp_path):
    path = tmp_path / "a@b" / "model@2.pth"
    path.parent.mkdir()
    weights = timm.create_model("resnet10t", num_classes=0).state_dict()
    torch.save(weights, path)
    name = f"{model}{path}"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert fingerprint(name) == {"checkpoint": str(path), "sha256": digest}
    assert find_weights(DavisRow(weights=name), NO_FILES) == (name, "")
    if model:
        found = load_backbone(name).network.state_dict()["bn1.weight"]
        assert torch.equal(found, weights["bn1.weight"])


@pytest.mark.parametrize("name", ["timm:resnet10t@{}/nothing.pth", "timm:resnet10t@{}", "a@{}/w"])
def test_files_that_are_not_there(name, tmp_path):
    name = name.format(tmp_path)
    assert fingerprint(name) == {}
    with pytest.raises(CheckpointError, match="is neither a file"):
        find_weights(DavisRow(weights=name), NO_FILES)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint|is neither a file"):
        load_backbone(name)


def test_timm_s_own_file_needs_no_configuration(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    assert fingerprint(f"timm:resnet10t@{path}").keys() == {"checkpoint", "sha256"}
    with pytest.raises(CheckpointError, match="may be the weights of an export"):
        fingerprint(str(path))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, from which a model can be fetched only where it was put there."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(model: str) -> dict[str, torch.Tensor]:
        weights = timm.create_model(model, num_classes=0).state_dict()
        hub = timm.get_pretrained_cfg(model).hf_hub_id
        folder = tmp_path / f"models--{hub.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text("0" * 40)
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        save_file(weights, folder / "snapshots" / ("0" * 40) / "model.safetensors")
        return weights

    return put


@torch.no_grad()
def test_a_public_name_gives_what_the_released_file_gives(hub_cache, tmp_path):
    """Same features, layer, protocol and input as the authors' file with the same tensors."""
    assert not PUBLIC["dino-s16"].is_here
    weights = hub_cache(PUBLIC["dino-s16"].model)
    assert PUBLIC["dino-s16"].is_here
    torch.save(weights, tmp_path / "dino_deitsmall16_pretrain.pth")
    named, released = (
        load_backbone("dino-s16"),
        load_backbone(tmp_path / "dino_deitsmall16_pretrain.pth"),
    )
    images = torch.randn(1, 3, 64, 96)
    assert torch.allclose(named(images, layer=None), released(images, layer=None), atol=1e-5)
    for one in ("mean", "std", "protocol", "layer", "stride"):
        assert getattr(named, one) == getattr(released, one)


def test_public_names_are_models_of_timm_with_protocols(hub_cache):
    for one in PUBLIC.values():
        assert timm.get_pretrained_cfg(one.model).license.lower() == one.license.lower().replace(
            " ", "-"
        )
        num_parameters = sum(
            p.numel()
            for p in timm.create_model(one.model, num_classes=0, device="meta").parameters()
        )
        assert round(num_parameters / 1e6) == one.parameters
        assert get_protocol(one.reading.protocol).layer == one.reading.layer
    with pytest.raises(CheckpointError, match="check the network"):
        load_backbone("dino-s16")
    with pytest.raises(CheckpointError, match="did you mean dino-s8"):
        load_backbone("dino-s9")
