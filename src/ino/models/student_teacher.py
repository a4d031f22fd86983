"""Student and teacher: what each of them sees, and which of their outputs a loss reads.

The teacher sees the global crops as they are, the student sees them with masked positions and the
local crops as well (Fig. 2). Head outputs are computed where a loss reads them only: class tokens,
and patch tokens at masked positions of global crops.
"""

import copy
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ino.models.vit import ProjectionHead, VisionTransformer

Role = Literal["student", "teacher"]


class Views(NamedTuple):
    """What the networks see of a batch of clips; every pixel normalised.

    `global_crops` (time, batch, 3, height, width); `local_crops` (time, crop, batch, 3, height,
    width); `masked` (batch, masked): the positions of the global crops, counted row by row, whose
    patches the student does not see, ascending, equally many in each clip and shared by its frames
    (m in Eq. 3 has no frame index). Each is None where there is none.
    """

    global_crops: Float[Tensor, "time batch 3 height width"] | None
    local_crops: Float[Tensor, "time crop batch 3 local_height local_width"] | None = None
    masked: Int[Tensor, "batch masked"] | None = None


class Logits(NamedTuple):
    """Head outputs of one network; `patch` holds the masked positions. None where not computed."""

    global_class: Float[Tensor, "time batch classes"] | None = None
    local_class: Float[Tensor, "time crop batch classes"] | None = None
    patch: Float[Tensor, "time batch masked classes"] | None = None


def separate(views: Views, *, num_parts: int = 1) -> Iterator[tuple[slice, Views]]:
    """The views in parts whose gradients can be taken one after the other: clips and their views.

    Local and global crops come apart, and so do groups of clips. As the targets are the teacher's,
    no term of the objective reads the student's outputs of two parts. The last part has global
    crops, so that every parameter takes part in it, as data-parallel training expects.

    Args:
        views: of a step.
        num_parts: groups of clips, a divisor of their number.
    """
    assert views.global_crops is not None
    num_clips = views.global_crops.shape[1] // num_parts
    for start in range(0, num_clips * num_parts, num_clips):
        clips = slice(start, start + num_clips)
        if views.local_crops is not None:
            yield clips, Views(None, views.local_crops[:, :, clips])
        masked = None if views.masked is None else views.masked[clips]
        yield clips, Views(views.global_crops[:, clips], None, masked)


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
        read: list[Tensor] = []
        if views.global_crops is not None:
            read.append(self._read_global(views.global_crops, views.masked, corrupt=corrupt))
        if views.local_crops is not None:
            read.append(self._read_local(views.local_crops))
        flat = self.head(torch.cat([tokens.flatten(0, -2) for tokens in read]))
        logits = [
            part.unflatten(0, tokens.shape[:-1])
            for part, tokens in zip(
                flat.split([t[..., 0].numel() for t in read]), read, strict=True
            )
        ]
        local_class = None if views.local_crops is None else logits.pop()
        if not logits:
            return Logits(local_class=local_class)
        patch = None if views.masked is None else logits[0][:, :, 1:]
        return Logits(logits[0][:, :, 0], local_class, patch)

    def _read_global(
        self,
        crops: Float[Tensor, "time batch 3 height width"],
        masked: Int[Tensor, "batch masked"] | None,
        *,
        corrupt: bool,
    ) -> Float[Tensor, "time batch class_and_masked dim"]:
        """The class token, then those of the masked positions."""
        time, batch, _, height, width = crops.shape
        side = self.backbone.patch_size
        if masked is None:
            masked = torch.empty(batch, 0, dtype=torch.int64, device=crops.device)
        read = masked.repeat(time, 1)  # (t*b, k)
        mask = None
        if corrupt:
            # Without masked positions as well: the mask token takes part in every step, as
            # data-parallel training expects.
            shape = (len(read), (height // side) * (width // side))
            mask = torch.zeros(shape, dtype=torch.bool, device=crops.device)
            mask.scatter_(1, read, True)
        tokens = self.backbone(crops.flatten(0, 1), mask, read=read)
        return tokens.unflatten(0, (time, batch))

    def _read_local(
        self, crops: Float[Tensor, "time crop batch 3 height width"]
    ) -> Float[Tensor, "time crop batch dim"]:
        """The class token."""
        flat = crops.flatten(0, 2)
        nothing = torch.empty(len(flat), 0, dtype=torch.int64, device=crops.device)
        return self.backbone(flat, read=nothing)[:, 0].unflatten(0, crops.shape[:3])


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

    def forward(self, views: Views, *, role: Role) -> Logits:
        """Logits of the student or of the teacher (section 3.1); no gradient into the teacher.

        Args:
            views: what the network sees; the teacher is not shown local crops.
            role: the student sees masked positions corrupted, the teacher as they are.
        """
        if role == "student":
            return self.student(views, corrupt=True)
        with torch.no_grad():
            return self.teacher(views._replace(local_crops=None), corrupt=False)

    @torch.no_grad()
    def update_teacher(self, momentum: float, *, where: Tensor | None = None) -> None:
        """Teacher = momentum x teacher + (1 - momentum) x student, parameter by parameter.

        Args:
            momentum: 0..1.
            where: one truth value on the device; where it is false nothing changes.
        """
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        if where is None:
            torch._foreach_lerp_(teacher, student, 1.0 - momentum)
            return
        steps = torch._foreach_sub(student, teacher)
        torch._foreach_mul_(steps, where.float() * (1.0 - momentum))
        torch._foreach_add_(teacher, steps)
