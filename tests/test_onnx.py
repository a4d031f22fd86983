"""ONNX graphs of features and of a step of propagation against torch, in onnxruntime."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ino import onnx as ino_onnx
from ino.errors import ConfigError
from ino.export import truncate
from ino.models.backbone import VitBackbone
from ino.models.vit import build_vit
from ino.onnx import FeatureGraph, features_onnx, propagation_graph
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import get_protocol


def session_of(protocol, **options):
    onnxruntime = pytest.importorskip("onnxruntime")
    content = propagation_graph(protocol, **options).SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def run_step(session, query, features, labels) -> np.ndarray:
    """What the graph gives for lists of maps."""
    features, labels = torch.stack(features), torch.stack(labels)
    inputs = {"query": query.numpy(), "features": features.numpy(), "labels": labels.numpy()}
    return session.run(["result"], inputs)[0]


def maps(*shape, seed) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.mark.parametrize(
    "fields",
    [
        {},  # the window is larger than the maps
        {"radius": 2},
        {"radius": 1, "topk": 20},  # more than a window holds
        {"radius": None, "topk": 500},  # more than there is
        {"radius": 3, "window": "circle"},
        {"radius": 3, "window": "closed-circle", "temperature": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_context", [1, 3])
def test_a_video_propagated_by_the_graph_is_that_of_the_propagator(fields, num_context):
    """Five frames, each from the first and the last ones, labels passed on; one graph for all."""
    protocol = get_protocol("ino-davis", num_context=num_context, **fields)
    session = session_of(protocol, row_block=4)
    for height, width, channels in ((5, 9, 2), (11, 6, 3)):
        features = list(maps(5, height, width, 12, seed=height))
        given = torch.rand(height, width, channels).softmax(dim=-1)
        propagator = Propagator(protocol)
        soft = [propagator.step(features[0], given)]
        for time in range(1, 5):
            expected = propagator.step(features[time])
            context = [0, *range(max(1, time - num_context), time)]
            found = run_step(
                session, features[time], [features[t] for t in context], [soft[t] for t in context]
            )
            assert np.abs(found - expected.numpy()).max() < 1e-5
            soft.append(expected)
        assert expected.std() > 0.01


@pytest.mark.parametrize("row_block", [1, 3, 8, 100])
def test_blocks_of_rows_change_nothing(row_block):
    protocol = get_protocol("ino-davis", radius=2)
    query, features = maps(7, 4, 8, seed=1), list(maps(2, 7, 4, 8, seed=2))
    labels = list(torch.rand(2, 7, 4, 3))
    expected = run_step(session_of(protocol, row_block=1), query, features, labels)
    found = run_step(session_of(protocol, row_block=row_block), query, features, labels)
    assert np.abs(found - expected).max() < 1e-6


def test_a_position_outside_the_window_has_no_say():
    protocol = get_protocol("ino-davis", radius=1, topk=1)
    query = torch.zeros(3, 5, 2)
    query[..., 0] = 1
    features, labels = -query, torch.zeros(3, 5, 1)
    features[1, 3], labels[1, 3] = query[1, 3], 1  # the one place that is alike
    found = run_step(session_of(protocol), query, [features], [labels])
    expected = torch.zeros(3, 5, 1)
    expected[:, 2:] = 1
    assert np.array_equal(found, expected.numpy())


@pytest.mark.parametrize("name", ["mast", "contcorr", "timecycle", "crw"])
def test_protocols_without_such_a_step(name):
    with pytest.raises(ConfigError, match=f"{name} has no propagation step in ONNX"):
        propagation_graph(get_protocol(name))


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


@torch.no_grad()
def test_the_graph_computes_what_the_backbone_does(vit):
    frames = torch.randint(0, 256, (2, 40, 72, 3), dtype=torch.uint8)
    graph = FeatureGraph(truncate(vit, layer=7), std=STD, image_size=(40, 72))
    expected = F.normalize(expected_features(vit, frames, layer=7), dim=-1)
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
    for name in ino_onnx.NEEDED:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(ino_onnx, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="uv sync --extra onnx"):
        features_onnx(vit, std=STD, image_size=(48, 104))
