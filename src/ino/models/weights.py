"""Weights of networks, taken strictly: every key, shape and kind of number must fit.

This module reads checkpoints of `ino train` (`read_vit_backbone`), exports of `ino export`
(`read_exported`) and ViTs of others, such as releases of INO, DINO or iBOT (`split_network`). What
comes out of a file at all is decided in `ino.models.files`; networks of other projects are built in
`ino.models.peers`, and what a training starts from is found in `ino.models.initial`.
"""

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ino.errors import CheckpointError
from ino.models.files import load_plain
from ino.models.student_teacher import NetworkName
from ino.models.vit import ARCHITECTURES, NUM_BLOCKS, PATCH_SIZES, VisionTransformer, build_vit
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

_HEAD_PREFIXES = ("head.", "headlist.headlist.0.")
"""Of DINO's, iBOT's and our heads, and of INO's."""
_UNREAD_HEADS = ("dino_head.", "ibot_head.")
"""Of DINOv2's trainings."""
_INNER = (
    *("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "ema"),
    *("ema_state_dict", "module"),
)
"""Keys under which trainings store a network, the weights as trained before their averages."""
_WRAPPER = re.compile(r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and checkpointing of activations add to names."""
_OF_TWO = re.compile(r"(?:[^.]+\.){0,3}?(student|teacher)[._](.+)")
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")
"""DINOv2 trains its blocks in chunks, which count all blocks on."""
VIT_ANCHORS = ("cls_token", "patch_embed.proj.weight", "pos_embed")
"""Names of tensors by which a ViT is found, under any prefix."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_GAIN, _DIRECTIONS = "last_layer.weight_g", "last_layer.weight_v"
_LOG = logging.getLogger("ino")


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
        depth = model.get("depth", NUM_BLOCKS)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source} lacks {error}, which every checkpoint of ino train has; it is damaged"
        ) from error
    sizes_are_numbers = type(patch_size) is int and type(depth) is int
    if not (isinstance(arch, str) and sizes_are_numbers and are_tensors(weights)):
        raise CheckpointError(
            f"{source} does not hold what every checkpoint of ino train has: expected the name of "
            f"an architecture, a patch in pixels and the tensors of the {network}; it is damaged"
        )
    prefix = "backbone."
    backbone = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    vit = build_vit(
        arch,
        patch_size=patch_size,
        depth=depth,
        position_grid_side=position_grid_side(backbone),
    )
    load_exactly(vit, backbone, source=source)
    return vit.eval()


def networks_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """The networks in a file by name, `student` and `teacher`, or one network under the name "".

    They are found under the keys of such dictionaries, or by names of tensors that begin so, as in
    DINOv2's trainings. The values are not checked; see `are_tensors`. Names lose what
    torch.compile and FSDP add to them.
    """
    if found := {name: content[name] for name in get_args(NetworkName) if name in content}:
        return {name: _unwrapped(weights) for name, weights in found.items()}
    inner = [key for key in _INNER if isinstance(content.get(key), dict)]
    # An optimizer's state, say, is none that could have been meant.
    averages = [key for key in inner[1:] if "ema" in key and are_tensors(content[key])]
    if averages:
        _LOG.warning(
            f"the checkpoint holds {inner[0]!r} and {' and '.join(map(repr, averages))}: "
            f"{inner[0]!r} is read; to use the averages, save them as a file of their own"
        )
    if inner:
        return networks_in(content[inner[0]])
    if not are_tensors(content):
        return {"": next((content[key] for key in _INNER if key in content), content)}
    weights = _unwrapped(content)
    parts: dict[str, Any] = {}
    for name, value in weights.items():
        if match := _OF_TWO.fullmatch(name):
            parts.setdefault(match[1], {})[match[2]] = value
    return {name: parts[name] for name in get_args(NetworkName) if name in parts} or {"": weights}


def _unwrapped(weights: Any) -> Any:
    if not isinstance(weights, dict):
        return weights
    plain = {
        _WRAPPER.sub("", name) if isinstance(name, str) else name: value
        for name, value in weights.items()
    }
    return plain if len(plain) == len(weights) else weights


