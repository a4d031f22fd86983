"""Exact windowed top-k over the cosine similarities of feature maps, on any device.

`TiledMatcher` finds what `ino.propagate.affinity.best_positions` defines: for each position of a
query map, the k most similar positions of several key maps within a window. That definition needs
the similarities of all pairs of positions; this file never stores them, and skips most of the
fp32 work. It covers no labels: `ino.propagate.affinity` sums those.

**Tiles.** Queries are taken in tiles, and a tile is compared with one key map after the other, and
only with the keys that its windows reach. A map is cut into panels, strips of whole columns, and
each panel is stored row by row, so that the queries of a tile (some rows of one panel) and its keys
(some rows of a few panels) are contiguous in memory and nothing is copied. A *place* is a number in
this order, a *position* a number in row-major order. The cut with the least estimated cost is
chosen once per map size.

**Bounds.** A tile keeps a lower bound of the k-th best similarity of each query: the k-th best in
the maps so far, or, in the first map, the k-th largest of the maxima of disjoint sets of keys.
Keys below the bound of every query are dropped, whole stretches of 8 at a time; only what is left
is ranked. A similarity is computed once, however many groups of maps it belongs to.

**Screening.** With `screening`, similarities are first computed in bf16, which is faster on CPUs
that multiply it, and the bound is lowered by all that rounding can have done. The keys that remain
are ranked in fp32, so the result is that of fp32. Three things keep the loss by rounding small:

- Features are centered, q.k = (q - m).(k - m) + m.(k - m) + m.q, and rotated to the principal axes
  of the first frame. Along the first axes, which hold most of what is left, each number is split
  into two bf16 numbers that hold it to 2^-16. The others lose at most |q - q'| |k| + |q'| |k - k'|
  (Cauchy-Schwarz), where all lengths are those of the small rest.
- m.(k - m) and what belongs to the query alone become further dimensions of the product.
- A guess of the query's best similarity is subtracted: a result is rounded by a share of its size,
  so it loses least near the best.

**Small windows.** Without screening, and where windows are small, bounds take longer than they
save: a tile is compared with all maps, what lies within the window of each query is gathered, and
all of that is ranked.
"""

import functools
import itertools
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_LOG = logging.getLogger("ino")

DEFAULT_MAX_BYTES = 64 << 20
"""Bytes of temporary storage for one tile, the queries that are compared at a time."""

_BYTES_PER_PAIR = 16

# What tiles cost beside their pairs of query and key, in pairs, measured on a CPU at 384
# dimensions: a multiplication, reading a key, a tile, and keys near a query, which are looked at
# twice.
_PAIRS_PER_CALL = 10_000
_PAIRS_PER_KEY = 60
_PAIRS_PER_TILE = 40_000
_NEIGHBORHOOD = 10

_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512)
"""Numbers of parts that a side may be cut into."""

_NUM_SETS = 16
_STRETCH = 8
"""Bounds come from the maxima of interleaved sets of 16 keys; keys are dropped 8 at a time."""

_NUM_SPLIT = 16
"""Axes along which features are held by two bf16 numbers."""

_UNIT = 2.0**-8
"""Largest relative error of rounding to bf16."""

_MULTIPLE = 8
"""Rows of a multiple of 16 bytes are multiplied faster."""

SMALL_RADIUS = 12
"""Up to which windows are small."""


WindowShape = Literal["square", "circle", "closed-circle"]
"""Offsets (dy, dx) in a window of radius r: max(|dy|, |dx|) <= r; the distance < r; it <= r."""


class Window(NamedTuple):
    """The neighborhood of a query: `radius` in feature positions (None: everywhere), and shape."""

    radius: int | None
    shape: WindowShape = "square"

    def offsets(self) -> tuple[Int64[Tensor, " offsets"], Int64[Tensor, " offsets"]]:
        """Rows and columns from a query to each position of its window; it needs a radius."""
        assert self.radius is not None
        steps = torch.arange(-self.radius, self.radius + 1)
        row, column = (one.flatten() for one in torch.meshgrid(steps, steps, indexing="ij"))
        if self.shape == "square":
            return row, column
        squared = row.square() + column.square()
        inside = squared <= self.radius**2 - (self.shape == "circle")
        return row[inside], column[inside]


