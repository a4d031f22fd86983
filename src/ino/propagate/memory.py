"""What propagation remembers of a video: the reference frames and a ring of the last frames.

Storage does not grow with the video: one frame for each time at which objects enter, and the last
`num_context` frames. A frame is stored once, however many references look at it.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ino.propagate.affinity import FeatureMap
from ino.propagate.protocols import Recent


@dataclass(frozen=True)
class MemoryFrame:
    """A frame that later ones may look at.

    Attributes:
        time: the frame's number, counted from the first frame that was stored.
        features: as the matcher keeps them.
        soft: probability of each channel known at that time.
    """

    time: int
    features: FeatureMap
    soft: Float[Tensor, "height width channel"]


@dataclass(frozen=True)
class Reference:
    """A frame that introduced objects, and the channels of `soft` that these objects have."""

    frame: MemoryFrame
    channels: slice


class ContextFrame(NamedTuple):
    """A frame that a query looks at, within its window or everywhere, and how often it counts."""

    frame: MemoryFrame
    windowed: bool = True
    copies: int = 1


class Memory:
    """The references and the last `num_context` frames."""

    def __init__(
        self,
        *,
        num_context: int,
        recent: Recent = "after-reference",
        reference_windowed: bool = True,
    ) -> None:
        """A memory of nothing.

        Args:
            num_context: frames before the query that serve beside a reference.
            recent: which of them, see `Recent`.
            reference_windowed: whether a query looks at the reference within its window only.
        """
        self.references: list[Reference] = []
        self._recent: deque[MemoryFrame] = deque(maxlen=num_context)
        self._rule: Recent = recent
        self._reference_windowed = reference_windowed

    def store(self, frame: MemoryFrame, *, introduced: slice | None) -> None:
        """Remembers a frame; as a reference, too, where it introduced channels."""
        self._recent.append(frame)
        if introduced is not None:
            self.references.append(Reference(frame, introduced))

    def context(self, reference: Reference) -> list[ContextFrame]:
        """The reference's own frame, then those of the last frames that the rule admits."""
        later = [frame for frame in self._recent if frame.time > reference.frame.time]
        again = 0
        if self._rule == "reference-again":
            again = int(any(frame is reference.frame for frame in self._recent))
        elif self._rule == "padded":
            again = (self._recent.maxlen or 0) - len(later)
        first = [ContextFrame(reference.frame, copies=1 + again)]
        if not self._reference_windowed:
            first = [ContextFrame(reference.frame, windowed=False)]
            first += [ContextFrame(reference.frame, copies=again)] if again else []
        return [*first, *(ContextFrame(frame) for frame in later)]
