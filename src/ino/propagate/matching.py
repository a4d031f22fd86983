"""Labels of a frame from its context, for protocols without a top k of all context frames."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ino.propagate.memory import ContextFrame
from ino.propagate.per_frame import averaged_labels
from ino.propagate.protocols import Protocol
from ino.propagate.realign import Moved, expected_offsets
from ino.propagate.window_softmax import WindowFrame, window_labels


def match_labels(
    features: Float[Tensor, "height width dim"],
    context: Sequence[ContextFrame],
    *,
    channels: slice,
    time: int,
    protocol: Protocol,
    max_bytes: int,
) -> Float[Tensor, "height width channel"]:
    """Labels of the frame in those channels.

    Args:
        features: of the frame to label.
        context: what it looks at, at least one frame.
        channels: that the context labels.
        time: of the frame, on the clock of the context's frames.
        protocol: decides everything; its matching is not `topk`.
        max_bytes: bound on temporary storage.
    """
    keys = [one.frame.features for one in context for _ in range(one.copies)]
    labels = [one.frame.soft[..., channels] for one in context for _ in range(one.copies)]
    if protocol.matching == "window":
        assert protocol.radius is not None
        times = [one.frame.time for one in context for _ in range(one.copies)]
        moved = _moved_windows(features, keys, [time - one for one in times], protocol=protocol)
        return window_labels(
            features,
            [WindowFrame(*frame) for frame in zip(keys, labels, moved, strict=True)],
            radius=protocol.radius,
            temperature=protocol.temperature,
            border=protocol.border,
            max_bytes=max_bytes,
        )
    return averaged_labels(
        features,
        [one.frame.features for one in context],
        [one.frame.soft[..., channels] for one in context],
        counts=[one.copies for one in context],
        topk=protocol.topk,
        temperature=protocol.temperature,
        mutual=protocol.matching == "mutual",
        max_bytes=max_bytes,
    )


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
