"""How the positions of a feature map lie in memory, and how queries are cut into tiles.

A map is cut into panels, strips of whole columns, and each panel is stored row by row. So the
queries of a tile (some rows of one panel) and the keys that its windows reach (some rows of a few
panels) are stretches of memory, and similarities need no copies. A place is a number in this order;
a position is a number in row-major order.
"""

import functools
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ino.propagate.protocols import WindowShape

# What tiles cost beside their pairs of query and key, in pairs, measured on a CPU at 384
# dimensions: a multiplication, reading a key, a tile, and keys near a query, which are looked at
# twice.
_PAIRS_PER_CALL = 10_000
_PAIRS_PER_KEY = 60
_PAIRS_PER_TILE = 40_000
_NEIGHBOURHOOD = 10

_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512)


class Window(NamedTuple):
    """Where a query looks: `radius` in feature positions (None: everywhere), and its shape."""

    radius: int | None
    shape: WindowShape = "square"


class Span(NamedTuple):
    """Along one axis: queries start <= i < stop, and the keys that are multiplied with them."""

    start: int
    stop: int
    key_start: int
    key_stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def num_keys(self) -> int:
        return self.key_stop - self.key_start


class Tile(NamedTuple):
    """Queries, and the keys that their windows reach, by places.

    Attributes:
        queries: a stretch.
        keys: a stretch for each panel.
    """

    queries: slice
    keys: tuple[slice, ...]


@dataclass(frozen=True)
class Layout:
    """The panels of a map.

    Attributes:
        height: of the map.
        edges: the columns at which panels begin, then the width.
    """

    height: int
    edges: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.edges[-1]

    def positions(self) -> Int64[Tensor, " tokens"]:
        """The position at each place."""
        table = torch.arange(self.height * self.width).view(self.height, self.width)
        return torch.cat([table[:, a:b].flatten() for a, b in itertools.pairwise(self.edges)])

    def tiles(self, *, radius: int | None, max_pairs: int) -> list[Tile]:
        """Tiles that hold each query once, of at most `max_pairs` pairs where a query alone has
        no more."""
        columns = _spans(self.edges, self.width, radius, key_edges=self.edges)
        _, rows = _best_rows(self.height, columns, radius=radius, max_pairs=max_pairs)
        return [self._tile(row, column) for row in rows for column in columns]

    def _tile(self, rows: Span, columns: Span) -> Tile:
        panels = [
            (a, b)
            for a, b in itertools.pairwise(self.edges)
            if columns.key_start <= a < columns.key_stop
        ]
        return Tile(
            self._stretch((columns.start, columns.stop), rows.start, rows.stop),
            tuple(self._stretch(panel, rows.key_start, rows.key_stop) for panel in panels),
        )

    def _stretch(self, panel: tuple[int, int], start: int, stop: int) -> slice:
        first, width = self.height * panel[0], panel[1] - panel[0]
        return slice(first + start * width, first + stop * width)


@functools.lru_cache(maxsize=64)
def choose_layout(height: int, width: int, *, radius: int | None, max_pairs: int) -> Layout:
    """The panels with which the tiles of a window cost least."""
    best: tuple[tuple[bool, float], tuple[int, ...]] | None = None
    for edges in _cuts(width):
        columns = _spans(edges, width, radius, key_edges=edges)
        rank, _ = _best_rows(height, columns, radius=radius, max_pairs=max_pairs)
        if best is None or rank < best[0]:
            best = (rank, edges)
    assert best is not None
    return Layout(height, best[1])


def outside_window(
    queries: Int64[Tensor, " queries"],
    keys: Int64[Tensor, " keys"],
    *,
    width: int,
    window: Window,
    dtype: torch.dtype,
) -> Float[Tensor, "keys queries"] | None:
    """0 for pairs within the window and -inf for others; None where all pairs are within it.

    Args:
        queries: positions.
        keys: positions.
        width: of the map.
        window: decides.
        dtype: of the result.
    """
    if window.radius is None:
        return None
    # Whole numbers below 2^24: exact in fp32.
    row = (keys // width)[:, None].float() - (queries // width).float()
    column = (keys % width)[:, None].float() - (queries % width).float()
    if window.shape == "square":
        distance, farthest = torch.maximum(row.abs_(), column.abs_()), window.radius
    else:
        distance = row.square_().add_(column.square_())
        farthest = window.radius**2 - (window.shape == "circle")
    if float(distance.max()) <= farthest:
        return None
    return torch.where(distance > farthest, -torch.inf, 0.0).to(dtype)


def _best_rows(
    height: int, columns: list[Span], *, radius: int | None, max_pairs: int
) -> tuple[tuple[bool, float], list[Span]]:
    """The cheapest cut of the rows whose tiles are small enough, if there is one, and its rank."""
    best: tuple[tuple[bool, float], list[Span]] | None = None
    for edges in _cuts(height):
        rows = _spans(edges, height, radius)
        largest = max(s.size * s.num_keys for s in rows) * max(s.size * s.num_keys for s in columns)
        cost = _cost(rows, columns)
        rank = (True, float(largest)) if largest > max_pairs else (False, cost)
        if best is None or rank < best[0]:
            best = (rank, rows)
    assert best is not None
    return best


def _cost(rows: list[Span], columns: list[Span]) -> float:
    """In pairs; sums over tiles are products of sums over the two axes."""
    pairs = sum(s.size * s.num_keys for s in rows) * sum(s.size * s.num_keys for s in columns)
    again = sum(s.size * (s.size + _NEIGHBOURHOOD) for s in rows) * sum(
        s.size * (s.size + _NEIGHBOURHOOD) for s in columns
    )
    keys = sum(s.num_keys for s in rows) * sum(s.num_keys for s in columns)
    calls = len(rows) * sum(s.num_keys / s.size for s in columns)
    tiles = len(rows) * len(columns)
    return (
        pairs
        + 2 * again
        + _PAIRS_PER_KEY * keys
        + _PAIRS_PER_CALL * calls
        + _PAIRS_PER_TILE * tiles
    )


def _spans(
    edges: tuple[int, ...],
    length: int,
    radius: int | None,
    *,
    key_edges: tuple[int, ...] | None = None,
) -> list[Span]:
    """The spans between edges; keys begin and end at `key_edges` if given."""
    reach = length if radius is None else radius
    spans = []
    for start, stop in itertools.pairwise(edges):
        first, last = max(0, start - reach), min(length, stop + reach)
        if key_edges is not None:
            first = key_edges[bisect_right(key_edges, first) - 1]
            last = key_edges[bisect_left(key_edges, last)]
        spans.append(Span(start, stop, first, last))
    return spans


def _cuts(length: int) -> Iterator[tuple[int, ...]]:
    """Edges of spans of nearly equal size, from one span to single positions."""
    for count in sorted({min(count, length) for count in (*_COUNTS, length)}):
        yield tuple(length * number // count for number in range(count + 1))