class Screen(NamedTuple):
    """Rounded features in the dimensions of the bf16 product.

    Attributes:
        values: the rounded feature, bf16.
        length: L2 norm of the concatenation of the row of `values` and the exact feature.
        rest: L2 norm of the part of `values` along the axes that are not split.
        lost: L2 norm of the rounding error along those axes.
    """

    values: Float[Tensor, "tokens padded"]
    length: Float[Tensor, " tokens"]
    rest: Float[Tensor, " tokens"]
    lost: Float[Tensor, " tokens"]


class FeatureMap(NamedTuple):
    """A frame as a matcher stores it: features in the matcher's own order of positions.

    `screen` holds the rounded features; None without screening.
    """

    exact: Float[Tensor, "tokens dim"]
    screen: Screen | None


class Candidates(NamedTuple):
    """The best positions of a group of key maps for each query position, best first.

    Attributes:
        similarity: cosine similarities; -inf where the windows hold fewer positions.
        position: row-major positions, counted on from map to map of the group; any valid one where
            the similarity is -inf.
    """

    similarity: Float[Tensor, "tokens best"]
    position: Int64[Tensor, "tokens best"]


class _Span(NamedTuple):
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
    """Places of queries, and for each panel those of the keys that their windows reach."""

    queries: slice
    keys: tuple[slice, ...]


class Layout(NamedTuple):
    """The panels of a map: its height, the columns at which panels begin, then its width."""

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
        """Tiles that hold each query once, of at most `max_pairs` pairs unless a single query has
        more."""
        columns = _spans(self.edges, radius, key_edges=self.edges)
        _, rows = _best_rows(self.height, columns, radius=radius, max_pairs=max_pairs)
        return [self._tile(row, column) for row in rows for column in columns]

    def _tile(self, rows: _Span, columns: _Span) -> Tile:
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

    cuts = ((edges, _spans(edges, radius, key_edges=edges)) for edges in _cuts(width))
    ranked = (
        (_best_rows(height, columns, radius=radius, max_pairs=max_pairs)[0], edges)
        for edges, columns in cuts
    )
    return Layout(height, min(ranked, key=lambda one: one[0])[1])


def _best_rows(
    height: int, columns: list[_Span], *, radius: int | None, max_pairs: int
) -> tuple[tuple[bool, float], list[_Span]]:
    """The cheapest cut of the rows whose tiles are small enough, if there is one, and its rank."""
    across = _Totals.of(columns)

    def rank(down: "_Totals") -> tuple[bool, float]:
        largest = down.largest * across.largest
        return (True, float(largest)) if largest > max_pairs else (False, _cost(down, across))

    ranked = ((rank(down), rows) for down, rows in _row_cuts(height, radius))
    return min(ranked, key=lambda one: one[0])


class _Totals(NamedTuple):
    """Of the spans of one axis, what the cost of their tiles depends on."""

    num_spans: int
    largest: int
    pairs: int
    again: int
    keys: int
    calls: float

    @classmethod
    def of(cls, spans: list[_Span]) -> "_Totals":
        return cls(
            len(spans),
            max(s.size * s.num_keys for s in spans),
            sum(s.size * s.num_keys for s in spans),
            sum(s.size * (s.size + _NEIGHBORHOOD) for s in spans),
            sum(s.num_keys for s in spans),
            sum(s.num_keys / s.size for s in spans),
        )


@functools.lru_cache(maxsize=64)
def _row_cuts(height: int, radius: int | None) -> list[tuple[_Totals, list[_Span]]]:
    cuts = [_spans(edges, radius) for edges in _cuts(height)]
    return [(_Totals.of(rows), rows) for rows in cuts]


def _cost(rows: _Totals, columns: _Totals) -> float:
    """In pairs; sums over tiles are products of sums over the two axes."""
    return (
        rows.pairs * columns.pairs
        + 2 * rows.again * columns.again
        + _PAIRS_PER_KEY * rows.keys * columns.keys
        + _PAIRS_PER_CALL * rows.num_spans * columns.calls
        + _PAIRS_PER_TILE * rows.num_spans * columns.num_spans
    )


def _spans(
    edges: tuple[int, ...], radius: int | None, *, key_edges: tuple[int, ...] | None = None
) -> list[_Span]:
    """The spans between edges; keys begin and end at `key_edges` if given."""
    length = edges[-1]
    reach = length if radius is None else radius
    spans = []
    for start, stop in itertools.pairwise(edges):
        first, last = max(0, start - reach), min(length, stop + reach)
        if key_edges is not None:
            first = key_edges[bisect_right(key_edges, first) - 1]
            last = key_edges[bisect_left(key_edges, last)]
        spans.append(_Span(start, stop, first, last))
    return spans


