"""`ino export`: writes a network of a run as weights, configuration, model card and ONNX graphs.

The network is cut after a block and its weights are rounded, then written as timm, hubs and ino
read them (`ino.models.weights` says what the files are). The files of an export are replaced
together or not at all, and files of others never. Nothing is uploaded.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from jinja2 import Environment, StrictUndefined
from torch import Tensor, nn

from ino import __version__
from ino.data.views import IMAGENET_MEAN
from ino.errors import ConfigError, OutputError
from ino.models.backbone import TIMM, flexible_arguments, split_stride, std_of_run
from ino.models.load import backbone_of, read_trained
from ino.models.masked_timm import MaskedTimm
from ino.models.vit import VisionTransformer, interpolate_positions
from ino.models.weights import (
    CARD,
    CONFIG,
    EXPORT_FORMAT,
    EXPORT_VERSION,
    FEATURES_GRAPH,
    FILES,
    POSITIONS,
    PROPAGATION_GRAPH,
    WEIGHTS,
    NetworkName,
    find_checkpoint,
    is_exported,
    read_checkpoint,
)
from ino.onnx import ImageSize, check_onnx, check_size, features_onnx, propagation_graph
from ino.propagate.protocols import fit_layer, get_protocol
from ino.system import LOCK_NAME, atomic_path, folder_lock, new_folder
from ino.tables import markdown_cell, shown
from ino.tasks.results import sized_protocol

Precision = Literal["fp32", "fp16"]
Vit = TypeVar("Vit", bound=torch.nn.Module)

PROTOCOL = "ino-davis"
"""The protocol whose layer is exported by default and whose step the ONNX graph computes."""

WORK = ".ino-export"
"""The hidden folder that is there while an export is written."""

_TIMM_NAMES = {96: "tiny", 192: "tiny", 384: "small", 768: "base"}
"""The timm model of each width; the others' sizes are all in `model_args`."""

_TOLD = {
    "loss weights (g2g, l2g, masked, affinity)": (
        *("loss.g2g", "loss.l2g", "loss.masked", "loss.affinity"),
    ),
    "frames of a clip": ("data.clip_length",),
    "clips of a step on each device": ("data.batch_size",),
    "global and local crops, pixels per side": ("views.global_size", "views.local_size"),
    "local crops of a frame": ("views.num_local",),
    "length of the schedules, epochs": ("optim.epochs",),
    "learning rate (peak, end)": ("optim.lr", "optim.min_lr"),
    "seed": ("run.seed",),
}
"""What the card tells of the training, by dotted fields of a run: never paths."""


