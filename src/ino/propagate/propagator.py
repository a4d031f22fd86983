"""Labels of a frame from the best k positions of all its context frames together."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ino.kernels.topk import DEFAULT_MAX_BYTES, Candidates, FeatureMap, TiledMatcher, Window
from ino.propagate.affinity import Matcher, merge_candidates, propagate_labels
from ino.propagate.labels import stretch_labels
from ino.propagate.memory import ContextFrame, Memory, MemoryFrame, Reference
from ino.propagate.peers import WholeCarrier
from ino.propagate.protocols import GridNormalization, Protocol


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
                from ino.kernels.topk_triton import TritonMatcher
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


# Soft labels carried from frame to frame: features and labels of feature positions, no images.
#
# An object belongs to the reference frame that introduced it and is carried by that reference
# alone: its context is the reference frame, which never leaves, and those of the last frames that
# came after it. The background belongs to the first reference. A result is the union of the
# channels of all references, so with several references its channels need not sum to 1. Where new
# objects enter, their labels overwrite the prediction, p <- (1 - sum of new) p, and the overwritten
# prediction is what later frames take as labels, for older references too. Protocols vary the
# context and the way labels enter.


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
            screening: compare features in bf16 first on a CPU, see `TiledMatcher`.
            max_bytes: bound on temporary storage, see `TiledMatcher`.
        """
        self.memory = Memory(
            num_context=protocol.num_context,
            recent=protocol.recent,
            reference_windowed=protocol.reference_windowed,
            kept=protocol.kept,
            context_step=protocol.context_step,
            reference_passed_on=protocol.reference_passed_on,
        )
        self._protocol = protocol
        self._carrier: Any = (
            TopkCarrier(protocol, screening=screening, max_bytes=max_bytes)
            if protocol.matching == "topk"
            else WholeCarrier(protocol, max_bytes=max_bytes)
        )
        self._time = 0
        # Of the last frame, before any labels were given for it.
        self._predicted = torch.empty(0, 0, 0)

    @property
    def num_channels(self) -> int:
        """Those introduced so far."""
        return self.memory.latest.soft.shape[-1] if self._time else 0

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
        known = self.num_channels
        empty = features.new_zeros(*features.shape[:2], known)
        frame = MemoryFrame(self._time, self._carrier.keep(features), empty)
        frame.soft = self._predicted = self._predict(frame, self.memory.references)
        if new is not None:
            self._give(frame, new, list(range(known, known + new.shape[-1])))
        self.memory.store(frame)
        self._time += 1
        return self._scale(frame.soft, "positions")

    @torch.no_grad()
    def add(
        self, new: Float[Tensor, "height width given"], *, channels: Sequence[int]
    ) -> Float[Tensor, "height width channel"]:
        """Soft labels of the last frame with given ones in place of predicted ones.

        The frame becomes the reference of these channels. Where an object leaves a position that it
        was predicted at, the position falls to the background. What was given for this frame before
        is forgotten.

        Args:
            new: labels, 0 to 1.
            channels: theirs, with all that were given for this frame before; those that are not
                known yet follow the known ones.
        """
        frame = self.memory.take_back()
        frame.soft = self._predicted
        self._give(frame, new, list(channels))
        self.memory.store(frame)
        return self._scale(frame.soft, "positions")

    def _give(self, frame: MemoryFrame, new: Tensor, channels: list[int]) -> None:
        """Writes given labels into a frame, which becomes their reference."""
        known = frame.soft.shape[-1]
        total = new.sum(dim=-1, keepdim=True)
        corrected = [channel for channel in channels if channel < known]
        soft = frame.soft * (1 - total)
        if corrected and 0 not in channels:
            soft[..., 0] += soft[..., corrected].sum(dim=-1)
        added = soft.new_zeros(*soft.shape[:2], max(0, max(channels) + 1 - known))
        soft = torch.cat([soft, added], dim=-1)
        soft[..., channels] = total * new if self._protocol.entry == "weighted" else new
        frame.soft = soft
        kept = MemoryFrame(frame.time, frame.features, soft)
        shown = MemoryFrame(frame.time, frame.features, self._scale(soft, "positions"))
        reference = self.memory.introduce(shown, channels=sorted(channels), copied=kept)
        if self._protocol.reference_passed_on:
            predicted = self._predict(frame, [reference])
            frame.soft = soft.clone()
            frame.soft[..., reference.channels] = predicted[..., reference.channels]

    def feed_back(self, labels: Float[Tensor, "height width channel"]) -> None:
        """Replaces what later frames take as labels of the last frame.

        Args:
            labels: of all channels known.
        """
        self.memory.replace_labels(self._time - 1, labels)

    @torch.no_grad()
    def survival(self) -> dict[int, float]:
        """J of each channel between its reference and the last frame's labels carried back there.

        The way back is one step, without a window where the protocol's matching has one to leave
        out. Positions belong to their largest channel.
        """
        latest = self.memory.latest
        found = {}
        for reference in self.memory.references:
            channels = list(range(latest.soft.shape[-1]))
            context = [ContextFrame(latest, windowed=False)]
            (carried,) = self._carrier.carry(
                reference.frame.features, [context], [channels], time=latest.time
            )
            returned, given = carried.argmax(dim=-1), reference.frame.soft.argmax(dim=-1)
            for channel in reference.channels:
                ours, theirs = returned == channel, given == channel
                union = int((ours | theirs).sum())
                found[channel] = int((ours & theirs).sum()) / union if union else 1.0
        return found

    def _scale(self, soft: Tensor, kind: GridNormalization) -> Tensor:
        """Scaled to 0..1 if the protocol scales this way."""
        if self._protocol.grid_normalization != kind:
            return soft
        return stretch_labels(soft, over="grid" if kind == "channels" else "channels")

    def _predict(self, frame: MemoryFrame, references: Sequence[Reference]) -> Tensor:
        """Labels of the frame in the channels of the references, zero in others."""
        soft = torch.zeros_like(frame.soft)
        if not references:
            return soft
        carried = self._carrier.carry(
            frame.features,
            [self.memory.context(reference) for reference in references],
            [reference.channels for reference in references],
            time=frame.time,
        )
        for reference, labels in zip(references, carried, strict=True):
            soft[..., reference.channels] = labels
        return self._scale(soft, "channels")