def _cuts(length: int) -> Iterator[tuple[int, ...]]:
    """Edges of spans of nearly equal size, from one span to single positions."""
    for count in sorted({min(count, length) for count in (*_COUNTS, length)}):
        yield tuple(length * number // count for number in range(count + 1))


class Axes(NamedTuple):
    """The mean of a frame's features and their principal axes, the largest first, as columns."""

    center: Float[Tensor, " dim"]
    rotation: Float[Tensor, "dim dim"]


def principal_axes(features: Float[Tensor, "tokens dim"]) -> Axes:
    """The principal axes of a frame's features; other axes give looser bounds, no other results."""
    center = features.mean(dim=0)
    centered = features - center
    rotation = torch.linalg.eigh((centered.T @ centered).double()).eigenvectors
    return Axes(center, rotation.flip(1).to(features.dtype))


def key_screen(exact: Float[Tensor, "tokens dim"], axes: Axes) -> Screen:
    """Rounded features as keys, to be multiplied with a `query_screen` of the same axes.

    A number x along a split axis is stored as x1 + x2, both bf16. The columns of `values` are: x1
    along all axes; x1 and then x2 along the split axes, so that the product adds q2 k1 + q1 k2; and
    four for the terms of the query alone and of the key alone (two bf16 numbers each).
    """
    centered = exact - axes.center
    rotated = centered @ axes.rotation
    first = rotated.bfloat16()
    split = first[:, :_NUM_SPLIT]
    second = (rotated[:, :_NUM_SPLIT] - split.float()).bfloat16()
    own = torch.cat([first.new_ones(len(exact), 2), _two_numbers(centered @ axes.center)], dim=1)
    values = _padded([first, split, second, own])
    rest = first[:, _NUM_SPLIT:].float()
    lost = rotated[:, _NUM_SPLIT:] - rest
    return Screen(values, _length(values, exact), rest=rest.norm(dim=1), lost=lost.norm(dim=1))


def query_screen(
    exact: Float[Tensor, "tokens dim"],
    key: Screen,
    axes: Axes,
    *,
    guess: Float[Tensor, " tokens"],
) -> Screen:
    """Features as queries: their products with keys are similarities minus `guess`.

    Args:
        exact: features.
        key: the same as keys.
        axes: those of all keys.
        guess: a similarity near the best of each query.
    """
    dim = exact.shape[1]
    num_split = min(_NUM_SPLIT, dim)
    first, split, second, _ = key.values.tensor_split(
        [dim, dim + num_split, dim + 2 * num_split], dim=1
    )
    own = torch.cat(
        [_two_numbers(exact @ axes.center - guess), key.values.new_ones(len(exact), 2)], dim=1
    )
    values = _padded([first, second, split, own])
    return key._replace(values=values, length=_length(values, exact))


def least_similarity(
    product: Float[Tensor, " queries"], query: Screen, key: Screen
) -> Float[Tensor, " queries"]:
    """Lower bound of the exact similarity minus the guess, given the rounded product."""
    return product - _UNIT * product.abs() - _largest_error(query, key)


def least_product(
    similarity: Float[Tensor, " queries"], query: Screen, key: Screen
) -> Float[Tensor, " queries"]:
    """Lower bound of the rounded product, given the exact similarity minus the guess."""
    lowest = similarity - _largest_error(query, key)
    return lowest - _UNIT * lowest.abs()


def _largest_error(query: Screen, key: Screen) -> Float[Tensor, " queries"]:
    """Of the product of each query with any key of the map, before the result is rounded."""
    rounding = query.lost * key.rest.max() + (query.rest + query.lost) * key.lost.max()
    # What two bf16 numbers leave of a number: along a split axis at most _UNIT^2 of each factor and
    # of q' k', three times |q k| in all, where the lengths, which hold what is split twice, count
    # |q k| four times. And sums in fp32: of the product, and of what is rounded to become `values`,
    # which goes by the length of the features.
    unit = 2 * _UNIT**2 + 2.0**-24 * key.values.shape[1]
    return rounding + unit * query.length * key.length.max()


def _length(
    values: Float[Tensor, "tokens padded"], exact: Float[Tensor, "tokens dim"]
) -> Float[Tensor, " tokens"]:
    return torch.hypot(values.float().norm(dim=1).to(exact.dtype), exact.norm(dim=1))


def _padded(parts: list[Tensor]) -> Float[Tensor, "tokens padded"]:
    width = sum(part.shape[1] for part in parts)
    return torch.cat([*parts, parts[0].new_zeros(len(parts[0]), -width % _MULTIPLE)], dim=1)


def _two_numbers(value: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens 2"]:
    """Two bf16 numbers that add up to each value, but for 2^-16 of it."""
    first = value.bfloat16()
    return torch.stack([first, (value - first.float()).bfloat16()], dim=1)


class _Found(NamedTuple):
    """Keys of one map that may be among the best of a query of a tile, at these positions."""

    similarity: Float[Tensor, "queries keys"]
    position: Int64[Tensor, " keys"]


class _TileSearch:
    """Finds what the queries of one tile may want of one key map after the other."""

    def __init__(
        self,
        exact: Float[Tensor, "queries dim"],
        guess: Float[Tensor, " queries"],
        screen: Screen | None,
        tile: Tile,
        positions: Int64[Tensor, " tokens"],
        width: int,
        window: Window,
        topk: int,
    ) -> None:
        self._keys, self._topk = tile.keys, topk
        self._exact, self._guess, self._screen = exact, guess, screen
        first_look = exact if screen is None else screen.values
        self._places = torch.cat(
            [torch.arange(keys.start, keys.stop, device=positions.device) for keys in tile.keys]
        )
        self._positions = positions[self._places]
        self._window = _outside_window(
            positions[tile.queries],
            self._positions,
            width=width,
            window=window,
            dtype=first_look.dtype,
        )
        multiple = _NUM_SETS * _STRETCH
        padded = -(-len(self._places) // multiple) * multiple
        # Rows beyond the keys stay as they are.
        self._similarity = first_look.new_full((padded, len(first_look)), -torch.inf)
        self._queries = first_look.T
        self._best = exact.new_empty(len(exact), 0)

    def find(self, key: FeatureMap) -> _Found:
        """The keys of a map."""
        self._multiply(key)
        kept = self._above(self._threshold(key))
        if key.screen is None:
            return _Found(self._similarity[kept].T, self._positions[kept])
        similarity = self._exact @ key.exact[self._places[kept]].T
        if self._window is not None:
            similarity += self._window[kept].T
        return _Found(similarity, self._positions[kept])

    def bound_by(self, found: _Found) -> None:
        """Lets the best keys that were found bound those of all maps to come."""
        known = torch.cat([self._best, found.similarity], dim=1)
        self._best = known.topk(min(self._topk, known.shape[1]), dim=1).values

    def _multiply(self, key: FeatureMap) -> None:
        values = key.exact if key.screen is None else key.screen.values
        first = 0
        for keys in self._keys:
            count = keys.stop - keys.start
            torch.mm(values[keys], self._queries, out=self._similarity[first : first + count])
            first += count
        if self._window is not None:
            self._similarity[:first] += self._window

    def _threshold(self, key: FeatureMap) -> Float[Tensor, " queries"]:
        """What the first look must be, at least, for a key to be among the best."""
        if self._best.shape[1] == self._topk:
            kth = self._best[:, -1] - self._guess
        else:
            # The k-th largest of the maxima of disjoint sets of keys is not above the k-th best.
            maxima = self._similarity.unflatten(0, (_NUM_SETS, -1)).amax(dim=0).T
            if maxima.shape[1] < self._topk:
                return self._guess.new_full(self._guess.shape, -torch.inf)
            kth = maxima.to(self._guess.dtype).topk(self._topk, dim=1).values[:, -1]
            if key.screen is not None and self._screen is not None:
                kth = least_similarity(kth, self._screen, key.screen)
        if key.screen is None or self._screen is None:
            return kth
        return least_product(kth, self._screen, key.screen)

    def _above(self, threshold: Float[Tensor, " queries"]) -> Int64[Tensor, " keys"]:
        """The keys that reach the threshold of a query; whole stretches are ruled out first."""
        # -inf would make keys outside of the windows reach it.
        threshold = threshold.clamp(min=torch.finfo(threshold.dtype).min)
        # Maxima by halves, which reads memory in longer pieces than a maximum over few rows would.
        maxima = self._similarity.unflatten(0, (-1, _STRETCH))
        while maxima.shape[1] > 1:
            half = maxima.shape[1] // 2
            maxima = torch.maximum(maxima[:, :half], maxima[:, half:])
        stretches = _reaching(maxima[:, 0], threshold)
        within = torch.arange(_STRETCH, device=stretches.device)
        kept = (stretches[:, None] * _STRETCH + within).flatten()
        return kept[_reaching(self._similarity[kept], threshold)]


def _outside_window(
    queries: Int64[Tensor, " queries"],
    keys: Int64[Tensor, " keys"],
    *,
    width: int,
    window: Window,
    dtype: torch.dtype,
) -> Float[Tensor, "keys queries"] | None:
    """0 for pairs within the window and -inf for others; None where all pairs are within it."""
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


def _reaching(
    similarity: Float[Tensor, "keys queries"], threshold: Float[Tensor, " queries"]
) -> Int64[Tensor, " kept"]:
    """The rows that reach the threshold in a column."""
    above = (similarity.to(threshold.dtype) - threshold).amax(dim=1) >= 0
    return above.nonzero()[:, 0]


class TiledMatcher:
    """Finds the top-k positions for the frames of one video without storing all similarities.

    Works on any device. Use one matcher per video: all its feature maps must have the same size.
    """

    def __init__(
        self,
        *,
        topk: int,
        window: Window,
        screening: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """A matcher that has seen no frame.

        Args:
            topk: positions kept for each query and group.
            window: where a query looks; a circle of radius 0 would be empty.
            screening: look at similarities in bf16 first; changes no result, and saves time where
                the device multiplies bf16 faster.
            max_bytes: bound on the temporary storage of a tile, which holds at least one query and
                its keys of one map.
        """
        assert window.radius != 0 or window.shape != "circle", "a circle of radius 0 is empty"
        self._topk = topk
        self._window = window
        self._screening = screening
        self._max_pairs = max(1, max_bytes // _BYTES_PER_PAIR)
        self._layout: Layout | None = None
        self._positions = torch.empty(0, dtype=torch.int64)
        self._axes: Axes | None = None

    @torch.no_grad()
    def prepare(self, features: Float[Tensor, "height width dim"]) -> FeatureMap:
        """What the matcher keeps of a frame: its L2-normalised features, all of one size."""
        if self._layout is None:
            self._layout = choose_layout(
                *features.shape[:2], radius=self._window.radius, max_pairs=self._max_pairs
            )
            self._positions = self._layout.positions().to(features.device)
            if self._screening:
                self._axes = principal_axes(features.flatten(0, 1))
        exact = features.flatten(0, 1)[self._positions]
        return FeatureMap(exact, None if self._axes is None else key_screen(exact, self._axes))

    def restore(self, exact: Float[Tensor, "tokens dim"], height: int, width: int) -> FeatureMap:
        """What `prepare` gave for a frame of that size, from its `exact` part."""
        layout = self._layout or choose_layout(
            height, width, radius=self._window.radius, max_pairs=self._max_pairs
        )
        features = torch.empty_like(exact)
        features[layout.positions().to(exact.device)] = exact
        return self.prepare(features.unflatten(0, (height, width)))

    @torch.no_grad()
    def match(
        self,
        query: FeatureMap,
        keys: Sequence[FeatureMap],
        groups: Sequence[Sequence[int]],
        *,
        windowed: bool = True,
    ) -> list[Candidates]:
        """The best positions of each group, the same up to the rounding of dot products.

        Args:
            query: the frame to label.
            keys: the context frames.
            groups: for each group the indices of its maps in `keys`, at least one.
            windowed: False: queries look everywhere.
        """
        while True:
            try:
                return self._match(query, keys, groups, self._window if windowed else Window(None))
            except torch.OutOfMemoryError:
                if self._max_pairs <= len(query.exact):
                    raise
                self._max_pairs //= 4
                _LOG.warning("short of memory: comparing positions in smaller blocks from here on")

    def _match(
        self,
        query: FeatureMap,
        keys: Sequence[FeatureMap],
        groups: Sequence[Sequence[int]],
        window: Window,
    ) -> list[Candidates]:
        assert self._layout is not None, "maps come from `prepare`"
        if query.screen is None and window.radius is not None and window.radius <= SMALL_RADIUS:
            return self._match_near(query, keys, groups, window)
        tokens = len(query.exact)
        similarity = query.exact.new_full((len(groups), tokens, self._topk), -torch.inf)
        position = torch.zeros_like(similarity, dtype=torch.int64)
        # The maps of all groups come first, the latest before others: they bound every group.
        shared = set.intersection(*map(set, groups))
        order = sorted(range(len(keys)), key=lambda number: (number not in shared, -number))
        for tile in self._layout.tiles(radius=window.radius, max_pairs=self._max_pairs):
            search = self._search(query, tile, window, latest=keys[order[0]])
            found = {}
            for number in order:
                found[number] = search.find(keys[number])
                if number in shared:
                    search.bound_by(found[number])
            queries = self._positions[tile.queries]
            for index, group in enumerate(groups):
                best, place = _best([found[number] for number in group], tokens, topk=self._topk)
                similarity[index, queries, : best.shape[1]] = best
                position[index, queries, : best.shape[1]] = place
        return [Candidates(*one) for one in zip(similarity, position, strict=True)]

    def _match_near(
        self,
        query: FeatureMap,
        keys: Sequence[FeatureMap],
        groups: Sequence[Sequence[int]],
        window: Window,
    ) -> list[Candidates]:
        """`_match` for small windows: everything within them is ranked."""
        assert self._layout is not None
        height, width = self._layout.height, self._layout.width
        device, tokens = query.exact.device, len(query.exact)
        down, right = (one.to(device) for one in window.offsets())
        similarity = query.exact.new_full((len(groups), tokens, self._topk), -torch.inf)
        position = torch.zeros_like(similarity, dtype=torch.int64)
        column_of = torch.empty(tokens, dtype=torch.int64, device=device)  # of each key of a tile
        max_pairs = max(1, self._max_pairs // len(keys))
        everything = list(range(len(keys)))
        for tile in self._layout.tiles(radius=window.radius, max_pairs=max_pairs):
            features, queries = query.exact[tile.queries], self._positions[tile.queries]
            places = torch.cat([self._positions[one] for one in tile.keys])
            count = len(places)
            column_of[places] = torch.arange(count, device=device)
            row, column = (queries // width)[:, None] + down, (queries % width)[:, None] + right
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            near = torch.where(inside, row * width + column, 0)
            # The last column is -inf, for what lies outside of the map.
            chosen = torch.where(inside, column_of[near], count)
            products = features.new_full((len(features), len(keys), count + 1), -torch.inf)
            for number, key in enumerate(keys):
                first = 0
                for one in tile.keys:
                    last = first + one.stop - one.start
                    torch.mm(features, key.exact[one].T, out=products[:, number, first:last])
                    first = last
            found = products.gather(2, chosen[:, None].expand(-1, len(keys), -1))
            for index, group in enumerate(groups):
                ranked = found if list(group) == everything else found[:, list(group)]
                ranked = ranked.flatten(1)
                best, place = ranked.topk(min(self._topk, ranked.shape[1]), dim=1)
                number, offset = place // near.shape[1], place % near.shape[1]
                similarity[index, queries, : best.shape[1]] = best
                position[index, queries, : best.shape[1]] = number * tokens + near.gather(1, offset)
        return [Candidates(*one) for one in zip(similarity, position, strict=True)]

    def _search(
        self, query: FeatureMap, tile: Tile, window: Window, *, latest: FeatureMap
    ) -> _TileSearch:
        assert self._layout is not None
        exact = query.exact[tile.queries]
        guess, screen = exact.new_zeros(len(exact)), None
        if query.screen is not None and self._axes is not None:
            # What the latest map holds at the same places is near the best.
            guess = (exact @ latest.exact[tile.queries].T).amax(dim=1)
            key = Screen(*(part[tile.queries] for part in query.screen))
            screen = query_screen(exact, key, self._axes, guess=guess)
        width = self._layout.width
        return _TileSearch(exact, guess, screen, tile, self._positions, width, window, self._topk)


def _best(
    found: Sequence[_Found], tokens: int, *, topk: int
) -> tuple[Float[Tensor, "queries best"], Int64[Tensor, "queries best"]]:
    """Similarity and position of the best keys of several maps, best first."""
    similarity = torch.cat([one.similarity for one in found], dim=1)
    position = torch.cat([one.position + number * tokens for number, one in enumerate(found)])
    best, place = similarity.topk(min(topk, similarity.shape[1]), dim=1)
    return best, position[place]