def export_run(
    run: Path,
    *,
    out: Path,
    network: NetworkName = "student",
    layer: int | Literal["all"] | None = None,
    precision: Precision = "fp32",
    image_size: ImageSize | None = None,
    onnx: bool = False,
    suits: str = PROTOCOL,
    license_name: str = "",
    data: str = "",
    overwrite: bool = False,
) -> list[Path]:
    """Writes an export, whole or not at all, and returns the paths of its files.

    Args:
        run: folder of a run, or a checkpoint.
        out: folder to write.
        network: `student`, as the authors evaluate, or `teacher`.
        layer: the last block, counted from 1; None for the one that protocol ino-davis reads, or
            the last where there are fewer.
        precision: of the stored weights.
        image_size: height and width for which timm's features equal ours; None for the size that
            the position embeddings were trained for.
        onnx: write features.onnx and propagation.onnx, for `image_size`.
        suits: name of the protocol under which the weights do best.
        license_name: of the weights, for the card.
        data: what the run learned from, in words, for the card.
        overwrite: accept a folder that holds something.

    Raises:
        CheckpointError: there is no such run, or its checkpoint cannot be used.
        ConfigError: there is no such layer or protocol, the size is no multiple of the patch, or
            `onnx` lacks a size or what it needs is not installed.
        OutputError: the folder holds something and `overwrite` is off, or cannot be written to.
    """
    if onnx:
        check_onnx()
        if image_size is None:
            raise ConfigError(
                "--onnx makes graphs for one size of image: add --image-size HEIGHTxWIDTH, "
                "multiples of the patch, such as 480x848"
            )
    if out.resolve() == run.resolve():
        raise OutputError(f"{out} is the run itself: choose another --out")
    get_protocol(suits)  # raises where there is none
    with _locked(out) if out.is_dir() else nullcontext():
        protocol = sized_protocol(PROTOCOL, short_side=min(image_size) if image_size else None)
        checkpoint = find_checkpoint(run)
        content = read_checkpoint(checkpoint)
        config = content["config"]
        whole = read_trained(content, source=checkpoint, network=network)
        if isinstance(whole, MaskedTimm):
            if layer not in (None, "all"):
                raise ConfigError(
                    f"{whole.arch} is exported whole: leave --layer out; layers are chosen when "
                    "they are read"
                )
            timm_reads = backbone_of(whole, variant=config.get("variant"))
            depth, own_layer, vit = timm_reads.num_layers, timm_reads.num_layers, whole
            suits = timm_reads.protocol if suits == PROTOCOL else suits
        else:
            protocol = fit_layer(protocol, [whole.patch_size] * whole.depth)
            layer = protocol.layer if layer is None else layer
            vit = truncate(whole, layer=None if layer == "all" else layer)
            depth, own_layer = whole.depth, vit.depth
        vit = round_weights(vit, precision=precision)
        sha256 = (content.get("init") or {}).get("sha256")
        facts = {
            "network": network,
            "layer": own_layer,
            "layers_of_the_run": depth,
            "protocol": suits,
            "license": license_name,
            "data": data,
            "arch": config["model"]["arch"],
            "variant": config.get("variant", "paper"),
            "steps": content.get("step"),
            "started_from": f"weights with SHA-256 {sha256}" if sha256 else "random weights",
        }
        if onnx:
            facts["onnx"] = protocol.as_dict()
        std = vit.std if isinstance(vit, MaskedTimm) else std_of_run(config.get("variant"))
        files = export_files(vit, std=std, precision=precision, image_size=image_size, facts=facts)
        if onnx and image_size is not None:
            files[FEATURES_GRAPH] = features_onnx(vit, std=std, image_size=image_size)
            files[PROPAGATION_GRAPH] = propagation_graph(protocol).SerializeToString()
        files[CARD] = _model_card(json.loads(files[CONFIG]), training=config, files=files).encode()
        write_files(out, files, overwrite=overwrite)
        return [out / name for name in files]


def truncate(vit: VisionTransformer, *, layer: int | None) -> VisionTransformer:
    """A copy of the first `layer` blocks of a network, in evaluation mode.

    Args:
        vit: a network.
        layer: its last block, counted from 1; None for all.

    Raises:
        ConfigError: there is no such layer.
    """
    layer = vit.depth if layer is None else layer
    if not 1 <= layer <= vit.depth:
        raise ConfigError(f"there is no layer {layer}; this network has 1 to {vit.depth}")
    shorter = VisionTransformer(
        embed_dim=vit.embed_dim,
        num_heads=_num_heads(vit),
        depth=layer,
        patch_size=vit.patch_size,
        position_grid_side=_position_side(vit),
    )
    later = tuple(f"blocks.{number}." for number in range(layer, vit.depth))
    shorter.load_state_dict(
        {name: w for name, w in vit.state_dict().items() if not name.startswith(later)}
    )
    return shorter.eval()


def round_weights(vit: Vit, *, precision: Precision) -> Vit:
    """Rounds the weights of a network in place to a precision, and returns the network.

    It still computes in fp32. With precision fp32 nothing changes.

    Raises:
        ConfigError: a weight is too large for the precision.
    """
    if precision == "fp16":
        with torch.no_grad():
            for name, value in vit.state_dict().items():
                if not value.is_floating_point():
                    continue
                value.copy_(value.half())
                if not value.isfinite().all():
                    raise ConfigError(
                        f"{name} has values too large for fp16: take --precision fp32"
                    )
    return vit


