"""Exports: files and card, features equal to the run's by ino and by timm, never half of one."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import yaml

from command import refused, run
from ino import onnx as ino_onnx
from ino.data.label_maps import write_labels
from ino.demo.synthetic import generate_clip, write_videos
from ino.errors import CheckpointError, ConfigError, OutputError
from ino.export import WORK, export_files, export_run, round_weights, truncate, write_files
from ino.models import weights
from ino.models.backbone import RELEASED_STD, VitBackbone
from ino.models.load import load_backbone
from ino.models.vit import build_vit
from ino.models.weights import is_exported, read_exported
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import get_protocol
from ino.train.loop import train
from processes import called_apart
from tiny_run import read_weights, tiny_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("secret_place")
    clips = {f"{s}": generate_clip(s, num_frames=6, height=48, width=64) for s in range(4)}
    write_videos(clips, folder / "my_videos")
    config = tiny_config(folder / "my_videos")
    changes = {"model.depth": 12, "variant": "released", "run.max_steps": 2}
    config = config.with_values(changes)
    train(config, out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def small_images():
    return torch.randn(1, 3, 48, 72, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("network", ["student", "teacher"])
@torch.no_grad()
def test_an_export_has_the_features_of_its_run(trained, small_images, tmp_path, capsys, network):
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
    expected = load_backbone(trained, network=network)(small_images, layer=7)
    assert torch.equal(backbone(small_images, layer=7), expected)
    other = {"student": "teacher", "teacher": "student"}[network]
    assert not torch.equal(load_backbone(trained, network=other)(small_images, layer=7), expected)
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    maps = model.forward_features(small_images)[:, 1:].transpose(1, 2).unflatten(2, (6, 9))
    assert (maps - expected).abs().max() < 1e-5


def test_the_checkpoint_is_read_once(trained, tmp_path, monkeypatch):
    read, count = weights.load_plain, []
    monkeypatch.setattr(weights, "load_plain", lambda path: count.append(1) or read(path))
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


def test_a_run_of_fewer_blocks_than_ino_davis_reads(tmp_path, small_images):
    clips = {f"{s}": generate_clip(s, num_frames=6, height=48, width=64) for s in range(4)}
    write_videos(clips, tmp_path / "videos")
    config = tiny_config(tmp_path / "videos")
    config = config.with_values({"model.depth": 4, "run.max_steps": 1})
    train(config, out=tmp_path / "run")
    assert run("export", tmp_path / "run", "--out", tmp_path / "out") == 0
    backbone, expected = load_backbone(tmp_path / "out"), load_backbone(tmp_path / "run")
    assert backbone.num_layers == backbone.layer == 4
    assert torch.equal(backbone(small_images, layer=None), expected(small_images, layer=4))


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
        expected = get_protocol(name, short_side=64).as_dict()
        assert stored == json.loads(json.dumps(expected))
        assert f"protocol {name} (" in capsys.readouterr().out
        assert run("segment", *given, *small, "--protocol", "vfs", "--overwrite") == 0
        assert "protocol vfs (" in capsys.readouterr().out


def test_a_license_cannot_break_the_card_s_header(trained, tmp_path):
    text = "mine: |\n---\nlibrary_name: other"
    assert run("export", trained, "--out", tmp_path / "a", "--license", text) == 0
    header = (tmp_path / "a" / "README.md").read_text().split("\n---\n")[0]
    assert yaml.safe_load(header.removeprefix("---\n"))["library_name"] == "timm"


@torch.no_grad()
def test_the_onnx_graphs_propagate_labels_as_ino_does(trained, tmp_path):
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "13"], "no layer 13; this network has 1 to 12"),
        (["--layer", "0"], "no layer 0"),
        (["--layer", "last"], "Invalid value for --layer"),
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
    monkeypatch.setattr(ino_onnx, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs onnx and onnxscript.*uv sync --extra onnx"):
        export_run(trained, out=tmp_path / "out", onnx=True, image_size=(48, 72))
    assert not (tmp_path / "out").exists()


STD = (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(1)
    vit = build_vit("vit_nano").eval()
    # Positions that matter: those of a fresh network are small beside what patches give.
    torch.nn.init.normal_(vit.pos_embed, std=0.5)
    return vit


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 48, 104, generator=torch.Generator().manual_seed(2))


def exported(vit, folder, *, layer=7, precision="fp32", image_size=None, std=STD):
    network = round_weights(truncate(vit, layer=layer), precision=precision)
    files = export_files(network, std=std, precision=precision, image_size=image_size)
    write_files(folder, files)
    return folder


def tokens_by_timm(folder, images, **options):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()
    return model.forward_features(images)


@pytest.mark.parametrize("layer", [7, 12])
@torch.no_grad()
def test_features_are_bit_equal_to_the_run_s_at_every_size(vit, images, tmp_path, layer):
    folder = exported(vit, tmp_path / "out", layer=layer, image_size=(40, 72))
    backbone = load_backbone(folder)
    assert backbone.num_layers == layer
    assert backbone.std == STD
    for size in (images, images[..., :64, :64], images[..., :40, :72]):
        for number in (1, layer):
            expected = VitBackbone(vit)(size, layer=number)
            assert torch.equal(backbone(size, layer=number), expected)
    with pytest.raises(ConfigError, match=f"1 to {layer}"):
        backbone(images, layer=layer + 1)


@torch.no_grad()
def test_fp16_rounds_weights_and_nothing_else(vit, images, tmp_path):
    folder = exported(vit, tmp_path / "out", precision="fp16")
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    expected, found = VitBackbone(vit)(images, layer=7), load_backbone(folder)(images, layer=7)
    assert found.dtype == torch.float32
    error = (found - expected).abs().max() / expected.abs().max()
    assert 0 < error < 5e-3
    # What was rounded once is read back as it is.
    again = exported(read_exported(folder).vit, tmp_path / "again", precision="fp16")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_weights_that_fp16_does_not_hold(vit):
    large = truncate(vit, layer=1)
    with torch.no_grad():
        large.norm.bias[0] = 1e6
    with pytest.raises(ConfigError, match=r"norm\.bias.*--precision fp32"):
        round_weights(large, precision="fp16")


@pytest.mark.parametrize("image_size", [(48, 104), (64, 64), (104, 48), (32, 128)])
@torch.no_grad()
def test_timm_s_features_equal_ours_at_the_stored_size(vit, tmp_path, image_size):
    folder = exported(vit, tmp_path / "out", image_size=image_size)
    images = torch.randn(2, 3, *image_size)
    expected = vit(images, num_blocks=7)
    found = tokens_by_timm(folder, images)
    assert (found - expected).abs().max() < 1e-5
    assert expected.abs().max() > 1
    # It is the stored grid that does it: timm resamples otherwise.
    other = tmp_path / "other"
    exported(vit, other)
    is_square = image_size == (64, 64)
    difference = (tokens_by_timm(other, images) - expected).abs().max()
    assert (difference < 1e-5) == is_square


@pytest.mark.parametrize("image_size", [None, (48, 104)])
def test_timm_finds_exactly_its_own_keys_and_our_colors(vit, tmp_path, image_size):
    folder = exported(vit, tmp_path / "out", image_size=image_size, std=RELEASED_STD)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    data = timm.data.resolve_model_data_config(model)
    assert tuple(data["mean"]) == (0.485, 0.456, 0.406)
    assert tuple(data["std"]) == RELEASED_STD
    assert tuple(data["input_size"]) == (3, *(image_size or (64, 64)))
    assert load_backbone(folder / "model.safetensors").std == RELEASED_STD


@torch.no_grad()
def test_timm_may_add_a_head_and_read_features_only(vit, images, tmp_path):
    folder = exported(vit, tmp_path / "out", image_size=(48, 104))
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5)(
        images
    ).shape == (2, 5)
    maps = tokens_by_timm(folder, images)[:, 1:].transpose(1, 2).unflatten(2, (6, 13))
    assert torch.allclose(maps, load_backbone(folder)(images, layer=7), atol=1e-5)


@pytest.mark.parametrize("layer", [0, 13, -1])
def test_layers_that_do_not_exist(vit, layer):
    with pytest.raises(ConfigError, match=f"no layer {layer}; this network has 1 to 12"):
        truncate(vit, layer=layer)


@pytest.mark.parametrize(
    ("size", "near"), [((50, 104), "48x104"), ((3, 4), "8x8"), ((480, 854), "480x856")]
)
def test_sizes_that_are_no_multiples_of_the_patch(vit, size, near):
    with pytest.raises(ConfigError, match=f"patch of 8 pixels; take {near}"):
        export_files(vit, std=STD, image_size=size)


# ---- folders


@pytest.mark.parametrize("name", ["model.safetensors", "positions.safetensors"])
@pytest.mark.parametrize("fault", ["missing", "cut", "other"])
def test_folders_that_are_not_whole(vit, tmp_path, name, fault):
    folder = exported(vit, tmp_path / "out", layer=1, image_size=(48, 104))
    path = folder / name
    if fault == "missing":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        other = exported(truncate(vit, layer=1), tmp_path / "b", layer=1, precision="fp16")
        path.write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=name):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("ino", "format", "other"),
        ("ino", "format_version", 2),
        ("ino", "sha256", None),
        ("ino", "sha256", {}),
        ("model_args", "depth", 10**9),
        ("model_args", "num_heads", 0),
        ("model_args", "num_heads", 5),
        ("model_args", "num_heads", 3.0),
        ("model_args", "num_heads", True),
        ("model_args", "embed_dim", "96"),
        ("model_args", "patch_size", 16),
        ("pretrained_cfg", "std", [0.2]),
        ("pretrained_cfg", "std", "abc"),
    ],
)
def test_configurations_that_were_changed(vit, tmp_path, section, field, value):
    folder = exported(vit, tmp_path / "out", layer=1)
    config = json.loads((folder / "config.json").read_text())
    config[section][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_backbone(folder)


@torch.no_grad()
def test_embeddings_of_another_grid_stay_as_they_are(images, tmp_path):
    """DINO's are for 28 x 28 positions."""
    vit = build_vit("vit_nano", patch_size=16, position_grid_side=28).eval()
    torch.nn.init.normal_(vit.pos_embed, std=0.5)
    images = F.pad(images, (0, 8))
    folder = exported(vit, tmp_path / "out")
    expected = VitBackbone(vit)(images, layer=7)
    assert torch.equal(load_backbone(folder)(images, layer=7), expected)
    square = torch.randn(1, 3, 448, 448)
    found = tokens_by_timm(folder, square)
    assert (found - vit(square, num_blocks=7)).abs().max() < 1e-5


