"""Labels of a frame from its context, for protocols without a top k of all context frames."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ino.propagate.memory import ContextFrame, MemoryFrame
from ino.propagate.per_frame import averaged_labels
from ino.propagate.protocols import Protocol
from ino.propagate.realign import Moved, expected_offsets
from ino.propagate.window_softmax import WindowFrame, window_labels


class WholeCarrier:
    """Carries the labels of one reference after the other."""

    def __init__(self, protocol: Protocol, *, max_bytes: int) -> None:
        """A carrier.

        Args:
            protocol: decides everything; its matching is not `topk`.
            max_bytes: bound on temporary storage.
        """
        self._protocol = protocol
        self._max_bytes = max_bytes

    def keep(self, features: Float[Tensor, "height width dim"]) -> Tensor:
        """What the memory holds of a frame: its features."""
        return features

    def carry(
        self,
        query: Float[Tensor, "height width dim"],
        contexts: Sequence[list[ContextFrame]],
        channels: Sequence[Sequence[int]],
        *,
        time: int,
    ) -> list[Float[Tensor, "height width channel"]]:
        """For each reference the labels of its channels.

        Args:
            query: features of the frame to label.
            contexts: of each reference, at least one frame.
            channels: of each reference.
            time: of the frame, on the clock of the context's frames.
        """
        carry = self._within_windows if self._protocol.matching == "window" else self._by_frames
        return [
            carry(query, context, list(chosen), time)
            for context, chosen in zip(contexts, channels, strict=True)
        ]

    def _within_windows(
        self, query: Tensor, context: list[ContextFrame], channels: list[int], time: int
    ) -> Tensor:
        assert self._protocol.radius is not None
        repeated = [one.frame for one in context for _ in range(one.copies)]
        keys = [_features(frame) for frame in repeated]
        ages = [time - frame.time for frame in repeated]
        moved = _moved_windows(query, keys, ages, protocol=self._protocol)
        return window_labels(
            query,
            [
                WindowFrame(_features(frame), frame.soft[..., channels], one)
                for frame, one in zip(repeated, moved, strict=True)
            ],
            radius=self._protocol.radius,
            temperature=self._protocol.temperature,
            border=self._protocol.border,
            max_bytes=self._max_bytes,
        )

    def _by_frames(
        self, query: Tensor, context: list[ContextFrame], channels: list[int], time: int
    ) -> Tensor:
        return averaged_labels(
            query,
            [_features(one.frame) for one in context],
            [one.frame.soft[..., channels] for one in context],
            counts=[one.copies for one in context],
            topk=self._protocol.topk,
            temperature=self._protocol.temperature,
            mutual=self._protocol.matching == "mutual",
            max_bytes=self._max_bytes,
        )


def _features(frame: MemoryFrame) -> Float[Tensor, "height width dim"]:
    """As `WholeCarrier.keep` gave them."""
    assert isinstance(frame.features, Tensor)
    return frame.features


def _moved_windows(
    features: Tensor, keys: Sequence[Tensor], ages: Sequence[int], *, protocol: Protocol
) -> list[Moved | None]:
    """For each context frame the windows that queries have in it, where they are moved."""
    after = protocol.realign_after
    if after is None or protocol.radius is None:
        return [None] * len(keys)
    offsets = [
        expected_offsets(
            features,
            key,
            radius=protocol.realign_radius,
            dilation=min(protocol.realign_dilation, age // after + 1),
        )
        if age > after
        else None
        for key, age in zip(keys, ages, strict=True)
    ]
    # MAST's released code reads the labels of all moved windows where the latest frame has its own.
    latest = [one for one in offsets if one is not None][-1:]
    return [
        None if one is None else Moved(one, latest[0], protocol.radius, protocol.realign_corners)
        for one in offsets
    ]
