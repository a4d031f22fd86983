"""Weights in files, read strictly: no code from a file is run, every key and shape must fit.

Formats are PyTorch's zip files, its older format (before version 1.6), and safetensors. This module
reads checkpoints of `ino train` (`read_vit_backbone`), exports of `ino export` (`read_exported`)
and the weights that a training starts from, which may be releases of INO, DINO or iBOT
(`read_weights`). Networks of other projects are built in `ino.models.peers`.
"""

import argparse
import errno
import hashlib
import io
import logging
import math
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, get_args

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ino.errors import CheckpointError
from ino.models.student_teacher import NetworkName
from ino.models.vit import ARCHITECTURES, PATCH_SIZES, VisionTransformer, build_vit
from ino.schema import read_json

FORMAT = "ino-training-run"
VERSION = 1
EXPORT_FORMAT = "ino-export"
EXPORT_VERSION = 1

WEIGHTS, CONFIG, POSITIONS, CARD = (
    "model.safetensors",
    "config.json",
    "positions.safetensors",
    "README.md",
)
FEATURES_GRAPH, PROPAGATION_GRAPH = "features.onnx", "propagation.onnx"
FILES = (CONFIG, WEIGHTS, POSITIONS, CARD, FEATURES_GRAPH, PROPAGATION_GRAPH)
"""Files of an export: a plain ViT under timm's names without head and mask token; what timm and,
under `ino`, this package need to build it; the position embeddings as they were trained, where
timm's were resampled for one size of image. The configuration is written last, so a folder without
it is not whole."""

_MAX_HEADER_BYTES = 100_000_000
"""A safetensors file's header is not longer, by its definition."""
_MAX_PICKLE_BYTES = 16_000_000
"""How much of a pickle is searched for names of code."""
_HEAD_PREFIXES = ("head.", "headlist.headlist.0.")
"""Of DINO's, iBOT's and our heads, and of INO's."""
_GAIN, _DIRECTIONS = "last_layer.weight_g", "last_layer.weight_v"
_LOG = logging.getLogger("ino")


def load_plain(path: Path) -> dict[str, Any]:
    """The dictionary in a file. Only tensors, plain values and a few harmless classes are loaded.

    These classes hold values and run no code: argparse namespaces, numpy scalars and paths, which
    releases store with their options and optimizers.

    Raises:
        CheckpointError: the file is missing, truncated, would run code, or holds something else.
        OSError: the file cannot be opened or read, so its content is not known.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give a checkpoint or a run's folder")
    is_safetensors = _is_safetensors(path)  # opens it: where that fails, the file is not to blame
    try:
        if is_safetensors:
            return dict(load_file(path))
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            # It says that reading may fail, and where it does that is told below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (zipfile.is_zipfile(path) or _asks_for_code(error) or _is_pickle_of_code(path)):
            raise CheckpointError(_not_whole(path)) from error
        raise CheckpointError(
            f"{path} holds more than tensors and plain values and could run code when read; "
            "it was not read: use a file of weights alone"
        ) from error
    # What reading damaged bytes ends in: torch checks little of them.
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        struct.error,
        SafetensorError,
    ) as error:
        # Damaged bytes may name a place that no file has (EINVAL); the rest is the disk's word.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise CheckpointError(_not_whole(path)) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{path} is not a checkpoint: expected a dictionary by name, found {type(content)}"
        )
    return content


def _harmless() -> list[Any]:
    """Classes and functions that releases name in their files, by those names."""
    numbers = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.dtype,
        *numbers,
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        # Paths become pure ones, which every system has and which touch no file.
        *((PurePosixPath, f"pathlib.{name}PosixPath") for name in ("", "Pure", "_local.")),
        *((PureWindowsPath, f"pathlib.{name}WindowsPath") for name in ("", "Pure", "_local.")),
    ]


def _asks_for_code(error: pickle.UnpicklingError) -> bool:
    """Whether torch refused a class or function, and not bytes that make no sense."""
    return any(words in str(error) for words in ("GLOBAL", "reduce", "allowlisted"))


def _is_pickle_of_code(path: Path) -> bool:
    """Whether a file is a whole pickle that names a class or function, of a version newer than
    torch reads; nothing of it is run."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    try:
        named = {opcode.name for opcode, _, _ in pickletools.genops(start)}
    except (ValueError, EOFError, struct.error, OverflowError, MemoryError):
        return False
    return not named.isdisjoint({"GLOBAL", "STACK_GLOBAL", "INST"})


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors":
        return True
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= length <= _MAX_HEADER_BYTES


