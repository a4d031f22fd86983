"""Exact windowed top-k on CUDA: what `ino.kernels.topk` finds, by one Triton kernel.

Works like streaming attention: a program takes a block of neighboring queries and one key map,
multiplies the block with stretches of the key rows that its windows reach, and keeps the best k of
each query in registers. Rows are taken from the middle of the windows outwards, where the best are
found soon. Only the candidates are written.

Features are split into two fp16 numbers, x = high + low / 2048, which hold 22 bits. The matrix
units multiply these twice as fast as TF32, and the product of the high numbers alone, with a bound
of what it misses, rules out whole stretches; only where a key may enter are high x low and
low x high added, which makes the product exact to fp32 rounding.

Imported only where it is used: `triton` comes with torch for Linux.
"""

# Triton turns numbers into its constants itself.
# pyright: reportArgumentType=false, reportCallIssue=false

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from ino.kernels.topk import Candidates, Window

_LOG = logging.getLogger("ino")

_ROWS, _COLUMNS = 8, 8
"""Of a block of queries."""

_KEYS = 64
_DIMS = 64
"""Keys of a stretch, and dimensions multiplied at a time."""

_WARPS = 4

_LOW = 2048.0
"""By what the low number is larger than its share, so that it is no tiny one."""


class SplitMap(NamedTuple):
    """A frame as the matcher stores it.

    Attributes:
        exact: features.
        high, low: fp16; exact = high + low / 2048, but for 2^-22 of it.
        length: L2 norm of each feature.
        lost: L2 norm of its part that `high` does not hold.
        most: the largest length and the largest loss.
    """

    exact: Float[Tensor, "tokens dim"]
    high: Float[Tensor, "tokens dim"]
    low: Float[Tensor, "tokens dim"]
    length: Float[Tensor, " tokens"]
    lost: Float[Tensor, " tokens"]
    most: Float[Tensor, " 2"]


