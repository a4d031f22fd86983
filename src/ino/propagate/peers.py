"""Queries in tiles, and the keys that their square windows reach in a padded map.

For softmaxes over whole windows. The search for the best k has tiles of its own, in `layout`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from ino.propagate.memory import ContextFrame, MemoryFrame
from ino.propagate.protocols import Border, Protocol


class SquareTile(NamedTuple):
    """Queries of a rectangle, and the rectangle of padded keys that their windows reach."""

    rows: slice
    columns: slice
    radius: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def keys(self, padded: Shaped[Tensor, "rows columns n"]) -> Shaped[Tensor, "keys n"]:
        rows, columns = (
            slice(span.start, span.stop + 2 * self.radius) for span in (self.rows, self.columns)
        )
        return padded[rows, columns].flatten(0, 1)

    def within(self, device: torch.device) -> Bool[Tensor, "keys queries"]:
        """Whether a key lies in the window of a query."""
        row, column = (
            (torch.arange(side + 2 * self.radius, device=device)[:, None] - self.radius)
            .sub(torch.arange(side, device=device))
            .abs()
            .le(self.radius)
            for side in self.shape
        )
        return (row[:, None, :, None] & column[None, :, None, :]).flatten(0, 1).flatten(1, 2)


def square_tiles(height: int, width: int, *, radius: int, side: int) -> Iterator[SquareTile]:
    rows, columns = (
        [slice(start, min(start + side, length)) for start in range(0, length, side)]
        for length in (height, width)
    )
    for row, column in itertools.product(rows, columns):
        yield SquareTile(row, column, radius)


# Windows moved to where the query probably is in a frame of long ago, as MAST does. Pure.
#
# A coarse search over a dilated window gives an expected offset for each query; the fine window
# lies around that place, between features, so similarities and labels are interpolated there
# bilinearly. Similarities are linear in the key, so dot products are interpolated in place of
# features. Feature maps are channels last.


_TILE = 16
"""Queries along a side of a tile of the coarse search."""


class Moved(NamedTuple):
    """Where the windows of queries lie in a context frame; beyond the frame all is 0.

    Attributes:
        offsets: (dy, dx) of each query's window, for similarities.
        label_offsets: the same, for labels.
        radius: of the windows, feature positions.
        aligned: whether positions are positions. If not, position x of n is read at
            x n / (n - 1) - 1/2, which is what MAST's code gives in a torch after version 1.2.
    """

    offsets: Float[Tensor, "height width 2"]
    label_offsets: Float[Tensor, "height width 2"]
    radius: int
    aligned: bool

    def similarities(
        self,
        queries: Float[Tensor, "queries dim"],
        features: Float[Tensor, "height width dim"],
        rows: slice,
        columns: slice,
    ) -> Float[Tensor, "queries places"]:
        """Dot products with the places of the windows of the queries in `rows` and `columns`."""
        places = self._places(self.offsets, rows, columns)
        similarity = queries @ places.box_of(features).T
        result = similarity.new_zeros(len(queries), (2 * self.radius + 1) ** 2)
        for index, share in places.corners():
            result += share * similarity.gather(1, index)
        return result

    def sum_labels(
        self,
        weights: Float[Tensor, "queries places"],
        labels: Float[Tensor, "height width channel"],
        rows: slice,
        columns: slice,
    ) -> Float[Tensor, "queries channel"]:
        """The labels of the windows' places, weighted and summed."""
        places = self._places(self.label_offsets, rows, columns)
        box = places.box_of(labels)
        whole = weights.new_zeros(len(weights), len(box))
        for index, share in places.corners():
            whole.scatter_add_(1, index, share * weights)
        return whole @ box

    def _places(self, offsets: Tensor, rows: slice, columns: slice) -> "_Places":
        lengths = offsets.shape[:2]
        here = offsets[rows, columns]
        spans = []
        for axis, queries in enumerate((rows, columns)):
            start = torch.arange(queries.start, queries.stop).to(offsets)
            start = start.view(-1, 1) if axis == 0 else start.view(1, -1)
            step = torch.arange(-self.radius, self.radius + 1).to(offsets)
            place = (start + here[..., axis]).flatten()[:, None] + step
            if not self.aligned and lengths[axis] > 1:
                place = place * (lengths[axis] / (lengths[axis] - 1)) - 0.5
            spans.append(_Span.around(place, lengths[axis]))
        return _Places(*spans)


