"""Soft labels carried from frame to frame: features and labels of feature positions, no images.

An object belongs to the reference frame that introduced it and is carried by that reference alone:
its context is the reference frame, which never leaves, and those of the last frames that came
after it. The background belongs to the first reference. A result is the union of the channels of
all references, so with several references its channels need not sum to 1. Where new objects enter,
their labels overwrite the prediction, p <- (1 - sum of new) p, and the overwritten prediction is
what later frames take as labels, for older references too. Protocols vary the context and the way
labels enter.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ino.propagate.affinity import (
    DEFAULT_MAX_BYTES,
    Candidates,
    FeatureMap,
    TiledMatcher,
    merge_candidates,
    propagate_labels,
)
from ino.propagate.layout import Window
from ino.propagate.memory import ContextFrame, Memory, MemoryFrame
from ino.propagate.protocols import Protocol


class Propagator:
    """Carries soft labels through one video; constant memory.

    Channels are ordered by their introduction. The first `step` introduces channels, the
    background first.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        screening: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """A propagator that has seen nothing.

        Args:
            protocol: decides the context, the window, top-k and temperature.
            screening: compare features in bf16 first, see `TiledMatcher`.
            max_bytes: bound on temporary storage, see `TiledMatcher`.
        """
        self.memory = Memory(
            num_context=protocol.num_context,
            recent=protocol.recent,
            reference_windowed=protocol.reference_windowed,
        )
        self.num_channels = 0
        self._protocol = protocol
        self._matcher = TiledMatcher(
            topk=protocol.topk,
            window=Window(protocol.radius, protocol.window),
            screening=screening,
            max_bytes=max_bytes,
        )
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
        query = self._matcher.prepare(features)
        soft = self._predict(query, features.shape[:2])
        introduced = None
        if new is not None:
            total = new.sum(dim=-1, keepdim=True)
            entering = total * new if self._protocol.entry == "weighted" else new
            soft = torch.cat([soft * (1 - total), entering], dim=-1)
            introduced = slice(self.num_channels, soft.shape[-1])
            self.num_channels = soft.shape[-1]
        self.memory.store(MemoryFrame(self._time, query, soft), introduced=introduced)
        self._time += 1
        return soft

    def _predict(self, query: FeatureMap, size: torch.Size) -> Tensor:
        soft = query.exact.new_zeros(*size, self.num_channels)
        contexts = [self.memory.context(reference) for reference in self.memory.references]
        for reference, context, candidates in zip(
            self.memory.references, contexts, self._candidates(query, contexts), strict=True
        ):
            soft[..., reference.channels] = propagate_labels(
                candidates,
                [one.frame.soft[..., reference.channels] for one in context],
                topk=self._protocol.topk,
                temperature=self._protocol.temperature,
                copies=[one.copies for one in context],
            )
        return soft

    def _candidates(
        self, query: FeatureMap, contexts: list[list[ContextFrame]]
    ) -> list[Candidates]:
        """Those of each context; each frame is searched once, or once with and without window."""
        parts: list[list[tuple[Candidates, int]]] = [[] for _ in contexts]
        for windowed in (False, True):
            chosen = [
                [place for place, one in enumerate(context) if one.windowed == windowed]
                for context in contexts
            ]
            frames = {
                context[place].frame.time: context[place].frame.features
                for context, places in zip(contexts, chosen, strict=True)
                for place in places
            }
            numbers = {time: number for number, time in enumerate(frames)}
            groups = [
                [numbers[context[place].frame.time] for place in places]
                for context, places in zip(contexts, chosen, strict=True)
                if places
            ]
            found = iter(
                self._matcher.match(query, list(frames.values()), groups, windowed=windowed)
                if groups
                else ()
            )
            for part, places in zip(parts, chosen, strict=True):
                if places:
                    part.append((next(found), len(places)))
        return [merge_candidates(part, tokens=len(query.exact)) for part in parts]
