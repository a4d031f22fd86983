"""The keys that may be among the best of the queries of one tile, in one map after the other.

Most keys are ruled out by a lower bound of the k-th best similarity: that of the context frames
before. What is left, keys that at least one query may have among its best, is ranked in fp32. With
screening, similarities are first computed in bf16 and the bound is lowered by all that rounding can
have done (see `screening`): the result is that of fp32, and only the time differs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ino.propagate.affinity import FeatureMap
from ino.propagate.layout import Tile, Window, outside_window
from ino.propagate.screening import Screen, least_product, least_similarity

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
