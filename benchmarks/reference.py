"""Training step and propagation written plainly from the equations, for the others to compare with.

In the manner of the released code: one pass for each size of crop, the head on all tokens, a loop
over all terms, attention that stores its matrix, all affinities between all positions at once. It
computes what `variant: released` and the protocol ino-davis compute, to rounding. Weights and
blocks are those of `ino.models`; only fp32 on a CPU was measured with it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ino.data.label_maps import davis_palette
from ino.models.student_teacher import Network
from ino.models.vit import Block, ProjectionHead, VisionTransformer

TEACHER_TEMPERATURE = 0.04
STUDENT_TEMPERATURE = 0.1
CENTER_MOMENTUM = 0.9


def plain_block(block: Block, tokens: Tensor) -> Tensor:
    """A block for all tokens, its attention in three operations that store the whole matrix."""
    normed = block.norm1(tokens)
    query, key, value = (
        block.attn.qkv(normed).unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    )
    affinity = torch.softmax(query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1), dim=-1)
    mixed = (affinity @ value).transpose(1, 2).flatten(2)
    tokens = tokens + block.drop_path1(block.attn.proj(mixed))
    return tokens + block.drop_path2(block.mlp(block.norm2(tokens)))


def plain_blocks(
    vit: VisionTransformer, images: Tensor, mask: Tensor | None = None
) -> list[Tensor]:
    """The tokens after each of all blocks, before the final norm."""
    patches = vit.patch_embed(images)
    if mask is not None:
        patches[mask.unflatten(1, patches.shape[1:3])] = vit.mask_token.to(patches.dtype)
    tokens = vit._pos_embed(patches)
    outputs = []
    for block in vit.blocks.children():
        tokens = plain_block(cast(Block, block), tokens)
        outputs.append(tokens)
    return outputs


def plain_logits(network: Network, crops: Tensor, mask: Tensor | None = None) -> Tensor:
    """(crop, batch, 1 + tokens, classes): the head on every token of (crop, batch, 3, h, w)."""
    repeated = None if mask is None else mask.repeat(len(crops), 1)
    tokens = network.backbone.norm(
        plain_blocks(network.backbone, crops.flatten(0, 1), repeated)[-1]
    )
    logits = _plain_head(network.head, tokens)
    full_precision = torch.promote_types(logits.dtype, torch.float32)  # the losses' own
    return logits.to(full_precision).unflatten(0, crops.shape[:2])


def _plain_head(head: ProjectionHead, tokens: Tensor) -> Tensor:
    directions = F.normalize(head.mlp(tokens), dim=-1)
    return F.linear(directions, F.normalize(head.last_layer.weight, dim=-1))


class PlainLosses(NamedTuple):
    """The objective, its three parts, and the centres of class and patch tokens afterwards."""

    loss: Tensor
    out_generative: Tensor
    masked: Tensor
    affinity: Tensor
    class_center: Tensor
    patch_center: Tensor


def plain_losses(
    teacher: Tensor,
    student: Tensor,
    local: Tensor,
    mask: Tensor,
    *,
    class_center: Tensor,
    patch_center: Tensor,
) -> PlainLosses:
    """Eq. 6 as the released code takes it.

    Args:
        teacher: (time, batch, 1 + tokens, classes) logits of the global crops.
        student: the same of the student, from masked crops.
        local: (time, crop, batch, 1 + tokens, classes) logits of the local crops.
        mask: (batch, tokens).
        class_center: before the step.
        patch_center: before the step.
    """
    out, class_center = _out_generative(
        teacher[:, :, 0], student[:, :, 0], local[:, :, :, 0], class_center
    )
    teacher_patch, student_patch = (_masked_tokens(logits, mask) for logits in (teacher, student))
    masked, patch_center = _masked_prediction(teacher_patch, student_patch, patch_center)
    affinity = _affinity(teacher_patch, student_patch)
    return PlainLosses(out + masked + affinity, out, masked, affinity, class_center, patch_center)


def _masked_tokens(logits: Tensor, mask: Tensor) -> Tensor:
    """(time, batch, masked, classes)"""
    frames = [frame[:, 1:][mask].unflatten(0, (len(mask), -1)) for frame in logits]
    return torch.stack(frames)


def _out_generative(
    teacher: Tensor, student: Tensor, local: Tensor, center: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 1 and 2 with one mean over all terms of a pair; the centre moves after each pair."""
    half = len(teacher) // 2
    losses = []
    for pair in ((n, n + half) for n in range(half)):
        for own in pair:
            target = _target(teacher[own], center)
            losses += [_cross_entropy(target, student[other]) for other in pair if other != own]
            losses += [_cross_entropy(target, crop) for other in pair for crop in local[other]]
        center = _moved(center, torch.cat([teacher[frame] for frame in pair]))
    return torch.stack(losses).mean(), center


