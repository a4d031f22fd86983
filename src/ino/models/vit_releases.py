"""Readers for releases on ViTs: INO, DINO, iBOT, DINOv2 and DINOv3."""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ino.errors import CheckpointError
from ino.models.checkpoints import load_exactly, position_side
from ino.models.dense import Reading
from ino.models.timm_backbone import TimmBackbone
from ino.models.timm_models import build_timm
from ino.models.vit import ARCHITECTURES, VisionTransformer
from ino.models.vit_backbone import OUR_LAYER, RELEASED_STD, VitBackbone
from ino.models.weights import split_network

_INO = Reading(std=RELEASED_STD, protocol="ino-davis", layer=OUR_LAYER)
_DINO = Reading(std=RELEASED_STD, protocol="dino")
_DINOV2 = Reading(protocol="dinov3")
_DINOV3_NAMES = {
    (384, 12, False): "vit_small_patch16_dinov3_qkvb",
    (384, 12, True): "vit_small_plus_patch16_dinov3_qkvb",
    (768, 12, False): "vit_base_patch16_dinov3_qkvb",
    (1024, 24, False): "vit_large_patch16_dinov3_qkvb",
    (1280, 32, True): "vit_huge_plus_patch16_dinov3_qkvb",
}
"""By width, number of blocks, and whether their MLPs are gated."""

_HEAD = re.compile(r"(mlp\.\d+|last_layer2?)\.\w+")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def read_vit(weights: dict[str, Tensor], *, source: Path) -> VitBackbone:
    """The backbone of INO, DINO or iBOT, or of one of our networks alone.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    read = split_network(weights, source)
    for name in read.head:
        if not _HEAD.fullmatch(name):
            raise CheckpointError(
                f"{source} has an unexpected head.{name}: its head is none of INO, DINO or iBOT; "
                "read weights for a model of timm by timm:NAME@FILE"
            )
    # Backbones alone are DINO's and iBOT's teachers, which have no mask token, or ours.
    is_ino = is_of_ino(weights) or ("mask_token" in read.backbone and not read.head)
    weights = dict(read.backbone)
    weights.setdefault("mask_token", torch.zeros_like(weights["cls_token"]))
    vit = _build_vit(weights, source=source)
    load_exactly(vit, weights, source=source)
    return VitBackbone(vit, reading=_INO if is_ino else _DINO)


def is_of_ino(names: Iterable[str]) -> bool:
    """Whether tensors of a network with its head are INO's."""
    return any("headlist." in name for name in names)


def read_dinov2(weights: dict[str, Tensor], *, source: Path) -> VitBackbone:
    """The backbone of DINOv2: its networks of small, base and large width without registers.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    for key, model in (
        ("register_tokens", "vit_small_patch14_reg4_dinov2"),
        ("blocks.0.mlp.w12.weight", "vit_giant_patch14_dinov2"),
    ):
        if key in weights:
            raise CheckpointError(
                f"{source} is a DINOv2 network with {key}: read it by a model of timm, as in "
                f"timm:{model}@FILE"
            )
    if "mask_token" in weights:
        weights["mask_token"] = weights["mask_token"].reshape(1, 1, -1)
    vit = _build_vit(weights, source=source, layer_scale=True)
    load_exactly(vit, weights, source=source)
    return VitBackbone(vit, reading=_DINOV2)


def read_dinov3(weights: dict[str, Tensor], *, source: Path) -> TimmBackbone:
    """The backbone of a ViT of DINOv3, as timm's model whose heads have a query and value bias.

    Raises:
        CheckpointError: the tensors are not exactly those of the release.
    """
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    dim, depth = weights["storage_tokens"].shape[-1], _depth(weights)
    model = _DINOV3_NAMES.get((dim, depth, "blocks.0.mlp.w1.weight" in weights))
    if model is None:
        raise CheckpointError(
            f"{source} is a DINOv3 network of width {dim} with {depth} blocks, which is not known "
            "here; read it by a model of timm, as in timm:vit_7b_patch16_dinov3@FILE"
        )
    weights.pop("mask_token", None)
    periods = weights.pop("rope_embed.periods", None)
    backbone = build_timm(model, reading=Reading(protocol="dinov3"))
    converted = {}
    for key, value in weights.items():
        converted |= _dinov3_tensors(key, value, weights, source)
    load_exactly(backbone.network, converted, source=source)
    _take_periods(backbone, periods, source)
    return backbone


def _dinov3_tensors(
    key: str, value: Tensor, weights: dict[str, Tensor], source: Path
) -> dict[str, Tensor]:
    """The tensors of timm's model that hold one of the release."""
    if key == "storage_tokens":
        return {"reg_token": value}
    if key.endswith("attn.qkv.bias_mask"):
        query, middle, last = value.chunk(3)
        if not (bool((query == 1).all() and (last == 1).all()) and not middle.any()):
            raise CheckpointError(
                f"{source}: {key} is not 1 for queries and values and 0 for keys; give the release "
                "of DINOv3"
            )
        return {}
    if key.endswith("attn.qkv.bias"):
        start = key.removesuffix("qkv.bias")
        if f"{key}_mask" not in weights:
            raise CheckpointError(f"{source} is not whole: missing {key}_mask")
        query, _, last = value.chunk(3)  # the mask makes the keys' bias 0
        return {f"{start}q_bias": query, f"{start}v_bias": last}
    key = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)
    key = key.replace("mlp.w1.", "mlp.fc1_g.").replace("mlp.w2.", "mlp.fc1_x.")
    return {key.replace("mlp.w3.", "mlp.fc2."): value}


def _take_periods(backbone: TimmBackbone, periods: Tensor | None, source: Path) -> None:
    """Puts the release's periods of the rotary embedding, rounded to bf16, in place of timm's."""
    own = backbone.network.get_submodule("rope").get_buffer("periods")
    if periods is None:
        raise CheckpointError(f"{source} is not whole: missing rope_embed.periods")
    if periods.shape != own.shape or not torch.allclose(periods.float(), own, rtol=1e-2):
        raise CheckpointError(
            f"{source} has other rope_embed.periods than DINOv3's models; give a release of DINOv3"
        )
    own.copy_(periods)


def _build_vit(
    weights: dict[str, Tensor], *, source: Path, layer_scale: bool = False
) -> VisionTransformer:
    """A ViT of the sizes that the weights have."""
    for key in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        if key not in weights:
            raise CheckpointError(f"{source} is a ViT that is not whole: missing {key}")
    dim = weights["cls_token"].shape[-1]
    heads = {sizes["embed_dim"]: sizes["num_heads"] for sizes in ARCHITECTURES.values()}
    if dim not in heads and dim % 64:
        raise CheckpointError(
            f"{source} is a ViT of width {dim}, whose number of heads is not known: expected a "
            f"multiple of 64 or one of {', '.join(map(str, heads))}"
        )
    return VisionTransformer(
        embed_dim=dim,
        num_heads=heads.get(dim, dim // 64),
        depth=_depth(weights),
        patch_size=weights["patch_embed.proj.weight"].shape[-1],
        position_side=position_side(weights),
        layer_scale=layer_scale,
    )


def _depth(weights: dict[str, Tensor]) -> int:
    """How many blocks the names speak of; 1 at least."""
    found = (_BLOCK.match(name) for name in weights)
    return 1 + max((int(match[1]) for match in found if match), default=0)
