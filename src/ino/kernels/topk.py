"""How the positions of a feature map lie in memory, and how queries are cut into tiles.

A map is cut into panels, strips of whole columns, and each panel is stored row by row. So the
queries of a tile (some rows of one panel) and the keys that its windows reach (some rows of a few
panels) are stretches of memory, and similarities need no copies. A place is a number in this order;
a position is a number in row-major order.
"""

import functools
import itertools
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# What tiles cost beside their pairs of query and key, in pairs, measured on a CPU at 384
# dimensions: a multiplication, reading a key, a tile, and keys near a query, which are looked at
# twice.
_PAIRS_PER_CALL = 10_000
_PAIRS_PER_KEY = 60
_PAIRS_PER_TILE = 40_000
_NEIGHBOURHOOD = 10

_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512)


WindowShape = Literal["square", "circle", "closed-circle"]
"""Offsets (dy, dx) in a window of radius r: max(|dy|, |dx|) <= r; the distance < r; it <= r."""


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


# Similarities in bf16 that rule keys out safely: what rounding can have done is bounded tightly.
#
# A bf16 product of features is quick but loses digits, in the features and in the result. Three
# things keep the loss small, none of which changes a similarity:
#
# - Features are centred, q.k = (q - m).(k - m) + m.(k - m) + m.q, and turned to the principal axes
#   of the first frame. Along the first axes, which hold most of what is left, each number is split
#   into two bf16 numbers that hold it to 2^-16. The others lose at most |q - q'| |k| + |q'| |k -
#   k'| (Cauchy-Schwarz), where all lengths are those of the small rest.
# - m.(k - m) and what belongs to the query alone are further dimensions of the product.
# - A guess of the query's best similarity is subtracted. The result is rounded by a share of its
#   size, so it loses least where it decides.


NUM_SPLIT = 16
"""Axes along which features are held by two numbers."""

_UNIT = 2.0**-8
"""Largest relative error of rounding to bf16."""

_MULTIPLE = 8
"""Rows of a multiple of 16 bytes are multiplied faster."""


class Axes(NamedTuple):
    """The mean of a frame's features and their principal axes, the largest first, as columns."""

    center: Float[Tensor, " dim"]
    rotation: Float[Tensor, "dim dim"]


class Screen(NamedTuple):
    """Rounded features in the dimensions of the product.

    Attributes:
        values: bf16.
        length: of each row of `values` and the feature itself, one behind the other.
        rest: length of what `values` holds of the axes that are not split.
        lost: length of what rounding took there.
    """

    values: Float[Tensor, "tokens padded"]
    length: Float[Tensor, " tokens"]
    rest: Float[Tensor, " tokens"]
    lost: Float[Tensor, " tokens"]


class Candidates(NamedTuple):
    """The best positions of a group of context frames for each query position, best first.

    Attributes:
        similarity: cosine similarities; -inf where the windows hold fewer positions.
        position: row-major positions in the maps of the group, counted on from map to map; any
            valid one where similarity is -inf.
    """

    similarity: Float[Tensor, "tokens best"]
    position: Int64[Tensor, "tokens best"]


class FeatureMap(NamedTuple):
    """What is kept of a frame, in the order of a layout; `screen` only where it is used."""

    exact: Float[Tensor, "tokens dim"]
    screen: Screen | None


def principal_axes(features: Float[Tensor, "tokens dim"]) -> Axes:
    """Those of the features of a frame; any others would be right but bound less tightly."""
    center = features.mean(dim=0)
    centered = features - center
    rotation = torch.linalg.eigh((centered.T @ centered).double()).eigenvectors
    return Axes(center, rotation.flip(1).to(features.dtype))


def key_screen(exact: Float[Tensor, "tokens dim"], axes: Axes) -> Screen:
    """Features as keys, to be multiplied with a `query_screen` of the same axes.

    The dimensions of a product q k are, of the axes, q k, of those that are split q' k and q k',
    where ' marks what the first number leaves, and then two times two for what is their own.
    """
    centered = exact - axes.center
    rotated = centered @ axes.rotation
    first = rotated.bfloat16()
    split = first[:, :NUM_SPLIT]
    second = (rotated[:, :NUM_SPLIT] - split.float()).bfloat16()
    own = torch.cat([first.new_ones(len(exact), 2), _two_numbers(centered @ axes.center)], dim=1)
    values = _padded([first, split, second, own])
    rest = first[:, NUM_SPLIT:].float()
    return Screen(
        values,
        length=_length(values, exact),
        rest=rest.norm(dim=1),
        lost=(rotated[:, NUM_SPLIT:] - rest).norm(dim=1),
    )


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
    num_split = min(NUM_SPLIT, dim)
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
    """What a similarity, minus the guess, is at least if its product is this."""
    return product - _UNIT * product.abs() - _largest_error(query, key)


