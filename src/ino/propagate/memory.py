"""The context frames of a query: reference frames, which stay, and the most recent frames.

The memory does not grow with the length of the video: it holds a few frames for each reference (a
frame in which objects enter or are corrected) and as many recent frames as the protocol uses. A
frame is stored once, even if it is in the context of several references.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ino.propagate.protocols import Protocol


@dataclass
class MemoryFrame:
    """A past frame with its features and its soft labels.

    Attributes:
        time: the frame's number, counted from the first frame that was stored.
        features: a FeatureMap if the protocol's `matching` is topk, else the features themselves.
        soft: soft labels, 0..1, one channel for each object known at that time.
    """

    time: int
    features: Any
    soft: Float[Tensor, "height width channel"]


@dataclass(frozen=True)
class Reference:
    """A frame that introduces or corrects objects, and the channels that are propagated from it.

    Attributes:
        frame: the frame with the labels that the context uses.
        channels: of its objects. Introducing one again elsewhere removes it here.
        copied: the same frame with the labels used when copies of it replace missing recent frames
            (protocols with `recent="padded"`).
        kept: later frames that stay in the context of this reference.
    """

    frame: MemoryFrame
    channels: list[int]
    copied: MemoryFrame
    kept: list[MemoryFrame] = field(default_factory=list)


class ContextFrame(NamedTuple):
    """A frame that queries are compared with, in their windows or everywhere, `copies` times."""

    frame: MemoryFrame
    windowed: bool = True
    copies: int = 1


class Memory:
    """The references and the recent frames that a protocol takes its context from."""

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

    def introduce(self, reference: Reference) -> None:
        """Adds a reference. Its channels no longer belong to older references."""
        for older in self.references:
            older.channels[:] = [one for one in older.channels if one not in reference.channels]
        self.references = [older for older in self.references if older.channels]
        self.references.append(reference)

    def store(self, frame: MemoryFrame) -> None:
        """Adds the next frame, which becomes the latest one."""
        self._latest = frame
        self._recent.append(frame)
        for reference in self.references:
            distance = frame.time - reference.frame.time
            if distance > 0 and distance in self._protocol.kept:
                reference.kept.append(frame)

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from: lists, numbers and the tensors themselves, not copies."""
        frames: list[MemoryFrame] = []
        features: list[Any] = []

        def place(items: list[Any], item: Any) -> int:
            found = next((i for i, one in enumerate(items) if one is item), len(items))
            if found == len(items):
                items.append(item)
            return found

        references = [
            {
                "frame": place(frames, one.frame),
                "channels": list(one.channels),
                "copied": place(frames, one.copied),
                "kept": [place(frames, frame) for frame in one.kept],
            }
            for one in self.references
        ]
        recent = [place(frames, frame) for frame in self._recent]
        latest = None if self._latest is None else place(frames, self._latest)
        stored = [(one.time, place(features, one.features), one.soft) for one in frames]
        return {
            "references": references,
            "recent": recent,
            "latest": latest,
            "frames": stored,
            "features": [getattr(one, "exact", one) for one in features],
        }

    def restore(self, state: dict[str, Any], prepare: Callable[..., Any]) -> None:
        """Goes on from a state.

        Args:
            state: what `state` gave.
            prepare: makes of features, rows and columns what the memory keeps of a frame.
        """
        grids = {index: soft.shape[:2] for _, index, soft in state["frames"]}
        features = [prepare(one, *grids[i]) for i, one in enumerate(state["features"])]
        frames = [MemoryFrame(time, features[i], soft) for time, i, soft in state["frames"]]
        self.references = [
            Reference(
                frames[one["frame"]],
                list(one["channels"]),
                copied=frames[one["copied"]],
                kept=[frames[i] for i in one["kept"]],
            )
            for one in state["references"]
        ]
        self._recent.extend(frames[i] for i in state["recent"])
        self._latest = None if state["latest"] is None else frames[state["latest"]]

    def take_back(self) -> MemoryFrame:
        """Removes the latest frame from the recent and the kept frames and returns it."""
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
        """The context of a reference: the reference frame, its copies, then other frames by time.

        The others are the frames kept for this reference and the recent ones that the protocol
        uses. Copies of the reference fill up missing recent frames where `recent` is padded.
        """
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
