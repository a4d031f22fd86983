"""Exact top-k affinities between feature maps, with plain tensors on any device.

Queries are taken in tiles, and a tile meets one context frame after the other and only the keys
that its windows reach: no affinity between all positions of two frames is ever stored. Similarities
to a context frame are computed once, however many groups it belongs to.

What a tile looks for in one frame after the other is the business of `tile_search`.
"""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ino.propagate.affinity import Candidates, FeatureMap
from ino.propagate.layout import Layout, Tile, Window, choose_layout
from ino.propagate.screening import Axes, Screen, key_screen, principal_axes, query_screen
from ino.propagate.tile_search import Found, TileSearch

log = logging.getLogger(__name__)

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
