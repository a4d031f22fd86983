"""Exact top-k affinities between feature maps, with plain tensors on any device.

Queries are taken in tiles, and a tile meets one context frame after the other and only the keys
that its windows reach: no affinity between all positions of two frames is ever stored. Similarities
to a context frame are computed once, however many groups it belongs to.

In a tile most keys are ruled out by a lower bound of the k-th best similarity: that of the context
frames before. What is left, keys that at least one query may have among its best, is ranked in
fp32. With screening, similarities are first computed in bf16 and the bound is lowered by all that
rounding can have done (see `screening`): the result is that of fp32, and only the time differs.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ino.propagate.affinity import Candidates, FeatureMap
from ino.propagate.layout import Layout, Tile, Window, choose_layout, outside_window
from ino.propagate.screening import (
    Axes,
    Screen,
    key_screen,
    least_product,
    least_similarity,
    principal_axes,
    query_screen,
)

log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 64 << 20
"""Bytes for what one tile stores in between."""

_BYTES_PER_PAIR = 16

_NUM_SETS = 16
_STRETCH = 8
"""Bounds come from the maxima of interleaved sets of 16 keys, keys are ruled out 8 in a row."""


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
                log.warning("short of memory: comparing positions in smaller blocks from here on")

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
    ) -> "_TileSearch":
        assert self._layout is not None
        exact = query.exact[tile.queries]
        guess, screen = exact.new_zeros(len(exact)), None
        if query.screen is not None and self._axes is not None:
            # What the latest map holds at the same places is near the best.
            guess = (exact @ latest.exact[tile.queries].T).amax(dim=1)
            key = Screen(*(part[tile.queries] for part in query.screen))
            screen = query_screen(exact, key, self._axes, guess=guess)
        return _TileSearch(exact, guess, screen, tile, self._positions, self._layout.width, window)


class _Found(NamedTuple):
    """Keys of one map that may be among the best of a query of a tile, at these positions."""

    similarity: Float[Tensor, "queries keys"]
    position: Int64[Tensor, " keys"]


class _TileSearch:
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

    def find(self, key: FeatureMap, *, topk: int) -> _Found:
        """The keys of a map."""
        self._multiply(key)
        kept = self._above(self._threshold(key, topk=topk))
        if key.screen is None:
            return _Found(self._similarity[kept].T, self._positions[kept])
        similarity = self._exact @ key.exact[self._places[kept]].T
        if self._window is not None:
            similarity += self._window[kept].T
        return _Found(similarity, self._positions[kept])

    def bound_by(self, found: _Found, *, topk: int) -> None:
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


def _best(
    found: Sequence[_Found], tokens: int, *, topk: int
) -> tuple[Float[Tensor, "queries best"], Int64[Tensor, "queries best"]]:
    """Similarity and position of the best keys of several maps, best first."""
    similarity = torch.cat([one.similarity for one in found], dim=1)
    position = torch.cat([one.position + number * tokens for number, one in enumerate(found)])
    best, place = similarity.topk(min(topk, similarity.shape[1]), dim=1)
    return best, position[place]
