"""What an export is made of: a network cut, rounded and written as timm and ino read it.

`ino.models.weights` tells what the files are, `ino.export` writes them.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import yaml
from torch import Tensor

from ino import __version__
from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import ConfigError, OutputError
from ino.models.load import RELEASED_STD
from ino.models.vit import VisionTransformer, interpolate_positions
from ino.models.weights import (
    CARD,
    CONFIG,
    FEATURES_GRAPH,
    FILES,
    POSITIONS,
    PROPAGATION_GRAPH,
    WEIGHTS,
    NetworkName,
    find_checkpoint,
    is_exported,
    read_checkpoint,
    vit_of,
)
from ino.models.weights import EXPORT_FORMAT as FORMAT
from ino.models.weights import EXPORT_VERSION as VERSION
from ino.onnx import ImageSize, check_onnx, check_size, features_onnx, propagation_graph
from ino.propagate.protocols import Protocol, get_protocol
from ino.system import atomic_path, new_folder
from ino.tasks.results import sized_protocol

Precision = Literal["fp32", "fp16"]
_NAMED = {96: "tiny", 192: "tiny", 384: "small", 768: "base"}
"""The timm model of each width; the others' sizes are all in `model_args`."""


def truncate(vit: VisionTransformer, *, layer: int | None) -> VisionTransformer:
    """The network up to a block, in evaluation mode, with the weights of the given one.

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
        position_side=_side(vit),
    )
    later = tuple(f"blocks.{number}." for number in range(layer, vit.depth))
    shorter.load_state_dict(
        {name: w for name, w in vit.state_dict().items() if not name.startswith(later)}
    )
    return shorter.eval()


def round_weights(vit: VisionTransformer, *, precision: Precision) -> VisionTransformer:
    """The network with the weights that a file of this precision holds, still computing in fp32.

    Raises:
        ConfigError: a weight is too large for the precision.
    """
    if precision == "fp16":
        with torch.no_grad():
            for name, value in vit.named_parameters():
                value.copy_(value.half())
                if not value.isfinite().all():
                    raise ConfigError(
                        f"{name} has values too large for fp16: take --precision fp32"
                    )
    return vit


def export_files(
    vit: VisionTransformer,
    *,
    std: tuple[float, float, float],
    precision: Precision = "fp32",
    image_size: ImageSize | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The content of each file that timm and `read_exported` need, by name.

    Args:
        vit: see `truncate` and `round_weights`.
        std: deviation by which images are normalised.
        precision: of the stored weights.
        image_size: for which position embeddings are stored, multiples of the patch; None for the
            grid of training.
        facts: other things to keep in the configuration.

    Raises:
        ConfigError: the size is no multiple of the patch.
    """
    weights = {name: w.detach() for name, w in vit.state_dict().items() if name != "mask_token"}
    files = {}
    trained_side = _side(vit) * vit.patch_size
    if image_size is not None:
        check_size(image_size, patch_size=vit.patch_size)
        rows, columns = (side // vit.patch_size for side in image_size)
        files[POSITIONS] = _bytes({"pos_embed": weights["pos_embed"]}, precision)
        weights["pos_embed"] = interpolate_positions(
            weights["pos_embed"], rows=rows, columns=columns
        )
    files[WEIGHTS] = _bytes(weights, precision)
    own = {
        "format": FORMAT,
        "format_version": VERSION,
        "ino": __version__,
        "precision": precision,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        **(facts or {}),
    }
    config = _timm_config(vit, std=std, image_size=image_size or (trained_side, trained_side)) | {
        "ino": own
    }
    files[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    return files


def _timm_config(
    vit: VisionTransformer, *, std: tuple[float, float, float], image_size: ImageSize
) -> dict[str, Any]:
    """What timm builds the model from; `ino` in the file is what it does not look at."""
    name = f"vit_{_NAMED.get(vit.embed_dim, 'base')}_patch16_224"
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": vit.embed_dim,
        "global_pool": "token",
        "model_args": {
            "img_size": list(image_size),
            "patch_size": vit.patch_size,
            "embed_dim": vit.embed_dim,
            "depth": vit.depth,
            "num_heads": _num_heads(vit),
            "dynamic_img_size": True,
        },
        "pretrained_cfg": {
            "architecture": name,
            "num_classes": 0,
            "input_size": [3, *image_size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": list(IMAGENET_MEAN),
            "std": list(std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _bytes(weights: Mapping[str, Tensor], precision: Precision) -> bytes:
    dtype = torch.float16 if precision == "fp16" else torch.float32
    plain = {name: value.to("cpu", dtype).contiguous() for name, value in weights.items()}
    return safetensors.torch.save(plain, metadata={"format": "pt"})


def _side(vit: VisionTransformer) -> int:
    """Positions a side of the grid of position embeddings."""
    return math.isqrt(vit.pos_embed.shape[1] - 1)


def _num_heads(vit: VisionTransformer) -> int:
    return vit.blocks[0].attn.num_heads  # pyright: ignore


# The folder of an export, whose files are replaced together or not at all.
#
# New files are written whole into a hidden folder beside the earlier ones, which then move into
# that folder as the new ones move out of it. What fails on the way is taken back at once, and what
# was killed on the way when the folder is written again. Two exports into one folder at once are
# not told apart.


WORK = ".ino-export"
"""The hidden folder, there while an export is written."""


def write_files(folder: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Writes an export whole; where that fails, the folder is as it was.

    Args:
        folder: created if needed.
        files: see `FILES`, `config.json` among them; an export that was there loses those that are
            not given.
        overwrite: accept a folder that holds something. An earlier export is replaced; files of
            these names that belong to none are not.

    Raises:
        OutputError: the folder holds something and `overwrite` is off, or files of others under
            these names, or it cannot be written to.
    """
    was_there = folder.is_dir()
    new_folder(folder, overwrite=overwrite)
    try:
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
    """Takes back what `_replace` began, however far it came; the configuration comes last."""
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


# The card of an export: what the network is, how it was trained, how to load it, what is missing.
#
# Names of folders and files of the training are in it only where the user wants them.


_SETTINGS = {
    "loss weights (g2g, l2g, masked, affinity)": (
        "loss.g2g",
        "loss.l2g",
        "loss.masked",
        "loss.affinity",
    ),
    "frames of a clip": ("data.clip_length",),
    "clips of a step on each device": ("data.batch_size",),
    "global and local crops, pixels a side": ("views.global_size", "views.local_size"),
    "local crops of a frame": ("views.num_local",),
    "length of the schedules, epochs": ("optim.epochs",),
    "learning rate (peak, end)": ("optim.lr", "optim.min_lr"),
    "seed": ("run.seed",),
}
"""What the card tells of the training, by dotted fields of a run."""


def model_card(
    config: Mapping[str, Any], *, training: Mapping[str, Any], files: Sequence[str]
) -> str:
    """The text of README.md, with the header that hubs read.

    Args:
        config: the content of config.json.
        training: the configuration of the run.
        files: names of the files of the export.
    """
    own, model = config["ino"], config["model_args"]
    parts = [
        _header(own["license"]),
        f"# {own['arch']}/{model['patch_size']}, trained on unlabeled video\n",
        _what(config),
        _training(own, training),
        _loading(config, files),
    ]
    if FEATURES_GRAPH in files:
        parts.append(_about_graphs(config))
    parts.append(_licence(own["license"]))
    return "\n".join(parts)


def _header(license_name: str) -> str:
    fields: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["timm", "ino", "self-supervised", "video-object-segmentation"],
    }
    if license_name:
        fields["license"] = license_name
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _what(config: Mapping[str, Any]) -> str:
    own, model = config["ino"], config["model_args"]
    height, width = model["img_size"]
    rows = {
        "network": f"{own['network']} of a run of `ino train`",
        "blocks": f"{own['layer']} of {own['layers_of_the_run']}, and the final norm",
        "width, heads": f"{model['embed_dim']}, {model['num_heads']}",
        "patch, pixels": model["patch_size"],
        "weights stored in": own["precision"],
        "protocol that suits it": own["protocol"],
        "position embeddings for images of": f"{height}x{width} (height x width)",
        "images": "RGB, 0 to 1, then less the mean and divided by the deviation",
        "mean": ", ".join(map(str, config["pretrained_cfg"]["mean"])),
        "deviation": ", ".join(map(str, config["pretrained_cfg"]["std"])),
    }
    return (
        "A plain Vision Transformer whose patch tokens are dense features for carrying masks "
        "through video. It is for inference: it has no head and no mask token.\n\n" + _table(rows)
    )


def _training(own: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    rows = {
        "method": f"In-N-Out generative learning, variant `{own['variant']}`",
        "steps": own["steps"],
        "video": own["data"] or "not named",
        "started from": own["started_from"],
        "made with": f"ino {own['ino']}",
    }
    for words, names in _SETTINGS.items():
        values = [_field(training, name) for name in names]
        if all(value is not None for value in values):
            rows[words] = ", ".join(str(value) for value in values)
    return "## Training\n\n" + _table(rows) + "\nNo labels were used.\n"


def _loading(config: Mapping[str, Any], files: Sequence[str]) -> str:
    height, width = config["model_args"]["img_size"]
    text = (
        "## Loading\n\n"
        "```python\n"
        "from ino import load_backbone\n\n"
        'backbone = load_backbone("FOLDER")\n\n'
        "import timm\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
        "tokens = model.forward_features(images)  # the class token, then patches row by row\n"
        "```\n\n"
        "ino resamples position embeddings as DINO's released code does, timm in another way. "
        f"The two give equal features for images of {height}x{width} pixels only."
    )
    if POSITIONS in files:
        text += (
            f" The embeddings as they were trained are in `{POSITIONS}`, which ino reads for every "
            "other size."
        )
    return text + (
        "\n\nTo share the folder: `hf upload OWNER/NAME FOLDER`; then "
        '`timm.create_model("hf-hub:OWNER/NAME", pretrained=True)`.\n'
    )


def _about_graphs(config: Mapping[str, Any]) -> str:
    height, width = config["model_args"]["img_size"]
    step = config["ino"]["onnx"]
    return (
        "## ONNX\n\n"
        f"- `{FEATURES_GRAPH}`: `images` (batch, {height}, {width}, 3), uint8 RGB, to `features` "
        "(batch, rows, columns, dim), float32 of length 1. Mean and deviation are in the graph.\n"
        f"- `{PROPAGATION_GRAPH}`: `query` (rows, columns, dim), `features` (frames, rows, "
        "columns, dim) and `labels` (frames, rows, columns, channels) of the context frames to "
        "`result` (rows, columns, channels): the softmax over the best "
        f"{step['topk']} positions of all frames within a window of radius {step['radius']}, "
        f"temperature {step['temperature']}. Any number of frames and channels. Protocol "
        f"{step['name']} gives the first frame and the last {step['num_context']}.\n"
    )


def _licence(license_name: str) -> str:
    told = license_name or "None was named. Name one before you share these weights."
    return f"## Licence\n\n{' '.join(told.split())}\n"


def _table(rows: Mapping[str, Any]) -> str:
    lines = (f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _field(training: Mapping[str, Any], name: str) -> Any:
    section, field = name.split(".")
    values = training.get(section)
    return values.get(field) if isinstance(values, Mapping) else None


# A run exported for others: weights, configuration, card and, if asked for, ONNX graphs.


PROTOCOL = "ino-davis"
"""Whose layer is exported by default, and whose step becomes the graph of propagation."""


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
    """The files of the export, which is written whole or not at all.

    Args:
        run: folder of a run, or a checkpoint.
        out: folder to write.
        network: `student`, as the authors evaluate, or `teacher`.
        layer: the last block, counted from 1; None for the one that protocol ino-davis reads.
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
    suiting, protocol = get_protocol(suits), get_protocol(PROTOCOL)
    if image_size is not None:
        protocol = sized_protocol(PROTOCOL, short_side=min(image_size))
    checkpoint = find_checkpoint(run)
    content = read_checkpoint(checkpoint)
    vit, config = vit_of(content, source=checkpoint, network=network), content["config"]
    std = RELEASED_STD if config.get("variant") == "released" else IMAGENET_STD
    if image_size is not None:
        check_size(image_size, patch_size=vit.patch_size)
    depth = vit.depth
    layer = protocol.layer if layer is None else layer
    vit = truncate(vit, layer=None if layer == "all" else layer)
    vit = round_weights(vit, precision=precision)
    facts = {
        "network": network,
        "layer": vit.depth,
        "layers_of_the_run": depth,
        "protocol": suiting.name,
        "license": license_name,
        "data": data,
        **_facts(content),
    }
    if onnx:
        facts["onnx"] = protocol.as_dict()
    files = export_files(vit, std=std, precision=precision, image_size=image_size, facts=facts)
    if onnx and image_size is not None:
        files |= _graphs(vit, std=std, image_size=image_size, protocol=protocol)
    card = model_card(json.loads(files[CONFIG]), training=config, files=list(files))
    files[CARD] = card.encode()
    write_files(out, files, overwrite=overwrite)
    return [out / name for name in files]


def _graphs(
    vit: VisionTransformer,
    *,
    std: tuple[float, float, float],
    image_size: ImageSize,
    protocol: Protocol,
) -> dict[str, bytes]:
    normalize = protocol.normalize_features
    features = features_onnx(vit, std=std, image_size=image_size, normalize=normalize)
    step = propagation_graph(protocol).SerializeToString()
    return {FEATURES_GRAPH: features, PROPAGATION_GRAPH: step}


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a run; paths never are."""
    config, origin = content["config"], content.get("init") or {}
    weights = origin.get("sha256")
    return {
        "arch": config["model"]["arch"],
        "variant": config.get("variant", "paper"),
        "steps": content.get("step"),
        "started_from": f"weights with SHA-256 {weights}" if weights else "random weights",
    }
