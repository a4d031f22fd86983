"""The two sides of the training benchmark: steps as `ino.train.loop` does them, and by `reference`.

Each takes views to gradients, stage by stage, and then updates its networks.
"""

import torch
from torch import Tensor

from ino.losses import Objective
from ino.models.student_teacher import StudentTeacher, Views, split_views
from ino.train.config import LossConfig
from ino.train.optim import build_optimizer, clip_gradients, set_rates
from reference import (
    plain_average,
    plain_clip,
    plain_logits,
    plain_losses,
)
from report import StageTimes, require_close

LR, WEIGHT_DECAY, MOMENTUM, MAX_NORM = 1e-4, 0.04, 0.996, 3.0
TOLERANCE = 1e-5


class OurStep:
    """The steps of `ino.train.loop`."""

    def __init__(
        self, model: StudentTeacher, config: LossConfig, *, num_local: int, bf16: bool = False
    ) -> None:
        self.student = model.train().student
        num_classes = model.student.head.last_layer.out_features
        self.centers = Objective(
            **config.model_dump(exclude={"extra", "extra_weight"}),
            num_classes=num_classes,
            num_local=num_local,
        )
        self._model = model
        self._bf16 = bf16
        self._optimizer = build_optimizer(model.student)
        set_rates(self._optimizer, lr=LR, weight_decay=WEIGHT_DECAY)

    def to_gradients(self, views: Views, times: StageTimes) -> Tensor:
        """The loss, whose gradients are then in the student."""
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16)
        with times.stage("teacher and targets"):
            with autocast:
                teacher = self._model(views, role="teacher")
            targets = self.centers.targets(teacher.global_class, teacher.patch)
            self.centers.update_centers(targets)
        losses = []
        with times.stage("student and gradients"):
            for clips, part in split_views(views):
                with autocast:
                    student = self._model(part, role="student")
                loss = self.centers(targets.of(clips), *student).loss
                loss.backward()
                losses.append(loss.detach())
        return torch.stack(losses).sum()

    def update(self, times: StageTimes) -> None:
        """Clips, steps and averages."""
        with times.stage("clip, optimiser, EMA"):
            clip_gradients(self.student.parameters(), max_norm=MAX_NORM)
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._model.update_teacher(MOMENTUM)


class Centers:
    """The centres of the reference, under the names that `Objective` gives its own."""

    def __init__(self, num_classes: int) -> None:
        self.class_center = torch.zeros(num_classes)
        self.patch_center = torch.zeros(num_classes)


class PlainStep:
    """The same by `reference`, which has `variant: released` written into it."""

    def __init__(
        self, model: StudentTeacher, config: LossConfig, *, num_local: int, bf16: bool = False
    ) -> None:
        assert config.center_update == "group"
        assert num_local > 0
        self.student = model.train().student
        self.centers = Centers(model.student.head.last_layer.out_features)
        self._teacher = model.teacher
        self._bf16 = bf16
        self._optimizer = build_optimizer(model.student)
        set_rates(self._optimizer, lr=LR, weight_decay=WEIGHT_DECAY)

    def to_gradients(self, views: Views, times: StageTimes) -> Tensor:
        """The loss, whose gradients are then in the student."""
        assert views.global_crops is not None
        assert views.local_crops is not None
        assert views.masked is not None
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16)
        mask = plain_mask(
            views.masked,
            size=views.global_crops.shape[-2:],
            patch_size=self.student.backbone.patch_size,
        )
        with times.stage("teacher and targets"), torch.no_grad(), autocast:
            teacher = plain_logits(self._teacher, views.global_crops)
        with times.stage("student and gradients"):
            with autocast:
                student = plain_logits(self.student, views.global_crops, mask)
                local = plain_logits(self.student, views.local_crops.flatten(0, 1))
            losses = plain_losses(
                teacher,
                student,
                local.unflatten(0, views.local_crops.shape[:2]),
                mask,
                class_center=self.centers.class_center,
                patch_center=self.centers.patch_center,
            )
            self.centers.class_center = losses.class_center
            self.centers.patch_center = losses.patch_center
            losses.loss.backward()
        return losses.loss.detach()

    def update(self, times: StageTimes) -> None:
        """Clips, steps and averages."""
        with times.stage("clip, optimiser, EMA"):
            plain_clip(self.student, max_norm=MAX_NORM)
            self._optimizer.step()
            self._optimizer.zero_grad()
            plain_average(self._teacher, self.student, momentum=MOMENTUM)


def plain_mask(masked: Tensor, *, size: torch.Size, patch_size: int) -> Tensor:
    """(batch, tokens): True where the student does not see the patch; size is height, width."""
    mask = torch.zeros(len(masked), size.numel() // patch_size**2, dtype=torch.bool)
    for row, positions in zip(mask, masked, strict=True):
        row[positions] = True
    return mask


def require_equal_gradients(ours: OurStep, plain: PlainStep, views: Views) -> dict[str, float]:
    """The largest differences of loss, gradients and centres; both sides then hold gradients.

    Raises:
        DifferentResultsError: one is larger than rounding in fp32.
    """
    losses = [side.to_gradients(views, StageTimes()) for side in (ours, plain)]
    found = {"loss": require_close("the loss", *losses, tolerance=TOLERANCE), "gradients": 0.0}
    expected = dict(plain.student.named_parameters())
    for name, parameter in ours.student.named_parameters():
        own, other = parameter.grad, expected[name].grad
        assert own is not None
        assert other is not None
        difference = require_close(f"the gradient of {name}", own, other, tolerance=TOLERANCE)
        found["gradients"] = max(found["gradients"], difference)
    for name in ("class_center", "patch_center"):
        centers = (getattr(side.centers, name) for side in (ours, plain))
        found[name] = require_close(name, *centers, tolerance=TOLERANCE)
    return found
