"""Runs whose backbone is a network of timm: they learn, resume, and are read by all commands."""

import copy

import numpy as np
import pytest
import timm
import torch

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import CheckpointError, ConfigError
from ino.export import export_run
from ino.models.load import load_backbone
from ino.models.masked_timm import MaskedTimm
from ino.models.weights import list_checkpoints, read_checkpoint
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker
from ino.train.loop import train
from tiny_run import assert_equal_states, tiny_config

NETWORKS = {"test_vit": (16, 64), "test_resnet/8": (8, 96), "test_convnext": (32, 64)}


def of_timm(config, name, *, steps=3):
    """The run with a network of timm; crops fit each of them."""
    config.model.arch, config.model.drop_path = f"timm:{name}", 0.0
    config.views.global_size, config.views.local_size = 64, 32
    config.optim.lr, config.run.max_steps, config.run.save_every = 0.02, steps, 2
    return config


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, videos, tmp_path_factory):
    """Name and folder of a run of three steps."""
    out = tmp_path_factory.mktemp("timm") / "run"
    train(of_timm(tiny_config(videos), request.param), out=out)
    return request.param, out


def test_all_that_is_used_learns(trained):
    name, out = trained
    torch.manual_seed(0)
    before = MaskedTimm(f"timm:{name}").state_dict()
    content = read_checkpoint(list_checkpoints(out)[-1])
    learned = MaskedTimm(f"timm:{name}")
    learned.load_state_dict(
        {
            k.removeprefix("backbone."): v
            for k, v in content["student"].items()
            if "head." not in k[:5]
        }
    )
    for key, parameter in learned.named_parameters():
        assert parameter.requires_grad != torch.equal(parameter, before[key]), key
    for key in content["student"]:
        if "running" in key:  # of batch normalization
            assert torch.equal(content["student"][key], content["teacher"][key])
            assert not torch.equal(content["student"][key], before[key.removeprefix("backbone.")])


def test_a_resumed_run_is_equal_to_the_bit(config, trained, tmp_path):
    name, out = trained
    config = of_timm(config, name)
    short = copy.deepcopy(config)
    short.run.max_steps = 2
    train(short, out=tmp_path / "run")
    resumed = read_checkpoint(train(config, out=tmp_path / "run", resume=True))
    assert_equal_states(read_checkpoint(list_checkpoints(out)[-1]), resumed)


def test_a_run_gives_features_and_masks(trained):
    name, out = trained
    stride, dim = NETWORKS[name]
    backbone = load_backbone(out)
    images = torch.randn(1, 3, 2 * stride, 3 * stride)
    student = MaskedTimm(f"timm:{name}").eval()
    weights = read_checkpoint(list_checkpoints(out)[-1])["student"]
    own = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    student.load_state_dict(own)
    student.mean, student.std = IMAGENET_MEAN, IMAGENET_STD  # images are normalized already
    with torch.no_grad():
        features = backbone(images, layer=None)
        tokens = student(images)[:, 1:].transpose(1, 2).unflatten(2, (2, 3))
    assert features.shape == (1, dim, 2, 3)
    torch.testing.assert_close(features, tokens)
    tracker = Tracker(backbone, protocol=get_protocol("dino", short_side=64), warns=False)
    frame = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[:32] = 1
    tracker.start(frame, mask)
    assert tracker.step(frame).shape == mask.shape


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_export_is_read_by_ino_and_timm(trained, tmp_path, precision):
    name, out = trained
    folder = tmp_path / "export"
    export_run(out, out=folder, precision=precision)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = (load_backbone(one)(images, layer=None) for one in (out, folder))
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        of_timm = model.forward_features(images)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    if name == "test_vit":
        of_timm = of_timm[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(of_timm, found)
    assert load_backbone(folder).protocol == load_backbone(out).protocol
    with pytest.raises(CheckpointError, match="holds the student of a run and no teacher"):
        load_backbone(folder, network="teacher")
    with pytest.raises(ConfigError, match="is exported whole: leave --layer out"):
        export_run(out, out=tmp_path / "other", layer=2)
