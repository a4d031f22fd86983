"""Labels of a frame from the best k positions of all its context frames together."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ino.propagate.affinity import (
    Candidates,
    FeatureMap,
    Matcher,
    merge_candidates,
    propagate_labels,
)
from ino.propagate.layout import Window
from ino.propagate.memory import ContextFrame
from ino.propagate.protocols import Protocol
from ino.propagate.tiled_matcher import TiledMatcher


class TopkCarrier:
    """Carries the labels of several references; each context frame is searched once for all."""

    def __init__(self, protocol: Protocol, *, screening: bool, max_bytes: int) -> None:
        """A carrier for the frames of one video, see `TiledMatcher` for the options."""
        self._protocol = protocol
        self._screening = screening
        self._max_bytes = max_bytes
        self._matcher: Matcher | None = None

    def keep(self, features: Float[Tensor, "height width dim"]) -> FeatureMap:
        """What the memory holds of a frame."""
        if self._matcher is None:
            self._matcher = self._choose_matcher(features.device)
        return self._matcher.prepare(features)

    def carry(
        self,
        query: FeatureMap,
        contexts: Sequence[list[ContextFrame]],
        channels: Sequence[Sequence[int]],
        *,
        time: int,
    ) -> list[Float[Tensor, "height width channel"]]:
        """For each reference the labels of its channels.

        Args:
            query: the frame to label.
            contexts: of each reference, at least one frame.
            channels: of each reference.
            time: of the frame; it decides nothing here.
        """
        return [
            propagate_labels(
                candidates,
                [one.frame.soft[..., list(chosen)] for one in context],
                topk=self._protocol.topk,
                temperature=self._protocol.temperature,
                copies=[one.copies for one in context],
            )
            for candidates, context, chosen in zip(
                self._candidates(query, contexts), contexts, channels, strict=True
            )
        ]

    def _choose_matcher(self, device: torch.device) -> Matcher:
        window = Window(self._protocol.radius, self._protocol.window)
        if device.type == "cuda":
            try:
                from ino.propagate.triton_matcher import TritonMatcher
            except ImportError:  # a build of torch without Triton
                pass
            else:
                return TritonMatcher(topk=self._protocol.topk, window=window)
        return TiledMatcher(
            topk=self._protocol.topk,
            window=window,
            # On CUDA products may be added up in bf16, which the bound of screening does not cover.
            screening=self._screening and device.type == "cpu",
            max_bytes=self._max_bytes,
        )

    def _candidates(
        self, query: FeatureMap, contexts: Sequence[list[ContextFrame]]
    ) -> list[Candidates]:
        """Those of each context; each frame is searched once, or once with and without window."""
        assert self._matcher is not None
        parts: list[list[tuple[Candidates, int]]] = [[] for _ in contexts]
        for windowed in (False, True):
            chosen = [
                [place for place, one in enumerate(context) if one.windowed == windowed]
                for context in contexts
            ]
            frames = {
                context[place].frame.time: _features(context[place])
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


def _features(one: ContextFrame) -> FeatureMap:
    """As `TopkCarrier.keep` gave them."""
    assert isinstance(one.frame.features, FeatureMap)
    return one.frame.features
