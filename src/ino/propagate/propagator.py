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
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from ino.propagate.affinity import (
    DEFAULT_MAX_BYTES,
    Candidates,
    find_candidates,
    propagate_labels,
)
from ino.propagate.memory import ContextFrame, Memory, MemoryFrame
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
            features: L2-normalised features of the frame.
            new: labels, 0 to 1, of the objects that enter with this frame; they become the last
                channels.
        """
        assert new is not None or self.memory.references, "the first step introduces objects"
        soft = self._predict(features)
        introduced = None
        if new is not None:
            total = new.sum(dim=-1, keepdim=True)
            entering = total * new if self._protocol.entry == "weighted" else new
            soft = torch.cat([soft * (1 - total), entering], dim=-1)
            introduced = slice(self.num_channels, soft.shape[-1])
            self.num_channels = soft.shape[-1]
        self.memory.store(MemoryFrame(self._time, features, soft), introduced=introduced)
        self._time += 1
        return soft

    def _predict(self, features: Tensor) -> Tensor:
        soft = features.new_zeros(*features.shape[:2], self.num_channels)
        contexts = [self.memory.context(reference) for reference in self.memory.references]
        candidates = self._find_candidates(features, itertools.chain.from_iterable(contexts))
        for reference, context in zip(self.memory.references, contexts, strict=True):
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
