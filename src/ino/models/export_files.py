"""What an export is made of: a network cut, rounded and written as timm and ino read it.

`ino.models.exported` tells what the files are, `ino.models.export_folder` writes them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from ino import __version__
from ino.data.views import IMAGENET_MEAN
from ino.errors import ConfigError
from ino.models.exported import CONFIG, FORMAT, POSITIONS, VERSION, WEIGHTS
from ino.models.vit import VisionTransformer, interpolate_positions

Precision = Literal["fp32", "fp16"]
ImageSize = tuple[int, int]
"""Height and width, pixels."""

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


def check_size(image_size: ImageSize, *, patch_size: int) -> None:
    """Raises ConfigError where a side is no multiple of the patch, or no patch fits."""
    if any(side < patch_size or side % patch_size for side in image_size):
        near = "x".join(str(max(1, round(side / patch_size)) * patch_size) for side in image_size)
        raise ConfigError(
            f"the image size {image_size[0]}x{image_size[1]} (height x width) must be multiples of "
            f"the patch of {patch_size} pixels; take {near}"
        )


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
