"""Exact windowed top-k on CUDA: what `ino.kernels.topk` finds, by one Triton kernel.

Works like streaming attention: a program takes a block of neighboring queries and one key map,
multiplies the block with stretches of the key rows that its windows reach, and keeps the best k of
each query in registers. A stretch in which no key beats the k-th best of its query is skipped after
its product. Only the candidates are written.

Imported only where it is used: `triton` comes with torch for Linux.
"""

# Triton turns numbers into its constants itself.
# pyright: reportArgumentType=false

import logging
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from ino.kernels.topk import Candidates, FeatureMap, Window

_LOG = logging.getLogger("ino")

_ROWS, _COLUMNS = 8, 8
"""Of a block of queries."""

_KEYS = 64
_DIMS = 64
"""Keys of a stretch, and dimensions multiplied at a time."""


class TritonMatcher:
    """`TiledMatcher` on CUDA; products in three TF32 parts, exact to fp32 rounding."""

    def __init__(self, *, topk: int, window: Window) -> None:
        """A matcher that has seen no frame, see `TiledMatcher`."""
        assert window.radius != 0 or window.shape != "circle", "a circle of radius 0 is empty"
        self._topk = topk
        self._window = window
        self._height, self._width = 0, 0

    @torch.no_grad()
    def prepare(self, features: Float[Tensor, "height width dim"]) -> FeatureMap:
        """What the matcher keeps of a frame: its L2-normalised features, all of one size."""
        self._height, self._width, _ = features.shape
        return FeatureMap(features.float().flatten(0, 1).contiguous(), None)

    def restore(self, exact: Float[Tensor, "tokens dim"], height: int, width: int) -> FeatureMap:
        """What `prepare` gave for a frame of that size, from its `exact` part."""
        return self.prepare(exact.unflatten(0, (height, width)))

    @torch.no_grad()
    def match(
        self,
        query: FeatureMap,
        keys: Sequence[FeatureMap],
        groups: Sequence[Sequence[int]],
        *,
        windowed: bool = True,
    ) -> list[Candidates]:
        """The best positions of each group, see `TiledMatcher.match`."""
        window = self._window if windowed else Window(None)
        try:
            similarity, position = self._search(query, keys, window)
        except torch.OutOfMemoryError:
            _LOG.warning("short of GPU memory: searching one context frame at a time from here")
            parts = [self._search(query, [key], window) for key in keys]
            similarity, position = (torch.cat(part) for part in zip(*parts, strict=True))
        return [self._best_of(similarity, position, group) for group in groups]

    def _search(
        self, query: FeatureMap, keys: Sequence[FeatureMap], window: Window
    ) -> tuple[Float[Tensor, "maps tokens best"], Int32[Tensor, "maps tokens best"]]:
        """Similarity and row-major position of the best of each map, in any order."""
        maps = torch.stack([key.exact for key in keys])
        num_maps, tokens, dim = maps.shape
        similarity = maps.new_empty(num_maps, tokens, self._topk, dtype=torch.float32)
        position = torch.empty_like(similarity, dtype=torch.int32)
        reach = max(self._height, self._width) if window.radius is None else window.radius
        blocks = triton.cdiv(self._height, _ROWS) * triton.cdiv(self._width, _COLUMNS)
        _match_kernel[blocks, num_maps](
            query.exact,
            maps,
            similarity,
            position,
            self._height,
            self._width,
            dim,
            reach,
            reach**2 - (window.shape == "circle"),
            is_square=window.shape == "square",
            topk=self._topk,
            num_slots=triton.next_power_of_2(self._topk),
            num_rows=_ROWS,
            num_columns=_COLUMNS,
            num_keys=_KEYS,
            num_dims=_DIMS,
        )
        return similarity, position

    def _best_of(
        self,
        similarity: Float[Tensor, "maps tokens best"],
        position: Int32[Tensor, "maps tokens best"],
        group: Sequence[int],
    ) -> Candidates:
        """The best of the candidates of a group of maps, best first."""
        tokens = similarity.shape[1]
        chosen = torch.stack([similarity[number] for number in group], dim=1).flatten(1)
        positions = torch.stack([position[number] for number in group], dim=1).flatten(1)
        best, index = chosen.topk(self._topk, dim=1)
        place = index // self._topk  # of the map in the group
        return Candidates(best, positions.gather(1, index) + place * tokens)


