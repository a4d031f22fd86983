"""Several annotated frames of one video: all of them stay references, forward and backward in time.

Between two annotated frames a < b, masks are propagated forward from a and backward from b. With
f(t) and b(t) the soft labels of both in frame t,

    p(t) = w f(t) + (1 - w) b(t),    w : (1 - w) = (1 - u)^(1/2) F^4 : u^(1/2) B^4,
    u = (t - a)/(b - a)

where F and B say how sure each pass is of an object in frame t: the mean of its soft label,
weighted by itself. It is low where a pass has lost the object or spreads it over its surroundings.
w at a position is the mean over the objects that either pass sees there. An annotated frame comes
out as its mask says, and frames before the first and after the last one are propagated from it
alone. Reversing the video reverses the result.

Where labels follow the optical flow, label maps are blended and not soft labels, so that outlines
stay: a pixel gets the label of the pass whose confidence there, times its weight, is larger. F and
B are then the mean confidence over the object's pixels.

Two or more annotated frames also say which differences of features matter. Features are centered
and multiplied by (C + 0.1 tr(C)/dim)^(-1/4), where C is their covariance within background and
objects in all annotated frames: directions in which one object varies count less. Appended to them
are the scores of a linear classifier of the objects (ridge regression, softmax), times 0.7. With a
protocol's `learned_metric` one annotated frame is enough.

`rank_frames` says which frame to annotate next.
"""

import logging
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from ino.data.label_maps import BACKGROUND, VOID, introducing_frames
from ino.propagate.features import as_frame

_LOG = logging.getLogger("ino")
MAX_FEATURE_BYTES = 256 << 20
"""Bound on the features that are kept from a backward pass for the forward pass."""
MAX_FEATURE_FRAMES = 48
"""Bound on the frames whose features are kept, so that small ones do not add up either."""
FLOOR = 0.1
"""Share of the mean variance that is added to the variance of each direction."""
POWER = -0.25
"""Of the variance in the transform of features; -0.5 would make all variances equal."""
RIDGE = 0.1
"""Of the classifier: share of the mean variance that is added to that of each direction."""
CLASS_TEMPERATURE = 0.3
"""Of the softmax of the classifier's scores."""
CLASS_WEIGHT = 0.7
"""Of the classifier's scores beside features of length 1."""
NEARNESS_POWER = 0.5
"""Of the distance from the other annotated frame, in the weight of a pass."""
SURENESS_POWER = 4.0
"""Of F and B in the weight of a pass."""
HALF_WAY = 0.5
"""Up to here an object is visible that is drawn in one of two annotated frames."""
ONE_SIDED = 3.0
"""A frame that is reached from one side alone counts as so many times farther away."""
LEAST_SURE = 0.01
"""F and B are at least this."""


State = dict[str, Any]
"""What `ReferencePropagation.run` goes on from: lists, numbers and tensors. `is_step` says whether
it follows one of the steps of work that `num_steps` counts."""
BACKWARD, FORWARD, BLENDED = range(3)
"""What was done last between two annotated frames, in the `phase` of a state."""


class TrackedFrame(NamedTuple):
    """A frame with its result.

    Attributes:
        number: of the frame, from 0.
        labels: its label map, uint8 height x width.
        confidence: of each object that is there, 0..1: the mean over its pixels of the largest soft
            label divided by the sum of all; 1 in an annotated frame.
        survival: of an object, 0..1, where it is known: between two annotated frames J of the
            forward and the backward pass, elsewhere `Tracker.survival` where it was checked.
    """

    number: int
    labels: np.ndarray
    confidence: dict[int, float]
    survival: dict[int, float]


