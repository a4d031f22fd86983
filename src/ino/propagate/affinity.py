"""Exact top-k affinities between feature maps, and labels carried along them. Pure tensors.

The work has two halves. `find_candidates` finds, for each query position, the best k positions of
each context frame within the window; `propagate_labels` merges the candidates of chosen context
frames to the best k of all and sums their labels. The best k of all are among the best k of each
frame, so nothing is lost, and context frames that several reference times share are searched once.

Queries are taken in tiles, and a tile meets only the rectangle of keys that its windows reach; no
affinity between all positions of two frames is ever stored. Feature maps are channels last.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ino.propagate.protocols import WindowShape

DEFAULT_MAX_BYTES = 64 << 20
"""Bytes for what one tile stores in between: similarities, window and copied keys."""

_BYTES_PER_NUMBER = 4

# What a tile costs beside its (query, key) pairs, in pairs, measured on a CPU at 384 dimensions:
# copying a key, and the calls.
_PAIRS_PER_KEY = 32
_PAIRS_PER_TILE = 10_000

_SPLITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512)


class Candidates(NamedTuple):
    """The best positions of one context frame for each query position, in no particular order.

    Attributes:
        similarity: cosine similarities; -inf where the window holds fewer positions.
        position: row-major positions in the context frame; any valid one where similarity is -inf.
    """

    similarity: Float[Tensor, "tokens best"]
    position: Int64[Tensor, "tokens best"]


class _Span(NamedTuple):
    """Along one axis: queries start <= i < stop, and the keys their windows reach."""

    start: int
    stop: int
    key_start: int
    key_stop: int

    @property
    def queries(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def keys(self) -> slice:
        return slice(self.key_start, self.key_stop)

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def num_keys(self) -> int:
        return self.key_stop - self.key_start


@torch.no_grad()
def find_candidates(
    query: Float[Tensor, "height width dim"],
    keys: Sequence[Float[Tensor, "height width dim"]],
    *,
    topk: int,
    radius: int | None,
    shape: WindowShape = "square",
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> list[Candidates]:
    """For each key map, the `topk` most similar positions within the window of each query.

    Exact: the result does not depend on `max_bytes`, up to the rounding of dot products.

    Args:
        query: L2-normalised features of the frame to label.
        keys: L2-normalised features of the context frames.
        topk: candidates kept for each query and key map.
        radius: of the window around each query, feature positions; None: no window.
        shape: of the window; a circle of radius 0 would be empty.
        max_bytes: bound on the temporary storage of a tile, which holds at least one query and the
            keys of one map.
    """
    assert radius != 0 or shape != "circle", "a circle of radius 0 is empty"
    height, width, _ = query.shape
    stored = (len(keys), height, width, topk)
    similarity = query.new_full(stored, -torch.inf)
    position = torch.zeros(stored, dtype=torch.int64, device=query.device)
    for rows, columns in _plan_tiles(height, width, radius, max_bytes):
        queries = query[rows.queries, columns.queries].flatten(0, 1)
        window = _window(rows, columns, radius=radius, shape=shape, like=query)
        for first, batch in _batches(keys, rows, columns, max_bytes=max_bytes):
            reached = [key[rows.keys, columns.keys] for key in batch]
            best, place = _best_keys(queries, reached, window=window, topk=topk)
            row = rows.key_start + place // columns.num_keys
            column = columns.key_start + place % columns.num_keys
            frames, kept = slice(first, first + len(batch)), slice(best.shape[-1])
            place = row * width + column
            for target, values in ((similarity, best), (position, place)):
                values = values.view(rows.size, columns.size, len(batch), -1).permute(2, 0, 1, 3)
                target[frames, rows.queries, columns.queries, kept] = values
    return [
        Candidates(frame_best.flatten(0, 1), frame_place.flatten(0, 1))
        for frame_best, frame_place in zip(similarity, position, strict=True)
    ]


@torch.no_grad()
def propagate_labels(
    candidates: Sequence[Candidates],
    labels: Sequence[Float[Tensor, "height width channel"]],
    *,
    topk: int,
    temperature: float,
) -> Float[Tensor, "height width channel"]:
    """Labels of the query: those of its best `topk` context positions, weighted.

    The weights are exp(similarity / temperature), normalised over the `topk` to sum 1.

    Args:
        candidates: of each context frame, from `find_candidates` with at least this `topk`.
        labels: soft labels of the same context frames.
        topk: positions that count, over all context frames together.
        temperature: T; above 0.
    """
    height, width, channel = labels[0].shape
    tokens = height * width
    offsets = [frame.position + number * tokens for number, frame in enumerate(candidates)]
    best, place = torch.cat([frame.similarity for frame in candidates], dim=1).topk(topk, dim=1)
    index = torch.cat(offsets, dim=1).gather(1, place)
    # The softmax subtracts the maximum; a similarity of -inf gets the weight 0.
    weights = torch.softmax(best / temperature, dim=1)
    table = torch.cat([frame.reshape(tokens, channel) for frame in labels])
    # A weighted sum of table rows that never stores the (tokens, topk, channel) product.
    summed = F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)
    return summed.view(height, width, channel)


def _best_keys(
    queries: Float[Tensor, "queries dim"],
    keys: Sequence[Float[Tensor, "rows columns dim"]],
    *,
    window: Float[Tensor, "queries keys"] | None,
    topk: int,
) -> tuple[Float[Tensor, "queries maps best"], Int64[Tensor, "queries maps best"]]:
    """Similarity and row-major place of each query's best keys in each map, or of all its keys."""
    similarity = queries @ torch.stack(list(keys)).flatten(0, 2).T
    similarity = similarity.view(len(queries), len(keys), -1)
    if window is not None:
        similarity += window[:, None]
    best, place = similarity.topk(min(topk, similarity.shape[-1]), dim=-1, sorted=False)
    return best, place