@triton.jit
def _match_kernel(
    query,
    keys,
    similarity,
    position,
    height,
    width,
    dim,
    reach,
    farthest,
    is_square: tl.constexpr,
    topk: tl.constexpr,
    num_slots: tl.constexpr,
    num_rows: tl.constexpr,
    num_columns: tl.constexpr,
    num_keys: tl.constexpr,
    num_dims: tl.constexpr,
):
    """Best keys of one map for a block of num_rows x num_columns queries."""
    across = tl.cdiv(width, num_columns)
    row = tl.program_id(0) // across * num_rows
    column = tl.program_id(0) % across * num_columns
    number = tl.program_id(1).to(tl.int64)
    offsets = tl.arange(0, num_rows * num_columns)
    query_row = row + offsets // num_columns
    query_column = column + offsets % num_columns
    is_query = (query_row < height) & (query_column < width)
    place = query_row * width + query_column
    slots = tl.arange(0, num_slots)
    # Slots beyond k are never the worst, so nothing enters there.
    best = tl.zeros((num_rows * num_columns, num_slots), tl.float32)
    best += tl.where(slots < topk, -float("inf"), float("inf"))[None, :]
    best_place = tl.zeros((num_rows * num_columns, num_slots), tl.int32)
    first_column = tl.maximum(column - reach, 0)
    end_column = tl.minimum(column + num_columns + reach, width)
    for key_row in range(tl.maximum(row - reach, 0), tl.minimum(row + num_rows + reach, height)):
        row_distance = tl.abs(query_row - key_row)
        for start in range(first_column, end_column, num_keys):
            key_column = start + tl.arange(0, num_keys)
            is_key = key_column < end_column
            key_place = (number * height + key_row) * width + key_column
            product = tl.zeros((num_rows * num_columns, num_keys), tl.float32)
            for first in range(0, dim, num_dims):
                dims = first + tl.arange(0, num_dims)
                is_dim = dims < dim
                left = tl.load(
                    query + place[:, None] * dim + dims[None, :],
                    mask=is_query[:, None] & is_dim[None, :],
                    other=0.0,
                )
                right = tl.load(
                    keys + key_place[None, :] * dim + dims[:, None],
                    mask=is_key[None, :] & is_dim[:, None],
                    other=0.0,
                )
                product = tl.dot(left, right, product, input_precision="tf32x3")
            distance = tl.abs(query_column[:, None] - key_column[None, :])
            if is_square:
                within = tl.maximum(distance, row_distance[:, None]) <= reach
            else:
                within = distance * distance + (row_distance * row_distance)[:, None] <= farthest
            product = tl.where(within & is_key[None, :], product, -float("inf"))
            entering = tl.max(product, 1) > tl.min(best, 1)
            while tl.max(entering.to(tl.int32), 0) > 0:
                # The best key that is left takes the slot of the worst, query by query.
                which = tl.argmax(product, 1)
                worst = tl.argmin(best, 1)
                taken = entering[:, None] & (slots[None, :] == worst[:, None])
                best = tl.where(taken, tl.max(product, 1)[:, None], best)
                entered = key_row * width + start + which
                best_place = tl.where(taken, entered[:, None], best_place)
                removed = tl.arange(0, num_keys)[None, :] == which[:, None]
                product = tl.where(removed, -float("inf"), product)
                entering = tl.max(product, 1) > tl.min(best, 1)
    target = (number * height * width + place)[:, None] * topk + slots[None, :]
    is_stored = is_query[:, None] & (slots < topk)[None, :]
    tl.store(similarity + target, best, mask=is_stored)
    tl.store(position + target, best_place, mask=is_stored)
