"""Masked prediction: in-generative learning within a frame (section 3.3, Eq. 3)."""

import torch
from jaxtyping import Float
from torch import Tensor


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