def _batches(
    keys: Sequence[Tensor], rows: _Span, columns: _Span, *, max_bytes: int
) -> Iterator[tuple[int, Sequence[Tensor]]]:
    """The key maps, as many at a time as fit `max_bytes`, with the number of the first."""
    num_queries, num_keys = rows.size * columns.size, rows.num_keys * columns.num_keys
    for_window = _BYTES_PER_NUMBER * num_keys * num_queries
    for first, key in enumerate(keys):
        for_map = _BYTES_PER_NUMBER * num_keys * (num_queries + key.shape[-1])
        count = max(1, (max_bytes - for_window) // for_map)
        if first % count == 0:
            yield first, keys[first : first + count]


def _window(
    rows: _Span, columns: _Span, *, radius: int | None, shape: WindowShape, like: Tensor
) -> Tensor | None:
    """0 for pairs within the window, -inf for others; None where all pairs are within it."""
    if radius is None:
        return None
    if shape == "square":
        # Outside along one axis is outside; the sum of two costs is one pass over the pairs.
        row, column = (
            torch.zeros_like(offset).masked_fill_(offset > radius, -torch.inf)
            for offset in (_offsets(rows, like=like), _offsets(columns, like=like))
        )
        if row.isfinite().all() and column.isfinite().all():
            return None
        cost = _for_pairs(row, column)
    else:
        row, column = _offsets(rows, like=like) ** 2, _offsets(columns, like=like) ** 2
        farthest = radius**2 - 1 if shape == "circle" else radius**2
        if row.max() + column.max() <= farthest:
            return None
        squared = _for_pairs(row, column)
        cost = torch.zeros_like(squared).masked_fill_(squared > farthest, -torch.inf)
    return cost.view(rows.size * columns.size, -1)


def _offsets(span: _Span, *, like: Tensor) -> Float[Tensor, "queries keys"]:
    """Distances of queries and keys along one axis."""
    queries = torch.arange(span.start, span.stop, device=like.device, dtype=like.dtype)
    keys = torch.arange(span.key_start, span.key_stop, device=like.device, dtype=like.dtype)
    return (queries[:, None] - keys).abs()


def _for_pairs(
    row: Float[Tensor, "rows key_rows"], column: Float[Tensor, "columns key_columns"]
) -> Float[Tensor, "rows columns key_rows key_columns"]:
    return row[:, None, :, None] + column[None, :, None, :]


@functools.lru_cache(maxsize=64)
def _plan_tiles(
    height: int, width: int, radius: int | None, max_bytes: int
) -> tuple[tuple[_Span, _Span], ...]:
    """The cheapest cut of the queries into tiles whose window and similarities fit `max_bytes`."""
    best: tuple[int, list[_Span], list[_Span]] | None = None
    for rows in _cuts(height, radius):
        for columns in _cuts(width, radius):
            largest = max(s.size * s.num_keys for s in rows) * max(
                s.size * s.num_keys for s in columns
            )
            smallest_possible = len(rows) == height and len(columns) == width
            if 2 * _BYTES_PER_NUMBER * largest > max_bytes and not smallest_possible:
                continue
            cost = _cost(rows, columns)
            if best is None or cost < best[0]:
                best = (cost, rows, columns)
    assert best is not None
    return tuple((row, column) for row in best[1] for column in best[2])


def _cost(rows: list[_Span], columns: list[_Span]) -> int:
    """In pairs; sums over tiles are products of sums over the two axes."""
    pairs = sum(s.size * s.num_keys for s in rows) * sum(s.size * s.num_keys for s in columns)
    keys = sum(s.num_keys for s in rows) * sum(s.num_keys for s in columns)
    return pairs + _PAIRS_PER_KEY * keys + _PAIRS_PER_TILE * len(rows) * len(columns)


def _cuts(length: int, radius: int | None) -> Iterator[list[_Span]]:
    """Ways to cut an axis into spans of nearly equal size, from one span to single positions."""
    counts = sorted({min(count, length) for count in (*_SPLITS, length)})
    reach = length if radius is None else radius
    for count in counts:
        edges = [length * number // count for number in range(count + 1)]
        yield [
            _Span(start, stop, max(0, start - reach), min(length, stop + reach))
            for start, stop in itertools.pairwise(edges)
        ]
