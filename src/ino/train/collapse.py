"""Warnings of a collapse that a person understands: what is seen, what it means, what to try."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

PATIENCE = 3
"""Looks in a row that must find the same before it is told."""

UNIFORM = 0.98
"""Share of the largest entropy from which targets count as uniform."""

CONSTANT = 0.02
"""Information, as a share of its most, below which all views have the same target."""

LOW_RANK = 0.03
"""Share of the width below which features count as collapsed."""


@dataclass
class CollapseMonitor:
    """Tells of each kind of collapse once an episode; it is told again when it comes back."""

    num_classes: int
    num_views: int
    width: int
    first_step: int
    _seen: dict[str, int] = field(default_factory=dict)

    def check(self, step: int, numbers: Mapping[str, float]) -> list[str]:
        """The warnings that the numbers of a step give reason for.

        Args:
            step: counted from 0; before `first_step` nothing is told, for a network that has learnt
                little yet looks collapsed.
            numbers: of `ino.train.monitors`, by name; those that are missing are not judged.
        """
        if step < self.first_step:
            return []
        found = []
        # What is no number is told as a step that is skipped, not as a collapse.
        numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
        for kind, judge in _KINDS.items():
            words = judge(self, numbers)
            if words is None:
                continue
            self._seen[kind] = self._seen.get(kind, 0) + 1 if words else 0
            if self._seen[kind] == PATIENCE:
                found.append(f"at step {step} {words}")
        return found


def _uniform(monitor: CollapseMonitor, numbers: Mapping[str, float], name: str) -> str | None:
    most = math.log(monitor.num_classes)
    entropy = numbers.get(f"entropy_{name}")
    if entropy is None or entropy < UNIFORM * most:
        return None if entropy is None else ""
    return (
        f"the teacher's outputs for {name} tokens are nearly uniform (entropy {entropy:.2f} of at "
        f"most {most:.2f} nats): the network learns nothing from them; lower "
        "loss.teacher_temperature, or optim.lr"
    )


def _constant(monitor: CollapseMonitor, numbers: Mapping[str, float], name: str) -> str | None:
    information = numbers.get(f"information_{name}")
    if information is None:
        return None
    if _uniform(monitor, numbers, name):
        return ""
    most = math.log(min(monitor.num_views, monitor.num_classes))
    if information >= CONSTANT * most:
        return ""
    return (
        f"the teacher's outputs for {name} tokens are nearly the same whatever it sees "
        f"(information {max(0.0, information):.2f} of at most {most:.2f} nats): one answer "
        "takes all; lower optim.lr, or loss.center_momentum, so that the centre follows"
    )


def _low_rank(monitor: CollapseMonitor, numbers: Mapping[str, float]) -> str | None:
    rank = numbers.get("rank_patch")
    if rank is None or rank >= max(1.5, LOW_RANK * monitor.width):
        return None if rank is None else ""
    return (
        f"features lie along few directions (effective rank {rank:.1f} of {monitor.width}): they "
        "will not tell one thing from another; lower optim.lr, or start anew with another run.seed"
    )


_KINDS: dict[str, Callable[[CollapseMonitor, Mapping[str, float]], str | None]] = {
    "uniform class": lambda monitor, numbers: _uniform(monitor, numbers, "class"),
    "uniform patch": lambda monitor, numbers: _uniform(monitor, numbers, "patch"),
    "constant class": lambda monitor, numbers: _constant(monitor, numbers, "class"),
    "constant patch": lambda monitor, numbers: _constant(monitor, numbers, "patch"),
    "low rank": _low_rank,
}
