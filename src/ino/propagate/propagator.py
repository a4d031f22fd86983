"""One step of propagation: the features of a frame go in, its soft labels come out.

Everything here is on the feature grid; images and masks belong to `tracker`. An object belongs to
the reference frame that introduced it and is propagated from that reference alone: its context is
the reference frame, which never leaves, and those of the last frames that came after it. The
background belongs to the first reference. A result is the union of the channels of all references,
so with several references its channels need not sum to 1. Where new objects enter, their labels
overwrite the prediction, p <- (1 - sum of new) p, and the overwritten prediction is what later
frames take as labels, for older references too. Protocols vary the context and the way labels
enter.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ino.kernels.topk import DEFAULT_MAX_BYTES, Candidates, FeatureMap, TiledMatcher, Window
from ino.propagate.affinity import propagate_labels
from ino.propagate.features import Place
from ino.propagate.labels import stretch_labels
from ino.propagate.memory import ContextFrame, Memory, MemoryFrame, Reference
from ino.propagate.peers import DistanceMatcher, averaged_labels, window_labels
from ino.propagate.protocols import Protocol


class Propagator:
    """Propagates soft labels through one video, in memory that does not grow with its length.

    Channels are in the order in which they were introduced. The first `step` must introduce
    channels, and its first channel is the background.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        screening: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """A propagator that has seen no frame.

        Args:
            protocol: decides the context, the window, top-k and temperature.
            screening: compare features in bf16 first on a CPU, see `TiledMatcher`.
            max_bytes: bound on temporary storage, see `TiledMatcher`.
        """
        self.memory = Memory(protocol)
        self._protocol = protocol
        self._screening = screening
        self._max_bytes = max_bytes
        self._matcher: Any = None  # a matcher, chosen by the first frame
        # Where the protocol zooms: the matcher of each size, and what is labeled of a frame.
        self._matchers: dict[tuple[int, int], Any] = {}
        self._place: Place = (slice(None), slice(None))
        self._time = 0
        # Of the last frame, before any labels were given for it.
        self._predicted = torch.empty(0, 0, 0)

    @property
    def num_channels(self) -> int:
        """Number of channels introduced so far, the background included."""
        return self.memory.latest.soft.shape[-1] if self._time else 0

    @torch.no_grad()
    def step(
        self,
        features: Float[Tensor, "height width dim"],
        new: Float[Tensor, "height width introduced"] | None = None,
        *,
        place: Place | None = None,
    ) -> Float[Tensor, "height width channel"]:
        """Soft labels of the next frame.

        Args:
            features: of the frame, L2-normalised unless the protocol takes them as they are.
            new: labels, 0 to 1, of the objects that enter with this frame; they become the last
                channels.
            place: what is labeled, with a protocol that zooms; all else is background.
        """
        self._place = place or (slice(None), slice(None))
        assert new is not None or self.memory.references, "the first step introduces objects"
        known = self.num_channels
        empty = features.new_zeros(*features.shape[:2], known)
        frame = MemoryFrame(self._time, self._prepare(features), empty)
        frame.soft = self._predicted = self._predict(frame, self.memory.references)
        if new is not None:
            self._enter(frame, new, list(range(known, known + new.shape[-1])))
        self.memory.store(frame)
        self._time += 1
        return self._scale(frame.soft, "positions")

    @torch.no_grad()
    def add(
        self, new: Float[Tensor, "height width given"], *, channels: Sequence[int]
    ) -> Float[Tensor, "height width channel"]:
        """Corrects the last frame: replaces the labels of some channels and returns all labels.

        The frame becomes the reference of these channels. Positions that were predicted to belong
        to a corrected object, and no longer do, become background. Labels given for this frame in
        an earlier call are discarded, so pass them again.

        Args:
            new: soft labels of `channels`, 0..1.
            channels: channel numbers, in the order of `new`; new ones must follow the known ones.
        """
        frame = self.memory.take_back()
        frame.soft = self._predicted
        self._enter(frame, new, list(channels))
        self.memory.store(frame)
        return self._scale(frame.soft, "positions")

    def feed_back(self, labels: Float[Tensor, "height width channel"]) -> None:
        """Replaces the labels of the last frame, in all channels, that later frames are given."""
        self.memory.replace_labels(self._time - 1, labels)

    @torch.no_grad()
    def survival(self) -> dict[int, float]:
        """Cycle consistency: J, 0..1, of each channel after propagating it back to its reference.

        The labels of the last frame are propagated to the reference frame in one step, without a
        window unless the protocol's `matching` is window, and compared there with the reference
        labels. Each position belongs to its largest channel. J is 0 if a channel is empty in both.
        """
        latest = self.memory.latest
        found = {}
        self._place = (slice(None), slice(None))
        for reference in self.memory.references:
            back = [ContextFrame(latest, windowed=False)]
            channels = list(range(latest.soft.shape[-1]))
            (soft,) = self._propagate(
                reference.frame.features, [back], [channels], time=latest.time
            )
            returned, given = soft.argmax(dim=-1), reference.frame.soft.argmax(dim=-1)
            for channel in reference.channels:
                ours, theirs = returned == channel, given == channel
                union = int((ours | theirs).sum())
                found[channel] = int((ours & theirs).sum()) / union if union else 0.0
        return found

    def state(self) -> dict[str, Any]:
        """See `Memory.state`."""
        return {"time": self._time, "predicted": self._predicted, "memory": self.memory.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave under the same protocol."""
        self._time, self._predicted = state["time"], state["predicted"]
        self.memory.restore(state["memory"], self._prepare_again)

    def _prepare_again(self, stored: Tensor, height: int, width: int) -> Any:
        """What `_prepare` gave, from what a state holds of it."""
        if self._protocol.matching != "topk" or self._protocol.zoom_margin is not None:
            return stored
        if self._matcher is None:
            self._matcher = self._choose_matcher(stored.device)
        return self._matcher.restore(stored, height, width)

    def _enter(self, frame: MemoryFrame, new: Tensor, channels: list[int]) -> None:
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
        reference = Reference(shown, sorted(channels), copied=kept)
        self.memory.introduce(reference)
        if self._protocol.reference_passed_on:
            predicted = self._predict(frame, [reference])
            frame.soft = soft.clone()
            frame.soft[..., reference.channels] = predicted[..., reference.channels]

    def _scale(self, soft: Tensor, kind: Literal["channels", "positions"]) -> Tensor:
        """Scaled to 0..1 if the protocol scales this way."""
        if self._protocol.grid_normalization != kind:
            return soft
        return stretch_labels(soft, over="grid" if kind == "channels" else "channels")

    def _predict(self, frame: MemoryFrame, references: Sequence[Reference]) -> Tensor:
        """Labels of the frame in the channels of the references, zero in others."""
        soft = torch.zeros_like(frame.soft)
        contexts = [self.memory.context(reference) for reference in references]
        channels = [reference.channels for reference in references]
        predicted = self._propagate(frame.features, contexts, channels, time=frame.time)
        for chosen, labels in zip(channels, predicted, strict=True):
            if _are_all(chosen, soft):
                soft = labels
            else:
                soft[..., chosen] = labels
        if not references:
            return soft
        if self._protocol.grid_normalization == "positions-fed-back":
            return stretch_labels(soft, over="channels")
        return self._scale(soft, "channels")

    def _prepare(self, features: Float[Tensor, "height width dim"]) -> Any:
        """What the memory keeps of a frame's features."""
        if self._protocol.matching != "topk" or self._protocol.zoom_margin is not None:
            return features
        if self._matcher is None:
            self._matcher = self._choose_matcher(features.device)
        return self._matcher.prepare(features)

    def _choose_matcher(self, device: torch.device) -> Any:
        topk, window = self._protocol.topk, Window(self._protocol.radius, self._protocol.window)
        if self._protocol.similarity != "cosine":
            return DistanceMatcher(topk=topk, window=window, norm=self._protocol.similarity)
        if device.type == "cuda":
            try:
                from ino.kernels.topk_triton import TritonMatcher
            except ImportError:  # a build of torch without Triton
                pass
            else:
                return TritonMatcher(topk=topk, window=window)
        # On CUDA products may be added up in bf16, which the bound of screening does not cover.
        screening = self._screening and device.type == "cpu"
        return TiledMatcher(
            topk=topk, window=window, screening=screening, max_bytes=self._max_bytes
        )

    def _propagate(
        self,
        query: Any,
        contexts: Sequence[list[ContextFrame]],
        channels: Sequence[list[int]],
        *,
        time: int,
    ) -> list[Float[Tensor, "height width channel"]]:
        """For each context the labels of its channels in the query, a frame of that time."""
        if self._protocol.zoom_margin is not None:
            return self._propagate_zoomed(query, contexts, channels)
        pairs = zip(contexts, channels, strict=True)
        if self._protocol.matching != "topk":
            return [self._propagate_as_peers(query, *pair, time=time) for pair in pairs]
        return [
            propagate_labels(
                candidates,
                [_channels_of(one.frame.soft, chosen) for one in context],
                topk=self._protocol.topk,
                temperature=self._protocol.temperature,
                copies=[one.copies for one in context],
            )
            for candidates, (context, chosen) in zip(
                self._candidates(query, contexts), pairs, strict=True
            )
        ]

    def _propagate_zoomed(
        self,
        query: Tensor,
        contexts: Sequence[list[ContextFrame]],
        channels: Sequence[list[int]],
    ) -> list[Tensor]:
        """The same in `_place`; all else is background."""
        place, whole = self._place, query
        query = query[place]
        size = (query.shape[0], query.shape[1])
        if size not in self._matchers:
            self._matchers[size] = self._choose_matcher(query.device)
        self._matcher = self._matchers[size]
        frames = {one.frame.time: one.frame for context in contexts for one in context}
        near = {
            time: MemoryFrame(time, self._matcher.prepare(frame.features[place]), frame.soft[place])
            for time, frame in frames.items()
        }
        zoomed = [[one._replace(frame=near[one.frame.time]) for one in part] for part in contexts]
        found = self._candidates(self._matcher.prepare(query), zoomed)
        results = []
        for candidates, context, chosen in zip(found, zoomed, channels, strict=True):
            result = whole.new_zeros(*whole.shape[:2], len(chosen))
            result[..., [channel == 0 for channel in chosen]] = 1
            result[place] = propagate_labels(
                candidates,
                [_channels_of(one.frame.soft, chosen) for one in context],
                topk=self._protocol.topk,
                temperature=self._protocol.temperature,
                copies=[one.copies for one in context],
            )
            results.append(result)
        return results

    def replace_features(self, features: Float[Tensor, "height width dim"]) -> None:
        """Replaces those of the last frame."""
        self.memory.latest.features = self._prepare(features)

    def _candidates(
        self, query: FeatureMap, contexts: Sequence[list[ContextFrame]]
    ) -> list[Candidates]:
        """Those of each context; each frame is searched once, or once with and without window."""
        parts: list[list[Candidates]] = [[] for _ in contexts]
        offsets = [0] * len(contexts)
        for windowed in (False, True):  # in this order in each context
            chosen = [[one.frame for one in ctx if one.windowed == windowed] for ctx in contexts]
            maps = {frame.time: frame.features for frames in chosen for frame in frames}
            numbers = {time: number for number, time in enumerate(maps)}
            used = [number for number, frames in enumerate(chosen) if frames]
            if not used:
                continue
            groups = [[numbers[frame.time] for frame in chosen[number]] for number in used]
            found = self._matcher.match(query, list(maps.values()), groups, windowed=windowed)
            for number, (similarity, position) in zip(used, found, strict=True):
                parts[number].append(Candidates(similarity, position + offsets[number]))
                offsets[number] += len(chosen[number]) * len(query.exact)
        return [_merge_candidates(part) for part in parts]

    def _propagate_as_peers(
        self, query: Tensor, context: list[ContextFrame], channels: list[int], *, time: int
    ) -> Float[Tensor, "height width channel"]:
        rule = self._protocol
        if rule.matching == "window":
            context = [one for one in context for _ in range(one.copies)]
        keys = [one.frame.features for one in context]
        labels = [_channels_of(one.frame.soft, channels) for one in context]
        if rule.matching == "window":
            assert rule.radius is not None
            return window_labels(
                query,
                keys,
                labels,
                [time - one.frame.time for one in context],
                settings=rule,
                radius=rule.radius,
                temperature=rule.temperature,
                max_bytes=self._max_bytes,
            )
        return averaged_labels(
            query,
            keys,
            labels,
            [one.copies for one in context],
            topk=rule.topk,
            temperature=rule.temperature,
            mutual=rule.matching == "mutual",
            max_bytes=self._max_bytes,
        )


def _are_all(channels: Sequence[int], soft: Tensor) -> bool:
    return list(channels) == list(range(soft.shape[-1]))


def _channels_of(soft: Tensor, channels: Sequence[int]) -> Tensor:
    """Some channels; where these are all of them without numbers that a device would wait for."""
    return soft if _are_all(channels, soft) else soft[..., channels]


def _merge_candidates(parts: Sequence[Candidates]) -> Candidates:
    """All candidates, best first."""
    if len(parts) == 1:
        return parts[0]
    best, place = torch.cat([part.similarity for part in parts], dim=1).sort(descending=True)
    return Candidates(best, torch.cat([part.position for part in parts], dim=1).gather(1, place))