def _not_whole(path: Path) -> str:
    size = path.stat().st_size
    return f"{path} ({size} bytes) is not a whole checkpoint: copy or download it again"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a run's checkpoint; only tensors and plain values are ever unpickled.

    Raises:
        CheckpointError: the file is missing, truncated, would run code, or is no run's checkpoint.
    """
    content = load_plain(path)
    if content.get("format") != FORMAT:
        found = ", ".join(list(content)[:4])
        raise CheckpointError(
            f"{path} is not a checkpoint of ino train: expected the key 'format', found {found}"
        )
    _check_version(content, path)
    return content


def _check_version(content: Mapping[str, Any], source: Path) -> None:
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{source} has checkpoint version {content.get('version')}, this ino reads {VERSION}"
        )


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a file, else the newest checkpoint of the run in that folder.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        raise CheckpointError(
            f"no checkpoint found at {path}: give a checkpoint (.pt) or the folder of a run"
        )
    return found[-1]


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*.pt"))


def read_vit_backbone(
    content: Mapping[str, Any], *, source: Path, network: NetworkName = "student"
) -> VisionTransformer:
    """The backbone in the content of a run's checkpoint, in evaluation mode.

    Raises:
        CheckpointError: the checkpoint is of another version, or damaged.
        ConfigError: its architecture is unknown.
    """
    _check_version(content, source)
    try:
        model = content["config"]["model"]
        arch, patch_size, weights = model["arch"], model["patch_size"], content[network]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source} lacks {error}, which every checkpoint of ino train has; it is damaged"
        ) from error
    if not (isinstance(arch, str) and type(patch_size) is int and are_tensors(weights)):
        raise CheckpointError(
            f"{source} does not hold what every checkpoint of ino train has: expected the name of "
            f"an architecture, a patch in pixels and the tensors of the {network}; it is damaged"
        )
    prefix = "backbone."
    backbone = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    vit = build_vit(arch, patch_size=patch_size, position_grid_side=position_grid_side(backbone))
    load_exactly(vit, backbone, source=source)
    return vit.eval()


def networks_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """The networks in a file by name, `student` and `teacher`, or one network under the name "".

    The values are not checked; see `are_tensors`.
    """
    if found := {name: content[name] for name in get_args(NetworkName) if name in content}:
        return found
    inner = (content[name] for name in ("state_dict", "model") if name in content)
    return {"": next(inner, content)}


def are_tensors(weights: Any) -> bool:
    """Whether something holds tensors by name and nothing else."""
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )


def choose_network(
    networks: Mapping[str, dict[str, Any]],
    *,
    network: NetworkName | None,
    usual: NetworkName,
    source: Path,
) -> dict[str, Any]:
    """The weights of one of a file's networks, which are given as `networks_in` finds them.

    Without `network` it is the usual one, or the other one if the file does not hold that.

    Raises:
        CheckpointError: the file holds the other one only.
    """
    if "" in networks:
        warn_single_network(source, network)
        return networks[""]
    found = next(iter(networks))
    chosen = network or (usual if usual in networks else found)
    if chosen not in networks:
        raise CheckpointError(
            f"{source} holds the {found} and no {chosen}: ask for the {found}, or give a file that "
            "holds both"
        )
    return networks[chosen]


def warn_single_network(source: Path | str, network: NetworkName | None) -> None:
    """Logs a warning if `network` is given although the weights are those of a single network."""
    if network is not None:
        _LOG.warning(
            "%s has one network, which is taken: asking for the %s changes nothing", source, network
        )


def position_grid_side(backbone: dict[str, Tensor]) -> int | None:
    """Side of the square grid of a backbone's position embeddings; None if it has none.

    Raises:
        CheckpointError: the grid is not square.
    """
    if "pos_embed" not in backbone:
        return None
    shape = backbone["pos_embed"].shape
    num_positions = shape[1] - 1 if len(shape) == 3 else 0
    side = math.isqrt(max(0, num_positions))
    if side * side != num_positions or side == 0:
        raise CheckpointError(
            f"the weights have position embeddings for {num_positions} patches, expected those of "
            "a square grid: use weights of a plain ViT"
        )
    return side


def load_exactly(module: nn.Module, weights: dict[str, Tensor], *, source: Path) -> None:
    """Loads weights whose keys and shapes are exactly those of the module; see `check_exact`."""
    check_exact(module, weights, source=source)
    module.load_state_dict(weights)


def misfits(module: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """How keys and shapes of weights differ from those of the module; nothing if they are equal."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    return [
        *(f"missing {name}" for name in expected if name not in found),
        *(f"unexpected {name}" for name in found if name not in expected),
        *(
            f"{name} is {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ),
    ]