class ReferencePropagation:
    """One video and its annotated frames, see `Tracker.track_references`."""

    def __init__(
        self,
        frames: Sequence[Any] | Any,
        masks: Mapping[int, np.ndarray],
        new_session: Callable[..., Any],
        *,
        folder: Path | None,
        check_every: int,
        kept: Path | None = None,
    ) -> None:
        """See `Tracker.track_references`; nothing is computed yet.

        Args:
            frames: frames by number.
            masks: checked label maps by the number of their frame.
            new_session: makes a session of the tracker.
            folder: of the temporary file.
            check_every: frames between two checks of survival outside of two annotated frames.
            kept: a file for soft labels that stays, in place of the temporary one.
        """
        self._frames = frames
        self._masks = masks
        self._new_session = new_session
        self._folder = folder
        self._check_every = check_every
        self._kept = kept
        self._complete = complete_frames(masks)
        self._objects = {number: _objects(mask) for number, mask in masks.items()}
        self._metric: Metric | None = None
        self._helper = ThreadPoolExecutor(1)
        self._begun: tuple[int, Future[Tensor]] | None = None
        self._features: LRUCache[int, Tensor] = LRUCache(
            MAX_FEATURE_BYTES,
            getsizeof=lambda one: max(one.nbytes, MAX_FEATURE_BYTES // MAX_FEATURE_FRAMES),
        )

    def run(self, state: Mapping[str, Any] | None = None) -> Iterator[TrackedFrame | State]:
        """Each frame as soon as it is finished, and a state after each step of work.

        Args:
            state: goes on after the step that gave it.
        """
        first, last = self._complete[0], self._complete[-1]
        if state is None:
            self._say_what_is_missing()
        if len(self._complete) > 1 or self._new_session().protocol.learned_metric:
            self._metric = self._learn_metric()
        parts: list[Callable[[Any], Iterator[TrackedFrame | State]]] = []
        if first > 0:
            parts.append(partial(self._one_way, first, -1))
        parts.append(self._first)
        parts += [partial(self._between, *ends) for ends in pairwise(self._complete)]
        if last + 1 < len(self._frames):
            parts.append(partial(self._one_way, last, 1))
        begin = 0 if state is None else state["part"]
        with self._helper:
            for number, part in enumerate(parts[begin:], start=begin):
                within = state["within"] if state is not None and number == begin else None
                for found in part(within):
                    if isinstance(found, TrackedFrame):
                        yield found
                    else:
                        counts = found.get("phase") != BLENDED
                        yield {"part": number, "within": found, "is_step": counts}

    def _first(self, state: Any) -> Iterator[TrackedFrame | State]:
        """The first annotated frame."""
        if state is None:
            yield self._as_drawn(self._complete[0], None)
            yield {"done": True}

    def _say_what_is_missing(self) -> None:
        known: set[int] = set()
        for number in self._complete:
            if missing := sorted(known - set(self._objects[number])):
                _LOG.warning(
                    "object %s: not drawn in frame %d, so it counts as not visible there; draw all "
                    "visible objects in each frame that you annotate",
                    ", ".join(map(str, missing)),
                    number,
                )
            known.update(self._objects[number])

    def _as_drawn(self, number: int, predicted: np.ndarray | None) -> TrackedFrame:
        """An annotated frame; void pixels as predicted, which the background is without."""
        mask = self._masks[number]
        if (mask == VOID).any():
            filling = np.uint8(BACKGROUND) if predicted is None else predicted
            mask = np.where(mask == VOID, filling, mask)
        return TrackedFrame(number, mask.copy(), dict.fromkeys(self._objects[number], 1.0), {})

    def _one_way(
        self, reference: int, direction: int, state: Any
    ) -> Iterator[TrackedFrame | State]:
        """The frames from an annotated one to the end or to the beginning of the video."""
        session = self._resumed(reference, direction, state)
        begin = reference + direction if state is None else state["number"] + direction
        end = len(self._frames) if direction > 0 else -1
        for number in range(begin, end, direction):
            labels = self._step(session, number, after=number + direction)
            checks = self._check_every and (number - reference) % self._check_every == 0
            confidence = mean_confidence(labels, session.confidence())
            if number in self._masks:
                confidence |= dict.fromkeys(self._objects[number], 1.0)
            yield TrackedFrame(number, labels, confidence, session.survival() if checks else {})
            yield {"number": number, "session": session.state()}

    def _between(self, start: int, end: int, state: Any) -> Iterator[TrackedFrame | State]:
        """The frames between two annotated ones, and the latter of these."""
        if end - start == 1:
            if state is None:
                yield self._as_drawn(end, None)
                yield {"done": True}
            return
        entering = {
            label: number
            for number, labels in self._objects.items()
            if start < number < end
            for label in labels
        }
        begins = dict.fromkeys(self._objects[start], start) | entering
        ids = sorted({BACKGROUND, *begins, *self._objects[end]})
        before = -1 if state is None else state["number"]
        phase = None if state is None else state["phase"]
        with self._open(is_new=state is None) as file:
            stored: _Passes | None = None
            if phase in (None, BACKWARD):
                session = self._resumed(end, -1, state)
                for number in range((end if phase is None else before) - 1, start, -1):
                    self._step(session, number, after=number - 1, enters=False)
                    stored = stored or _Passes(file, session, ids, start, end)
                    stored.write(0, number, session)
                    for label in (one for one, begin in begins.items() if begin == number):
                        if label in session.ids:
                            session.remove(label)
                    yield self._state(BACKWARD, number, session)
            session = self._resumed(start, 1, state if phase in (FORWARD, BLENDED) else None)
            stored = _Passes(file, session, ids, start, end)
            labels = self._masks[start]
            if state is not None and state["labels"] is not None:
                labels = state["labels"].numpy()
            if phase != BLENDED:
                for number in range((before if phase == FORWARD else start) + 1, end + 1):
                    labels = self._step(session, number, after=number + 1)
                    stored.write(1, number, session)
                    yield self._state(FORWARD, number, session, labels)
            spans = [
                Span(begins.get(label), end if label in self._objects[end] else None)
                for label in ids[1:]
            ]
            finished = self._state(BLENDED, start, session, labels)
            for number in range((before if phase == BLENDED else start) + 1, end):
                between = (start, end)
                if session.protocol.flow_share:
                    forward, backward = (stored.read_map(side, number) for side in (1, 0))
                    by_label = dict(zip(ids[1:], spans, strict=True))
                    blended, certain = blend_maps(forward, backward, by_label, number, between)
                    found = (forward.labels, backward.labels)
                else:
                    both = (stored.read(1, number), stored.read(0, number))
                    soft = blend(*both, spans, number, between).to(session.soft.device)
                    blended, certain = session.label_map(soft, ids), session.confidence(soft)
                    first, second = (np.array(ids)[one.argmax(dim=-1).numpy()] for one in both)
                    found = (first, second)
                confidence = mean_confidence(blended, certain)
                if number in self._masks:
                    blended = _drawn_over(blended, self._masks[number])
                    confidence |= dict.fromkeys(self._objects[number], 1.0)
                drawn = [one for one, span in zip(ids[1:], spans, strict=True) if None not in span]
                yield TrackedFrame(number, blended, confidence, agreement_of(*found, drawn))
                yield {**finished, "number": number}
        yield self._as_drawn(end, labels)

    def _open(self, *, is_new: bool) -> IO[bytes]:
        """The file of soft labels."""
        if self._kept is None:
            return tempfile.TemporaryFile(dir=self._folder)
        return self._kept.open("w+b" if is_new else "r+b")

    def _state(
        self,
        phase: int,
        number: int,
        session: Any,
        labels: np.ndarray | None = None,
    ) -> State:
        """Of a stretch between two annotated frames."""
        return {
            "phase": phase,
            "number": number,
            "session": session.state(),
            "labels": None if labels is None else torch.from_numpy(labels),
        }

    def _resumed(self, reference: int, direction: int, state: Any) -> Any:
        """A session that has seen an annotated frame, or that of a state."""
        if state is None:
            return self._start(reference, direction)
        session = self._session(reference, direction)
        session.restore(state["session"])
        return session

    def _learn_metric(self) -> "Metric | None":
        """Of the annotated frames; None where the protocol does not take normalized features."""
        session = self._new_session()
        if not session.protocol.normalize_features:
            return None
        drawn = {one for number in self._complete for one in self._objects[number]}
        ids = sorted({BACKGROUND, *drawn})
        first = self._complete[0]
        shape = session.read(as_frame(self._frames[first], f"frame {first}"), first)
        labels = {}
        for number in self._complete:
            soft = session.soft_mask(self._masks[number], ids, features=shape)
            # Positions of void pixels have no label.
            labels[number] = torch.where(soft.sum(dim=-1) > 0, soft.argmax(dim=-1), -1)
        found = torch.cat([one[one >= 0].cpu() for one in labels.values()])
        counts = torch.bincount(found, minlength=len(ids))
        moments = Moments(counts, shape.shape[-1])
        for number in self._complete:
            features = session.read(as_frame(self._frames[number], f"frame {number}"), number)
            labeled = labels[number] >= 0
            moments.add(features[labeled], labels[number][labeled])
        return moments.metric()

    def _session(self, reference: int, direction: int) -> Any:
        """A new session, which begins with an annotated frame."""
        inside = reference not in (self._complete[0], self._complete[-1])
        outward = reference == self._complete[0 if direction < 0 else -1]
        return self._new_session(
            first=reference, direction=direction, void=True, warns=outward and not inside
        )

    def _start(self, reference: int, direction: int) -> Any:
        """A session that has seen an annotated frame."""
        session = self._session(reference, direction)
        mask = self._masks[reference]
        session.step(
            self._frames[reference],
            mask,
            self._objects[reference],
            features=self._read(session, reference),
        )
        return session

    def _step(self, session: Any, number: int, *, after: int, enters: bool = True) -> np.ndarray:
        """The label map of the next frame, which objects enter that only its mask has. Meanwhile
        the features of the frame after it are computed."""
        mask = self._masks.get(number) if enters and number not in self._complete else None
        new_ids = [] if mask is None else self._objects[number]
        features = self._read(session, number)
        frame = self._frames[number]
        if 0 <= after < len(self._frames) and after not in self._features:
            self._begun = after, self._helper.submit(self._compute, session, after)
        return session.step(frame, mask, new_ids, features=features)

    def _read(self, session: Any, number: int) -> Tensor:
        """The features of a frame. Frames are read by one thread at a time."""
        begun, self._begun = self._begun, None
        if begun is not None:
            wait([begun[1]])
        if number in self._features:
            return self._features[number]
        if begun is not None and begun[0] == number:
            features = begun[1].result()
        else:
            features = self._compute(session, number)
        if features.nbytes <= MAX_FEATURE_BYTES:
            self._features[number] = features
        return features

    def _compute(self, session: Any, number: int) -> Tensor:
        features = session.read(as_frame(self._frames[number], f"frame {number}"), number)
        return features if self._metric is None else self._metric(features)


class Metric(NamedTuple):
    """Features to features in which the objects of the annotated frames differ more."""

    mean: Float[Tensor, "dim"]
    whitening: Float[Tensor, "dim dim"]
    classifier: Float[Tensor, "dim label"]
    bias: Float[Tensor, "label"]

    def __call__(
        self, features: Float[Tensor, "rows columns dim"]
    ) -> Float[Tensor, "rows columns more"]:
        mean, whitening, classifier, bias = (one.to(features.device) for one in self)
        scores = ((features @ classifier + bias) / CLASS_TEMPERATURE).softmax(dim=-1)
        whitened = F.normalize((features - mean) @ whitening, dim=-1)
        both = torch.cat([whitened, CLASS_WEIGHT * (scores - 1 / len(bias))], dim=-1)
        return F.normalize(both, dim=-1).contiguous()


class Moments:
    """Sums over features of annotated frames, in memory that does not grow with their number."""

    def __init__(self, counts: Shaped[Tensor, "label"], dim: int) -> None:
        """No feature yet.

        Args:
            counts: positions of each label in all frames that will be added.
            dim: of features.
        """
        num_labels = len(counts)
        self._counts = counts.double()
        self._shares = torch.where(counts > 0, 1 / counts.double().clamp(min=1), 0)
        self._shares /= (counts > 0).sum()
        self._sums = torch.zeros(num_labels, dim, dtype=torch.float64)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)
        self._balanced = torch.zeros(dim, dim, dtype=torch.float64)

    def add(
        self, features: Float[Tensor, "position dim"], labels: Int64[Tensor, "position"]
    ) -> None:
        """Adds those of a frame, with the channel of the label of each."""
        chosen, labels = features.double().cpu(), labels.cpu()
        self._sums.index_add_(0, labels, chosen)
        self._products += chosen.T @ chosen
        self._balanced += (chosen * self._shares[labels][:, None]).T @ chosen

    def metric(self) -> Metric:
        """The transform, see the head of this file."""
        total = self._counts.sum()
        means = self._sums / self._counts.clamp(min=1)[:, None]
        within = (self._products - (means * self._counts[:, None]).T @ means) / total
        values, vectors = torch.linalg.eigh(within)
        values = values.clamp(min=0) + (FLOOR * values.mean()).clamp(min=1e-12)
        whitening = vectors @ torch.diag(values**POWER) @ vectors.T
        # Ridge regression of the one-hot labels, in which all labels weigh the same.
        targets = self._sums * self._shares[:, None]  # (label, dim)
        weights = self._counts * self._shares
        center = targets.sum(dim=0)
        covariance = self._balanced - torch.outer(center, center)
        ridge = (RIDGE * covariance.diagonal().mean()).clamp(min=1e-12)
        covariance += ridge * torch.eye(len(center), dtype=torch.float64)
        classifier = torch.linalg.solve(covariance, (targets - torch.outer(weights, center)).T)
        return Metric(
            (self._sums.sum(dim=0) / total).float(),
            whitening.float(),
            classifier.float(),
            (weights - center @ classifier).float(),
        )