def export_files(
    vit: VisionTransformer | MaskedTimm,
    *,
    std: tuple[float, float, float],
    precision: Precision = "fp32",
    image_size: ImageSize | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The content of each file that timm and `read_exported` need, by name.

    Args:
        vit: see `truncate` and `round_weights`.
        std: deviation by which images are normalized.
        precision: of the stored weights.
        image_size: for which position embeddings are stored, multiples of the patch; None for the
            grid of training.
        facts: other things to keep in the configuration.

    Raises:
        ConfigError: the size is no multiple of the patch.
    """
    network = vit.network if isinstance(vit, MaskedTimm) else vit
    weights = {name: w.detach() for name, w in network.state_dict().items() if name != "mask_token"}
    files = {}
    if image_size is not None:
        check_size(image_size, patch_size=vit.patch_size)
    if image_size is not None and isinstance(vit, VisionTransformer):
        rows, columns = (side // vit.patch_size for side in image_size)
        trained = weights["pos_embed"]
        files[POSITIONS] = _as_bytes({"pos_embed": trained}, precision)
        weights["pos_embed"] = interpolate_positions(trained, rows=rows, columns=columns)
    files[WEIGHTS] = _as_bytes(weights, precision)
    own = {
        "format": EXPORT_FORMAT,
        "format_version": EXPORT_VERSION,
        "ino": __version__,
        "precision": precision,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        **(facts or {}),
    }
    if isinstance(vit, MaskedTimm):
        config = {**_config_of_timm(vit), "ino": own}
    else:
        config = {**_timm_config(vit, std=std, image_size=image_size), "ino": own}
    files[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    return files


def _timm_config(
    vit: VisionTransformer, *, std: tuple[float, float, float], image_size: ImageSize | None
) -> dict[str, Any]:
    """What timm builds the model from; `ino` in the file is what it does not read."""
    name = f"vit_{_TIMM_NAMES.get(vit.embed_dim, 'base')}_patch16_224"
    size = image_size or (_position_side(vit) * vit.patch_size,) * 2
    # A linear map after the final norm is a head that timm applies to all tokens.
    has_map = isinstance(vit.head, nn.Linear)
    num_classes, pool = (vit.embed_dim, "") if has_map else (0, "token")
    return {
        "architecture": name,
        "num_classes": num_classes,
        "num_features": vit.embed_dim,
        "global_pool": pool,
        "model_args": {
            "img_size": list(size),
            "patch_size": vit.patch_size,
            "embed_dim": vit.embed_dim,
            "depth": vit.depth,
            "num_heads": _num_heads(vit),
            "dynamic_img_size": True,
            **({"global_pool": pool} if has_map else {}),
        },
        "pretrained_cfg": {
            "architecture": name,
            "num_classes": num_classes,
            "input_size": [3, *size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": list(IMAGENET_MEAN),
            "std": list(std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _config_of_timm(vit: MaskedTimm) -> dict[str, Any]:
    """The same for a network of timm, which is exported as it is."""
    name, stride = split_stride(vit.arch.removeprefix(TIMM))
    known: dict[str, Any] = dict(vit.network.pretrained_cfg)
    arguments = flexible_arguments(name, stride=stride)
    # The grid of position embeddings, which timm takes from elsewhere for some of its models.
    if size := getattr(getattr(vit.network, "patch_embed", None), "img_size", None):
        arguments["img_size"] = list(size)
    kept = (
        *("architecture", "input_size", "fixed_input_size", "interpolation", "crop_pct"),
        *("first_conv", "classifier"),
    )
    config = {key: known[key] for key in kept if known.get(key) is not None}
    return {
        "architecture": name.partition(".")[0],
        "num_classes": 0,
        "num_features": vit.embed_dim,
        "model_args": arguments,
        "pretrained_cfg": {
            **config,
            "num_classes": 0,
            "mean": list(vit.mean),
            "std": list(vit.std),
        },
    }


def _as_bytes(weights: Mapping[str, Tensor], precision: Precision) -> bytes:
    dtype = torch.float16 if precision == "fp16" else torch.float32
    plain = {
        name: value.to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in weights.items()
    }
    return safetensors.torch.save(plain, metadata={"format": "pt"})


def _position_side(vit: VisionTransformer) -> int:
    """Positions per side of the grid of position embeddings."""
    return math.isqrt(vit.pos_embed.shape[1] - 1)


def _num_heads(vit: VisionTransformer) -> int:
    return vit.blocks[0].attn.num_heads  # pyright: ignore


def _model_card(
    config: Mapping[str, Any], *, training: Mapping[str, Any], files: Iterable[str]
) -> str:
    """The text of README.md, with the header that hubs read.

    Args:
        config: the content of config.json.
        training: the configuration of the run.
        files: names of the files of the export.
    """
    rows = {}
    for words, names in _TOLD.items():
        found = [name.partition(".") for name in names]
        values = [training.get(section, {}).get(field) for section, _, field in found]
        if None not in values:
            rows[words] = ", ".join(map(str, values))
    page = Environment(
        undefined=StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters["one_line"] = lambda text: " ".join(text.split())
    page.filters["cell"] = lambda text: markdown_cell(" ".join(text.split()))
    size = config["model_args"].get("img_size") or config["pretrained_cfg"]["input_size"][1:]
    template = Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8")
    return page.from_string(template).render(
        own={"onnx": None, **config["ino"]},
        model=config["model_args"],
        images=config["pretrained_cfg"],
        size="x".join(map(str, size)),
        is_timm=config["ino"].get("arch", "").startswith(TIMM),
        training=rows,
        files=list(files),
    )


def write_files(folder: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Writes an export whole; where that fails, the folder is as it was.

    New files are written into a hidden folder first. Then the files of an earlier export are moved
    into that folder and the new ones out of it. An error undoes this at once; if the process is
    killed, the next export into the folder undoes it.

    Args:
        folder: created if needed.
        files: see `FILES`, `config.json` among them; an export that was there loses those that are
            not given.
        overwrite: accept a folder that holds something. An earlier export is replaced; files of
            these names that belong to none are not.

    Raises:
        OutputError: the folder holds something and `overwrite` is off, or files of others under
            these names, it cannot be written to, or another command is writing into it.
    """
    was_there = folder.is_dir()
    try:
        with _locked(folder):
            new_folder(folder, overwrite=overwrite)
            _put_back(folder)
            _check_replaceable(folder)
            try:
                _replace(folder, files)
            except BaseException:
                _put_back(folder)
                raise
    except OSError as error:
        raise OutputError(
            f"cannot write to the folder {folder}: {error.strerror or error}"
        ) from error
    finally:
        if not was_there:
            with suppress(OSError):  # it holds the export
                folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, and leaves no lock file among what may be published."""
    with folder_lock(folder, command="ino export"):
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / LOCK_NAME).unlink()


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Puts files into the place of those of an earlier export, the configuration last."""
    new, leaving, earlier = (folder / WORK / name for name in ("new", "leaving", "earlier"))
    new.mkdir(parents=True)
    leaving.mkdir()
    for name, content in files.items():
        with atomic_path(new / name) as temporary:
            temporary.write_bytes(content)
    _move(FILES, folder, leaving)
    leaving.rename(earlier)  # from here on, what has these names in the folder is new
    _move([*(name for name in files if name != CONFIG), CONFIG], new, folder)
    earlier.rename(folder / WORK / "replaced")  # from here on nothing is put back
    shutil.rmtree(folder / WORK, ignore_errors=True)


def _put_back(folder: Path) -> None:
    """Undoes what `_replace` began, however far it came; the configuration comes last."""
    leaving, earlier = (folder / WORK / name for name in ("leaving", "earlier"))
    if earlier.is_dir():
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        earlier.rename(leaving)
    if leaving.is_dir():
        _move(reversed(FILES), leaving, folder)
    if os.path.lexists(folder / WORK):
        shutil.rmtree(folder / WORK)


def _check_replaceable(folder: Path) -> None:
    """Raises OutputError where a file that an export would replace is of no export."""
    for name in FILES:
        path = folder / name
        if os.path.lexists(path) and not (path.is_file() and is_exported(folder)):
            raise OutputError(
                f"{path} belongs to no export, and --overwrite replaces nothing else: move it away "
                "or choose another --out"
            )


def _move(names: Iterable[str], source: Path, target: Path) -> None:
    """Moves those of the files that are there; links move, and what they point to stays."""
    for name in names:
        if os.path.lexists(source / name):
            (source / name).replace(target / name)
