"""Feature maps as color images: equal colors are similar features."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

PERCENTILES = (2.0, 98.0)
"""Of each component: what becomes 0 and 255."""


def feature_colors(
    maps: Sequence[Float[np.ndarray, "_ _ dim"]],
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """One RGB image per feature map: the first three principal components of all maps together.

    The projection is shared, so colors can be compared within a map and across maps. The sign of a
    component makes its largest coefficient positive.

    Args:
        maps: of one backbone, at least 3 dimensions; sizes may differ.
    """
    tokens = np.concatenate([one.reshape(-1, one.shape[-1]) for one in maps]).astype(np.float64)
    axes = np.linalg.eigh(np.cov(tokens, rowvar=False)).eigenvectors[:, :-4:-1]  # (dim, 3)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    projected = (tokens - tokens.mean(axis=0)) @ np.where(largest < 0, -axes, axes)
    low, high = np.percentile(projected, PERCENTILES, axis=0)
    scaled = (projected - low) / np.where(high > low, high - low, 1)
    colors = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
    ends = np.cumsum([one.shape[0] * one.shape[1] for one in maps])[:-1]
    return [
        part.reshape(*one.shape[:2], 3)
        for part, one in zip(np.split(colors, ends), maps, strict=True)
    ]
