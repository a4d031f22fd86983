"""Equations 1 to 6 of the paper written out with loops, term by term."""

import torch
from torch import Tensor


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """-t^T log softmax(s / temperature) of two vectors."""
    exponentials = torch.exp(logits / temperature)
    return -(target * torch.log(exponentials / exponentials.sum())).sum()


def target(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """softmax((t - center) / temperature) of a vector."""
    exponentials = torch.exp((logits - center) / temperature)
    return exponentials / exponentials.sum()


def centered(logits: Tensor, center: Tensor, *, update: str) -> tuple[Tensor, Tensor]:
    """Targets of logits (group, ..., c), and the center after the step or after each group."""
    targets, first = torch.empty_like(logits), center
    for index, group in enumerate(logits):
        rows = [target(row, center, 0.04) for row in group.flatten(0, -2)]
        targets[index] = torch.stack(rows).view_as(group)
        if update == "group":
            center = 0.9 * center + 0.1 * group.flatten(0, -2).mean(dim=0)
    if update == "step":
        center = 0.9 * first + 0.1 * logits.flatten(0, -2).mean(dim=0)
    return targets, center


def objective(
    teacher: dict[str, Tensor],
    student: tuple[Tensor, Tensor, Tensor],
    centers: dict[str, Tensor],
    *,
    variant: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Eq. 6, its terms, and the centers after a step.

    Teacher's class (t, b, c) and patch (t, b, k, c) logits; the student's of global and local
    class tokens and of masked positions.
    """
    update = "step" if variant == "paper" else "group"
    half = len(teacher["class"]) // 2
    order = [place for n in range(half) for place in (n, half + n)]
    pairs = teacher["class"][order].unflatten(0, (half, 2))
    pairs, class_center = centered(pairs, centers["class"], update=update)
    class_targets = torch.empty_like(teacher["class"])
    class_targets[order] = pairs.flatten(0, 1)
    patch_targets, patch_center = centered(teacher["patch"], centers["patch"], update=update)

    g2g, l2g = out_generative(class_targets, student[0], student[1], 0.1)
    if variant == "paper":
        patch_student = torch.softmax(student[2] / 0.1, dim=-1)
        aff = affinity(patch_targets, patch_student, 0.04, 0.1)
        out = torch.stack(g2g).mean() + torch.stack(l2g).mean()
    else:
        aff = affinity(teacher["patch"], student[2], 0.04, 0.1)
        out = torch.stack(g2g + l2g).mean()
    mim = masked_prediction(patch_targets, student[2], 0.1)
    terms = {
        "g2g": torch.stack(g2g).mean(),
        "l2g": torch.stack(l2g).mean(),
        "masked": mim,
        "affinity": aff,
        "loss": out + mim + aff,
    }
    return terms, {"class": class_center, "patch": patch_center}


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