@pytest.mark.parametrize("content", [None, "", "[1]", "{}", '{"architecture": "resnet18"}'])
def test_other_folders_are_not_taken_for_exports(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert not is_exported(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint found"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("content", [None, "", "[1]"])
def test_weights_without_their_configuration_are_not_read(vit, tmp_path, content):
    """Their names are DINO's, whose colours and protocol are others."""
    folder = exported(vit, tmp_path / "out", layer=1)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    for read in (load_backbone, read_weights):
        with pytest.raises(CheckpointError, match=r"may be the weights of an export.*copy the"):
            read(folder / "model.safetensors")
    # With the configuration of another project they are that project's.
    (folder / "config.json").write_text('{"architecture": "vit_small_patch16_224"}')
    assert load_backbone(folder / "model.safetensors").protocol == "dino"


def test_the_network_that_an_export_does_not_hold(vit, tmp_path, caplog):
    files = export_files(truncate(vit, layer=1), std=STD, facts={"network": "teacher"})
    write_files(tmp_path / "teacher", files)
    for network in (None, "teacher"):
        assert load_backbone(tmp_path / "teacher", network=network).num_layers == 1
    with pytest.raises(CheckpointError, match="holds the teacher of a run and no student"):
        load_backbone(tmp_path / "teacher", network="student")
    assert not caplog.messages
    exported(vit, tmp_path / "untold", layer=1)
    load_backbone(tmp_path / "untold", network="student")
    assert "untold has one network" in caplog.messages[0]


def test_an_export_replaces_another_and_nothing_else(vit, tmp_path):
    folder = exported(vit, tmp_path / "out", layer=1, image_size=(48, 104))
    (folder / "mine.txt").write_text("keep")
    files = export_files(truncate(vit, layer=2), std=STD)
    with pytest.raises(OutputError, match="--overwrite"):
        write_files(folder, files)
    assert load_backbone(folder).num_layers == 1
    write_files(folder, files, overwrite=True)
    assert load_backbone(folder).num_layers == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "mine.txt",
        "model.safetensors",
    ]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_fills_leaves_nothing(vit, tmp_path, monkeypatch, failing):
    fill_disk(monkeypatch, failing=failing)
    with pytest.raises(OutputError, match="No space left"):
        exported(vit, tmp_path / "out", layer=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_fills_leaves_the_earlier_export(vit, tmp_path, monkeypatch, failing):
    folder = exported(vit, tmp_path / "out", layer=1)
    before = content_of(folder)
    files = export_files(truncate(vit, layer=2), std=STD)
    fill_disk(monkeypatch, failing=failing)
    with pytest.raises(OutputError, match="No space left"):
        write_files(folder, files, overwrite=True)
    assert content_of(folder) == before


def fill_disk(monkeypatch, *, failing: int) -> None:
    """Makes the disk full when a file is synced to it for this time."""
    count = 0

    def no_space(_):
        nonlocal count
        count += 1
        if count >= failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)


def content_of(folder) -> dict[str, bytes]:
    """All files at any depth, hidden ones too, but for the lock of a killed process."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "features.onnx"])
def test_files_of_others_are_not_replaced(vit, tmp_path, name):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("{}")
    files = export_files(truncate(vit, layer=1), std=STD)
    with pytest.raises(OutputError, match=rf"{name} belongs to no export.* move it away"):
        write_files(folder, files, overwrite=True)
    assert content_of(folder) == {name: b"{}"}
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(OutputError, match=f"{name} belongs to no export"):
        write_files(folder, files, overwrite=True)


def test_two_commands_into_one_folder(trained, vit, tmp_path, capsys):
    folder = exported(vit, tmp_path / "out", layer=1)
    before = content_of(folder)
    program = (
        "import sys; from pathlib import Path; from ino.system import folder_lock\n"
        "with folder_lock(Path(sys.argv[1]), command='ino segment'):\n"
        "    print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, folder]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        other.stdout.readline()
        message = refused(capsys, "export", trained, "--out", folder, "--overwrite")
        with pytest.raises(OutputError, match="is writing into"):
            write_files(folder, LATER, overwrite=True)
    assert "is writing into" in message
    assert content_of(folder) == before
    assert run("export", trained, "--out", folder, "--overwrite", "--layer", "2") == 0
    assert load_backbone(folder).num_layers == 2
    assert not (folder / ".lock").exists()


def test_what_a_link_points_to_stays(vit, tmp_path):
    folder = exported(vit, tmp_path / "out", layer=1)
    (folder / "model.safetensors").replace(tmp_path / "mine")
    (folder / "model.safetensors").symlink_to(tmp_path / "mine")
    before = (tmp_path / "mine").read_bytes()
    write_files(folder, export_files(truncate(vit, layer=2), std=STD), overwrite=True)
    assert load_backbone(folder).num_layers == 2
    assert (tmp_path / "mine").read_bytes() == before


EARLIER = {"config.json": b'{"ino": 1}', "model.safetensors": b"old", "README.md": b"my words"}
LATER = {"model.safetensors": b"new", "positions.safetensors": b"new", "config.json": b'{"ino": 2}'}
MINE = {"mine.txt": b"keep"}


@pytest.mark.parametrize("earlier", [EARLIER, {}], ids=["earlier export", "none"])
@pytest.mark.parametrize("kind", ["killed", "failing"])
def test_nothing_is_lost_at_any_moment(tmp_path, kind, earlier):
    """Ended before each change of the disk in turn: killed there, or the change fails."""
    if kind == "failing":
        write_until_nothing_fails(tmp_path, kind, earlier)
    elif hasattr(os, "fork"):
        called_apart(write_until_nothing_fails, tmp_path, kind, earlier)  # small, so forks quickly
    else:
        pytest.skip("needs fork")


def write_until_nothing_fails(tmp_path, kind, earlier) -> None:
    number, ended = 0, True
    while ended:
        number += 1
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for name, content in (earlier | MINE).items():
            (folder / name).write_bytes(content)
        ended = written_until(folder, number, kind)
        left = content_of(folder)
        placed = {name: content for name, content in left.items() if not name.startswith(WORK)}
        if kind == "failing":
            assert placed in (earlier | MINE, LATER | MINE), number
        assert left["mine.txt"] == b"keep"
        if placed != LATER | MINE:
            assert set(earlier.values()) <= set(left.values()), number
        # The configuration is never beside weights of another.
        if "config.json" in placed:
            expected = LATER if placed["config.json"] == LATER["config.json"] else earlier
            assert placed["model.safetensors"] == expected["model.safetensors"]
        write_files(folder, LATER, overwrite=True)
        assert content_of(folder) == LATER | MINE
        assert not (folder / WORK).exists()
    assert number > 15


def written_until(folder, number: int, kind: str) -> bool:
    """Writes until that many changes were made; whether it came so far."""
    if kind == "failing":
        return _ended(folder, number, kind)
    process = os.fork()
    if process == 0:
        os._exit(_ended(folder, number, kind))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0


def _ended(folder, number: int, kind: str) -> bool:
    count = 0

    def ending(change):
        def counted(*arguments, **options):
            nonlocal count
            count += 1
            if count == number and kind == "killed":
                os._exit(1)
            if count == number:
                raise OSError(5, "Input/output error")
            return change(*arguments, **options)

        return counted

    with pytest.MonkeyPatch.context() as patch, suppress(OutputError):
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync"):
            patch.setattr(os, name, ending(getattr(os, name)))
        write_files(folder, LATER, overwrite=True)
    return count >= number


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_was_killed_is_put_back_where_the_next_fails(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    write_files(folder, EARLIER)
    assert called_apart(written_until, folder, 18, "killed")
    assert content_of(folder).keys() != EARLIER.keys()
    fill_disk(monkeypatch, failing=1)
    with pytest.raises(OutputError, match="No space left"):
        write_files(folder, LATER, overwrite=True)
    assert content_of(folder) == EARLIER