def without_module(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under names without the `module.` of data-parallel training."""
    return {name.removeprefix("module."): value for name, value in weights.items()}


def prefixes_of(anchors: Iterable[str], names: Iterable[str]) -> list[str]:
    """What comes before an anchor in names, for the first anchor that any name ends in."""
    names = list(names)
    for anchor in anchors:
        ends = [name for name in names if name == anchor or name.endswith(f".{anchor}")]
        if ends:
            return [name.removesuffix(anchor) for name in ends]
    return []


def vit_prefix(names: Iterable[str], *, source: Path) -> str | None:
    """The prefix of the names of a ViT's tensors; None if there is no ViT.

    Raises:
        CheckpointError: there are several.
    """
    found = prefixes_of(VIT_ANCHORS, names)
    if len(found) > 1:
        raise CheckpointError(
            f"{source} holds several ViTs, under the names {', '.join(map(repr, found[:4]))}: save "
            "the tensors of one of them alone"
        )
    return found[0] if found else None


def are_tensors(weights: Any) -> TypeGuard[dict[str, Tensor]]:
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


def vit_sizes(weights: Mapping[str, Tensor], *, source: Path) -> dict[str, int]:
    """Width, number of blocks and side of a patch in pixels of a ViT, by its tensors.

    The tensors that a network's memory grows with are checked, so that none is built that is much
    larger than what the file holds.

    Raises:
        CheckpointError: they are missing or have no shapes of a ViT.
    """
    for name in ("cls_token", "patch_embed.proj.weight"):
        if name not in weights:
            raise CheckpointError(f"{source} is a ViT that is not whole: missing {name}")
    dim = weights["cls_token"].shape[-1] if weights["cls_token"].ndim else 0
    patch_size = weights["patch_embed.proj.weight"].shape[-1:]
    found = {match[1] for name in weights if (match := re.match(r"blocks\.(\w+)\.", name))}
    depth = len(found)
    if found != {str(number) for number in range(max(1, depth))}:
        raise CheckpointError(
            f"{source} is a ViT that is not whole: expected blocks counted from 0, found blocks "
            f"{', '.join(sorted(found)[:4]) or 'of no number'}"
        )
    expected = {
        "cls_token": (1, 1, dim),
        "patch_embed.proj.weight": (dim, 3, *patch_size, *patch_size),
        **{f"blocks.{number}.attn.qkv.weight": (3 * dim, dim) for number in range(depth)},
    }
    if "pos_embed" in weights:
        expected["pos_embed"] = (1, *weights["pos_embed"].shape[1:2], dim)
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{source} is a ViT that is not whole: missing {name}")
        if tuple(weights[name].shape) != shape or 0 in shape:
            raise CheckpointError(
                f"{source} holds no ViT that can be used: {name} is {tuple(weights[name].shape)}, "
                f"and the width by its class token is {dim}"
            )
    return {"embed_dim": dim, "depth": depth, "patch_size": patch_size[0]}


def load_exactly(module: nn.Module, weights: dict[str, Tensor], *, source: Path) -> None:
    """Loads weights that are exactly those of the module; see `check_exact`."""
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


def check_exact(module: nn.Module, weights: Any, *, source: Path) -> None:
    """Checks that weights are exactly those of the module: keys, shapes, and finite numbers.

    Where the module has floating point, weights have it too, of 16 bits or more.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape, or numbers are of another
            kind, infinite or not a number; the message names them.
    """
    if not are_tensors(weights):
        raise CheckpointError(f"{source} holds no tensors by name where a network should be")
    if problems := misfits(module, weights):
        kinds = [[p for p in problems if p.startswith(k)] for k in ("missing ", "unexpected ")]
        others = [p for p in problems if not p.startswith(("missing ", "unexpected "))]
        shown = [problem for kind in (*kinds, others) for problem in kind[:2]]
        more = f" and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
        raise CheckpointError(
            f"{source} is of another architecture: {'; '.join(shown)}{more}; "
            "build the model that the weights were trained with"
        )
    for name, own in module.state_dict().items():
        value = weights[name]
        if own.is_floating_point():
            is_number = value.dtype in _FLOATS and bool(value.to(own.dtype).isfinite().all())
        else:
            is_number = not value.is_complex()
        if not is_number:
            raise CheckpointError(
                f"{source} cannot be used: expected finite numbers, but {name} holds others "
                f"({value.dtype}); give weights of a training that went well"
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


class ExportedTimm(NamedTuple):
    """The content of an export whose network is one of timm.

    Attributes:
        arch: timm:NAME.
        weights: under timm's names.
        mean, std: by which its RGB images, 0..1, are normalized.
        protocol: name of the protocol that suits it.
        network: "student" or "teacher".
    """

    arch: str
    weights: dict[str, Tensor]
    mean: tuple[float, float, float]
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


def read_exported(path: Path) -> Exported | ExportedTimm:
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
        mean = [float(value) for value in config["pretrained_cfg"]["mean"]]
        protocol, of_run = str(own.get("protocol", "ino-davis")), str(own.get("network", ""))
        sums, arch = dict(own["sha256"]), str(own.get("arch", ""))
        is_timm = arch.startswith("timm:")
        num_heads: Any = None if is_timm else model["num_heads"]
        names = () if is_timm else ("embed_dim", "depth", "patch_size")
        sizes = {name: model[name] for name in names}
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
    if is_timm and len(std) == len(mean) == 3:
        triples = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
        return ExportedTimm(arch, weights, *triples, protocol, of_run)
    # Before anything is built of such sizes.
    known = vit_sizes(weights, source=folder / WEIGHTS)
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
        has_map="head.weight" in weights,
    )
    # Nothing is masked at inference.
    weights["mask_token"] = torch.zeros_like(vit.mask_token)
    load_exactly(vit, weights, source=folder / WEIGHTS)
    return Exported(vit.eval(), (std[0], std[1], std[2]), protocol, of_run)


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


def describe(backbone: dict[str, Tensor], *, source: Path) -> str:
    """The options of `ino train` that build this ViT, or its sizes in words if there are none."""
    known = vit_sizes(backbone, source=source)
    dim, patch_size = known["embed_dim"], known["patch_size"]
    for name, sizes in ARCHITECTURES.items():
        if sizes["embed_dim"] == dim and patch_size in PATCH_SIZES:
            side = position_grid_side(backbone)
            depth = known["depth"]
            vit = build_vit(name, patch_size=patch_size, depth=depth, position_grid_side=side)
            if not misfits(vit, {"mask_token": vit.mask_token.data} | backbone):
                more = "" if depth == NUM_BLOCKS else f" --model.depth {depth}"
                return f"--model.arch {name} --model.patch_size {patch_size}{more}"
    return (
        f"a ViT of width {dim} with {known['depth']} blocks and patches of {patch_size} pixels, "
        f"which `ino train` does not build"
    )


def split_network(weights: Any, path: Path) -> NetworkWeights:
    """Backbone and head of one network, under our names.

    The names of the backbone may have any one prefix. What else is in the file is left out with a
    warning if that prefix is none of our own.

    Raises:
        CheckpointError: they are no ViT, or several.
    """
    if not are_tensors(weights):
        raise CheckpointError(
            f"{path} holds no network that is known: expected student, teacher, state_dict, model "
            "or tensors by name; give a run, or a release of INO, DINO or iBOT"
        )
    plain = without_module(weights)
    prefix = vit_prefix(plain, source=path)
    if prefix is None:
        raise CheckpointError(
            f"{path} holds no ViT: expected cls_token, pos_embed and patch_embed, found "
            f"{', '.join(list(plain)[:3]) or 'nothing'}"
        )
    heads = tuple(prefix.removesuffix("backbone.") + name for name in _HEAD_PREFIXES)
    head = {
        name.removeprefix(start): value
        for name, value in plain.items()
        for start in heads
        if name.startswith(start)
    }
    rest = {name: value for name, value in plain.items() if not name.startswith(heads)}
    if prefix:
        rest = {n: v for n, v in rest.items() if not n.startswith(_UNREAD_HEADS)}
    if prefix in ("", "backbone."):
        backbone = {name.removeprefix(prefix): value for name, value in rest.items()}
    else:
        backbone = take_prefix(rest, prefix, source=path)
    backbone = {_CHUNKED_BLOCK.sub(r"blocks.\1.", name): v for name, v in backbone.items()}
    for name in ("masked_embed", "mask_token"):  # iBOT's name, ours
        if name in backbone:
            token = backbone.pop(name)
            backbone["mask_token"] = token.reshape(1, 1, token.numel())
    return NetworkWeights(backbone, *_plain_head(head))


def take_prefix(weights: Mapping[str, Tensor], prefix: str, *, source: Path) -> dict[str, Tensor]:
    """The tensors whose names begin so, without the prefix; a warning names what is left out."""
    left = [name for name in weights if not name.startswith(prefix)]
    if left:
        _LOG.warning(
            "%s: the network is taken from the names under %s; %d other tensors are left out (%s)",
            source,
            prefix,
            len(left),
            ", ".join(left[:3]),
        )
    return {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}


def _plain_head(head: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """A head whose last layer is a gain and directions, as directions alone; our gain is 1."""
    if _GAIN not in head:
        return head, ""
    head = dict(head)
    gain = head.pop(_GAIN)
    if _DIRECTIONS in head:
        head["last_layer.weight"] = head.pop(_DIRECTIONS)
    is_one = gain.dtype in _FLOATS and torch.allclose(gain, torch.ones_like(gain), atol=1e-4)
    return head, "" if is_one else "its last layer has gains other than 1"