class Span(NamedTuple):
    """Where an object is drawn on both sides of a frame.

    Attributes:
        begin: the annotated frame before, None if it does not hold the object.
        end: the annotated frame after, None if it does not hold the object.
    """

    begin: int | None
    end: int | None


def blend(
    forward: Float[Tensor, "rows columns channel"],
    backward: Float[Tensor, "rows columns channel"],
    spans: Sequence[Span],
    number: int,
    interval: tuple[int, int],
) -> Float[Tensor, "rows columns channel"]:
    """Soft labels of a frame between two annotated ones, from those of both passes.

    Args:
        forward: soft labels, 0..1, background first.
        backward: the same of the other pass.
        spans: one for each object, in the order of the channels.
        number: of the frame.
        interval: numbers of the two annotated frames.
    """
    start, end = interval
    forward, backward = forward.clone(), backward.clone()
    usual = 1 - (number - start) / (end - start)
    weighted, mass = torch.zeros_like(forward[..., 0]), torch.zeros_like(forward[..., 0])
    for channel, span in enumerate(spans, start=1):
        if share_of_way(span, number, interval) < 0:
            continue
        sure = (sureness(forward[..., channel]), sureness(backward[..., channel]))
        weight = weight_of(span, number, interval, sure)
        if weight is None:
            for soft in (forward, backward):
                soft[..., 0] += soft[..., channel]
                soft[..., channel] = 0
            continue
        seen = forward[..., channel] + backward[..., channel]
        weighted += weight * seen
        mass += seen
    local = torch.where(mass > 0, weighted / mass.clamp(min=1e-12), usual)[..., None]
    return local * forward + (1 - local) * backward


