"""Released checkpoints: features of formula weights equal those of each release's own code.

The golden numbers are taken from the larger files of ../shared/golden/peers: every key with its
shape, every eighth channel of the features at small sizes, and sums over all channels.
"""

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from released_files import (
    METHODS,
    by_formula,
    drawn,
    formula_weights,
    options,
    prefixed,
    released,
)
from safetensors.torch import save_file

from ino.errors import CheckpointError, ConfigError, VideoError
from ino.models import peers as peers_module
from ino.models.backbone import input_channels
from ino.models.load import load_backbone
from ino.models.peers import build_resnet, read_release
from ino.models.vit import build_vit
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker

TOLERANCE = 1e-5  # relative to the largest feature
LAYERS = dict.fromkeys(("crw", "vfs_r18", "timecycle"), 3) | dict.fromkeys(
    ("dul", "contcorr", "mast", "corrflow"), 4
)
PROTOCOLS = {"dinov2_vits14": "dinov3", "dinov3_vits16": "dinov3", "vfs_r18": "vfs"}


@pytest.fixture(scope="session")
def peers(golden):
    return golden("peer_features")


def write(content, folder, **options):
    path = folder / "weights.pth"
    torch.save(content, path, **options)
    return path


def assert_near(found: torch.Tensor, expected) -> None:
    expected = torch.as_tensor(np.asarray(expected))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def sizes_of(golden: dict, method: str) -> list[str]:
    return [
        key.split("/")[1][:-5]
        for key in golden
        if key.startswith(f"{method}/") and key.endswith("_seed")
    ]


