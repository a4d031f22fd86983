"""Soft labels carried from frame to frame: features and labels of feature positions, no images.

An object belongs to the reference frame that introduced it and is carried by that reference alone:
its context is the reference frame, which never leaves, and those of the last frames that came
after it. The background belongs to the first reference. A result is the union of the channels of
all references, so with several references its channels need not sum to 1. Where new objects enter,
their labels overwrite the prediction, p <- (1 - sum of new) p, and the overwritten prediction is
what later frames take as labels, for older references too. Protocols vary the context and the way
labels enter.
"""

import itertools
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ino.propagate.affinity import (
    DEFAULT_MAX_BYTES,
    Candidates,
    find_candidates,
    propagate_labels,
)
from ino.propagate.choices import GridNormalization
from ino.propagate.labels import stretch_labels
from ino.propagate.matching import match_labels
from ino.propagate.memory import ContextFrame, Memory, MemoryFrame, Reference
from ino.propagate.protocols import Protocol


class Propagator:
    """Carries soft labels through one video; constant memory.

    Channels are ordered by their introduction. The first `step` introduces channels, the
    background first.
    """

    def __init__(self, protocol: Protocol, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """A propagator that has seen nothing.

        Args:
            protocol: decides the context, the window, top-k and temperature.
            max_bytes: bound on temporary storage, see `find_candidates`.
        """
        self.memory = Memory(
            num_context=protocol.num_context,
            recent=protocol.recent,
            reference_windowed=protocol.reference_windowed,
            kept=protocol.kept,
            context_step=protocol.context_step,
            reference_passed_on=protocol.reference_passed_on,
        )
        self.num_channels = 0
        self._protocol = protocol
        self._max_bytes = max_bytes
        self._time = 0

    @torch.no_grad()
    def step(
        self,
        features: Float[Tensor, "height width dim"],
        new: Float[Tensor, "height width introduced"] | None = None,
    ) -> Float[Tensor, "height width channel"]:
        """Soft labels of the next frame.

        Args:
            features: of the frame, L2-normalised unless the protocol takes them as they are.
            new: labels, 0 to 1, of the objects that enter with this frame; they become the last
                channels.
        """
        assert new is not None or self.memory.references, "the first step introduces objects"
        soft = self._predict(features, self.memory.references)
        if new is not None:
            soft = self._enter(features, soft, new)
        self.memory.store(MemoryFrame(self._time, features, soft))
        self._time += 1
        return self._scale(soft, "positions")

    def feed_back(self, labels: Float[Tensor, "height width channel"]) -> None:
        """Replaces what later frames take as labels of the last frame.

        Args:
            labels: of all channels known.
        """
        self.memory.replace_labels(self._time - 1, labels)

    def _enter(self, features: Tensor, soft: Tensor, new: Tensor) -> Tensor:
        """Labels of the frame with those that enter; the frame becomes a reference."""
        total = new.sum(dim=-1, keepdim=True)
        entering = total * new if self._protocol.entry == "weighted" else new
        soft = torch.cat([soft * (1 - total), entering], dim=-1)
        channels = slice(self.num_channels, soft.shape[-1])
        self.num_channels = soft.shape[-1]
        given = MemoryFrame(self._time, features, soft)
        shown = MemoryFrame(self._time, features, self._scale(soft, "positions"))
        reference = self.memory.introduce(shown, channels=channels, copied=given)
        if self._protocol.reference_passed_on:
            soft = soft.clone()
            soft[..., channels] = self._predict(features, [reference])[..., channels]
        return soft

    def _scale(self, soft: Tensor, kind: GridNormalization) -> Tensor:
        """Scaled to 0..1 if the protocol scales this way."""
        if self._protocol.grid_normalization != kind:
            return soft
        return stretch_labels(soft, over="grid" if kind == "channels" else "channels")

    def _predict(self, features: Tensor, references: Sequence[Reference]) -> Tensor:
        carry = self._carry_best if self._protocol.matching == "topk" else self._carry_whole
        return self._scale(carry(features, references), "channels")

    def _carry_whole(self, features: Tensor, references: Sequence[Reference]) -> Tensor:
        """Labels carried without a top k of all context frames together."""
        soft = features.new_zeros(*features.shape[:2], self.num_channels)
        for reference in references:
            soft[..., reference.channels] = match_labels(
                features,
                self.memory.context(reference),
                channels=reference.channels,
                time=self._time,
                protocol=self._protocol,
                max_bytes=self._max_bytes,
            )
        return soft

    def _carry_best(self, features: Tensor, references: Sequence[Reference]) -> Tensor:
        """Labels carried from the best k positions of all context frames."""
        soft = features.new_zeros(*features.shape[:2], self.num_channels)
        contexts = [self.memory.context(reference) for reference in references]
        candidates = self._find_candidates(features, itertools.chain.from_iterable(contexts))
        for reference, context in zip(references, contexts, strict=True):
            # A copy beyond the k-th adds nothing to the best k.
            context = [one for one in context for _ in range(min(one.copies, self._protocol.topk))]
            soft[..., reference.channels] = propagate_labels(
                [candidates[one.frame.time, one.windowed] for one in context],
                [one.frame.soft[..., reference.channels] for one in context],
                topk=self._protocol.topk,
                temperature=self._protocol.temperature,
            )
        return soft

    def _find_candidates(
        self, features: Tensor, context: Iterable[ContextFrame]
    ) -> dict[tuple[int, bool], Candidates]:
        """Those of each context frame by its time and whether its window counts, searched once."""
        frames = {(one.frame.time, one.windowed): one.frame.features for one in context}
        found = {}
        for windowed, radius in ((True, self._protocol.radius), (False, None)):
            keys = [key for key in frames if key[1] == windowed]
            if not keys:
                continue
            candidates = find_candidates(
                features,
                [frames[key] for key in keys],
                topk=self._protocol.topk,
                radius=radius,
                shape=self._protocol.window,
                max_bytes=self._max_bytes,
            )
            found.update(zip(keys, candidates, strict=True))
        return found
