"""Windows moved to where the query probably is in a frame of long ago, as MAST does. Pure.

A coarse search over a dilated window gives an expected offset for each query; the fine window lies
around that place, between features, so similarities and labels are interpolated there bilinearly.
Similarities are linear in the key, so dot products are interpolated in place of features. Feature
maps are channels last.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from ino.propagate.square_tiles import square_tiles

_TILE = 16
"""Queries along a side of a tile of the coarse search."""


class Moved(NamedTuple):
    """Where the windows of queries lie in a context frame; beyond the frame all is 0.

    Attributes:
        offsets: (dy, dx) of each query's window, for similarities.
        label_offsets: the same, for labels.
        radius: of the windows, feature positions.
        aligned: whether positions are positions. If not, position x of n is read at
            x n / (n - 1) - 1/2, which is what MAST's code gives in a torch after version 1.2.
    """

    offsets: Float[Tensor, "height width 2"]
    label_offsets: Float[Tensor, "height width 2"]
    radius: int
    aligned: bool

    def similarities(
        self,
        queries: Float[Tensor, "queries dim"],
        features: Float[Tensor, "height width dim"],
        rows: slice,
        columns: slice,
    ) -> Float[Tensor, "queries places"]:
        """Dot products with the places of the windows of the queries in `rows` and `columns`."""
        places = self._places(self.offsets, rows, columns)
        similarity = queries @ places.box_of(features).T
        result = similarity.new_zeros(len(queries), (2 * self.radius + 1) ** 2)
        for index, share in places.corners():
            result += share * similarity.gather(1, index)
        return result

    def sum_labels(
        self,
        weights: Float[Tensor, "queries places"],
        labels: Float[Tensor, "height width channel"],
        rows: slice,
        columns: slice,
    ) -> Float[Tensor, "queries channel"]:
        """The labels of the windows' places, weighted and summed."""
        places = self._places(self.label_offsets, rows, columns)
        box = places.box_of(labels)
        whole = weights.new_zeros(len(weights), len(box))
        for index, share in places.corners():
            whole.scatter_add_(1, index, share * weights)
        return whole @ box

    def _places(self, offsets: Tensor, rows: slice, columns: slice) -> "_Places":
        lengths = offsets.shape[:2]
        here = offsets[rows, columns]
        spans = []
        for axis, queries in enumerate((rows, columns)):
            start = torch.arange(queries.start, queries.stop).to(offsets)
            start = start.view(-1, 1) if axis == 0 else start.view(1, -1)
            step = torch.arange(-self.radius, self.radius + 1).to(offsets)
            place = (start + here[..., axis]).flatten()[:, None] + step
            if not self.aligned and lengths[axis] > 1:
                place = place * (lengths[axis] / (lengths[axis] - 1)) - 0.5
            spans.append(_Span.around(place, lengths[axis]))
        return _Places(*spans)


class _Span(NamedTuple):
    """Places along one axis between positions, and the positions that they reach.

    Attributes:
        position: of the feature before and after each place, counted from `start`.
        share: of that position, 0 where it lies outside the frame.
        start: of the positions reached.
        stop: of the positions reached; beyond `start`.
    """

    position: Int64[Tensor, "2 queries side"]
    share: Float[Tensor, "2 queries side"]
    start: int
    stop: int

    @classmethod
    def around(cls, place: Float[Tensor, "queries side"], length: int) -> "_Span":
        before = place.floor()
        position = torch.stack([before, before + 1]).long()
        share = torch.stack([before + 1 - place, place - before])
        share = share * ((position >= 0) & (position < length))
        position = position.clamp(0, length - 1)
        start, stop = int(position.min()), int(position.max()) + 1
        return cls(position - start, share, start, stop)


class _Places(NamedTuple):
    """The places of square windows."""

    rows: _Span
    columns: _Span

    def box_of(self, values: Shaped[Tensor, "height width n"]) -> Shaped[Tensor, "positions n"]:
        """What stands at the positions that the places reach."""
        box = slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)
        return values[box].flatten(0, 1)

    def corners(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of four neighbours: its number in the box and its share, queries x places."""
        width = self.columns.stop - self.columns.start
        for row, column in itertools.product(range(2), range(2)):
            index = (
                self.rows.position[row][:, :, None] * width + self.columns.position[column][:, None]
            )
            share = self.rows.share[row][:, :, None] * self.columns.share[column][:, None]
            yield index.flatten(1), share.flatten(1)


@torch.no_grad()
def expected_offsets(
    query: Float[Tensor, "height width dim"],
    key: Float[Tensor, "height width dim"],
    *,
    radius: int,
    dilation: int,
) -> Float[Tensor, "height width 2"]:
    """Expected (dy, dx) under a softmax over the dilated window, feature positions.

    The window has 2 radius + 1 places along each axis, `dilation` positions apart. Places outside
    the frame count with similarity 0, as the released code of MAST has it.

    Args:
        query: features of the frame to label.
        key: features of a context frame.
        radius: of the window, in steps.
        dilation: positions a step.
    """
    offsets = query.new_empty(*query.shape[:2], 2)
    # Positions that are `dilation` apart see each other only, so each class of them is a problem
    # of its own with a window that is not dilated.
    for row in range(min(dilation, query.shape[0])):
        for column in range(min(dilation, query.shape[1])):
            rest = slice(row, None, dilation), slice(column, None, dilation)
            offsets[rest] = dilation * _offsets_of_class(query[rest], key[rest], radius=radius)
    return offsets


def _offsets_of_class(
    query: Float[Tensor, "height width dim"],
    key: Float[Tensor, "height width dim"],
    *,
    radius: int,
) -> Float[Tensor, "height width 2"]:
    result = query.new_empty(*query.shape[:2], 2)
    padded = F.pad(key, [0, 0, radius, radius, radius, radius])
    for tile in square_tiles(*query.shape[:2], radius=radius, side=_TILE):
        similarity = tile.keys(padded) @ query[tile.rows, tile.columns].flatten(0, 1).T
        weights = similarity.masked_fill_(~tile.within(query.device), -math.inf).softmax(dim=0)
        # One axis after the other: a sum of all places at once would lose the weak ones in float32.
        weights = weights.view(*(length + 2 * radius for length in tile.shape), *tile.shape)
        for axis, length in enumerate(tile.shape):
            along = weights.sum(dim=1 - axis)  # (places, rows, columns)
            place = torch.arange(-radius, length + radius, device=query.device)[:, None]
            offset = (place - torch.arange(length, device=query.device)).to(query)
            offset = offset.unsqueeze(2 - axis)
            result[tile.rows, tile.columns, axis] = (along * offset).sum(dim=0)
    return result
