"""AdamW, clipping parameter by parameter, and the schedules of a run.

Parameters may be sharded over processes (`train.distributed`). Whether a step is taken is decided
on the device, so that nothing waits for it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ino.errors import ConfigError
from ino.models.student_teacher import Network
from ino.train.config import OptimConfig
from ino.train.distributed import local_part

FRAMES_OF_BASE_LR = 1024
MOST_STEPS = 100_000_000
"""Far more than any run takes; schedules keep three numbers for each."""


def cosine_schedule(
    start: float, end: float, *, num_steps: int, warmup_steps: int = 0
) -> Float[np.ndarray, " steps"]:
    """A value for each step: linear from 0 to `start` in the warm-up, then a cosine to `end`."""
    warmup_steps = min(warmup_steps, num_steps)
    progress = np.arange(num_steps - warmup_steps) / max(1, num_steps - warmup_steps)
    cosine = end + 0.5 * (start - end) * (1 + np.cos(np.pi * progress))
    return np.concatenate([np.linspace(0, start, warmup_steps), cosine])


class Schedules:
    """Learning rate, weight decay and teacher momentum of each step.

    `config.first_epoch` shifts the schedules: the released code counts epochs from 1 and so skips
    the first epoch of warm-up. Its last epoch then overruns the schedules; here the last value
    holds.
    """

    def __init__(self, config: OptimConfig, *, steps_per_epoch: int, frames_per_step: int) -> None:
        """Args:
        config: start and end values of the schedules, and their length in epochs.
        steps_per_epoch: optimizer steps in an epoch.
        frames_per_step: frames of all clips in a step over all devices; the learning rate is scaled
            by frames_per_step / 1024.

        Raises:
            ConfigError: the run would have more than `MOST_STEPS`.
        """
        num_steps = config.epochs * steps_per_epoch
        if num_steps > MOST_STEPS:
            raise ConfigError(
                f"optim.epochs is {config.epochs}, which is {num_steps} steps with this data; "
                f"schedules are for at most {MOST_STEPS}"
            )
        self._first = (config.first_epoch or 0) * steps_per_epoch
        lr = cosine_schedule(
            config.lr * frames_per_step / FRAMES_OF_BASE_LR,
            config.min_lr,
            num_steps=num_steps,
            warmup_steps=int(config.warmup_epochs * steps_per_epoch),
        )
        weight_decay = cosine_schedule(
            config.weight_decay, config.weight_decay_end, num_steps=num_steps
        )
        momentum = cosine_schedule(config.teacher_momentum, 1.0, num_steps=num_steps)
        self._values = np.stack([lr, weight_decay, momentum], axis=1)

    def at(self, step: int) -> tuple[float, float, float]:
        """Learning rate, weight decay and teacher momentum of a step, counted from 0."""
        lr, weight_decay, momentum = self._values[min(step + self._first, len(self._values) - 1)]
        return float(lr), float(weight_decay), float(momentum)


def build_optimizer(
    student: Network, *, factors: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW that decays everything but biases and one-dimensional parameters.

    Class, mask and position tokens are decayed. Learning rate and weight decay are set in every
    step by `set_rates`.

    Args:
        student: frozen parameters are left out.
        factors: of the learning rate, for the parameters of a backbone that was trained before, by
            name; all others are new. None: all are new.
    """
    groups: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            decayed = not (name.endswith(".bias") or parameter.ndim == 1)
            groups.setdefault(((factors or {}).get(name), decayed), []).append(parameter)
    listed = []
    for (factor, decayed), parameters in sorted(groups.items(), key=lambda one: not one[0][1]):
        listed.append({"params": parameters, "decayed": decayed})
        if factor is not None:
            listed[-1]["factor"] = factor
    return torch.optim.AdamW(listed, lr=0.0, weight_decay=0.0, fused=True)


def layer_factors(backbone: nn.Module, *, decay: float) -> dict[str, float]:
    """Factors of the learning rate of a backbone's parameters, by name in the student.

    1 for the last block, and `decay` times as much for each block before. Mask tokens, which other
    trainings lack, have none.

    Args:
        backbone: ino's ViT or a `MaskedTimm`.
        decay: 0..1.
    """
    network: Any = getattr(backbone, "network", backbone)
    prefix = "backbone." if network is backbone else "backbone.network."
    layers = timm.models.group_parameters(
        network, network.group_matcher(coarse=False), reverse=True
    )
    layers.pop("mask_token", None)
    numbers = sorted(set(layers.values()))
    depths = {number: len(numbers) - 1 - place for place, number in enumerate(numbers)}
    return {f"{prefix}{name}": decay ** depths[number] for name, number in layers.items()}


def take_step(optimizer: torch.optim.Optimizer, *, where: Tensor, scaler: Any | None) -> None:
    """Takes an optimizer step if `where` is true; otherwise parameters and moments do not change.

    The decision is made on the device: the fused optimizer reads it as it does torch's GradScaler.

    Args:
        optimizer: fused; its gradients must be unscaled already.
        where: a boolean scalar on the device of the parameters.
        scaler: GradScaler of fp16 training, which is updated; None otherwise.
    """
    optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.found_inf = 1.0 - where.float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    if scaler is not None:
        scaler.update()


def set_rates(
    optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float, trained: float = 1.0
) -> None:
    """Sets the learning rate of all groups and the weight decay of the decayed ones.

    `trained` is another factor, for parameters that were trained before.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"] * trained if "factor" in group else lr
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], *, max_norm: float) -> Tensor:
    """Clips the gradient of each parameter separately to an L2 norm of at most `max_norm`.

    Args:
        parameters: those without a gradient are skipped; at least one must have a gradient.
        max_norm: 0 for no clipping.

    Returns:
        The L2 norm of all gradients together before clipping.
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
