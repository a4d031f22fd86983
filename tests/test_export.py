"""The command `ino export` on a run that was trained: its files, its card, and bad input."""

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml

from command import refused, run
from ino import onnx as onnx_features
from ino.data.label_maps import write_labels
from ino.demo.synthetic import generate_clip, write_videos
from ino.errors import ConfigError
from ino.export import export_run
from ino.models.load import RELEASED_STD, load_backbone
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import get_protocol
from ino.train.loop import train
from tiny_run import tiny_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("secret_place")
    clips = {f"{s}": generate_clip(s, num_frames=6, height=48, width=64) for s in range(4)}
    write_videos(clips, folder / "my_videos")
    config = tiny_config(folder / "my_videos")
    config = config.with_values({"variant": "released", "run.max_steps": 2})
    train(config, out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def images():
    return torch.randn(1, 3, 48, 72, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("network", ["student", "teacher"])
@torch.no_grad()
def test_an_export_has_the_features_of_its_run(trained, images, tmp_path, capsys, network):
    out = tmp_path / "out"
    options = ["--network", network, "--image-size", "48x72"]
    assert run("export", trained, "--out", out, *options) == 0
    names = ["README.md", "config.json", "model.safetensors", "positions.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    shown = capsys.readouterr().out
    assert all(f"{out / name} (" in shown for name in names)
    size = (out / "config.json").stat().st_size
    assert f"{out / 'config.json'} ({size / 1000:.1f} kB)" in shown  # not 0.0 MB
    backbone = load_backbone(out)
    assert backbone.num_layers == 7
    assert backbone.std == RELEASED_STD
    expected = load_backbone(trained, network=network)(images, layer=7)
    assert torch.equal(backbone(images, layer=7), expected)
    other = {"student": "teacher", "teacher": "student"}[network]
    assert not torch.equal(load_backbone(trained, network=other)(images, layer=7), expected)
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    maps = model.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (6, 9))
    assert (maps - expected).abs().max() < 1e-5


def test_the_checkpoint_is_read_once(trained, tmp_path, monkeypatch):
    read, count = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *args, **kw: count.append(1) or read(*args, **kw))
    assert run("export", trained, "--out", tmp_path / "out", "--layer", "1") == 0
    assert len(count) == 1


@pytest.mark.parametrize(("layer", "depth"), [("all", 12), ("3", 3), (None, 7)])
def test_blocks_that_are_exported(trained, tmp_path, layer, depth):
    options = [] if layer is None else ["--layer", layer]
    out = tmp_path / "out"
    assert run("export", trained, "--out", out, "--precision", "fp16", *options) == 0
    assert load_backbone(out).num_layers == depth
    own = json.loads((out / "config.json").read_text())["ino"]
    assert (own["layer"], own["layers_of_the_run"], own["precision"]) == (depth, 12, "fp16")


def test_the_card_tells_what_the_network_is_and_no_paths(trained, tmp_path):
    assert run("export", trained, "--out", tmp_path / "a", "--license", "cc-by-4.0") == 0
    card = (tmp_path / "a" / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["library_name"] == "timm"
    for words in ("vit_nano/8", "`released`", "| steps | 2 |", "random weights", "0.228", "64x64"):
        assert words in card, words
    everything = b"".join(path.read_bytes() for path in (tmp_path / "a").iterdir())
    assert b"secret_place" not in everything
    assert b"my_videos" not in everything
    assert run("export", trained, "--out", tmp_path / "b", "--data", "my | own videos") == 0
    card = (tmp_path / "b" / "README.md").read_text()
    assert "| video | my \\| own videos |" in card
    assert "secret_place" not in card
    assert "license:" not in card.split("---\n")[1]
    assert "None was named" in card


def test_segment_takes_the_protocol_that_suits_the_weights(trained, tmp_path, capsys):
    clip = generate_clip(1, num_frames=2, height=64, width=64)
    write_videos({"video": clip}, tmp_path)
    write_labels(tmp_path / "mask.png", clip.labels[0])
    for name, options in (("ino-davis", []), ("dino", ["--protocol", "dino"])):
        weights, out = tmp_path / name, tmp_path / f"{name}-masks"
        assert run("export", trained, "--out", weights, *options) == 0
        assert load_backbone(weights).protocol == name
        assert f"| protocol that suits it | {name} |" in (weights / "README.md").read_text()
        given = [tmp_path / "video.mp4", "--mask", tmp_path / "mask.png", "--out", out]
        small = ["--weights", weights, "--set", "short_side=64"]
        assert run("segment", *given, *small) == 0
        stored = json.loads((out / "settings.json").read_text())["protocol"]
        expected = dataclasses.asdict(get_protocol(name, short_side=64))
        assert stored == json.loads(json.dumps(expected))
        assert f"protocol {name} (" in capsys.readouterr().out
        assert run("segment", *given, *small, "--protocol", "vfs", "--overwrite") == 0
        assert "protocol vfs (" in capsys.readouterr().out


def test_a_licence_cannot_break_the_card_s_header(trained, tmp_path):
    text = "mine: |\n---\nlibrary_name: other"
    assert run("export", trained, "--out", tmp_path / "a", "--license", text) == 0
    header = (tmp_path / "a" / "README.md").read_text().split("\n---\n")[0]
    assert yaml.safe_load(header.removeprefix("---\n"))["library_name"] == "timm"


@torch.no_grad()
def test_the_onnx_graphs_carry_labels_as_ino_does(trained, tmp_path):
    """From pixels to labels: frames through one graph, its features through the other."""
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    options = ["--onnx", "--image-size", "48x72", "--layer", "1"]
    assert run("export", trained, "--out", out, *options) == 0
    sessions = [
        onnxruntime.InferenceSession(out / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("features", "propagation")
    ]
    frames = generate_clip(9, num_frames=3, height=48, width=72).frames
    (features,) = sessions[0].run(None, {"images": np.stack(frames)})
    backbone = load_backbone(out)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    ours = F.normalize(backbone((pixels - mean) / std, layer=1), dim=1).permute(0, 2, 3, 1)
    assert np.abs(features - ours.numpy()).max() < 1e-4

    step = json.loads((out / "config.json").read_text())["ino"]["onnx"]
    assert (step["name"], step["radius"], step["topk"]) == ("ino-davis", 4, 5)
    propagator = Propagator(get_protocol("ino-davis", radius=step["radius"]))
    labels = [torch.rand(6, 9, 2).softmax(dim=-1)]
    propagator.step(torch.from_numpy(features[0]), labels[0])
    for time in (1, 2):
        expected = propagator.step(torch.from_numpy(features[time]))
        inputs = {
            "query": features[time],
            "features": features[:time],
            "labels": torch.stack(labels).numpy(),
        }
        (found,) = sessions[1].run(None, inputs)
        assert np.abs(found - expected.numpy()).max() < 1e-5
        labels.append(expected)


# ---- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "13"], "no layer 13; this network has 1 to 12"),
        (["--layer", "0"], "no layer 0"),
        (["--layer", "last"], "--layer takes a whole number or all, not 'last'"),
        (["--image-size", "50x72"], "take 48x72"),
        (["--image-size", "48"], "as in 480x848"),
        (["--image-size", "0x48"], "as in 480x848"),
        (["--onnx"], "--image-size"),
        (["--precision", "int8"], "precision"),
        (["--network", "parent"], "network"),
        (["--protocol", "nearest"], "unknown protocol 'nearest'"),
    ],
)
def test_options_that_are_wrong(trained, tmp_path, capsys, options, words):
    message = refused(capsys, "export", trained, "--out", tmp_path / "out", *options)
    assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "export"])
def test_runs_that_are_none(trained, tmp_path, capsys, kind):
    path = tmp_path / kind
    if kind == "empty":
        path.mkdir()
    elif kind == "export":
        assert run("export", trained, "--out", path, "--layer", "1") == 0
    message = refused(capsys, "export", path, "--out", tmp_path / "out")
    assert "no checkpoint found" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something(trained, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    message = refused(capsys, "export", trained, "--out", tmp_path / "out")
    assert "--overwrite" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert run("export", trained, "--out", tmp_path / "out", "--overwrite") == 0
    assert load_backbone(tmp_path / "out").num_layers == 7
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_a_run_does_not_become_its_export(trained, capsys):
    before = {path for path in trained.rglob("*") if path.is_file()}
    for options in ([], ["--overwrite"]):
        assert "the run itself" in refused(capsys, "export", trained, "--out", trained, *options)
    assert {path for path in trained.rglob("*") if path.is_file()} == before


def test_the_extra_is_missing(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_features, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--onnx needs onnx and onnxscript.*install ino\[onnx\]"):
        export_run(trained, out=tmp_path / "out", onnx=True, image_size=(48, 72))
    assert not (tmp_path / "out").exists()