def check_exact(module: nn.Module, weights: dict[str, Tensor], *, source: Path) -> None:
    """Checks that keys and shapes of weights are exactly those of the module.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; the message names them.
    """
    if problems := misfits(module, weights):
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{source} is of another architecture: {'; '.join(problems[:3])}{more}; "
            "build the model that the weights were trained with"
        )


class Exported(NamedTuple):
    """The content of an export.

    Attributes:
        vit: the network, in evaluation mode.
        std: standard deviation by which its RGB images, 0..1, are normalized.
        protocol: name of the protocol that suits it.
        network: "student" or "teacher"; empty if unknown.
    """

    vit: VisionTransformer
    std: tuple[float, float, float]
    protocol: str
    network: str


def is_exported(path: Path) -> bool:
    """Whether a path is the folder of an export, or its file of weights.

    Raises:
        CheckpointError: it may be the weights of an export, but no configuration lies beside it.
    """
    try:
        return "ino" in _read_config(_folder(path))
    except CheckpointError as error:
        if path.name == WEIGHTS and path.is_file():
            raise CheckpointError(
                f"{path} may be the weights of an export, whose {CONFIG} tells how they are read "
                f"and must lie beside them ({error.__cause__ or error}): copy the whole folder, or "
                "rename weights that are of another project"
            ) from error
        return False


def exported_weights(path: Path) -> Path:
    """The file of weights of an export, given by its folder or by that file."""
    return _folder(path) / WEIGHTS