def _masked_prediction(teacher: Tensor, student: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 3; the centre moves after each frame."""
    losses = []
    for teacher_frame, student_frame in zip(teacher, student, strict=True):
        losses.append(_cross_entropy(_target(teacher_frame, center), student_frame))
        center = _moved(center, teacher_frame.flatten(0, 1))
    return torch.stack(losses).mean(), center


def _affinity(teacher: Tensor, student: Tensor) -> Tensor:
    """Eq. 4 and 5 on logits, sample by sample."""
    losses = []
    for time in range(len(teacher) - 1):
        for sample in range(teacher.shape[1]):
            similarities = [
                F.normalize(tokens[time, sample], dim=-1)
                @ F.normalize(tokens[time + 1, sample], dim=-1).T
                for tokens in (teacher, student)
            ]
            target = torch.softmax(similarities[0] / TEACHER_TEMPERATURE, dim=-1)
            losses.append(_cross_entropy(target, similarities[1]))
    return torch.stack(losses).mean()


def _target(logits: Tensor, center: Tensor) -> Tensor:
    return torch.softmax((logits - center) / TEACHER_TEMPERATURE, dim=-1)


def _cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    log_probs = torch.log_softmax(logits / STUDENT_TEMPERATURE, dim=-1)
    return torch.sum(-target * log_probs, dim=-1).mean()


def _moved(center: Tensor, logits: Tensor) -> Tensor:
    return center * CENTER_MOMENTUM + logits.mean(dim=0) * (1 - CENTER_MOMENTUM)


@torch.no_grad()
def plain_clip(network: nn.Module, *, max_norm: float) -> None:
    """Scales each gradient to a norm of at most `max_norm`, one after the other."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            coefficient = max_norm / (parameter.grad.norm() + 1e-6)
            if coefficient < 1:
                parameter.grad.mul_(coefficient)


@torch.no_grad()
def plain_average(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Moves the teacher to the student, one parameter after the other."""
    for moving, fixed in zip(teacher.parameters(), student.parameters(), strict=True):
        moving.mul_(momentum).add_((1 - momentum) * fixed)


@torch.no_grad()
def plain_features(vit: VisionTransformer, image: Tensor, *, layer: int) -> Tensor:
    """(rows, columns, dim) L2-normalised features of a block; all blocks are run."""
    outputs = [vit.norm(tokens) for tokens in plain_blocks(vit, image)]
    grid = [side // vit.patch_size for side in image.shape[-2:]]
    return F.normalize(outputs[layer - 1][0, 1:], dim=-1).unflatten(0, grid)


def square_window(height: int, width: int, *, radius: int) -> Tensor:
    """(tokens, tokens): 1 where two positions are within the radius in both directions, else 0."""
    positions = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    rows, columns = ((axis[:, None] - axis).abs() <= radius for axis in positions.T)
    return (rows & columns).float()


@torch.no_grad()
def plain_propagation(
    query: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    window: Tensor,
    *,
    topk: int,
    temperature: float,
) -> Tensor:
    """(height, width, channel) labels of `query` from context frames (height, width, dim).

    Every affinity is computed, those outside of the window and of the top-k are set to 0, and the
    labels are multiplied by the whole matrix. The queries are its rows, so that top-k reads along
    memory; along columns it would take longer.
    """
    height, width, _ = query.shape
    sources = torch.cat([key.flatten(0, 1) for key in keys])
    affinity = torch.exp(query.flatten(0, 1) @ sources.T / temperature)
    affinity.unflatten(1, (len(keys), -1)).mul_(window[:, None])
    smallest = affinity.topk(topk, dim=1).values.min(dim=1, keepdim=True).values
    affinity[affinity < smallest] = 0
    affinity = affinity / affinity.sum(dim=1, keepdim=True)
    table = torch.cat([label.flatten(0, 1) for label in labels])
    return (affinity @ table).unflatten(0, (height, width))


def plain_hardening(soft: Tensor, *, stride: int, size: tuple[int, int]) -> np.ndarray:
    """A label map of `size` from (rows, columns, channel): enlarged, stretched to 0..1, argmax."""
    enlarged = F.interpolate(soft.permute(2, 0, 1)[None], scale_factor=stride, mode="bilinear")[0]
    for channel in enlarged:
        if channel.max() > 0:
            channel -= channel.min()
            channel /= channel.max()
    labels = Image.fromarray(enlarged.argmax(dim=0).to(torch.uint8).numpy())
    return np.array(labels.resize((size[1], size[0]), Image.Resampling.NEAREST))


def plain_writing(path: Path, labels: np.ndarray) -> None:
    """Writes an indexed PNG, without waiting for the disk."""
    image = Image.fromarray(labels, mode="P")
    image.putpalette(davis_palette().ravel().tolist())
    image.save(path, format="PNG")
