"""Files of weights: what is read of old releases, and that code in them never runs."""

import argparse
import collections
import json
import pickle
import resource
import sys
import zipfile
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ino.errors import CheckpointError
from ino.models import files
from ino.models.files import load_plain
from ino.models.load import load_backbone
from ino.models.vit import build_vit
from ino.models.weights import FORMAT, VERSION
from processes import called_apart

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])


def written(content, folder: Path, *, zipped: bool) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
def test_what_releases_hold_beside_tensors(zipped, tmp_path):
    content = {
        "weights": collections.OrderedDict(a=torch.arange(3.0), b=torch.tensor(5)),
        "args": argparse.Namespace(lr=0.1, output=PosixPath("some") / "folder"),
        "lr": np.float64(0.25),
        "counts": [np.int64(3), np.float32(0.5), np.bool_(True)],
        "milestones": collections.Counter([5, 10]),
        "epoch": 3,
    }
    found = load_plain(written(content, tmp_path, zipped=zipped))
    assert found["weights"]["a"].tolist() == [0, 1, 2]
    assert found["args"].lr == 0.1
    assert str(found["args"].output) == "some/folder"
    assert (found["lr"], found["counts"]) == (content["lr"], content["counts"])
    assert found["milestones"] == content["milestones"]


def test_numpy_s_older_names_are_known(tmp_path):
    """numpy.core became numpy._core; files from before keep the old name."""
    path = written({"score": np.float64(0.25)}, tmp_path, zipped=False)
    whole = path.read_bytes()
    assert b"numpy._core.multiarray" in whole
    path.write_bytes(whole.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_plain(path) == {"score": 0.25}


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class Reading:
    """Would read a file by a class that is not on the list."""

    def __reduce__(self):
        return (np.fromfile, ("/dev/null",))


@FORMATS
def test_code_is_never_run_and_is_told_from_damage(zipped, tmp_path):
    mark = tmp_path / "executed"
    for trap in (Trap(mark), Reading()):
        path = written({"model": {"a": torch.zeros(2)}, "extra": trap}, tmp_path, zipped=zipped)
        with pytest.raises(CheckpointError, match="could run code"):
            load_plain(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_pickles_that_torch_did_not_write(protocol, tmp_path, recwarn):
    mark, path = tmp_path / "executed", tmp_path / "evil.pkl"
    whole = pickle.dumps({"model": Trap(mark)}, protocol=protocol)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="could run code"):
        load_plain(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"could run code|not a whole"):
        load_plain(path)
    assert not mark.exists()
    assert not recwarn.list


def test_paths_of_files_touch_nothing(tmp_path):
    """They become pure paths, which have no way to the disk."""
    found = load_plain(written({"at": tmp_path}, tmp_path, zipped=True))
    assert not hasattr(found["at"], "touch")


@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", b"\x00" * 100, b"junk", pickle.dumps({"a": 1})[:-3]]
)
def test_other_files_are_no_checkpoints(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{len(content)} bytes\) is not a whole checkpoint"):
        load_plain(path)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")]
)
@pytest.mark.parametrize("place", ["opening", "reading"])
def test_what_the_system_refuses_is_not_called_damage(tmp_path, monkeypatch, error, place):
    path = written({"a": torch.zeros(1)}, tmp_path, zipped=True)

    def refuse(*_, **__):
        raise error

    target, name = (Path, "open") if place == "opening" else (files.zipfile.ZipFile, "read")
    monkeypatch.setattr(target, name, refuse)
    with pytest.raises(OSError, match=error.strerror):
        load_plain(path)


def test_random_damage_is_always_one_error(tmp_path):
    path = written({"state_dict": {"a": torch.arange(50.0)}}, tmp_path, zipped=False)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    rng = np.random.default_rng(0)
    num_refused = 0
    for _ in range(200):
        damaged = whole.copy()
        places = rng.integers(0, len(whole), 5)
        damaged[places] = rng.integers(0, 256, 5)
        path.write_bytes(damaged.tobytes())
        try:
            load_plain(path)
        except CheckpointError:
            num_refused += 1
    assert num_refused > 50


TWINS = torch.zeros(100_000)


def nested(depth: int) -> dict:
    content: dict = {}
    for _ in range(depth):
        content = {"model": content}
    return content


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.eye(3).to_sparse()}, "a sparse tensor"),
        ({"a": torch.empty(3, device="meta")}, "a meta tensor"),
        ("quantized", "a quantized tensor"),
        ("nested", "a nested tensor"),
        ({"a": torch.zeros(1).expand(10**9)}, "of which the file holds 1;"),
        ({"a": torch.zeros(200).as_strided((60, 60), (1, 1))}, "has 3600 numbers"),
        (nested(200), "more than 60 deep"),
        ({"a." * 100: torch.zeros(1)}, "a name of 200 letters"),
        ({f"{number}": TWINS[:] for number in range(60)}, "many times larger than the file"),
    ],
)
def test_tensors_that_are_not_plain(content, message, tmp_path):
    if content == "quantized":  # to make these warns
        content = {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}
    if content == "nested":
        content = {"a": torch.nested.nested_tensor([torch.zeros(2)])}
    for zipped in (True, False):
        with pytest.raises(CheckpointError, match=message):
            load_plain(written(content, tmp_path, zipped=zipped))


def test_numbers_that_a_storage_does_not_hold(tmp_path):
    """A shape beyond the storage makes PyTorch enlarge the storage."""
    path = written({"a": torch.zeros(5)}, tmp_path, zipped=False)
    content = path.read_bytes()
    assert content.count(b"K\x05\x85") == 1
    path.write_bytes(content.replace(b"K\x05\x85", b"J\x00\x00\x00\x40\x85"))
    with pytest.raises(CheckpointError, match="1073741824 numbers, of which the file holds 5"):
        load_plain(path)


