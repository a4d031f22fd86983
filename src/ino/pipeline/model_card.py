"""The card of an export: what the network is, how it was trained, how to load it, what is missing.

Names of folders and files of the training are in it only where the user wants them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ino.models.exported import FEATURES_GRAPH, POSITIONS, PROPAGATION_GRAPH

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
        parts.append(_graphs(config))
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


def _graphs(config: Mapping[str, Any]) -> str:
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