class PassMap(NamedTuple):
    """What one pass says of a frame: the label of each pixel, and its confidence, 0..1."""

    labels: UInt8[np.ndarray, "height width"]
    confidence: Float[np.ndarray, "height width"]


def blend_maps(
    forward: PassMap,
    backward: PassMap,
    spans: Mapping[int, Span],
    number: int,
    interval: tuple[int, int],
) -> PassMap:
    """The label of each pixel of a frame between two annotated ones, from those of both passes.

    The weight of a pass at a pixel is the mean of its weights for the objects that the two passes
    see there.

    Args:
        forward, backward: the two passes.
        spans: of each object, by its label.
        number: of the frame.
        interval: numbers of the two annotated frames.
    """
    usual = 1 - share_of_way(Span(*interval), number, interval)
    weights, counts = np.full(256, usual, dtype=np.float32), np.zeros(256, dtype=np.float32)
    sure = [mean_confidence(*one) for one in (forward, backward)]
    maps = [forward.labels.copy(), backward.labels.copy()]
    for label, span in spans.items():
        if share_of_way(span, number, interval) < 0:
            continue
        ours, theirs = (max(LEAST_SURE, one.get(label, 0)) for one in sure)
        weight = weight_of(span, number, interval, (ours, theirs))
        if weight is None:
            for one in maps:
                one[one == label] = BACKGROUND
        else:
            weights[label], counts[label] = weight, 1
    total = counts[maps[0]] + counts[maps[1]]
    weighted = (weights * counts)[maps[0]] + (weights * counts)[maps[1]]
    weight = np.where(total > 0, weighted / np.maximum(total, 1), np.float32(usual))
    ours, theirs = weight * forward.confidence, (1 - weight) * backward.confidence
    both = np.where(maps[0] == maps[1], ours + theirs, np.maximum(ours, theirs))
    return PassMap(np.where(ours >= theirs, *maps), both)


