"""The ONNX graph of features against torch, in onnxruntime."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ino import onnx as onnx_features
from ino.errors import ConfigError
from ino.export import truncate
from ino.models.load import VitBackbone
from ino.models.vit import build_vit
from ino.onnx import FeatureGraph, features_onnx

STD = (0.228, 0.224, 0.225)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(1)
    vit = build_vit("vit_nano").eval()
    torch.nn.init.normal_(vit.pos_embed, std=0.5)
    return vit


@torch.no_grad()
def expected_features(vit, frames, *, layer):
    backbone = VitBackbone(vit, std=STD)
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    return backbone((pixels - mean) / std, layer=layer).permute(0, 2, 3, 1)


@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_the_graph_computes_what_the_backbone_does(vit, normalize):
    frames = torch.randint(0, 256, (2, 40, 72, 3), dtype=torch.uint8)
    graph = FeatureGraph(truncate(vit, layer=7), std=STD, image_size=(40, 72), normalize=normalize)
    expected = expected_features(vit, frames, layer=7)
    if normalize:
        expected = F.normalize(expected, dim=-1)
    assert torch.allclose(graph(frames), expected, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_onnxruntime_gives_the_features_of_torch_for_batches_of_any_size(vit):
    onnxruntime = pytest.importorskip("onnxruntime")
    content = features_onnx(truncate(vit, layer=2), std=STD, image_size=(32, 56))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        frames = torch.randint(0, 256, (batch, 32, 56, 3), dtype=torch.uint8)
        (found,) = session.run(["features"], {"images": frames.numpy()})
        expected = F.normalize(expected_features(vit, frames, layer=2), dim=-1)
        assert found.shape == (batch, 4, 7, 96)
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_sizes_that_are_no_multiples_of_the_patch(vit):
    with pytest.raises(ConfigError, match="take 48x104"):
        features_onnx(vit, std=STD, image_size=(50, 104))


def test_the_extra_is_missing(vit, monkeypatch):
    for name in onnx_features.NEEDED:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(onnx_features, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install ino\[onnx\]"):
        features_onnx(vit, std=STD, image_size=(48, 104))
