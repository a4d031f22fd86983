"""The losses of section 3 in the paper's order (Eq. 1 to 6), and the centering of the targets.

Tensors in, tensors out. `models.student_teacher` decides which views each network sees, and
`train.loop` takes the steps. Where the paper sums, this code takes means
(docs/paper-and-code.md), so that the four terms contribute equally.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CenterUpdate = Literal["step", "group"]
OutMean = Literal["each", "joint"]
AffinityOn = Literal["distributions", "logits"]


# Section 3.1: the teacher's outputs as targets


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
    """Target distributions softmax((logits - center) / temperature), and the updated center.

    Centering and sharpening follow DINO (section 3.1). The paper and the released code differ in
    when the center is updated.

    Args:
        logits: outputs of the teacher's head, in the order in which the losses use them.
        center: moving average of the logits of previous steps.
        temperature: of the softmax, above 0; 0.04 in the paper. Lower values sharpen the targets.
        momentum: weight of the old center in the new one, 0..1.
        update: `step` updates the center once, with the mean of all logits (`variant: paper`);
            `group` updates it after each group (a frame pair of class tokens, a frame of patch
            tokens) with that group's mean, so that later groups see a newer center (`variant:
            released`).
        reduce_mean: averages a tensor over all processes.

    Returns:
        The targets, which sum to 1 over the classes, and the center after this step.
    """

    def moved_center(center: Tensor, logits: Tensor) -> Tensor:
        mean = reduce_mean(logits.flatten(0, -2).mean(dim=0))
        return center * momentum + mean * (1.0 - momentum)

    if update == "step":
        targets = torch.softmax((logits - center) / temperature, dim=-1)
        return targets, moved_center(center, logits)
    targets = torch.empty_like(logits)
    for index, group in enumerate(logits):
        targets[index] = torch.softmax((group - center) / temperature, dim=-1)
        center = moved_center(center, group)
    return targets, center


# Section 3.2: out-generative learning


def frame_pairs(frames: Float[Tensor, "time *rest"]) -> Float[Tensor, "pair 2 *rest"]:
    """The frames of a clip, grouped into the pairs (n, L/2 + n) of section 3.2; L must be even."""
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
    the mean of the two targets, so its log-softmax is taken once.
    """
    log_probs = torch.log_softmax(student / temperature, dim=-1)
    mean_target = targets.mean(dim=1)[:, None, None]  # (pair, 1, 1, b, c)
    return -(mean_target * log_probs).sum(dim=-1).mean()


def joint_weights(
    *, num_local: int, weight_g2g: float = 1.0, weight_l2g: float = 1.0
) -> tuple[float, float]:
    """Weights of Eq. 1 and Eq. 2 that make their sum one mean over all terms of a pair.

    A pair has 2 global-to-global and 4M local-to-global terms, and the released code takes the mean
    over all of them. A term of weight 0 is left out of the mean; if both weights are 0, so are both
    results.

    Args:
        num_local: local crops of each frame (M).
        weight_g2g: weight of a global term.
        weight_l2g: weight of a local term.
    """
    num_g2g, num_l2g = 2 * weight_g2g, 4 * num_local * weight_l2g
    total = (num_g2g + num_l2g) or 1.0
    return num_g2g / total, num_l2g / total


# Section 3.3: in-generative learning


def masked_prediction_loss(
    targets: Float[Tensor, "time batch masked classes"],
    student: Float[Tensor, "time batch masked classes"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy between teacher and student at the masked positions (Eq. 3), as a mean.

    Args:
        targets: the teacher's distributions at the masked positions.
        student: the student's logits there, from the corrupted crops.
        temperature: of the student's softmax, 0.1 in the paper.
    """
    log_probs = torch.log_softmax(student / temperature, dim=-1)
    return -(targets * log_probs).sum(dim=-1).mean()


def consecutive_similarities(
    tokens: Float[Tensor, "time batch masked dim"],
) -> Float[Tensor, "next_time batch masked masked"]:
    """Cosine similarities of the masked tokens of each frame with those of the next (Eq. 4).

    Their softmax over the last dimension, sharpened by a temperature, is the affinity.
    """
    unit = F.normalize(tokens, dim=-1)
    return unit[:-1] @ unit[1:].transpose(-1, -2)


def affinity_loss(
    teacher: Float[Tensor, "time batch masked dim"],
    student: Float[Tensor, "time batch masked dim"],
    *,
    teacher_temperature: float = 0.04,
    student_temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross-entropy between the teacher's and the student's affinities (Eq. 5).

    The mean over rows, pairs of consecutive frames and the batch; 0 for a clip of one frame.

    Args:
        teacher: distributions (`variant: paper`) or logits (`variant: released`) of masked tokens.
        student: the same of the student.
        teacher_temperature: tau_t, 0.04 in the paper.
        student_temperature: tau_s, 0.1 in the paper.
    """
    if len(teacher) < 2:
        return student.sum() * 0.0  # a zero that backward accepts
    with torch.no_grad():
        targets = torch.softmax(consecutive_similarities(teacher) / teacher_temperature, dim=-1)
    log_probs = torch.log_softmax(consecutive_similarities(student) / student_temperature, dim=-1)
    return -(targets * log_probs).sum(dim=-1).mean()


# Section 3.4, training: the whole objective


class Targets(NamedTuple):
    """The targets of one step, with the centers as they will be after it.

    Attributes:
        class_pairs: target distributions of the class tokens, by frame pair.
        patch: target distributions at the masked positions; None in a step without masks.
        patch_logits: the teacher's logits at the same positions, for `affinity_on="logits"`.
        class_center, patch_center: the updated centers, which `update_centers` stores.
    """

    class_pairs: Float[Tensor, "pair 2 batch classes"]
    patch: Float[Tensor, "time batch masked classes"] | None
    patch_logits: Float[Tensor, "time batch masked classes"] | None
    class_center: Float[Tensor, " classes"]
    patch_center: Float[Tensor, " classes"]

    def of(self, clips: slice) -> "Targets":
        """The targets of a slice of the batch; the centers stay those of the whole step."""
        if self.patch is None or self.patch_logits is None:
            return self._replace(class_pairs=self.class_pairs[:, :, clips])
        return self._replace(
            class_pairs=self.class_pairs[:, :, clips],
            patch=self.patch[:, clips],
            patch_logits=self.patch_logits[:, clips],
        )


class Terms(NamedTuple):
    """The weighted objective `loss`, and its four terms before weighting.

    A term is 0 if its weight is 0 or if the views that it needs were not given.
    """

    loss: Float[Tensor, ""]
    g2g: Float[Tensor, ""]
    l2g: Float[Tensor, ""]
    masked: Float[Tensor, ""]
    affinity: Float[Tensor, ""]

    def stacked(self) -> Float[Tensor, " terms"]:
        """All fields as one detached float32 tensor, in their order."""
        return torch.stack([term.detach().float() for term in self])


class Objective(nn.Module):
    """The weighted sum of the four losses (Eq. 6). Stores the centers of class and patch tokens.

    >>> objective = Objective(num_classes=3, num_local=0)
    >>> teacher, student = torch.randn(4, 2, 3), torch.randn(4, 2, 3)  # (time, batch, classes)
    >>> targets = objective.targets(teacher)
    >>> terms = objective(targets, student)
    >>> objective.update_centers(targets)
    >>> bool(terms.loss == terms.g2g)
    True
    """

    class_center: Tensor
    patch_center: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        num_local: int,
        g2g: float = 1.0,
        l2g: float = 1.0,
        masked: float = 1.0,
        affinity: float = 1.0,
        teacher_temperature: float = 0.04,
        student_temperature: float = 0.1,
        affinity_teacher_temperature: float = 0.04,
        affinity_student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        center_update: CenterUpdate = "step",
        out_mean: OutMean = "each",
        affinity_on: AffinityOn = "distributions",
        reduce_mean: Callable[[Tensor], Tensor] = lambda mean: mean,
    ) -> None:
        """Args:
        num_classes: output dimension of the head.
        num_local: local crops of each frame (M); used by `out_mean="joint"` only.
        g2g, l2g, masked, affinity: weights of Eq. 1, 2, 3 and 5; 0 switches a term off.
        teacher_temperature: of the softmax that gives the targets.
        student_temperature: of the softmax of the student's logits.
        affinity_teacher_temperature: tau_t of Eq. 4.
        affinity_student_temperature: tau_s of Eq. 4.
        center_momentum: weight of the old center in the new one, 0..1.
        center_update: see `centered_targets`.
        out_mean: `each` takes one mean for Eq. 1 and one for Eq. 2 (`variant: paper`), `joint` a
            single mean over the terms of both (`variant: released`).
        affinity_on: whether Eq. 4 compares distributions (`variant: paper`) or logits of the head
            (`variant: released`).
        reduce_mean: averages the batch means of the centers over all processes.
        """
        super().__init__()
        if out_mean == "joint":
            g2g, l2g = joint_weights(num_local=num_local, weight_g2g=g2g, weight_l2g=l2g)
        self.weights = {"g2g": g2g, "l2g": l2g, "masked": masked, "affinity": affinity}
        self.reduce_mean = reduce_mean
        self.student_temperature = student_temperature
        self.affinity_on = affinity_on
        self._affinity_temperatures = {
            "teacher_temperature": affinity_teacher_temperature,
            "student_temperature": affinity_student_temperature,
        }
        self._centering = {
            "temperature": teacher_temperature,
            "momentum": center_momentum,
            "update": center_update,
            "reduce_mean": reduce_mean,
        }
        self.register_buffer("class_center", torch.zeros(num_classes))
        self.register_buffer("patch_center", torch.zeros(num_classes))

    def targets(
        self,
        global_class: Float[Tensor, "time batch classes"],
        patch: Float[Tensor, "time batch masked classes"] | None = None,
    ) -> Targets:
        """The targets of a whole step, from the teacher's logits.

        The stored centers do not change until `update_centers`.

        Args:
            global_class: logits of the class tokens of the global crops.
            patch: logits of the patch tokens at the masked positions; None if none are masked.
        """
        pairs, class_center = centered_targets(
            frame_pairs(global_class), self.class_center, **self._centering
        )
        if patch is None:
            return Targets(pairs, None, None, class_center, self.patch_center)
        targets, patch_center = centered_targets(patch, self.patch_center, **self._centering)
        return Targets(pairs, targets, patch, class_center, patch_center)

    def forward(
        self,
        targets: Targets,
        global_class: Float[Tensor, "time batch classes"] | None = None,
        local_class: Float[Tensor, "time crop batch classes"] | None = None,
        patch: Float[Tensor, "time batch masked classes"] | None = None,
    ) -> Terms:
        """The objective, or the terms of it that can be computed from the given logits.

        Terms are additive: computing those of the local crops and those of the global crops in two
        calls and adding the results gives the same as one call.

        Args:
            targets: from `targets`, for the same clips.
            global_class: the student's logits for the class tokens of the global crops.
            local_class: the student's logits for the class tokens of the local crops.
            patch: the student's logits at the masked positions of the global crops.
        """
        weights, temperature = self.weights, self.student_temperature
        found: dict[str, Tensor] = {}
        if global_class is not None and weights["g2g"]:
            found["g2g"] = global_to_global_loss(
                targets.class_pairs, frame_pairs(global_class), temperature=temperature
            )
        if local_class is not None and weights["l2g"]:
            found["l2g"] = local_to_global_loss(
                targets.class_pairs, frame_pairs(local_class), temperature=temperature
            )
        if patch is not None:
            assert targets.patch is not None and targets.patch_logits is not None
            if weights["masked"]:
                found["masked"] = masked_prediction_loss(
                    targets.patch, patch, temperature=temperature
                )
            if weights["affinity"]:
                compared = (targets.patch_logits, patch)
                if self.affinity_on == "distributions":
                    compared = (targets.patch, torch.softmax(patch / temperature, dim=-1))
                found["affinity"] = affinity_loss(*compared, **self._affinity_temperatures)
        terms = dict.fromkeys(weights, targets.class_pairs.new_zeros(())) | found
        loss = sum(weights[name] * term for name, term in terms.items())
        assert isinstance(loss, Tensor)
        if (
            not loss.requires_grad
        ):  # no term reads these logits: backward still runs, and gives zeros
            read = [part for part in (global_class, local_class, patch) if part is not None]
            loss = loss + sum(0.0 * part.sum() for part in read)
        return Terms(loss, **terms)

    @torch.no_grad()
    def update_centers(self, targets: Targets, *, where: Tensor | None = None) -> None:
        """Replaces the stored centers by the updated ones in `targets`.

        Args:
            targets: of this step.
            where: a boolean scalar on the device; if it is False, the centers do not change. None
                means True.
        """
        for center, new in (
            (self.class_center, targets.class_center),
            (self.patch_center, targets.patch_center),
        ):
            center.copy_(new if where is None else torch.where(where, new, center))