def share_of_way(span: Span, number: int, interval: tuple[int, int]) -> float:
    """The part of the way to the annotated frame after, 0..1; below 0 before an object enters."""
    begin = interval[0] if span.begin is None else span.begin
    return (number - begin) / (interval[1] - begin)


def weight_of(
    span: Span, number: int, interval: tuple[int, int], sure: tuple[float, float]
) -> float | None:
    """The weight of the forward pass for an object, 0..1; None where it counts as not visible,
    which is beyond half of the way from the only annotated frame that holds it.

    Args:
        span: of the object.
        number: of the frame.
        interval: numbers of the two annotated frames.
        sure: how sure both passes are, 0..1.
    """
    share = share_of_way(span, number, interval)
    if span.end is None:
        return None if share > HALF_WAY else 1.0
    if span.begin is None:
        return None if share < HALF_WAY else 0.0
    ours = (1 - share) ** NEARNESS_POWER * sure[0] ** SURENESS_POWER
    theirs = share**NEARNESS_POWER * sure[1] ** SURENESS_POWER
    return ours / (ours + theirs)


def sureness(soft: Float[Tensor, "rows columns"]) -> float:
    """The mean of an object's soft label, 0..1, weighted by itself; at least `LEAST_SURE`."""
    return max(LEAST_SURE, float((soft**2).sum() / soft.sum().clamp(min=1e-6)))


