"""Labels carried by a softmax over whole windows, without a top k, as MAST and CorrFlow do. Pure.

All positions of the windows in all context frames share one softmax. Queries are taken in square
tiles, and a tile meets only the keys that its windows reach; windows are never unfolded. A context
frame may be met through a window that was moved by `realign`. Feature maps are channels last.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ino.propagate.protocols import Border
from ino.propagate.realign import Moved
from ino.propagate.square_tiles import SquareTile, square_tiles

DEFAULT_MAX_BYTES = 64 << 20
"""Bytes for the similarities of one tile."""

_LARGEST_TILE = 16
_EXCLUDED = -1e10
"""CorrFlow's similarity of what is left out; where nothing else is there, all count alike."""


class WindowFrame(NamedTuple):
    """A context frame.

    Attributes:
        features: of its positions, as they are: similarities are dot products.
        labels: of its positions.
        moved: where the windows of queries lie in it, if not around the queries.
    """

    features: Float[Tensor, "height width dim"]
    labels: Float[Tensor, "height width channel"]
    moved: Moved | None = None


@torch.no_grad()
def window_labels(
    query: Float[Tensor, "height width dim"],
    frames: Sequence[WindowFrame],
    *,
    radius: int,
    temperature: float,
    border: Border,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Float[Tensor, "height width channel"]:
    """Labels of the query: sum over j of softmax_j(f(i) . f(j) / T) p(j).

    j runs over a square window in every frame. The result does not depend on `max_bytes`, up to
    rounding.

    Args:
        query: features of the frame to label.
        frames: its context, at least one frame.
        radius: of the window, feature positions.
        temperature: T; above 0.
        border: what positions of a window do that lie outside the frame, see `Border`.
        max_bytes: bound on the similarities of a tile, which holds at least one query.
    """
    height, width, _ = query.shape
    result = query.new_empty(height, width, frames[0].labels.shape[-1])
    padded = [_pad(frame, radius=radius, border=border) for frame in frames]
    exists = F.pad(torch.ones_like(query[..., :1], dtype=torch.bool), _around(radius))
    side = _tile_side(radius, num_frames=len(frames), size=query.element_size(), limit=max_bytes)
    for tile in square_tiles(height, width, radius=radius, side=side):
        queries = query[tile.rows, tile.columns].flatten(0, 1)
        counts = tile.within(query.device)
        if border == "left-out":
            counts &= tile.keys(exists)
        logits = [
            _logits(queries, frame, tile, counts=counts, border=border) / temperature
            for frame in padded
        ]
        # Places come first, which decides the order of the sum: the released codes' in float32.
        weights = torch.cat(logits).softmax(dim=0).split([len(one) for one in logits])
        labels = [_weighted(*pair, tile) for pair in zip(weights, padded, strict=True)]
        result[tile.rows, tile.columns] = torch.stack(labels).sum(dim=0).view(*tile.shape, -1)
    return result


def _pad(frame: WindowFrame, *, radius: int, border: Border) -> WindowFrame:
    """The frame with `radius` positions around it, unless its windows are moved."""
    if frame.moved is not None:
        return frame
    features = F.pad(frame.features, _around(radius))
    if border != "repeated":
        return WindowFrame(features, F.pad(frame.labels, _around(radius)))
    labels = F.pad(frame.labels.permute(2, 0, 1)[None], [radius] * 4, mode="replicate")
    return WindowFrame(features, labels[0].permute(1, 2, 0))


def _around(radius: int) -> list[int]:
    return [0, 0, radius, radius, radius, radius]


def _logits(
    queries: Float[Tensor, "queries dim"],
    frame: WindowFrame,
    tile: SquareTile,
    *,
    counts: Bool[Tensor, "keys queries"],
    border: Border,
) -> Float[Tensor, "places queries"]:
    """Similarities; -inf where a key does not count for a query."""
    if frame.moved is not None:
        return frame.moved.similarities(queries, frame.features, tile.rows, tile.columns).T
    similarity = tile.keys(frame.features) @ queries.T
    if border == "repeated":
        similarity.masked_fill_(similarity == 0, _EXCLUDED)
    return similarity.masked_fill_(~counts, -math.inf)


def _weighted(
    weights: Float[Tensor, "places queries"], frame: WindowFrame, tile: SquareTile
) -> Float[Tensor, "queries channel"]:
    if frame.moved is not None:
        return frame.moved.sum_labels(weights.T, frame.labels, tile.rows, tile.columns)
    return weights.T @ tile.keys(frame.labels)


def _tile_side(radius: int, *, num_frames: int, size: int, limit: int) -> int:
    """The side of a tile whose similarities fit `limit` bytes."""
    side = _LARGEST_TILE
    while side > 1 and num_frames * size * (side * (side + 2 * radius)) ** 2 > limit:
        side //= 2
    return side
