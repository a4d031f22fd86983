"""Student and teacher: what each of them sees, and which of their outputs a loss reads.

The teacher sees the global crops as they are, the student sees them with masked positions and the
local crops as well (Fig. 2). Head outputs are computed where a loss reads them only: class tokens,
and patch tokens at masked positions of global crops.
"""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ino.models.head import ProjectionHead
from ino.models.vit import VisionTransformer


class Views(NamedTuple):
    """What the networks see of a batch of clips; every pixel normalised.

    `global_crops` (time, batch, 3, height, width); `local_crops` (time, crop, batch, 3, height,
    width) or None; `mask` (batch, tokens), True where the student's patch is replaced, with equally
    many True in each row, shared by the frames of a clip (m in Eq. 3 has no frame index), or None.
    """

    global_crops: Float[Tensor, "time batch 3 height width"]
    local_crops: Float[Tensor, "time crop batch 3 local_height local_width"] | None = None
    mask: Bool[Tensor, "batch tokens"] | None = None


class Logits(NamedTuple):
    """Head outputs of one network; `patch` holds the masked positions, row by row."""

    global_class: Float[Tensor, "time batch classes"]
    local_class: Float[Tensor, "time crop batch classes"] | None = None
    patch: Float[Tensor, "time batch masked classes"] | None = None


class Network(nn.Module):
    """A backbone and its head, one for class and patch tokens."""

    def __init__(self, backbone: VisionTransformer, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Views, *, corrupt: bool) -> Logits:
        """Logits of the views; with `corrupt`, masked patches are replaced by the mask token.

        One call of the head serves all tokens that a loss reads.
        """
        time, batch, _, height, width = views.global_crops.shape
        mask = None if views.mask is None else views.mask.repeat(time, 1)  # (t*b, n)
        replaced = mask if corrupt else None
        if corrupt and mask is None:
            # The mask token takes part in every step, as data-parallel training expects.
            num_tokens = (height // self.backbone.patch_size) * (width // self.backbone.patch_size)
            replaced = views.global_crops.new_zeros((time * batch, num_tokens), dtype=torch.bool)
        tokens = self.backbone(views.global_crops.flatten(0, 1), replaced)
        parts = [tokens[:, 0]]
        if mask is not None:
            parts.append(tokens[:, 1:][mask])  # (t*b*k, d)
        if views.local_crops is not None:
            parts.append(self.backbone(views.local_crops.flatten(0, 2))[:, 0])
        logits = list(self.head(torch.cat(parts)).split([len(part) for part in parts]))
        global_class = logits.pop(0).unflatten(0, (time, batch))
        patch = None if mask is None else logits.pop(0).unflatten(0, (time, batch, -1))
        local = logits.pop(0).unflatten(0, (time, -1, batch)) if logits else None
        return Logits(global_class, local, patch)


class StudentTeacher(nn.Module):
    """A student and the moving average of its parameters, which is its teacher.

    Both start equal. The teacher takes no gradient and drops no path.
    """

    def __init__(self, backbone: VisionTransformer, head: ProjectionHead) -> None:
        super().__init__()
        self.student = Network(backbone, head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "StudentTeacher":
        """Switches the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, views: Views) -> tuple[Logits, Logits]:
        """Logits of the student and of the teacher (section 3.1); no gradient into the teacher."""
        with torch.no_grad():
            teacher = self.teacher(views._replace(local_crops=None), corrupt=False)
        return self.student(views, corrupt=True), teacher

    @torch.no_grad()
    def update_teacher(self, momentum: float, *, where: Tensor | None = None) -> None:
        """Teacher = momentum x teacher + (1 - momentum) x student, parameter by parameter.

        Args:
            momentum: 0..1.
            where: one truth value on the device; where it is false nothing changes.
        """
        teacher, student = list(self.teacher.parameters()), list(self.student.parameters())
        if where is None:
            torch._foreach_lerp_(teacher, student, 1.0 - momentum)
            return
        steps = torch._foreach_sub(student, teacher)
        torch._foreach_mul_(steps, where.float() * (1.0 - momentum))
        torch._foreach_add_(teacher, steps)
