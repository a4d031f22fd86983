"""AdamW with two groups of parameters, and gradients clipped parameter by parameter.

Parameters may be cut over processes (train.sharding). Whether a step is taken is decided on the
device, so that nothing waits for it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ino.models.student_teacher import Network
from ino.train.sharding import local_part


def build_optimizer(student: Network) -> torch.optim.AdamW:
    """AdamW that decays everything but biases and one-dimensional parameters.

    Class, mask and position tokens are decayed. Learning rate and weight decay are set in every
    step by `set_rates`.
    """
    decayed, free = [], []
    for name, parameter in student.named_parameters():
        (free if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(parameter)
    groups = [{"params": decayed, "decayed": True}, {"params": free, "decayed": False}]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)


def take_step(optimizer: torch.optim.Optimizer, *, where: Tensor, scaler: Any | None) -> None:
    """Steps, or leaves parameters and moments as they are where that truth value is false.

    The fused optimiser reads the value on its device, as it does for torch's GradScaler.

    Args:
        optimizer: fused; its gradients are not scaled any more.
        where: one truth value, on the device of the parameters.
        scaler: of fp16, if any; it learns whether gradients overflowed.
    """
    optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.found_inf = 1.0 - where.float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    if scaler is not None:
        scaler.update()


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Sets the learning rate of all groups and the weight decay of the decayed one."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], *, max_norm: float) -> Tensor:
    """Scales the gradient of each parameter by itself to a norm of at most `max_norm`.

    Args:
        parameters: those without a gradient are passed over.
        max_norm: 0 leaves gradients as they are.

    Returns:
        The norm over all gradients before scaling.
    """
    whole = [parameter.grad for parameter in parameters if parameter.grad is not None]
    gradients = [local_part(gradient) for gradient in whole]
    norms = torch.stack(torch._foreach_norm(gradients))
    if isinstance(whole[0], DTensor):
        squares = norms.square()
        torch.distributed.all_reduce(squares)  # each process held a part of every gradient
        norms = squares.sqrt()
    if max_norm > 0:
        scales = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(scales.unbind()))
    return norms.norm()