def complete_frames(masks: Mapping[int, np.ndarray]) -> list[int]:
    """The numbers of the frames whose masks say of all objects whether they are visible, ascending.

    The others hold nothing but objects that no mask before them holds: they only introduce these.
    """
    introducing = introducing_frames({number: _objects(mask) for number, mask in masks.items()})
    return sorted(set(masks) - introducing)


def num_steps(masks: Mapping[int, np.ndarray], num_frames: int) -> int:
    """The number of frames that `Tracker.track_references` computes; those between two annotated
    frames count twice."""
    numbers = complete_frames(masks)
    between = sum(2 * (end - start) - 1 for start, end in pairwise(numbers))
    return numbers[0] + 1 + between + num_frames - 1 - numbers[-1]


def arrange(
    soft: Float[Tensor, "rows columns channel"], given: Sequence[int], ids: Sequence[int]
) -> Float[Tensor, "rows columns label"]:
    """The channels of the labels `given` as those of `ids`; channels of one label are added."""
    arranged = soft.new_zeros(*soft.shape[:2], len(ids))
    for channel, label in enumerate(given):
        arranged[..., ids.index(label)] += soft[..., channel]
    return arranged


def agreement_of(
    one: Shaped[np.ndarray, "height width"],
    other: Shaped[np.ndarray, "height width"],
    labels: Sequence[int],
) -> dict[int, float]:
    """J of each of these labels, 0..1, between two label maps; 1 if it is in neither."""
    found = {}
    for label in labels:
        ours, theirs = one == label, other == label
        union = int((ours | theirs).sum())
        found[label] = int((ours & theirs).sum()) / union if union else 1.0
    return found