class TritonMatcher:
    """`TiledMatcher` on CUDA."""

    def __init__(self, *, topk: int, window: Window) -> None:
        """A matcher that has seen no frame, see `TiledMatcher`."""
        assert window.radius != 0 or window.shape != "circle", "a circle of radius 0 is empty"
        self._topk = topk
        self._window = window
        self._height, self._width = 0, 0

    @torch.no_grad()
    def prepare(self, features: Float[Tensor, "height width dim"]) -> SplitMap:
        """What the matcher keeps of a frame: its L2-normalised features, all of one size."""
        self._height, self._width, _ = features.shape
        exact = features.float().flatten(0, 1).contiguous()
        high = exact.half()
        rest = exact - high.float()
        low = (rest * _LOW).half()
        length, lost = exact.norm(dim=1), rest.norm(dim=1)
        return SplitMap(exact, high, low, length, lost, torch.stack([length.max(), lost.max()]))

    def restore(self, exact: Float[Tensor, "tokens dim"], height: int, width: int) -> SplitMap:
        """What `prepare` gave for a frame of that size, from its `exact` part."""
        return self.prepare(exact.unflatten(0, (height, width)))

    @torch.no_grad()
    def match(
        self,
        query: SplitMap,
        keys: Sequence[SplitMap],
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
        self, query: SplitMap, keys: Sequence[SplitMap], window: Window
    ) -> tuple[Float[Tensor, "maps tokens best"], Int32[Tensor, "maps tokens best"]]:
        """Similarity and row-major position of the best of each map, in any order."""
        high, low = torch.stack([key.high for key in keys]), torch.stack([key.low for key in keys])
        num_maps, tokens, dim = high.shape
        similarity = high.new_empty(num_maps, tokens, self._topk, dtype=torch.float32)
        position = torch.empty_like(similarity, dtype=torch.int32)
        reach = max(self._height, self._width) if window.radius is None else window.radius
        blocks = triton.cdiv(self._height, _ROWS) * triton.cdiv(self._width, _COLUMNS)
        _match_kernel[blocks, num_maps](
            query.high,
            query.low,
            high,
            low,
            self._missed(query, keys),
            similarity,
            position,
            self._height,
            self._width,
            reach,
            reach**2 - (window.shape == "circle"),
            dim=dim,
            is_square=window.shape == "square",
            topk=self._topk,
            num_slots=triton.next_power_of_2(self._topk),
            num_rows=_ROWS,
            num_columns=_COLUMNS,
            num_keys=_KEYS,
            num_dims=_DIMS,
            num_warps=_WARPS,
        )
        return similarity, position

    def _missed(self, query: SplitMap, keys: Sequence[SplitMap]) -> Float[Tensor, "maps tokens"]:
        """At least what products of high numbers miss of those of a query with any key of a map."""
        longest, most_lost = torch.stack([key.most for key in keys], dim=1)[:, :, None].unbind()
        # q k - q' k' = (q - q') k + q' (k - k'), and sums in fp32.
        sums = query.high.shape[1] * 2.0**-22 * query.length * longest
        return query.lost * longest + (query.length + query.lost) * most_lost + sums

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
    query_high,
    query_low,
    keys_high,
    keys_low,
    missed,
    similarity,
    position,
    height,
    width,
    reach,
    farthest,
    dim: tl.constexpr,
    is_square: tl.constexpr,
    topk: tl.constexpr,
    num_slots: tl.constexpr,
    num_rows: tl.constexpr,
    num_columns: tl.constexpr,
    num_keys: tl.constexpr,
    num_dims: tl.constexpr,
):
    """Best keys of one map for a block of num_rows x num_columns queries."""
    num_queries: tl.constexpr = num_rows * num_columns
    across = tl.cdiv(width, num_columns)
    row = tl.program_id(0) // across * num_rows
    column = tl.program_id(0) % across * num_columns
    number = tl.program_id(1).to(tl.int64)
    offsets = tl.arange(0, num_queries)
    query_row = row + offsets // num_columns
    query_column = column + offsets % num_columns
    is_query = (query_row < height) & (query_column < width)
    place = query_row * width + query_column
    missing = tl.load(missed + number * height * width + place, mask=is_query, other=0.0)
    slots = tl.arange(0, num_slots)
    # Slots beyond k are never the worst, so nothing enters there.
    best = tl.zeros((num_queries, num_slots), tl.float32)
    best += tl.where(slots < topk, -float("inf"), float("inf"))[None, :]
    best_place = tl.zeros((num_queries, num_slots), tl.int32)
    first_column = tl.maximum(column - reach, 0)
    end_column = tl.minimum(column + num_columns + reach, width)
    first_row = tl.maximum(row - reach, 0)
    end_row = tl.minimum(row + num_rows + reach, height)
    middle = tl.minimum(row + num_rows // 2, height - 1)
    # Rows middle, middle - 1, middle + 1, middle - 2 and so on, those of the map among them.
    for turn in range(0, 2 * tl.maximum(middle - first_row, end_row - 1 - middle) + 1):
        key_row = middle + (turn + 1) // 2 * (1 - 2 * (turn % 2))
        is_row = (key_row >= first_row) & (key_row < end_row)
        row_distance = tl.abs(query_row - key_row)
        for start in range(first_column, tl.where(is_row, end_column, first_column), num_keys):
            key_column = start + tl.arange(0, num_keys)
            is_key = key_column < end_column
            key_place = (number * height + key_row) * width + key_column
            product = tl.zeros((num_queries, num_keys), tl.float32)
            for first in range(0, dim, num_dims):
                dims = first + tl.arange(0, num_dims)
                is_left = is_query[:, None] & (dims < dim)[None, :]
                is_right = is_key[None, :] & (dims < dim)[:, None]
                left = place[:, None] * dim + dims[None, :]
                right = key_place[None, :] * dim + dims[:, None]
                product = tl.dot(
                    tl.load(query_high + left, mask=is_left, other=0.0),
                    tl.load(keys_high + right, mask=is_right, other=0.0),
                    product,
                )
            distance = tl.abs(query_column[:, None] - key_column[None, :])
            if is_square:
                within = tl.maximum(distance, row_distance[:, None]) <= reach
            else:
                within = distance * distance + (row_distance * row_distance)[:, None] <= farthest
            within = within & is_key[None, :] & is_query[:, None]
            # Written so that what is no number may enter.
            is_out = (product + missing[:, None]) <= tl.min(best, 1)[:, None]
            may_enter = tl.max((within & (is_out == 0)).to(tl.int32), 1)
            if tl.max(may_enter, 0) > 0:
                rest = tl.zeros((num_queries, num_keys), tl.float32)
                for first in range(0, dim, num_dims):
                    dims = first + tl.arange(0, num_dims)
                    is_left = is_query[:, None] & (dims < dim)[None, :]
                    is_right = is_key[None, :] & (dims < dim)[:, None]
                    left = place[:, None] * dim + dims[None, :]
                    right = key_place[None, :] * dim + dims[:, None]
                    rest = tl.dot(
                        tl.load(query_high + left, mask=is_left, other=0.0),
                        tl.load(keys_low + right, mask=is_right, other=0.0),
                        rest,
                    )
                    rest = tl.dot(
                        tl.load(query_low + left, mask=is_left, other=0.0),
                        tl.load(keys_high + right, mask=is_right, other=0.0),
                        rest,
                    )
                product = tl.where(within, product + rest * (1.0 / 2048.0), -float("inf"))
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
