"""Schedules of learning rate, weight decay and teacher momentum over the steps of a run."""

import numpy as np
from jaxtyping import Float

from ino.errors import ConfigError
from ino.train.config import OptimConfig

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
    """Learning rate, weight decay and teacher momentum by step.

    `config.first_epoch` shifts the schedules: the released code counts epochs from 1 and so passes
    over the first epoch of warm-up. Its last epoch then overruns the schedules; here the last value
    holds.
    """

    def __init__(self, config: OptimConfig, *, steps_per_epoch: int, frames_per_step: int) -> None:
        """Args:
        config: values at the start and at the end.
        steps_per_epoch: optimiser steps in an epoch.
        frames_per_step: clips a device x frames x devices, which scales the learning rate.

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
        self._lr = cosine_schedule(
            config.lr * frames_per_step / FRAMES_OF_BASE_LR,
            config.min_lr,
            num_steps=num_steps,
            warmup_steps=int(config.warmup_epochs * steps_per_epoch),
        )
        self._weight_decay = cosine_schedule(
            config.weight_decay, config.weight_decay_end, num_steps=num_steps
        )
        self._momentum = cosine_schedule(config.teacher_momentum, 1.0, num_steps=num_steps)

    def at(self, step: int) -> tuple[float, float, float]:
        """Learning rate, weight decay and teacher momentum of a step, counted from 0."""
        index = min(step + self._first, len(self._lr) - 1)
        return (
            float(self._lr[index]),
            float(self._weight_decay[index]),
            float(self._momentum[index]),
        )
