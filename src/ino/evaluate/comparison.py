"""Two sets of masks compared sequence by sequence: which differ most, and where. Only numbers."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from ino.data.label_png import VOID
from ino.errors import ConfigError
from ino.evaluate.davis import DavisScores, ObjectScore


@dataclass(frozen=True)
class Gap:
    """J&F of one sequence by two methods, fractions."""

    sequence: str
    a: float
    b: float

    @property
    def difference(self) -> float:
        """Above 0 where A is ahead."""
        return self.a - self.b


@dataclass(frozen=True)
class Comparison:
    """Two methods on the sequences that both have.

    Attributes:
        name_a: of the first method.
        name_b: of the second.
        a: its scores, of the common sequences only.
        b: the same of the second.
        gaps: from the sequence in which A is furthest ahead to that in which B is.
        left_out: sequences that only one of them has.
    """

    name_a: str
    name_b: str
    a: DavisScores
    b: DavisScores
    gaps: tuple[Gap, ...]
    left_out: tuple[str, ...]

    def ends(self, count: int) -> tuple[list[Gap], list[Gap]]:
        """Up to `count` sequences that are best for A against B, and others that are best for B."""
        first = list(self.gaps[:count])
        return first, list(reversed(self.gaps[max(len(first), len(self.gaps) - count) :]))

    def notes(self) -> list[str]:
        """What the means leave out."""
        if not self.left_out:
            return []
        return [
            f"Scored in one of the two only, and left out: {', '.join(self.left_out)}. Means are "
            f"over the {len(self.gaps)} sequences that both have, so they may differ from what an "
            "evaluation printed."
        ]

    def lines(self) -> list[list[str]]:
        """A table in percent: the means over objects, then a sequence a line."""
        means = [
            ("J&F, mean over objects", self.a.jf_mean, self.b.jf_mean),
            ("J", self.a.j_mean, self.b.j_mean),
            ("F", self.a.f_mean, self.b.f_mean),
        ]
        rows = [*means, *((gap.sequence, gap.a, gap.b) for gap in self.gaps)]
        return [
            ["", self.name_a, self.name_b, "difference"],
            *([name, _percent(a), _percent(b), f"{100 * (a - b):+.1f}"] for name, a, b in rows),
        ]


def compare_scores(names: tuple[str, str], a: DavisScores, b: DavisScores) -> Comparison:
    """Compares scores on the sequences that both have.

    Args:
        names: of the two methods.
        a: scores of the first.
        b: scores of the second.

    Raises:
        ConfigError: they have no sequence in common, or one has objects that the other lacks.
    """
    by_a, by_b = a.by_sequence(), b.by_sequence()
    common = by_a.keys() & by_b.keys()
    if not common:
        raise ConfigError(f"{names[0]} and {names[1]} have no sequence in common")
    kept_a, kept_b = (_kept(scores, common) for scores in (a, b))
    if unequal := sorted({*map(_identity, kept_a)} ^ {*map(_identity, kept_b)}):
        sequence, number = unequal[0]
        raise ConfigError(
            f"object {number} of {sequence} was scored in one of {names[0]} and {names[1]} only; "
            "evaluate both on the same data set"
        )
    gaps = sorted(
        (Gap(name, by_a[name], by_b[name]) for name in common),
        key=lambda gap: (-gap.difference, gap.sequence),
    )
    left_out = tuple(sorted(by_a.keys() ^ by_b.keys()))
    return Comparison(*names, DavisScores(kept_a), DavisScores(kept_b), tuple(gaps), left_out)


def mean_j(
    predicted: UInt8[np.ndarray, "height width"], truth: UInt8[np.ndarray, "height width"]
) -> float:
    """J of one frame, the mean over the objects of either; 1 where there are none.

    Void is left out. For choosing frames to show: scores are those of `ino.evaluate.davis`.
    """
    counted = truth != VOID
    predicted, truth = predicted[counted], truth[counted]
    found = [number for number in np.union1d(predicted, truth) if number not in (0, VOID)]
    shares = [
        ((predicted == number) & (truth == number)).sum()
        / ((predicted == number) | (truth == number)).sum()
        for number in found
    ]
    return float(np.mean(shares)) if shares else 1.0


def telling_frames(differences: Float[np.ndarray, " frames"], *, count: int) -> list[int]:
    """Frame 0, which is given, and one frame of each of `count` - 1 equal parts of the others.

    Of each part it is the frame with the largest absolute difference, the middle one among equals.
    The last frame is not scored, so it is not shown, unless there is no other.

    Args:
        differences: J of one method less J of the other, for every frame.
        count: frames to show, at least 1; fewer where there are fewer.
    """
    others: Sequence[int] = range(1, max(len(differences) - 1, min(2, len(differences))))
    parts = np.array_split(np.array(others, dtype=int), max(count - 1, 1))
    chosen = [0]
    for part in parts if count > 1 else []:
        if len(part):
            sizes = np.abs(differences[part])
            best = part[sizes >= sizes.max() - 1e-9]
            chosen.append(int(best[len(best) // 2]))
    return chosen


def _kept(scores: DavisScores, names: Set[str]) -> tuple[ObjectScore, ...]:
    return tuple(one for one in scores.objects if one.sequence in names)


def _identity(one: ObjectScore) -> tuple[str, int]:
    return one.sequence, one.object_id


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
