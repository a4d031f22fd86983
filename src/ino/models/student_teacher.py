"""The student and teacher networks (section 3.1): their inputs, their outputs and the EMA update.

The teacher sees the unmasked global crops; the student sees the global crops with masked patches,
and the local crops (Fig. 2). The head is applied only to the tokens that a loss uses: class tokens,
and patch tokens at the masked positions of global crops.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ino.models.vit import ProjectionHead

NetworkName = Literal["student", "teacher"]


class Views(NamedTuple):
    """The network inputs of a batch of clips.

    Attributes:
        global_crops: normalized RGB; None if this part of the step has none.
        local_crops: normalized RGB; None for no local crops.
        masked: row-major positions of the patches masked for the student, ascending. All clips have
            equally many, and all frames of a clip share them (m in Eq. 3 has no frame index). None
            in a step without masks.
    """

    global_crops: Float[Tensor, "time batch 3 height width"] | None
    local_crops: Float[Tensor, "time crop batch 3 local_height local_width"] | None = None
    masked: Int[Tensor, "batch masked"] | None = None


class Logits(NamedTuple):
    """Logits of one network, None if not computed; `patch` are those at the masked positions."""

    global_class: Float[Tensor, "time batch classes"] | None = None
    local_class: Float[Tensor, "time crop batch classes"] | None = None
    patch: Float[Tensor, "time batch masked classes"] | None = None

    def of(self, clips: slice) -> "Logits":
        """Those of a slice of the batch."""
        return Logits(
            None if self.global_class is None else self.global_class[:, clips],
            None if self.local_class is None else self.local_class[:, :, clips],
            None if self.patch is None else self.patch[:, clips],
        )


def split_views(views: Views, *, num_groups: int = 1) -> Iterator[tuple[slice, Views]]:
    """Splits the views of a step into parts for gradient accumulation: (slice of clips, views).

    Each group of clips gives one part with its local crops and one with its global crops. No term
    of the objective depends on the student's outputs of two parts, so their gradients add up. The
    last part has global crops, so that it uses every parameter, as data-parallel training expects.

    Args:
        views: of a step, with global crops.
        num_groups: number of groups of clips; a divisor of the number of clips.
    """
    assert views.global_crops is not None
    num_clips = views.global_crops.shape[1] // num_groups
    for start in range(0, num_clips * num_groups, num_clips):
        clips = slice(start, start + num_clips)
        if views.local_crops is not None:
            yield clips, Views(None, views.local_crops[:, :, clips])
        masked = None if views.masked is None else views.masked[clips]
        yield clips, Views(views.global_crops[:, clips], None, masked)


class Network(nn.Module):
    """A backbone and its head, one for class and patch tokens.

    The backbone is ino's ViT or a network of timm (`ino.models.masked_timm`).
    """

    def __init__(self, backbone: nn.Module, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.head = head

    def forward(self, views: Views, *, corrupt: bool) -> Logits:
        """Logits of the views, with one call of the head for all tokens that a loss uses.

        Args:
            views: global crops, local crops or both.
            corrupt: replace the embeddings of masked patches by the mask token.
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
    """A student, and a teacher whose parameters are their exponential moving average (EMA).

    They start with equal parameters. The teacher gets no gradients and never drops paths.
    """

    def __init__(self, backbone: nn.Module, head: ProjectionHead) -> None:
        super().__init__()
        self.student = Network(backbone, head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self._has_statistics = any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())

    def train(self, mode: bool = True) -> "StudentTeacher":
        """Switches the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, views: Views, *, role: NetworkName) -> Logits:
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
    def update_teacher(
        self,
        momentum: float,
        *,
        where: Tensor | None = None,
        reduce_mean: Callable[[Tensor], Tensor] = lambda mean: mean,
    ) -> None:
        """EMA update: teacher = momentum * teacher + (1 - momentum) * student, for each parameter.

        Running statistics of batch normalization, which the student updates whenever it runs, are
        moving averages already: the teacher, which normalizes by them, gets them as they are.

        Args:
            momentum: 0..1.
            where: a boolean scalar on the device; if it is False, the teacher does not change, and
                the student's statistics are as before the step. None means True.
            reduce_mean: averages a tensor over all processes.
        """
        self._share_statistics(where=where, reduce_mean=reduce_mean)
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        if where is None:
            torch._foreach_lerp_(teacher, student, 1.0 - momentum)
            return
        steps = torch._foreach_sub(student, teacher)
        torch._foreach_mul_(steps, where.float() * (1.0 - momentum))
        torch._foreach_add_(teacher, steps)

    def _share_statistics(
        self, *, where: Tensor | None, reduce_mean: Callable[[Tensor], Tensor]
    ) -> None:
        if not self._has_statistics:
            return
        pairs = list(zip(self.student.buffers(), self.teacher.buffers(), strict=True))
        means = [(own, other) for own, other in pairs if own.is_floating_point()]
        flat = reduce_mean(torch.cat([own.flatten() for own, _ in means]))
        for (own, _), mean in zip(means, flat.split([x.numel() for x, _ in means]), strict=True):
            own.copy_(mean.reshape(own.shape))
        for own, other in pairs:
            if where is not None:
                own.copy_(torch.where(where, own, other))
            other.copy_(own)
