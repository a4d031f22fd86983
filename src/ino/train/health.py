"""Steps whose loss or gradient is not finite: skipped, counted, gone back from, explained.

A step is judged on the device and nothing waits for it; the count is read with the numbers that
are logged.
"""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ino.errors import TrainingError
from ino.train.objective import Terms

MOST_IN_ROW = 5
MOST_IN_ROW_FP16 = 30
"""fp16's loss scale starts high and halves at each overflow until gradients fit."""

_LOG = logging.getLogger("ino")


class Health:
    """Judges the steps of all processes and counts those skipped in a row."""

    def __init__(self, *, reduce_mean: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Args:
        reduce_mean: averages a tensor over all processes.
        device: of the training.
        """
        self._reduce_mean = reduce_mean
        self._skipped = torch.zeros((), device=device)
        self._went_back_to: Path | None = None

    def judge(
        self, terms: Terms, grad_norm: Tensor, *, stop: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Whether all processes can take the step, one truth value, and the step's numbers.

        Args:
            terms: of this process.
            grad_norm: over all gradients of all processes.
            stop: whether this process was asked to stop.

        Returns:
            The numbers are means over the processes; `skipped` counts the steps in a row, with this
            one, that were not taken, and `stop` is above 0 if any process is to stop.
        """
        flag = terms.loss.new_full((1,), float(stop), dtype=torch.float32)
        reduced = self._reduce_mean(torch.cat([terms.stacked(), flag]))
        is_good = torch.isfinite(reduced).all() & torch.isfinite(grad_norm)
        self._skipped = torch.where(is_good, 0.0, self._skipped + 1.0)
        names = (*Terms._fields, "stop")
        numbers = dict(zip(names, reduced.unbind(), strict=True))
        return is_good, numbers | {"grad_norm": grad_norm, "skipped": self._skipped}

    def go_back(self, checkpoint: Path | None, numbers: Mapping[str, float], *, step: int) -> Path:
        """The checkpoint to go back to, as steps are skipped in a row; training goes on with later
        clips and crops, as the same ones would fail again.

        Args:
            checkpoint: the newest, which is never written while steps are skipped.
            numbers: of the last step, read.
            step: counted from 0.

        Raises:
            TrainingError: there is no checkpoint, or the run went back to it before.
        """
        reason = diagnosis(numbers, step=step)
        if checkpoint is None:
            raise TrainingError(f"{reason}; there is no checkpoint to go back to. {ADVICE}")
        if checkpoint == self._went_back_to:
            raise TrainingError(
                f"{reason}, again after going back to {checkpoint.name}, which is whole. {ADVICE}"
            )
        _LOG.warning("%s; going back to %s, with later clips", reason, checkpoint.name)
        self._went_back_to = checkpoint
        self._skipped = torch.zeros_like(self._skipped)
        return checkpoint


ADVICE = (
    "Start again with a lower optim.lr or a longer optim.warmup_epochs, with a lower "
    "optim.clip_grad, or with run.precision 32-true"
)


def diagnosis(numbers: Mapping[str, float], *, step: int) -> str:
    """Which number is not finite, and what the step was like."""
    broken = [name for name in (*Terms._fields, "grad_norm") if not math.isfinite(numbers[name])]
    culprit = next((name for name in broken if name != "loss"), "loss")
    what = "the norm of the gradients" if culprit == "grad_norm" else f"the term {culprit}"
    return (
        f"{what} is {numbers[culprit]} at step {step}, and {numbers['skipped']:.0f} steps in a row "
        f"could not be taken (lr {numbers['lr']:.2e}, gradient norm {numbers['grad_norm']:.3g})"
    )


class Unread:
    """Numbers of steps, left on the device until they are read together."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, dict[str, Tensor], dict[str, float]]] = []

    def add(self, step: int, on_device: Mapping[str, Tensor], known: Mapping[str, float]) -> None:
        """Keeps the numbers of a step: single values on the device, and others that are known."""
        self._steps.append((step, dict(on_device), dict(known)))

    def read(self) -> list[tuple[int, dict[str, float]]]:
        """The steps that were not read yet and their numbers, in one transfer."""
        waiting, self._steps = self._steps, []
        if not waiting:
            return []
        values = torch.stack([v.detach().float() for _, held, _ in waiting for v in held.values()])
        numbers = iter(values.tolist())
        return [
            (step, {name: next(numbers) for name in held} | known) for step, held, known in waiting
        ]
