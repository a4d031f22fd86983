"""Queries in tiles, and the keys that their square windows reach in a padded map.

For softmaxes over whole windows. The search for the best k has tiles of its own, in `layout`.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor


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