def test_any_flipped_bit_is_found(tmp_path):
    path = written({"a": torch.arange(500.0), "b": 3}, tmp_path, zipped=True)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = [
            (whole.index(archive.read(info), info.header_offset), info.file_size)
            for info in archive.infolist()
        ]
    assert len(places) > 4
    for start, size in places:
        for place in (start, start + size - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="not a whole checkpoint"):
                load_plain(path)


class Call:
    """What a pickle says in place of a value."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def void_of_a_gigabyte() -> Call:
    return Call(np.float64(0).__reduce__()[0], Call(np.dtype, "V1500000000"))


BOMBS = {
    "void": {"a": void_of_a_gigabyte()},
    "text": {"a": Call(np.float64(0).__reduce__()[0], Call(np.dtype, "U900000000"), b"")},
    "bytes": {"a": Call(bytearray, 1_500_000_000)},
    "tensor": {"a": Call(torch.Tensor, 700_000_000)},
    "expanded": {"a": torch.zeros(1).expand(700_000_000)},
    "wide ViT": {
        "cls_token": torch.zeros(1, 1, 4096),
        "pos_embed": torch.zeros(1, 2, 4096),
        "patch_embed.proj.weight": torch.zeros(1, 1, 1, 1).expand(4096, 3, 1, 1).clone(),
        **{f"blocks.{number}.norm1.weight": torch.zeros(1) for number in range(12)},
    },
    "deep ViT": build_vit("vit_nano").state_dict() | {"blocks.99999.norm1.weight": torch.zeros(1)},
}


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_small_files_take_no_gigabyte(tmp_path):
    paths = []
    for name, content in BOMBS.items():
        for zipped in (True, False):
            paths.append(tmp_path / f"{name} {zipped}.pth")
            torch.save(content, paths[-1], _use_new_zipfile_serialization=zipped)
    assert called_apart(those_that_take_much, paths) == []


def those_that_take_much(paths: list[Path]) -> list[str]:
    """Files, all of no use, with which the peak of this process grows beyond 200 MB."""
    found, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in paths:
        with pytest.raises(CheckpointError):
            load_backbone(path)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > before + 200_000:
            found.append(path.name)
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": torch.zeros(96, dtype=torch.bool)}, r"norm.bias holds others \(torch.bool"),
        ({"norm.bias": torch.zeros(96, dtype=torch.complex64)}, "torch.complex64"),
        ({"norm.bias": torch.zeros(96, dtype=torch.int64)}, "torch.int64"),
        ({"norm.bias": torch.full((96,), torch.nan)}, "expected finite numbers, but norm.bias"),
        ({"norm.bias": torch.full((96,), 1e300, dtype=torch.float64)}, "torch.float64"),
        ({"cls_token": torch.tensor(1.0)}, r"cls_token is \(\)"),
        ({"cls_token": torch.empty(0)}, r"cls_token is \(0,\)"),
        ({"patch_embed.proj.weight": torch.tensor(1.0)}, r"patch_embed.proj.weight is \(\)"),
        ({"pos_embed": torch.tensor(1.0)}, r"pos_embed is \(\)"),
        ({"mask_token": torch.empty(0)}, "mask_token is"),
        ({"blocks.7.attn.qkv.weight": torch.empty(0)}, r"blocks.7.attn.qkv.weight is \(0,\)"),
        ({"blocks.13.norm1.bias": torch.zeros(96)}, "blocks counted from 0"),
    ],
)
@pytest.mark.parametrize("kind", ["release", "run", "safetensors"])
def test_every_way_in_refuses_the_same(change, message, kind, tmp_path):
    weights = dict(build_vit("vit_nano").state_dict()) | change
    path = tmp_path / "step_00000001.pt"
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "release":
        torch.save(weights, path)
    else:
        named = {f"backbone.{name}": value for name, value in weights.items()}
        config = {"model": {"arch": "vit_nano", "patch_size": 8}}
        content = {"format": FORMAT, "version": VERSION, "config": config, "student": named}
        torch.save(content, path)
    shape = r"another architecture|position embeddings for 0"
    with pytest.raises(CheckpointError, match=f"{message}|{shape}" if kind == "run" else message):
        load_backbone(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_checkpoint_of_tensors_here(tmp_path):
    jagged = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.jagged)
    torch.save({"state_dict": {"cls_token": jagged}}, tmp_path / "jagged.pt")
    torch.jit.script(torch.nn.Linear(3, 4)).save(tmp_path / "script.pt")
    head = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    big_endian = len(head).to_bytes(8, "big") + head + bytes(8)
    (tmp_path / "big.safetensors").write_bytes(big_endian)
    np.savez(tmp_path / "big.npz", cls_token=np.zeros((1, 1, 192), ">f4"))
    told = {
        "jagged.pt": "holds a nested tensor",
        "script.pt": "is a TorchScript program",
        "big.safetensors": "is not a whole checkpoint",
        "big.npz": "is not a whole checkpoint",
    }
    for name, message in told.items():
        with pytest.raises(CheckpointError, match=message):
            load_backbone(tmp_path / name)


def test_averages_beside_the_weights_are_told(tmp_path, caplog):
    weights = build_vit("vit_tiny", patch_size=16).state_dict()
    other = {name: value + 1 for name, value in weights.items()}
    torch.save({"model": weights, "model_ema": other, "optimizer": {}}, tmp_path / "w.pt")
    load_backbone(tmp_path / "w.pt")
    assert "holds 'model' and 'model_ema': 'model' is read" in caplog.text
