"""Affinity consistency: in-generative learning between frames (section 3.3, Eq. 4 and 5)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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
