"""What was found wrong with a submission, counted by kind and told by its first few sentences."""

from collections.abc import Iterator
from dataclasses import dataclass, field

NUM_SHOWN = 3
"""Sentences that are kept of each kind; the others are counted."""


@dataclass
class Findings:
    """Faults of one kind: how many there are, and the sentences of the first few."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, sentence: str, *, count: int = 1) -> None:
        """Counts faults that one sentence tells of."""
        self.count += count
        if len(self.shown) < NUM_SHOWN:
            self.shown.append(sentence)


@dataclass
class SubmissionReport:
    """What was found, by kind of fault. Warnings do not keep a submission from being scored."""

    num_videos: int = 0
    num_masks: int = 0
    faults: dict[str, Findings] = field(default_factory=dict)
    warnings: dict[str, Findings] = field(default_factory=dict)

    @property
    def num_faults(self) -> int:
        return sum(found.count for found in self.faults.values())

    def counts(self) -> str:
        """What was looked at and how much of it is wrong, in words."""
        faults = _count(self.num_faults, "fault") if self.num_faults else "no faults"
        videos, masks = _count(self.num_videos, "video"), _count(self.num_masks, "mask")
        return f"{videos}, {masks}, {faults}"

    def lines(self) -> Iterator[str]:
        """The findings in words: a heading a kind, a sentence a line below it."""
        for head, kinds in (("fault", self.faults), ("warning", self.warnings)):
            for kind, found in kinds.items():
                yield f"{head}: {kind} ({found.count})"
                yield from (f"  {sentence}" for sentence in found.shown)
                if len(found.shown) == NUM_SHOWN < found.count:
                    yield "  and so on"

    def fault(self, kind: str, sentence: str, *, count: int = 1) -> None:
        """Notes what keeps the masks from being handed in."""
        self.faults.setdefault(kind, Findings()).add(sentence, count=count)

    def warn(self, kind: str, sentence: str, *, count: int = 1) -> None:
        """Notes what is odd but does no harm."""
        self.warnings.setdefault(kind, Findings()).add(sentence, count=count)

    def join(self, other: "SubmissionReport") -> None:
        """Adds what another report found."""
        self.num_videos += other.num_videos
        self.num_masks += other.num_masks
        for mine, theirs in ((self.faults, other.faults), (self.warnings, other.warnings)):
            for kind, found in theirs.items():
                target = mine.setdefault(kind, Findings())
                target.shown += found.shown[: NUM_SHOWN - len(target.shown)]
                target.count += found.count


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