@torch.no_grad()
def check_features(backbone, golden: dict, method: str, *, layer: int | None = None) -> None:
    """At every size that there is, in value, sum, shape, stride and length."""
    sizes = sizes_of(golden, method)
    assert sizes
    for size in sizes:
        height, width = (int(side) for side in size.split("x"))
        key = f"{method}/{size}"
        found = backbone(drawn(int(golden[f"{key}_seed"]), (1, 3, height, width)), layer=layer)[0]
        assert backbone.stride == golden[f"{method}/stride"]
        assert found.shape[0] == backbone.dims[-1]
        assert found.shape[1:] == (-(-height // backbone.stride), -(-width // backbone.stride))
        assert_near(found[:: int(golden[f"{key}_step"])], golden[f"{key}_feat"])
        _, absolute, square = golden[f"{key}_sum"]
        found = found.double()
        assert found.abs().sum().item() == pytest.approx(absolute, rel=TOLERANCE)
        assert found.square().sum().item() == pytest.approx(square, rel=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_features_of_releases(peers, method, tmp_path):
    path = write(released(method, formula_weights(peers, method)), tmp_path)
    backbone = load_backbone(path)
    assert not backbone.training
    assert backbone.num_layers == backbone.layer == LAYERS.get(method, 12)
    assert backbone.protocol == PROTOCOLS.get(method, method)
    check_features(backbone, peers, method)


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("dinov")])
def test_input_is_what_the_release_makes_of_an_image(peers, method, tmp_path):
    """Lab is OpenCV's own; the reading is there without the network."""
    reading = {"dino": peers_module._DINO}
    reading |= {one.name.lower(): one.reading for one in peers_module.RESNETS}
    values = dataclasses.asdict(reading[method.removesuffix("_r18")])
    channels = input_channels(peers[f"{method}/pre_in_rgb_u8"], values["colors"])
    found = (channels - np.float32(values["mean"])) / np.float32(values["std"])
    assert_near(torch.from_numpy(found).permute(2, 0, 1), peers[f"{method}/pre_out"])


# ---- forms of one release


@pytest.fixture(scope="module")
def vit():
    """A small network under DINO's names."""
    weights = dict(build_vit("vit_nano", patch_size=16, position_grid_side=14).state_dict())
    del weights["mask_token"]
    return weights


def full(teacher: dict, student: dict, *, head: str, extra: dict) -> dict:
    """As DINO, iBOT and INO save a run: names of the student begin with module."""
    names = ["mlp.0.weight", "mlp.2.bias", "mlp.4.bias", "last_layer.weight_g"]
    heads = {f"{head}{name}": torch.zeros(3, 2) for name in names}
    return {
        "student": prefixed(prefixed(student, "backbone.") | heads, "module."),
        "teacher": prefixed(teacher, "backbone.") | heads,
        "optimizer": {"param_groups": [{"lr": np.float64(1), "weight_decay": np.float64(2)}]},
        "epoch": 3,
        "args": options(),
        "fp16_scaler": {"scale": 65536.0},
    } | extra


@pytest.mark.parametrize("form", ["DINO", "iBOT", "iBOT's teacher", "with module.", "safetensors"])
def test_teachers_of_dino_and_ibot(vit, form, tmp_path):
    other = {key: value + 1 for key, value in vit.items()}
    ibot = full(
        vit,
        other | {"masked_embed": torch.zeros(1, 96)},
        head="head.",
        extra={"ibot_loss": {"center2": torch.zeros(3)}},
    )
    ibot["teacher"]["head.last_layer2.weight_v"] = torch.zeros(2)
    content = {
        "DINO": full(vit, other, head="head.", extra={"dino_loss": {"center": torch.zeros(3)}}),
        "iBOT": ibot,
        "iBOT's teacher": {"state_dict": vit},
        "with module.": prefixed(vit, "module."),
    }
    if form == "safetensors":
        path = tmp_path / "dino.safetensors"
        save_file(vit, path)
    else:
        path = write(content[form], tmp_path)
    backbone = load_backbone(path)
    assert (backbone.protocol, backbone.std[0], backbone.layer) == ("dino", 0.228, 12)
    found = backbone.vit.state_dict()
    assert all(torch.equal(found[key], value) for key, value in vit.items())
    assert found.keys() - vit.keys() == {"mask_token"}


def test_the_student_of_dino_is_there_for_who_asks(vit, tmp_path):
    other = {key: value + 1 for key, value in vit.items()}
    path = write(full(vit, other, head="head.", extra={}), tmp_path)
    for network, weights in {None: vit, "teacher": vit, "student": other}.items():
        loaded = load_backbone(path, network=network).vit
        assert torch.equal(loaded.cls_token, weights["cls_token"])


@pytest.mark.parametrize(("held", "asked"), [("teacher", "student"), ("student", "teacher")])
def test_a_network_that_the_file_does_not_hold(vit, held, asked, tmp_path):
    content = full(vit, vit, head="head.", extra={})
    del content[asked]
    path = write(content, tmp_path)
    with pytest.raises(CheckpointError, match=f"holds the {held} and no {asked}"):
        load_backbone(path, network=asked)
    for network in (None, held):
        assert torch.equal(load_backbone(path, network=network).vit.cls_token, vit["cls_token"])


@pytest.mark.parametrize("method", ["vit", "crw"])
def test_a_file_of_one_network_warns_who_asks_for_one_of_two(peers, vit, method, tmp_path, caplog):
    content = vit if method == "vit" else released(method, formula_weights(peers, method))
    path = write(content, tmp_path)
    load_backbone(path)
    assert not caplog.messages
    load_backbone(path, network="teacher")
    (message,) = caplog.messages
    assert "weights.pth has one network, which is taken: asking for the teacher" in message


@torch.no_grad()
def test_the_release_of_ino(golden, tmp_path):
    """Its student, read at block 7 with the final norm."""
    numbers = golden("vit_tiny8_formula_weights")
    student = {}
    for key, shape in _tiny_shapes().items():
        student[str(key)] = by_formula(key, shape)
    assert student.keys() == {str(key) for key in numbers["keys"]}
    teacher = {key: value + 1 for key, value in student.items()}
    content = full(teacher, student, head="headlist.headlist.0.", extra={"dino_loss_hw_list": {}})
    backbone = load_backbone(write(content, tmp_path))
    assert (backbone.layer, backbone.protocol, backbone.std[0]) == (7, "ino-davis", 0.228)
    name = next(key for key in numbers if key.startswith("120x208") and key.endswith("tok_slice"))
    features = backbone(drawn(22, (1, 3, 120, 208)), layer=7)
    tokens = features[0].flatten(1).T
    expected = np.asarray(numbers[name])[6].reshape(-1, 16)
    found = tokens[:: tokens.shape[0] // 8, :16]
    assert_near(found, expected)


def _tiny_shapes() -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in build_vit("vit_tiny").state_dict().items()}


def _older_crw(weights: dict) -> OrderedDict:
    """As trained, when padding was a module before each convolution."""
    weights = weights | {"selfsim_fc.0.weight": torch.zeros(128, 512)}
    for key, value in build_resnet(18, unit_stages=()).layer4.state_dict().items():
        weights[f"encoder.model.layer4.{key}"] = value
    return OrderedDict(
        (key.replace("conv1.weight", "conv1.1.weight").replace("conv2.weight", "conv2.1.weight"), v)
        for key, v in weights.items()
    )


def _vfs_training(weights: dict) -> OrderedDict:
    named = OrderedDict()
    for key, value in weights.items():
        *start, module, name = key.split(".")
        if module.startswith("conv"):
            module += ".conv"
        elif module.startswith("bn"):
            module = f"conv{module[2:]}.bn"
        else:
            module = {"0": "conv", "1": "bn"}[module]
        named[".".join(["backbone", *start, module, name])] = value
    return named | {"img_head.fc.weight": torch.zeros(2), "iteration": torch.tensor(3)}


def _without_counts(weights: dict) -> OrderedDict:
    return OrderedDict(kv for kv in weights.items() if "num_batches" not in kv[0])


@pytest.mark.parametrize(
    ("method", "change", "old_format"),
    [
        ("crw", _older_crw, True),
        ("vfs_r18", _vfs_training, False),
        ("mast", _without_counts, True),
    ],
)
def test_older_names_and_the_older_format(peers, method, change, old_format, tmp_path):
    content = released(method, change(formula_weights(peers, method)))
    path = write(content, tmp_path, _use_new_zipfile_serialization=not old_format)
    check_features(load_backbone(path), peers, method)


@torch.no_grad()
def test_the_layer_before_the_last(peers):
    """DUL's "res3", normalised as its last layer is."""
    backbone = read_release(released("dul", formula_weights(peers, "dul")), source=Path("dul.pth"))
    found = backbone(drawn(int(peers["dul/64x96_seed"]), (1, 3, 64, 96)), layer=3)[0, ::8]
    assert_near(found, peers["dul/res3_64x96"])


# ---- what is refused


@pytest.fixture(scope="module")
def mast(peers):
    return formula_weights(peers, "mast")


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("mast", {"post_convolution.bias": None}, "missing post_convolution.bias"),
        ("mast", {"post_convolution.extra": torch.zeros(1)}, "unexpected post_convolution.extra"),
        ("mast", {"post_convolution.bias": torch.zeros(3)}, r"is \(3,\) instead of \(64,\)"),
        ("crw", {"selfsim_head.0.weight": torch.zeros(1)}, "unexpected selfsim_head"),
        ("crw", {"encoder.model.layer2.0.conv1.weight": None}, "missing layer2.0.conv1.weight"),
        ("dino", {"head.weight": torch.zeros(1)}, "unexpected head.weight.*timm:"),
        ("dino", {"blocks.3.norm1.bias": None}, "missing blocks.3.norm1.bias"),
        ("dino", {"queue": torch.zeros(1)}, "unexpected queue"),
        (
            "dinov2_vits14",
            {"register_tokens": torch.zeros(1, 4, 384)},
            "timm:vit_small_patch14_reg4_dinov2@weights.pth",
        ),
        ("dinov2_vits14", {"register_tokens": torch.zeros(1)}, "with register_tokens$"),
        ("dinov3_vits16", {"rope_embed.periods": None}, "missing rope_embed.periods"),
        ("dinov3_vits16", {"blocks.0.attn.qkv.bias_mask": torch.ones(1152)}, "0 for keys"),
        ("contcorr", {"normalize.std": None}, r"missing normalize\.std"),
        ("timecycle", {"afterconv1.weight": None}, r"missing afterconv1\.weight"),
    ],
)
def test_missing_and_unexpected_tensors_are_named(peers, method, change, message):
    weights = {
        str(key): torch.zeros([int(side) for side in str(shape).split("x") if side])
        for key, shape in zip(peers[f"{method}/keys"], peers[f"{method}/shapes"], strict=True)
    }
    for key in weights:
        if key.endswith("bias_mask"):
            weights[key] = torch.from_numpy(peers[f"{method}/bias_mask_block0"])
    for key, value in change.items():
        weights.pop(key, None)
        if value is not None:
            weights[key] = value
    with pytest.raises(CheckpointError, match=message):
        read_release(released(method, weights), source=Path("weights.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"first.w": torch.zeros(1), "second.w": torch.zeros(1)}}, "first.w, second.w"),
        ({"epoch": 3, "other": 4}, "first keys are epoch, other"),
        ({}, "first keys are none"),
        ({"state_dict": {"layer1.0.conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}},
         "classifier.*does not have$"),
    ],
)  # fmt: skip
def test_unknown_kinds_say_what_is_known(content, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_backbone(write(content, tmp_path))
    if "first" in message:
        assert all(name in str(caught.value) for name in ("INO", "iBOT", "TimeCycle", "DINOv3"))


@pytest.mark.parametrize("old_format", [True, False])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_truncated_downloads(mast, old_format, keep, tmp_path):
    path = write(released("mast", mast), tmp_path, _use_new_zipfile_serialization=not old_format)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_backbone(path)


@pytest.mark.parametrize("keep", [7, 0.5, 0.999])
def test_truncated_safetensors(mast, keep, tmp_path):
    path = tmp_path / "mast.safetensors"
    save_file(dict(mast), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_backbone(path)


@torch.no_grad()
def test_layers_and_sizes_that_do_not_exist(peers, tmp_path):
    backbone = load_backbone(write(released("crw", formula_weights(peers, "crw")), tmp_path))
    with pytest.raises(ConfigError, match=r"has 1 to 3: .* its own protocol, crw"):
        backbone(torch.zeros(1, 3, 64, 64), layer=7)
    with pytest.raises(VideoError, match="at least 9 pixels"):
        backbone(torch.zeros(1, 3, 8, 64), layer=None)
    assert backbone(torch.zeros(1, 3, 9, 9), layer=None).shape == (1, 256, 2, 2)


@pytest.mark.parametrize("method", ["mast", "contcorr", "crw", "dinov2_vits14"])
def test_masks_are_carried_with_releases_under_their_protocols(peers, method):
    """Frames of sides that are no multiples; each network sees the size that is its own."""
    content = released(method, formula_weights(peers, method))
    backbone = read_release(content, source=Path("weights.pth"))
    changes = {"contcorr": {"short_side": 64, "size_multiple": 8}}.get(method, {})
    if method.startswith("dinov2"):
        changes = {"short_side": 70, "size_multiple": 14}
    protocol = get_protocol(backbone.protocol, **changes)
    frames = np.random.default_rng(0).integers(0, 256, (3, 61, 83, 3), dtype=np.uint8)
    mask = np.zeros((61, 83), dtype=np.uint8)
    mask[10:40, 20:50] = 1
    tracker = Tracker(backbone, protocol=protocol)
    grid = {"mast": (16, 21), "contcorr": (8, 10), "crw": (8, 11), "dinov2_vits14": (5, 7)}
    assert tracker._extractor(frames[0]).shape == (*grid[method], backbone.dims[-1])
    assert [labels.shape for labels in tracker.track(frames, {0: mask})] == [mask.shape] * 3


# ---- every release at full size


@pytest.mark.real
@pytest.mark.parametrize("method", METHODS)
def test_all_channels_at_all_sizes(shared_golden, method, tmp_path):
    with np.load(shared_golden / "peers" / f"features_{method}.npz") as arrays:
        numbers = {f"{method}/{key}": arrays[key] for key in arrays.files}
    for size in sizes_of(numbers, method):
        numbers[f"{method}/{size}_step"] = numbers[f"{method}/{size}_chan_stride"]
    path = write(released(method, formula_weights(numbers, method)), tmp_path)
    check_features(load_backbone(path), numbers, method)


@pytest.mark.real
@torch.no_grad()
def test_dino_at_the_size_of_davis(shared_golden, peers, tmp_path):
    """Where the grid of positions grows in one direction and shrinks in none."""
    with np.load(shared_golden / "peers" / "features_dino.npz") as arrays:
        expected = arrays["480x832_tok_slice"]
    path = write(released("dino", formula_weights(peers, "dino")), tmp_path)
    found = load_backbone(path)(drawn(34, (1, 3, 480, 832)), layer=None)[0]
    assert_near(found[::8, ::6, ::8], expected)


@pytest.mark.real
def test_the_names_are_those_of_the_releases(shared_golden, peers, tmp_path):
    """VFS's ResNet-50 and all others: names and shapes as they were listed."""
    known = json.loads((shared_golden / "peers" / "checkpoints.json").read_text())
    names = {"dino": "DINO_ViT-S16", "crw": "CRW", "vfs_r18": "VFS_R18", "dul": "DUL"}
    names |= {"timecycle": "TimeCycle", "contcorr": "ContCorr", "mast": "MAST"}
    for method, name in names.items():
        listed = set(known[name]["feature_keys"])
        ours = {str(key) for key in peers[f"{method}/keys"]}
        assert ours == listed or (method == "crw" and ours < listed)  # without layer4
    keys = known["VFS_R50"]["feature_keys"]
    weights = {key: by_formula(key, tuple(shape)) for key, (shape, _) in keys.items()}
    for content in ({"state_dict": weights, "meta": {}}, {"state_dict": _vfs_training(weights)}):
        backbone = load_backbone(write(content, tmp_path))
        assert backbone.dims == (256, 512, 1024)
    raw = set(known["VFS_R50"]["raw_training_names"])
    assert raw == {key for key in _vfs_training(weights) if key.startswith("backbone.")}
