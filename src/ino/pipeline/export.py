"""A run exported for others: weights, configuration, card and, if asked for, ONNX graphs."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ino.data.views import IMAGENET_STD
from ino.errors import ConfigError, OutputError
from ino.models.backbones import RELEASED_STD
from ino.models.checkpoints import NetworkName, find_checkpoint, read_checkpoint, vit_of
from ino.models.export_files import (
    ImageSize,
    Precision,
    check_size,
    export_files,
    round_weights,
    truncate,
)
from ino.models.export_folder import write_files
from ino.models.exported import CARD, CONFIG, FEATURES_GRAPH, PROPAGATION_GRAPH
from ino.models.onnx_features import check_onnx, features_onnx
from ino.models.vit import VisionTransformer
from ino.pipeline.model_card import model_card
from ino.pipeline.settings import sized_protocol
from ino.propagate.onnx_step import propagation_graph
from ino.propagate.protocol import Protocol
from ino.propagate.protocols import get_protocol

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
        facts["onnx"] = dataclasses.asdict(protocol)
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