def read_exported(path: Path) -> Exported:
    """The network of an export, given by its folder or its file of weights.

    Raises:
        CheckpointError: a file is missing, damaged, or of another version or export.
    """
    folder = _folder(path)
    config = _read_config(folder)
    try:
        own, model = config["ino"], config["model_args"]
        found = own["format"], own["format_version"]
        std = [float(value) for value in config["pretrained_cfg"]["std"]]
        sums, num_heads = dict(own["sha256"]), model["num_heads"]
        protocol, of_run = str(own.get("protocol", "ino-davis")), str(own.get("network", ""))
        sizes = {name: model[name] for name in ("embed_dim", "depth", "patch_size")}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} is damaged: {error}; export it again") from error
    if found != (EXPORT_FORMAT, EXPORT_VERSION):
        raise CheckpointError(
            f"{folder / CONFIG} is {found[0]} version {found[1]}, this ino reads {EXPORT_FORMAT} "
            f"version {EXPORT_VERSION}; use the ino that wrote it ({own.get('ino')})"
        )
    weights = _read_tensors(folder / WEIGHTS, sha256=sums.get(WEIGHTS))
    if POSITIONS in sums:
        weights |= _read_tensors(folder / POSITIONS, sha256=sums[POSITIONS])
    # Before anything is built of such sizes.
    known = _sizes(weights)
    has_heads = type(num_heads) is int and num_heads > 0 and known["embed_dim"] % num_heads == 0
    if sizes != known or len(std) != 3 or not has_heads:
        raise CheckpointError(
            f"{folder / CONFIG} does not tell of the weights beside it: expected {known}, three "
            f"deviations and a number of heads that divides the width, found {sizes}, {std} and "
            f"{num_heads}; export it again"
        )
    vit = VisionTransformer(
        embed_dim=known["embed_dim"],
        depth=known["depth"],
        patch_size=known["patch_size"],
        num_heads=num_heads,
        position_grid_side=position_grid_side(weights),
    )
    # Nothing is masked at inference.
    weights["mask_token"] = torch.zeros_like(vit.mask_token)
    load_exactly(vit, {n: w.float() for n, w in weights.items()}, source=folder / WEIGHTS)
    return Exported(vit.eval(), (std[0], std[1], std[2]), protocol, of_run)


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What weights tell of the network that they are of; zeros where they tell nothing."""
    patch = weights.get("patch_embed.proj.weight", torch.empty(0, 0))
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    return {"embed_dim": patch.shape[0], "depth": len(blocks), "patch_size": patch.shape[-1]}


def _read_tensors(path: Path, *, sha256: str | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a whole export: {path.name} is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(
            f"{path} ({len(content)} bytes) is not the file that {CONFIG} beside it was written "
            "with: copy or download the whole folder again"
        )
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} holds no tensors ({error}); export it again") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no configuration")
    return content


def _folder(path: Path) -> Path:
    return path.parent if path.name == WEIGHTS else path


class NetworkWeights(NamedTuple):
    """Weights of one network under the names of our parameters.

    The head is empty if the file has none; `head_fault` says why a head cannot be used.
    """

    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    head_fault: str = ""


class Weights(NamedTuple):
    """The networks in a file of weights; student and teacher are equal if it has only one."""

    path: Path
    sha256: str
    student: NetworkWeights
    teacher: NetworkWeights


def read_weights(path: Path) -> Weights:
    """The networks in a file of weights, or in the newest checkpoint of a run's folder.

    Raises:
        CheckpointError: it is missing, damaged, an export, would run code, or holds no ViT that is
            known.
    """
    if is_exported(path):
        raise CheckpointError(
            f"{path} is an export, which is for inference and has no head; start from the run that "
            "it was made of"
        )
    path = find_checkpoint(path)
    content = load_plain(path)
    read = {name: split_network(w, path) for name, w in networks_in(content).items()}
    student = read.get("student") or next(iter(read.values()))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(path, digest, student, read.get("teacher", student))


def describe(backbone: dict[str, Tensor]) -> str:
    """The options of `ino train` that build this ViT, or its sizes in words if there are none."""
    dim = backbone["cls_token"].shape[-1]
    patch_size = backbone["patch_embed.proj.weight"].shape[-1]
    for name, sizes in ARCHITECTURES.items():
        if sizes["embed_dim"] == dim and patch_size in PATCH_SIZES:
            return f"--model.arch {name} --model.patch_size {patch_size}"
    return f"a ViT of width {dim} with patches of {patch_size} pixels, which is not known here"


def split_network(weights: Any, path: Path) -> NetworkWeights:
    """Backbone and head of one network, under our names.

    Raises:
        CheckpointError: they are no ViT.
    """
    if not are_tensors(weights):
        raise CheckpointError(
            f"{path} holds no network that is known: expected student, teacher, state_dict, model "
            "or tensors by name; give a run, or a release of INO, DINO or iBOT"
        )
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    head = {
        name.removeprefix(prefix): value
        for name, value in plain.items()
        for prefix in _HEAD_PREFIXES
        if name.startswith(prefix)
    }
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in plain.items()
        if not name.startswith(_HEAD_PREFIXES)
    }
    for name in ("masked_embed", "mask_token"):  # iBOT's name, ours
        if name in backbone and backbone[name].layout == torch.strided:
            backbone["mask_token"] = backbone.pop(name).reshape(1, 1, -1)
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= backbone.keys():
        raise CheckpointError(
            f"{path} holds no ViT: expected cls_token, pos_embed and patch_embed, found "
            f"{', '.join(list(backbone)[:3]) or 'nothing'}"
        )
    for name, value in backbone.items():
        is_plain = value.layout == torch.strided and value.device.type == "cpu"
        if not (is_plain and value.is_floating_point() and bool(value.isfinite().all())):
            raise CheckpointError(
                f"{path} cannot be used: expected finite numbers, but {name} holds others "
                f"({value.dtype}, {value.layout}); give weights of a training that went well"
            )
    return NetworkWeights(backbone, *_plain_head(head))


def _plain_head(head: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """A head whose last layer is a gain and directions, as directions alone; our gain is 1."""
    if _GAIN not in head:
        return head, ""
    head = dict(head)
    gain = head.pop(_GAIN)
    if _DIRECTIONS in head:
        head["last_layer.weight"] = head.pop(_DIRECTIONS)
    is_one = torch.allclose(gain, torch.ones_like(gain), atol=1e-4)
    return head, "" if is_one else "its last layer has gains other than 1"
