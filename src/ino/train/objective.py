"""The objective of Eq. 6: four terms, their weights, and the two centres that they share."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ino.losses import (
    affinity_loss,
    by_pairs,
    centered_targets,
    global_to_global_loss,
    joint_weights,
    local_to_global_loss,
    masked_prediction_loss,
)
from ino.models.student_teacher import Logits
from ino.train.config import LossConfig


class Targets(NamedTuple):
    """What the student is to say: the teacher's distributions, and its logits of masked patches."""

    class_pairs: Float[Tensor, "pair 2 batch classes"]
    patch: Float[Tensor, "time batch masked classes"] | None
    patch_logits: Float[Tensor, "time batch masked classes"] | None

    def of(self, clips: slice) -> "Targets":
        """Those of some of the clips."""
        patch = None if self.patch is None else self.patch[:, clips]
        logits = None if self.patch_logits is None else self.patch_logits[:, clips]
        return Targets(self.class_pairs[:, :, clips], patch, logits)


class Terms(NamedTuple):
    """The objective and its terms, before weights; a term that the views do not have is 0."""

    loss: Tensor
    g2g: Tensor
    l2g: Tensor
    masked: Tensor
    affinity: Tensor

    def stacked(self) -> Tensor:
        """The terms as one tensor without gradients, in the order of the fields."""
        return torch.stack([term.detach().float() for term in self])


class Objective(nn.Module):
    """Eq. 6 with the centres of class and patch tokens as its state."""

    class_center: Tensor
    patch_center: Tensor

    def __init__(
        self,
        config: LossConfig,
        *,
        num_classes: int,
        num_local: int,
        reduce_mean: Callable[[Tensor], Tensor] = lambda mean: mean,
    ) -> None:
        """Args:
        config: weights, temperatures and the points on which the variants differ.
        num_classes: outputs of the head.
        num_local: local crops of each frame, which the joint mean counts.
        reduce_mean: averages a mean over all processes, for the centres.
        """
        super().__init__()
        self.config = config
        self.reduce_mean = reduce_mean
        self.weight_g2g, self.weight_l2g = config.g2g, config.l2g
        if config.out_mean == "joint":
            self.weight_g2g, self.weight_l2g = joint_weights(
                num_local=num_local, weight_g2g=config.g2g, weight_l2g=config.l2g
            )
        self.register_buffer("class_center", torch.zeros(num_classes))
        self.register_buffer("patch_center", torch.zeros(num_classes))

    def centers(self) -> tuple[Tensor, Tensor]:
        """Copies of the centres, for `put_back`."""
        return self.class_center.clone(), self.patch_center.clone()

    def put_back(self, centers: tuple[Tensor, Tensor], *, unless: Tensor) -> None:
        """Undoes what a step did to the centres, unless the step is good; no device is waited for.

        Args:
            centers: as they were before the step.
            unless: one truth value, on the device.
        """
        for center, earlier in zip((self.class_center, self.patch_center), centers, strict=True):
            center.copy_(torch.where(unless, center, earlier))

    def targets(self, teacher: Logits) -> Targets:
        """What the teacher's outputs of a whole step ask of the student; moves the centres."""
        assert teacher.global_class is not None
        class_pairs = self._centered("class_center", by_pairs(teacher.global_class))
        patch = None if teacher.patch is None else self._centered("patch_center", teacher.patch)
        return Targets(class_pairs, patch, teacher.patch)

    def forward(self, student: Logits, targets: Targets) -> Terms:
        """The objective, or the part of it that these outputs of the student have.

        Args:
            student: outputs of all views, or of the local or the global crops alone; the terms of
                both parts add up to those of all views.
            targets: of the same clips.
        """
        config, temperature = self.config, self.config.student_temperature
        terms = dict.fromkeys(
            ("g2g", "l2g", "masked", "affinity"), targets.class_pairs.new_zeros(())
        )
        if student.global_class is not None and config.g2g:
            pairs = by_pairs(student.global_class)
            terms["g2g"] = global_to_global_loss(
                targets.class_pairs, pairs, temperature=temperature
            )
        if student.local_class is not None and config.l2g:
            pairs = by_pairs(student.local_class)
            terms["l2g"] = local_to_global_loss(targets.class_pairs, pairs, temperature=temperature)
        if student.patch is not None:
            assert targets.patch is not None
            assert targets.patch_logits is not None
            if config.masked:
                terms["masked"] = masked_prediction_loss(
                    targets.patch, student.patch, temperature=temperature
                )
            if config.affinity:
                compared = (targets.patch_logits, student.patch)
                if config.affinity_on == "distributions":
                    compared = (targets.patch, torch.softmax(student.patch / temperature, dim=-1))
                terms["affinity"] = affinity_loss(
                    *compared,
                    teacher_temperature=config.affinity_teacher_temperature,
                    student_temperature=config.affinity_student_temperature,
                )
        loss = (
            self.weight_g2g * terms["g2g"]
            + self.weight_l2g * terms["l2g"]
            + config.masked * terms["masked"]
            + config.affinity * terms["affinity"]
        )
        if not loss.requires_grad:  # no term reads these outputs: all gradients are 0
            loss = loss + sum(0.0 * part.sum() for part in student if part is not None)
        return Terms(loss, **terms)

    def _centered(self, center: str, logits: Tensor) -> Tensor:
        """Targets by the named centre, which moves."""
        targets, moved = centered_targets(
            logits,
            getattr(self, center),
            temperature=self.config.teacher_temperature,
            momentum=self.config.center_momentum,
            update=self.config.center_update or "step",
            reduce_mean=self.reduce_mean,
        )
        getattr(self, center).copy_(moved)
        return targets
