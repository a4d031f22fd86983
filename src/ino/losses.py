"""Centring and sharpening of the teacher's outputs into targets (section 3.1, after DINO).

Paper and released code differ in when the centre moves: once a step, or after each group of outputs
that it centred (a frame pair of class tokens, a frame of patch tokens), so that later groups of a
step see a moved centre.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CenterUpdate = Literal["step", "group"]


@torch.no_grad()
def centered_targets(
    logits: Float[Tensor, "group *positions classes"],
    center: Float[Tensor, " classes"],
    *,
    temperature: float,
    momentum: float = 0.9,
    update: CenterUpdate = "step",
    reduce_mean: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> tuple[Float[Tensor, "group *positions classes"], Float[Tensor, " classes"]]:
    """Target distributions softmax((logits - centre) / temperature), and the centre afterwards.

    Args:
        logits: the teacher's, in the order in which the losses use them.
        center: moving mean of earlier logits.
        temperature: sharpness of the targets, 0.04 in the paper.
        momentum: weight of the old centre in the new one.
        update: `step` moves the centre once by the mean of all logits (`variant: paper`), `group`
            after each group by that group's mean (`variant: released`).
        reduce_mean: averages a mean over all processes.
    """
    if update == "step":
        targets = torch.softmax((logits - center) / temperature, dim=-1)
        return targets, _moved(center, logits, momentum, reduce_mean)
    targets = torch.empty_like(logits)
    for index, group in enumerate(logits):
        targets[index] = torch.softmax((group - center) / temperature, dim=-1)
        center = _moved(center, group, momentum, reduce_mean)
    return targets, center


def _moved(
    center: Tensor, logits: Tensor, momentum: float, reduce_mean: Callable[[Tensor], Tensor]
) -> Tensor:
    mean = reduce_mean(logits.flatten(0, -2).mean(dim=0))
    return center * momentum + mean * (1.0 - momentum)


# Out-generative learning: class tokens imagine the global crops of a frame pair (section 3.2).


def frame_pairs(clip_length: int) -> list[tuple[int, int]]:
    """Pairs (n, L/2 + n) of frames of a clip, counted from 0."""
    half = clip_length // 2
    return [(n, half + n) for n in range(half)]


def by_pairs(
    frames: Float[Tensor, "time *rest"],
) -> Float[Tensor, "pair 2 *rest"]:
    """Frames of a clip arranged by their pairs."""
    return frames.unflatten(0, (2, -1)).transpose(0, 1)


def global_to_global_loss(
    targets: Float[Tensor, "pair 2 batch classes"],
    student: Float[Tensor, "pair 2 batch classes"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of each global crop with the target of the pair's other crop (Eq. 1).

    The mean over the two terms of a pair, over pairs and over the batch; a view is never compared
    with itself.

    Args:
        targets: the teacher's distributions.
        student: the student's logits.
        temperature: of the student's softmax, 0.1 in the paper.
    """
    log_probs = torch.log_softmax(student / temperature, dim=-1)
    return -(targets * log_probs.flip(1)).sum(dim=-1).mean()


def local_to_global_loss(
    targets: Float[Tensor, "pair 2 batch classes"],
    student: Float[Tensor, "pair 2 crop batch classes"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of every local crop with both targets of its pair (Eq. 2).

    The mean over the 2 x 2M terms of a pair, over pairs and over the batch. Each local crop meets
    the sum of the two targets, so its log-softmax is taken once.
    """
    log_probs = torch.log_softmax(student / temperature, dim=-1)
    mean_target = targets.mean(dim=1)[:, None, None]  # (pair, 1, 1, b, c)
    return -(mean_target * log_probs).sum(dim=-1).mean()


def joint_weights(
    *, num_local: int, weight_g2g: float = 1.0, weight_l2g: float = 1.0
) -> tuple[float, float]:
    """Weights of both means that make their sum one mean over all terms of a pair.

    There are 2 global and 4M local terms (the released code takes the mean so). A term of weight 0
    does not count; with both at 0, both are 0.

    Args:
        num_local: local crops of each frame (M).
        weight_g2g: weight of a global term.
        weight_l2g: weight of a local term.
    """
    num_g2g, num_l2g = 2 * weight_g2g, 4 * num_local * weight_l2g
    total = (num_g2g + num_l2g) or 1.0
    return num_g2g / total, num_l2g / total


# Masked prediction: in-generative learning within a frame (section 3.3, Eq. 3).


def masked_prediction_loss(
    targets: Float[Tensor, "time batch masked classes"],
    student: Float[Tensor, "time batch masked classes"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy at the masked positions between teacher and student (Eq. 3), as a mean.

    Args:
        targets: the teacher's distributions at the masked positions.
        student: the student's logits there, from the corrupted crops.
        temperature: of the student's softmax, 0.1 in the paper.
    """
    log_probs = torch.log_softmax(student / temperature, dim=-1)
    return -(targets * log_probs).sum(dim=-1).mean()


# Affinity consistency: in-generative learning between frames (section 3.3, Eq. 4 and 5).


def affinity_loss(
    teacher: Float[Tensor, "time batch masked dim"],
    student: Float[Tensor, "time batch masked dim"],
    *,
    teacher_temperature: float = 0.04,
    student_temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross-entropy between the teacher's and the student's frame-to-frame affinities (Eq. 5).

    Each row of an affinity is the softmax of the cosine similarities of a masked token of frame i
    with all masked tokens of frame i + 1 (Eq. 4). The mean over rows, frame pairs and the batch; 0
    for a clip of one frame.

    Args:
        teacher: distributions (`variant: paper`) or logits (`variant: released`) of masked tokens.
        student: the same of the student.
        teacher_temperature: tau_t, 0.04 in the paper.
        student_temperature: tau_s, 0.1 in the paper.
    """
    if len(teacher) < 2:
        return student.sum() * 0.0
    with torch.no_grad():
        targets = torch.softmax(_similarity(teacher) / teacher_temperature, dim=-1)
    log_probs = torch.log_softmax(_similarity(student) / student_temperature, dim=-1)
    return -(targets * log_probs).sum(dim=-1).mean()


def _similarity(tokens: Float[Tensor, "time batch masked dim"]) -> Tensor:
    unit = F.normalize(tokens, dim=-1)
    return unit[:-1] @ unit[1:].transpose(-1, -2)  # (t-1, b, k, k)
