"""The objective of Eq. 6: four terms, their weights, and the two centres that they share."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ino.losses.affinity import affinity_loss
from ino.losses.centering import centered_targets
from ino.losses.masked import masked_prediction_loss
from ino.losses.out_generative import (
    by_pairs,
    global_to_global_loss,
    joint_mean,
    local_to_global_loss,
)
from ino.models.student_teacher import Logits
from ino.train.config import LossConfig


class Terms(NamedTuple):
    """The objective and its terms, before weights; a term that a step does not have is 0."""

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
        reduce_mean: Callable[[Tensor], Tensor] = lambda mean: mean,
    ) -> None:
        """Args:
        config: weights, temperatures and the points on which the variants differ.
        num_classes: outputs of the head.
        reduce_mean: averages a mean over all processes, for the centres.
        """
        super().__init__()
        self.config = config
        self.reduce_mean = reduce_mean
        self.register_buffer("class_center", torch.zeros(num_classes))
        self.register_buffer("patch_center", torch.zeros(num_classes))

    def forward(self, student: Logits, teacher: Logits) -> Terms:
        """The objective of a step; moves the centres."""
        config = self.config
        zero = student.global_class.new_zeros(())
        g2g, l2g = self._out_generative(student, teacher, zero)
        masked, affinity = self._in_generative(student, teacher, zero)
        if config.out_mean == "joint":
            num_local = 0 if student.local_class is None else student.local_class.shape[1]
            out = joint_mean(
                g2g, l2g, num_local=num_local, weight_g2g=config.g2g, weight_l2g=config.l2g
            )
        else:
            out = config.g2g * g2g + config.l2g * l2g
        return Terms(
            out + config.masked * masked + config.affinity * affinity, g2g, l2g, masked, affinity
        )

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

    def _out_generative(
        self, student: Logits, teacher: Logits, zero: Tensor
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        targets = self._targets("class_center", by_pairs(teacher.global_class))
        temperature = config.student_temperature
        g2g = l2g = zero
        if config.g2g:
            pairs = by_pairs(student.global_class)
            g2g = global_to_global_loss(targets, pairs, temperature=temperature)
        if config.l2g and student.local_class is not None:
            pairs = by_pairs(student.local_class)
            l2g = local_to_global_loss(targets, pairs, temperature=temperature)
        return g2g, l2g

    def _in_generative(
        self, student: Logits, teacher: Logits, zero: Tensor
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        if student.patch is None or teacher.patch is None:
            return zero, zero
        targets = self._targets("patch_center", teacher.patch)
        temperature = config.student_temperature
        masked = affinity = zero
        if config.masked:
            masked = masked_prediction_loss(targets, student.patch, temperature=temperature)
        if config.affinity:
            compared = (teacher.patch, student.patch)
            if config.affinity_on == "distributions":
                compared = (targets, torch.softmax(student.patch / temperature, dim=-1))
            affinity = affinity_loss(
                *compared,
                teacher_temperature=config.affinity_teacher_temperature,
                student_temperature=config.affinity_student_temperature,
            )
        return masked, affinity

    def _targets(self, center: str, logits: Tensor) -> Tensor:
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
