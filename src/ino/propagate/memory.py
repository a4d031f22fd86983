"""What propagation remembers of a video: the reference frames and a ring of the last frames.

Storage does not grow with the video: one frame for each time at which objects enter, and the last
`num_context` frames. A frame is stored once, however many references look at it.
"""

from collections import deque
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class MemoryFrame:
    """A frame that later ones may look at.

    Attributes:
        time: the frame's number, counted from the first frame that was stored.
        features: L2-normalised.
        soft: probability of each channel known at that time.
    """

    time: int
    features: Float[Tensor, "height width dim"]
    soft: Float[Tensor, "height width channel"]


@dataclass(frozen=True)
class Reference:
    """A frame that introduced objects, and the channels of `soft` that these objects have."""

    frame: MemoryFrame
    channels: slice


class Memory:
    """The references and the last `num_context` frames."""

    def __init__(self, *, num_context: int) -> None:
        self.references: list[Reference] = []
        self._recent: deque[MemoryFrame] = deque(maxlen=num_context)

    def store(self, frame: MemoryFrame, *, introduced: slice | None) -> None:
        """Remembers a frame; as a reference, too, where it introduced channels."""
        self._recent.append(frame)
        if introduced is not None:
            self.references.append(Reference(frame, introduced))

    def context(self, reference: Reference) -> list[MemoryFrame]:
        """The reference's own frame, then those of the last frames that came after it."""
        later = [frame for frame in self._recent if frame.time > reference.frame.time]
        return [reference.frame, *later]

    def frames(self) -> list[MemoryFrame]:
        """All frames that are stored, each once."""
        stored = [reference.frame for reference in self.references] + list(self._recent)
        return list({frame.time: frame for frame in stored}.values())