def least_product(
    similarity: Float[Tensor, " queries"], query: Screen, key: Screen
) -> Float[Tensor, " queries"]:
    """What a product is at least if the similarity, minus the guess, is this."""
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


# The keys that may be among the best of the queries of one tile, in one map after the other.
#
# Most keys are ruled out by a lower bound of the k-th best similarity: that of the context frames
# before. What is left, keys that at least one query may have among its best, is ranked in fp32.
# With screening, similarities are first computed in bf16 and the bound is lowered by all that
# rounding can have done (see `screening`): the result is that of fp32, and only the time differs.


_NUM_SETS = 16
_STRETCH = 8
"""Bounds come from the maxima of interleaved sets of 16 keys, keys are ruled out 8 in a row."""


class Found(NamedTuple):
    """Keys of one map that may be among the best of a query of a tile, at these positions."""

    similarity: Float[Tensor, "queries keys"]
    position: Int64[Tensor, " keys"]


class TileSearch:
    """What the queries of one tile may want of one map after the other."""

    def __init__(
        self,
        exact: Float[Tensor, "queries dim"],
        guess: Float[Tensor, " queries"],
        screen: Screen | None,
        tile: Tile,
        positions: Int64[Tensor, " tokens"],
        width: int,
        window: Window,
    ) -> None:
        self._keys = tile.keys
        self._exact, self._guess, self._screen = exact, guess, screen
        first_look = exact if screen is None else screen.values
        self._places = torch.cat(
            [torch.arange(keys.start, keys.stop, device=positions.device) for keys in tile.keys]
        )
        self._positions = positions[self._places]
        self._window = outside_window(
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

    def find(self, key: FeatureMap, *, topk: int) -> Found:
        """The keys of a map."""
        self._multiply(key)
        kept = self._above(self._threshold(key, topk=topk))
        if key.screen is None:
            return Found(self._similarity[kept].T, self._positions[kept])
        similarity = self._exact @ key.exact[self._places[kept]].T
        if self._window is not None:
            similarity += self._window[kept].T
        return Found(similarity, self._positions[kept])

    def bound_by(self, found: Found, *, topk: int) -> None:
        """Lets the best keys that were found bound those of all maps to come."""
        known = torch.cat([self._best, found.similarity], dim=1)
        self._best = known.topk(min(topk, known.shape[1]), dim=1).values

    def _multiply(self, key: FeatureMap) -> None:
        values = key.exact if key.screen is None else key.screen.values
        first = 0
        for keys in self._keys:
            count = keys.stop - keys.start
            torch.mm(values[keys], self._queries, out=self._similarity[first : first + count])
            first += count
        if self._window is not None:
            self._similarity[:first] += self._window

    def _threshold(self, key: FeatureMap, *, topk: int) -> Float[Tensor, " queries"]:
        """What the first look must be, at least, for a key to be among the best."""
        if self._best.shape[1] == topk:
            kth = self._best[:, -1] - self._guess
        else:
            # The k-th largest of the maxima of disjoint sets of keys is not above the k-th best.
            maxima = self._similarity.unflatten(0, (_NUM_SETS, -1)).amax(dim=0).T
            if maxima.shape[1] < topk:
                return self._guess.new_full(self._guess.shape, -torch.inf)
            kth = maxima.to(self._guess.dtype).topk(topk, dim=1).values[:, -1]
            if key.screen is not None and self._screen is not None:
                kth = least_similarity(kth, self._screen, key.screen)
        if key.screen is None or self._screen is None:
            return kth
        return least_product(kth, self._screen, key.screen)

    def _above(self, threshold: Float[Tensor, " queries"]) -> Int64[Tensor, " keys"]:
        """The keys that reach the threshold of a query; whole stretches are ruled out first."""
        # -inf would make keys outside of the windows reach it.
        threshold = threshold.clamp(min=torch.finfo(threshold.dtype).min)
        stretches = _reaching(_maxima_of_stretches(self._similarity), threshold)
        within = torch.arange(_STRETCH, device=stretches.device)
        kept = (stretches[:, None] * _STRETCH + within).flatten()
        return kept[_reaching(self._similarity[kept], threshold)]


def _reaching(
    similarity: Float[Tensor, "keys queries"], threshold: Float[Tensor, " queries"]
) -> Int64[Tensor, " kept"]:
    """The rows that reach the threshold in a column."""
    above = (similarity.to(threshold.dtype) - threshold).amax(dim=1) >= 0
    return above.nonzero()[:, 0]


def _maxima_of_stretches(
    similarity: Float[Tensor, "keys queries"],
) -> Float[Tensor, "stretches queries"]:
    """By halves, which reads memory in longer pieces than a maximum over few rows would."""
    maxima = similarity.unflatten(0, (-1, _STRETCH))
    while maxima.shape[1] > 1:
        half = maxima.shape[1] // 2
        maxima = torch.maximum(maxima[:, :half], maxima[:, half:])
    return maxima[:, 0]


# Exact top-k affinities between feature maps, with plain tensors on any device.
#
# Queries are taken in tiles, and a tile meets one context frame after the other and only the keys
# that its windows reach: no affinity between all positions of two frames is ever stored.
# Similarities to a context frame are computed once, however many groups it belongs to.
#
# What a tile looks for in one frame after the other is the business of `tile_search`.


_LOG = logging.getLogger("ino")

DEFAULT_MAX_BYTES = 64 << 20
"""Bytes for what one tile stores in between."""

_BYTES_PER_PAIR = 16


class TiledMatcher:
    """Finds best positions, on any device, for the frames of one video."""

    def __init__(
        self,
        *,
        topk: int,
        window: Window,
        screening: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """A matcher that has seen nothing.

        Args:
            topk: positions kept for each query and group.
            window: where a query looks; a circle of radius 0 would be empty.
            screening: look at similarities in bf16 first; the result is that of fp32, sooner where
                the device multiplies bf16 faster.
            max_bytes: bound on the temporary storage of a tile, which holds at least one query and
                the keys of one map.
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
        """What the matcher keeps of a frame.

        Args:
            features: L2-normalised, of the size of the frames before.
        """
        if self._layout is None:
            self._layout = choose_layout(
                *features.shape[:2], radius=self._window.radius, max_pairs=self._max_pairs
            )
            self._positions = self._layout.positions().to(features.device)
            if self._screening:
                self._axes = principal_axes(features.flatten(0, 1))
        exact = features.flatten(0, 1)[self._positions]
        return FeatureMap(exact, None if self._axes is None else key_screen(exact, self._axes))

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
            groups: for each group the numbers of its maps in `keys`, at least one.
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
                found[number] = search.find(keys[number], topk=self._topk)
                if number in shared:
                    search.bound_by(found[number], topk=self._topk)
            queries = self._positions[tile.queries]
            for index, group in enumerate(groups):
                best, place = _best([found[number] for number in group], tokens, topk=self._topk)
                similarity[index, queries, : best.shape[1]] = best
                position[index, queries, : best.shape[1]] = place
        return [Candidates(*one) for one in zip(similarity, position, strict=True)]

    def _search(
        self, query: FeatureMap, tile: Tile, window: Window, *, latest: FeatureMap
    ) -> TileSearch:
        assert self._layout is not None
        exact = query.exact[tile.queries]
        guess, screen = exact.new_zeros(len(exact)), None
        if query.screen is not None and self._axes is not None:
            # What the latest map holds at the same places is near the best.
            guess = (exact @ latest.exact[tile.queries].T).amax(dim=1)
            key = Screen(*(part[tile.queries] for part in query.screen))
            screen = query_screen(exact, key, self._axes, guess=guess)
        return TileSearch(exact, guess, screen, tile, self._positions, self._layout.width, window)


def _best(
    found: Sequence[Found], tokens: int, *, topk: int
) -> tuple[Float[Tensor, "queries best"], Int64[Tensor, "queries best"]]:
    """Similarity and position of the best keys of several maps, best first."""
    similarity = torch.cat([one.similarity for one in found], dim=1)
    position = torch.cat([one.position + number * tokens for number, one in enumerate(found)])
    best, place = similarity.topk(min(topk, similarity.shape[1]), dim=1)
    return best, position[place]
