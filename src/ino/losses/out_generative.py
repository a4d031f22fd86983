"""Out-generative learning: class tokens imagine the global crops of a frame pair (section 3.2)."""

import torch
from jaxtyping import Float
from torch import Tensor


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