def mean_confidence(labels: np.ndarray, confidence: np.ndarray) -> dict[int, float]:
    """The mean confidence over the pixels of each object."""
    areas = np.bincount(labels.ravel(), minlength=256)
    sums = np.bincount(labels.ravel(), weights=confidence.ravel(), minlength=256)
    return {
        int(label): round(float(sums[label] / areas[label]), 4)
        for label in np.flatnonzero(areas)
        if label not in (BACKGROUND, VOID)
    }


class _Passes:
    """What two passes say of some frames, in a file: soft labels as float16, or, where labels
    follow the optical flow, label maps and confidences, compressed.

    Each frame has room for what it needs at most; the rest is not written and takes no disk.
    """

    def __init__(
        self, file: IO[bytes], session: Any, ids: Sequence[int], first: int, last: int
    ) -> None:
        """Those of the frames from `first` to `last`; the session has seen one of them."""
        self._file = file
        self._ids = ids
        self._grid = (*session.soft.shape[:2], len(ids))
        self._size = (2, *session.labels.shape)
        self._first, self._num_frames = first, last + 1 - first
        self._num_bytes = 2 * int(np.prod(self._grid))
        if session.protocol.flow_share:
            num_bytes = int(np.prod(self._size))
            self._num_bytes = num_bytes + num_bytes // 1000 + 64  # zlib's worst case

    def _seek(self, side: int, number: int) -> None:
        self._file.seek((side * self._num_frames + number - self._first) * self._num_bytes)

    def write(self, side: int, number: int, session: Any) -> None:
        """What a session says of its last frame."""
        self._seek(side, number)
        if session.protocol.flow_share:
            confidence = (255 * session.confidence()).round().astype(np.uint8)
            packed = zlib.compress(np.stack([session.labels, confidence]).tobytes(), level=1)
            self._file.write(len(packed).to_bytes(8, "little") + packed)
        else:
            soft = arrange(session.soft, session.ids, self._ids)
            self._file.write(soft.half().cpu().numpy().tobytes())
        self._file.flush()  # a state that is stored later counts on it

    def read(self, side: int, number: int) -> Tensor:
        """Soft labels."""
        self._seek(side, number)
        data = np.frombuffer(self._file.read(self._num_bytes), dtype=np.float16)
        return torch.from_numpy(data.astype(np.float32).reshape(self._grid))

    def read_map(self, side: int, number: int) -> PassMap:
        """A label map."""
        self._seek(side, number)
        packed = self._file.read(int.from_bytes(self._file.read(8), "little"))
        data = np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(self._size)
        return PassMap(data[0], data[1].astype(np.float32) / 255)


def _objects(mask: np.ndarray) -> list[int]:
    found = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    return [int(label) for label in found if label not in (BACKGROUND, VOID)]


