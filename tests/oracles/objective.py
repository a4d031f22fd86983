"""Equations 1 to 5 of the paper written out with loops, term by term."""

import torch
from torch import Tensor


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """-t^T log softmax(s / temperature) of two vectors."""
    exponentials = torch.exp(logits / temperature)
    return -(target * torch.log(exponentials / exponentials.sum())).sum()


def target(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """softmax((t - centre) / temperature) of a vector."""
    exponentials = torch.exp((logits - center) / temperature)
    return exponentials / exponentials.sum()


def out_generative(
    targets: Tensor, student_global: Tensor, student_local: Tensor, temperature: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Terms of Eq. 1 and of Eq. 2: targets (t, b, c), global (t, b, c), local (t, m, b, c)."""
    length, batch = targets.shape[:2]
    g2g, l2g = [], []
    for sample in range(batch):
        for first in range(length // 2):
            pair = (first, length // 2 + first)
            for teacher in pair:
                for student in pair:
                    goal = targets[teacher, sample]
                    views = student_local[student][:, sample]
                    l2g.extend(cross_entropy(goal, view, temperature) for view in views)
                    if student != teacher:
                        view = student_global[student, sample]
                        g2g.append(cross_entropy(goal, view, temperature))
    return g2g, l2g


def masked_prediction(targets: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Eq. 3 as a mean: both (t, b, k, c)."""
    rows = zip(targets.flatten(0, 2), student.flatten(0, 2), strict=True)
    return torch.stack([cross_entropy(goal, logits, temperature) for goal, logits in rows]).mean()


def affinity(teacher: Tensor, student: Tensor, tau_t: float, tau_s: float) -> Tensor:
    """Eq. 4 and 5 as a mean over rows, frames and samples: both (t, b, k, d)."""

    def unit(vector: Tensor) -> Tensor:
        return vector / vector.pow(2).sum().sqrt()

    terms = []
    length, batch, masked = teacher.shape[:3]
    for sample in range(batch):
        for frame in range(length - 1):
            for row in range(masked):
                pairs = [(teacher, tau_t), (student, tau_s)]
                similarities = [
                    torch.stack(
                        [
                            unit(tokens[frame, sample, row]) @ unit(other) / tau
                            for other in tokens[frame + 1, sample]
                        ]
                    )
                    for tokens, tau in pairs
                ]
                goal = target(similarities[0], torch.zeros_like(similarities[0]), 1.0)
                terms.append(cross_entropy(goal, similarities[1], 1.0))
    return torch.stack(terms).mean()