class _Span(NamedTuple):
    """Places along one axis between positions, and the positions that they reach.

    Attributes:
        position: of the feature before and after each place, counted from `start`.
        share: of that position, 0 where it lies outside the frame.
        start: of the positions reached.
        stop: of the positions reached; beyond `start`.
    """

    position: Int64[Tensor, "2 queries side"]
    share: Float[Tensor, "2 queries side"]
    start: int
    stop: int

    @classmethod
    def around(cls, place: Float[Tensor, "queries side"], length: int) -> "_Span":
        before = place.floor()
        position = torch.stack([before, before + 1]).long()
        share = torch.stack([before + 1 - place, place - before])
        share = share * ((position >= 0) & (position < length))
        position = position.clamp(0, length - 1)
        start, stop = int(position.min()), int(position.max()) + 1
        return cls(position - start, share, start, stop)


class _Places(NamedTuple):
    """The places of square windows."""

    rows: _Span
    columns: _Span

    def box_of(self, values: Shaped[Tensor, "height width n"]) -> Shaped[Tensor, "positions n"]:
        """What stands at the positions that the places reach."""
        box = slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)
        return values[box].flatten(0, 1)

    def corners(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of four neighbours: its number in the box and its share, queries x places."""
        width = self.columns.stop - self.columns.start
        for row, column in itertools.product(range(2), range(2)):
            index = (
                self.rows.position[row][:, :, None] * width + self.columns.position[column][:, None]
            )
            share = self.rows.share[row][:, :, None] * self.columns.share[column][:, None]
            yield index.flatten(1), share.flatten(1)


@torch.no_grad()
def expected_offsets(
    query: Float[Tensor, "height width dim"],
    key: Float[Tensor, "height width dim"],
    *,
    radius: int,
    dilation: int,
) -> Float[Tensor, "height width 2"]:
    """Expected (dy, dx) under a softmax over the dilated window, feature positions.

    The window has 2 radius + 1 places along each axis, `dilation` positions apart. Places outside
    the frame count with similarity 0, as the released code of MAST has it.

    Args:
        query: features of the frame to label.
        key: features of a context frame.
        radius: of the window, in steps.
        dilation: positions a step.
    """
    offsets = query.new_empty(*query.shape[:2], 2)
    # Positions that are `dilation` apart see each other only, so each class of them is a problem
    # of its own with a window that is not dilated.
    for row in range(min(dilation, query.shape[0])):
        for column in range(min(dilation, query.shape[1])):
            rest = slice(row, None, dilation), slice(column, None, dilation)
            offsets[rest] = dilation * _offsets_of_class(query[rest], key[rest], radius=radius)
    return offsets


def _offsets_of_class(
    query: Float[Tensor, "height width dim"],
    key: Float[Tensor, "height width dim"],
    *,
    radius: int,
) -> Float[Tensor, "height width 2"]:
    result = query.new_empty(*query.shape[:2], 2)
    padded = F.pad(key, [0, 0, radius, radius, radius, radius])
    for tile in square_tiles(*query.shape[:2], radius=radius, side=_TILE):
        similarity = tile.keys(padded) @ query[tile.rows, tile.columns].flatten(0, 1).T
        weights = similarity.masked_fill_(~tile.within(query.device), -math.inf).softmax(dim=0)
        # One axis after the other: a sum of all places at once would lose the weak ones in float32.
        weights = weights.view(*(length + 2 * radius for length in tile.shape), *tile.shape)
        for axis, length in enumerate(tile.shape):
            along = weights.sum(dim=1 - axis)  # (places, rows, columns)
            place = torch.arange(-radius, length + radius, device=query.device)[:, None]
            offset = (place - torch.arange(length, device=query.device)).to(query)
            offset = offset.unsqueeze(2 - axis)
            result[tile.rows, tile.columns, axis] = (along * offset).sum(dim=0)
    return result


# Labels carried from each context frame alone, then averaged, as TimeCycle and ContCorr do. Pure.
#
# Every position of a context frame competes for the weights of that frame; there is no window.
# Affinities are taken for blocks of queries, so none between all positions of two frames is stored.
# Feature maps are channels last.


MUTUAL_EPSILON = 1e-5
"""What ContCorr adds to the largest affinity of a row or column before it divides by it."""

DEFAULT_MAX_BYTES = 64 << 20
"""Bytes for the affinities of one block."""


@torch.no_grad()
def averaged_labels(
    query: Float[Tensor, "height width dim"],
    keys: Sequence[Float[Tensor, "height width dim"]],
    labels: Sequence[Float[Tensor, "height width channel"]],
    *,
    counts: Sequence[int],
    topk: int,
    temperature: float,
    mutual: bool,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Float[Tensor, "height width channel"]:
    """Labels of the query, averaged over context frames.

    Each frame gives the sum over j of w(i, j) p(j), where w(i, j) = softmax_j(a(i, j) / T) for the
    k largest and 0 for others; the k are not normalised again, so the sum of labels stays below 1.

    Args:
        query: features of the frame to label.
        keys: features of the context frames.
        labels: of the context frames.
        counts: how often each frame counts in the average.
        topk: k; all of them where a frame has fewer positions.
        temperature: T; above 0.
        mutual: a is not the dot product s alone but s s / (max_j s + e) s / (max_i s + e), which
            favours pairs that are each other's best. Then all that equal the k-th weight count,
            as in the released code of ContCorr.
        max_bytes: bound on the affinities of a block, which holds at least one query.
    """
    height, width, dim = query.shape
    queries = query.reshape(-1, dim)
    total = queries.new_zeros(len(queries), labels[0].shape[-1])
    size = max(1, max_bytes // (3 * query.element_size() * len(queries)))
    for key, label, count in zip(keys, labels, counts, strict=True):
        flat, table = key.reshape(-1, dim), label.flatten(0, 1)
        largest = _largest_of_keys(queries, flat, size=size) if mutual else None
        for block in _blocks(len(queries), size):
            affinity = queries[block] @ flat.T
            if largest is not None:
                affinity = _mutual(affinity, largest)
            weights = (affinity / temperature).softmax(dim=1)
            summed = _sum_at_least_kth if mutual else _sum_best
            total[block] += count * summed(weights, table, topk=min(topk, len(flat)))
    return (total / sum(counts)).view(height, width, -1)


def _largest_of_keys(
    queries: Float[Tensor, "queries dim"], keys: Float[Tensor, "keys dim"], *, size: int
) -> Float[Tensor, " keys"]:
    """The largest affinity of each key to any query."""
    largest = keys.new_full((len(keys),), -torch.inf)
    for block in _blocks(len(queries), size):
        largest = torch.maximum(largest, (queries[block] @ keys.T).amax(dim=0))
    return largest


def _mutual(
    affinity: Float[Tensor, "queries keys"], largest: Float[Tensor, " keys"]
) -> Float[Tensor, "queries keys"]:
    """Affinities, each multiplied by its shares of the largest of its query and of its key."""
    of_query = affinity / (affinity.amax(dim=1, keepdim=True) + MUTUAL_EPSILON)
    return affinity * of_query * (affinity / (largest + MUTUAL_EPSILON))


def _sum_best(
    weights: Float[Tensor, "queries keys"], table: Float[Tensor, "keys channel"], *, topk: int
) -> Float[Tensor, "queries channel"]:
    best, index = weights.topk(topk, dim=1, sorted=False)
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=best)


def _sum_at_least_kth(
    weights: Float[Tensor, "queries keys"], table: Float[Tensor, "keys channel"], *, topk: int
) -> Float[Tensor, "queries channel"]:
    smallest = weights.topk(topk, dim=1).values[:, -1:]
    return weights.masked_fill(weights < smallest, 0) @ table


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


# Labels carried by a softmax over whole windows, without a top k, as MAST and CorrFlow do. Pure.
#
# All positions of the windows in all context frames share one softmax. Queries are taken in square
# tiles, and a tile meets only the keys that its windows reach; windows are never unfolded. A
# context frame may be met through a window that was moved by `realign`. Feature maps are channels
# last.


"""Bytes for the similarities of one tile."""

_LARGEST_TILE = 16
_EXCLUDED = -1e10
"""CorrFlow's similarity of what is left out; where nothing else is there, all count alike."""


class WindowFrame(NamedTuple):
    """A context frame.

    Attributes:
        features: of its positions, as they are: similarities are dot products.
        labels: of its positions.
        moved: where the windows of queries lie in it, if not around the queries.
    """

    features: Float[Tensor, "height width dim"]
    labels: Float[Tensor, "height width channel"]
    moved: Moved | None = None


@torch.no_grad()
def window_labels(
    query: Float[Tensor, "height width dim"],
    frames: Sequence[WindowFrame],
    *,
    radius: int,
    temperature: float,
    border: Border,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Float[Tensor, "height width channel"]:
    """Labels of the query: sum over j of softmax_j(f(i) . f(j) / T) p(j).

    j runs over a square window in every frame. The result does not depend on `max_bytes`, up to
    rounding.

    Args:
        query: features of the frame to label.
        frames: its context, at least one frame.
        radius: of the window, feature positions.
        temperature: T; above 0.
        border: what positions of a window do that lie outside the frame, see `Border`.
        max_bytes: bound on the similarities of a tile, which holds at least one query.
    """
    height, width, _ = query.shape
    result = query.new_empty(height, width, frames[0].labels.shape[-1])
    padded = [_pad(frame, radius=radius, border=border) for frame in frames]
    exists = F.pad(torch.ones_like(query[..., :1], dtype=torch.bool), _around(radius))
    side = _tile_side(radius, num_frames=len(frames), size=query.element_size(), limit=max_bytes)
    for tile in square_tiles(height, width, radius=radius, side=side):
        queries = query[tile.rows, tile.columns].flatten(0, 1)
        counts = tile.within(query.device)
        if border == "left-out":
            counts &= tile.keys(exists)
        logits = [
            _logits(queries, frame, tile, counts=counts, border=border) / temperature
            for frame in padded
        ]
        # Places come first, which decides the order of the sum: the released codes' in float32.
        weights = torch.cat(logits).softmax(dim=0).split([len(one) for one in logits])
        labels = [_weighted(*pair, tile) for pair in zip(weights, padded, strict=True)]
        result[tile.rows, tile.columns] = torch.stack(labels).sum(dim=0).view(*tile.shape, -1)
    return result


def _pad(frame: WindowFrame, *, radius: int, border: Border) -> WindowFrame:
    """The frame with `radius` positions around it, unless its windows are moved."""
    if frame.moved is not None:
        return frame
    features = F.pad(frame.features, _around(radius))
    if border != "repeated":
        return WindowFrame(features, F.pad(frame.labels, _around(radius)))
    labels = F.pad(frame.labels.permute(2, 0, 1)[None], [radius] * 4, mode="replicate")
    return WindowFrame(features, labels[0].permute(1, 2, 0))


def _around(radius: int) -> list[int]:
    return [0, 0, radius, radius, radius, radius]


def _logits(
    queries: Float[Tensor, "queries dim"],
    frame: WindowFrame,
    tile: SquareTile,
    *,
    counts: Bool[Tensor, "keys queries"],
    border: Border,
) -> Float[Tensor, "places queries"]:
    """Similarities; -inf where a key does not count for a query."""
    if frame.moved is not None:
        return frame.moved.similarities(queries, frame.features, tile.rows, tile.columns).T
    similarity = tile.keys(frame.features) @ queries.T
    if border == "repeated":
        similarity.masked_fill_(similarity == 0, _EXCLUDED)
    return similarity.masked_fill_(~counts, -math.inf)


def _weighted(
    weights: Float[Tensor, "places queries"], frame: WindowFrame, tile: SquareTile
) -> Float[Tensor, "queries channel"]:
    if frame.moved is not None:
        return frame.moved.sum_labels(weights.T, frame.labels, tile.rows, tile.columns)
    return weights.T @ tile.keys(frame.labels)


def _tile_side(radius: int, *, num_frames: int, size: int, limit: int) -> int:
    """The side of a tile whose similarities fit `limit` bytes."""
    side = _LARGEST_TILE
    while side > 1 and num_frames * size * (side * (side + 2 * radius)) ** 2 > limit:
        side //= 2
    return side


# Labels of a frame from its context, for protocols without a top k of all context frames.


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
