"""The context of a query: frames kept for good, and a ring of the last ones.

Memory does not grow with the video: it holds the frames kept for each time at which objects enter,
and as many of the last ones as the context reaches back. A frame is stored once, however many
references have it in their context.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ino.propagate.protocols import Protocol


@dataclass
class MemoryFrame:
    """A frame that later ones may look at.

    Attributes:
        time: the frame's number, counted from the first frame that was stored.
        features: a FeatureMap, or the features themselves where matching is not topk.
        soft: labels of each channel known at that time.
    """

    time: int
    features: Any
    soft: Float[Tensor, "height width channel"]


@dataclass(frozen=True)
class Reference:
    """A frame that introduced objects.

    Attributes:
        frame: as the context shows it.
        channels: of these objects.
        copied: the same frame as its copies show it, which stand for missing frames.
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
    """The references, the frames kept with them, and the last frames, as a protocol has it."""

    def __init__(self, protocol: Protocol) -> None:
        """An empty memory."""
        self.references: list[Reference] = []
        self._protocol = protocol
        span = (protocol.num_context - 1) * protocol.context_step + 1
        self._recent: deque[MemoryFrame] = deque(maxlen=span if protocol.num_context else 0)
        self._latest: MemoryFrame | None = None

    @property
    def latest(self) -> MemoryFrame:
        """The frame that was stored last."""
        assert self._latest is not None, "no frame was stored"
        return self._latest

    def introduce(
        self, frame: MemoryFrame, *, channels: Sequence[int], copied: MemoryFrame | None = None
    ) -> Reference:
        """Remembers a reference, which takes its channels over from others that have them.

        Args:
            frame: as the context shows it.
            channels: that it introduces or corrects.
            copied: as its copies show it, if not like `frame`.
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
            if distance > 0 and distance in self._protocol.kept:
                reference.kept.append(frame)

    def take_back(self) -> MemoryFrame:
        """Removes the frame that was stored last, as if it were yet to come, and returns it."""
        frame = self.latest
        if self._recent and self._recent[-1] is frame:
            self._recent.pop()
        for reference in self.references:
            reference.kept[:] = [one for one in reference.kept if one is not frame]
        return frame

    def replace_labels(self, time: int, soft: Float[Tensor, "height width channel"]) -> None:
        """Replaces the labels that the frame of that time passes on."""
        frames = [self.latest, *self._recent]
        for reference in self.references:
            frames += [reference.frame, reference.copied, *reference.kept]
        for frame in frames:
            if frame.time == time:
                frame.soft = soft

    def context(self, reference: Reference) -> list[ContextFrame]:
        """What is kept of the reference, then those of the last frames that the rule admits."""
        rule = self._protocol
        recent = self._recent_for(reference)
        context = []
        if 0 in rule.kept:
            context.append(ContextFrame(reference.frame, windowed=rule.reference_windowed))
        if rule.recent == "padded" and (missing := rule.num_context - len(recent)):
            context.append(ContextFrame(reference.copied, copies=missing))
        others = sorted([*reference.kept, *recent], key=lambda frame: frame.time)
        return [*context, *(ContextFrame(frame) for frame in others)]

    def _recent_for(self, reference: Reference) -> list[MemoryFrame]:
        """The last frames, from the reference on, that serve beside the kept ones."""
        rule, start = self._protocol, reference.frame.time
        excluded = set()
        if rule.recent != "reference-again":
            excluded = {frame.time for frame in reference.kept}
            if 0 in rule.kept and not rule.reference_passed_on:
                excluded.add(start)
        return [
            frame
            for frame in self._recent
            if frame.time >= start
            and (self._recent[-1].time - frame.time) % rule.context_step == 0
            and frame.time not in excluded
        ]