def _drawn_over(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The labels, with the objects of a mask where it has them and nowhere else."""
    drawn = _objects(mask)
    kept = np.where(np.isin(labels, drawn), np.uint8(BACKGROUND), labels)
    return np.where(np.isin(mask, drawn), mask, kept)


class NextFrame(NamedTuple):
    """A frame that is worth annotating.

    Attributes:
        number: of the frame, from 0.
        label: the object that is most doubtful there.
        doubt: of that object, 0..1.
        gain: frames by which annotated ones come nearer, weighted by doubt.
    """

    number: int
    label: int
    doubt: float
    gain: float


def rank_frames(
    confidence: Mapping[int, Mapping[int, float]],
    survival: Mapping[int, Mapping[int, float]],
    annotated: Collection[int],
    *,
    num_frames: int = 3,
) -> list[NextFrame]:
    """Which frames to annotate next, the best one first; none if all frames are certain.

    The doubt d of an object in a frame is 1 - confidence x survival (confidence alone where
    survival is not known). It is 1 if the object is drawn in the nearest annotated frame but not
    found in this one, and nothing is known of its survival. That of a frame is the mean over its
    objects. With D the distance of a frame from the nearest annotated one, times `ONE_SIDED` where
    no annotated frame follows or none comes before, annotating frame t is worth

        sum over frames t' of d(t') max(0, D(t') - D(t') after t is annotated)

    the number of frames by which annotated ones come nearer, weighted by doubt. In a stretch of
    equal doubt the best frame is the middle, and where the video ends without an annotated frame,
    it is near the end, so that equal doubt gives nearly even spacing. The next best frame is chosen
    as if this one was annotated.

    Args:
        confidence: of each object, 0..1, by the number of the frame; all frames of the video.
        survival: the same, of frames and objects where it is known.
        annotated: numbers of the annotated frames.
        num_frames: how many to return at most.
    """
    places = np.arange(max(confidence, default=-1) + 1)
    drawn = sorted(annotated)
    doubt = np.zeros(len(places))
    doubts: dict[int, dict[int, float]] = {}
    for number, found in confidence.items():
        if number in annotated:
            continue
        known = survival.get(number, {})
        there = {
            label: 1 - found.get(label, 1.0) * known.get(label, 1.0) for label in (*found, *known)
        }
        if drawn:
            nearest = min(drawn, key=lambda one: abs(one - number))
            there = dict.fromkeys(confidence.get(nearest, {}), 1.0) | there
        doubts[number] = there
        doubt[number] = sum(there.values()) / max(1, len(there))
    chosen: list[NextFrame] = []
    while len(chosen) < num_frames:
        gains = _gains(doubt, drawn)
        if not any(gains):
            break
        number = int(np.argmax(gains))
        there = doubts[number]
        label = max(there, key=lambda one: there[one])
        chosen.append(NextFrame(number, label, there[label], round(gains[number], 3)))
        drawn = sorted([*drawn, number])
    return chosen


def _gains(doubt: Float[np.ndarray, "frame"], annotated: Sequence[int]) -> list[float]:
    """What annotating each frame is worth; 0 where there is no doubt."""
    last = len(doubt) - 1
    gains = [0.0] * len(doubt)
    # Between two annotated frames, whose ends may lie outside of the video.
    for begin, end in pairwise([-1, *annotated, last + 1]):
        inside = np.arange(max(begin, 0), min(end, last) + 1)
        before, after = begin >= 0, end <= last
        distance = _distance(inside, begin if before else None, end if after else None)
        for number in inside[doubt[inside] > 0].tolist():
            ends = (begin if before else None, number), (number, end if after else None)
            now = np.where(inside <= number, *(_distance(inside, *one) for one in ends))
            gains[number] = float(doubt[inside] @ np.maximum(distance - now, 0))
    return gains


def _distance(
    places: Int64[np.ndarray, "frame"], begin: int | None, end: int | None
) -> Float[np.ndarray, "frame"]:
    """From the nearer annotated frame; None: there is none on this side."""
    if begin is None and end is None:
        return np.full(len(places), float(ONE_SIDED * len(places)))
    if begin is None or end is None:
        return ONE_SIDED * np.abs(places - (begin if end is None else end)).astype(float)
    return np.minimum(np.abs(places - begin), np.abs(places - end)).astype(float)
