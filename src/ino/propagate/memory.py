"""What propagation remembers of a video: the frames kept for good and a ring of the last ones.

Storage does not grow with the video: the frames kept for each time at which objects enter, and the
last ones, as many as the context reaches back. A frame is stored once, however many references look
at it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ino.kernels.topk import FeatureMap
from ino.propagate.protocols import Recent


@dataclass
class MemoryFrame:
    """A frame that later ones may look at.

    Attributes:
        time: the frame's number, counted from the first frame that was stored.
        features: as the protocol's matching keeps them.
        soft: labels of each channel known at that time.
    """

    time: int
    features: FeatureMap | Tensor
    soft: Float[Tensor, "height width channel"]


@dataclass(frozen=True)
class Reference:
    """A frame that introduced objects, and the channels of `soft` that these objects have.

    Attributes:
        frame: as the context shows it.
        channels: of the objects.
        copied: the same frame as copies show it that stand for missing frames.
        kept: later frames that stay in this reference's context.
    """

    frame: MemoryFrame
    channels: list[int]
    copied: MemoryFrame
    kept: list[MemoryFrame] = field(default_factory=list)


class ContextFrame(NamedTuple):
    """A frame that a query looks at, within its window or everywhere, and how often it counts."""

    frame: MemoryFrame
    windowed: bool = True
    copies: int = 1


class Memory:
    """The references, what is kept beside them, and the last frames."""

    def __init__(
        self,
        *,
        num_context: int,
        recent: Recent = "after-reference",
        reference_windowed: bool = True,
        kept: Sequence[int] = (0,),
        context_step: int = 1,
        reference_passed_on: bool = False,
    ) -> None:
        """A memory of nothing.

        Args:
            num_context: frames before the query that serve beside the kept ones.
            recent: which of them, see `Recent`.
            reference_windowed: whether a query looks at the reference within its window only.
            kept: distances from a reference of the frames that stay in its context.
            context_step: frames from one of the last frames to the one before it.
            reference_passed_on: whether a reference is one of the last frames, too.
        """
        self.references: list[Reference] = []
        self._num_context = num_context
        self._step = context_step
        self._recent: deque[MemoryFrame] = deque(
            maxlen=(num_context - 1) * context_step + 1 if num_context else 0
        )
        self._rule: Recent = recent
        self._reference_windowed = reference_windowed
        self._kept = tuple(kept)
        self._passed_on = reference_passed_on
        self._latest: MemoryFrame | None = None

    @property
    def latest(self) -> MemoryFrame:
        """The frame that was stored last."""
        assert self._latest is not None, "no frame was stored"
        return self._latest

    def introduce(
        self,
        frame: MemoryFrame,
        *,
        channels: Sequence[int],
        copied: MemoryFrame | None = None,
    ) -> Reference:
        """Remembers a reference, which takes its channels over from others that have them.

        Args:
            frame: as the context shows it.
            channels: that it introduces or corrects.
            copied: as copies show it that stand for missing frames, if not like `frame`.
        """
        for older in self.references:
            older.channels[:] = [one for one in older.channels if one not in channels]
        self.references = [older for older in self.references if older.channels]
        reference = Reference(frame, list(channels), copied or frame)
        self.references.append(reference)
        return reference

    def store(self, frame: MemoryFrame) -> None:
        """Remembers the next frame."""
        self._latest = frame
        self._recent.append(frame)
        for reference in self.references:
            distance = frame.time - reference.frame.time
            if distance > 0 and distance in self._kept:
                reference.kept.append(frame)

    def take_back(self) -> MemoryFrame:
        """Forgets the frame that was stored last, as if it were yet to come, and gives it."""
        frame = self.latest
        if self._recent and self._recent[-1] is frame:
            self._recent.pop()
        for reference in self.references:
            reference.kept[:] = [one for one in reference.kept if one is not frame]
        return frame

    def replace_labels(self, time: int, soft: Float[Tensor, "height width channel"]) -> None:
        """Replaces the labels that the frame of that time passes on."""
        references = [one for reference in self.references for one in _frames(reference)]
        for frame in (self.latest, *self._recent, *references):
            if frame.time == time:
                frame.soft = soft

    def context(self, reference: Reference) -> list[ContextFrame]:
        """What is kept of the reference, then those of the last frames that the rule admits."""
        again = self._admitted(reference)
        context = []
        if self._keeps_reference:
            context.append(ContextFrame(reference.frame, windowed=self._reference_windowed))
        if self._rule == "padded" and (missing := self._num_context - len(again)):
            context.append(ContextFrame(reference.copied, copies=missing))
        others = sorted([*reference.kept, *again], key=lambda frame: frame.time)
        return [*context, *(ContextFrame(frame) for frame in others)]

    @property
    def _keeps_reference(self) -> bool:
        return 0 in self._kept

    def _admitted(self, reference: Reference) -> list[MemoryFrame]:
        """The last frames, from the reference on, that serve beside the kept ones."""
        start = reference.frame.time
        once = self._rule != "reference-again"
        excluded = {frame.time for frame in reference.kept} if once else set()
        if once and self._keeps_reference and not self._passed_on:
            excluded.add(start)
        return [
            frame
            for frame in self._recent
            if frame.time >= start
            and (self._recent[-1].time - frame.time) % self._step == 0
            and frame.time not in excluded
        ]


def _frames(reference: Reference) -> list[MemoryFrame]:
    return [reference.frame, reference.copied, *reference.kept]
