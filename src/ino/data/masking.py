"""Samples the masked patch positions of the global crops (section 3.3).

The paper masks blockwise, after BEiT and iBOT; the released code samples positions one by one. Both
mask exactly K positions in every clip of a step, so that all gathers have one size. The frames of
a clip share its mask (Eq. 3's m has no frame index).
"""

import math

import numpy as np
from jaxtyping import Bool

# Rectangles are between this and its inverse times as high as wide, as in BEiT.
_MIN_ASPECT = 0.3
_NUM_ATTEMPTS = 10


def sample_num_masked(
    rng: np.random.Generator, *, num_tokens: int, probability: float, ratio: tuple[float, float]
) -> int:
    """The number K of masked positions of each global crop in a step (sections 3.3 and 4.1).

    With `probability`, K = max(1, floor(P r)), where P is `num_tokens` and r is uniform in `ratio`;
    otherwise K = 0.
    """
    masked = rng.random() < probability
    share = rng.uniform(*ratio)
    return max(1, int(num_tokens * share)) if masked else 0


def sample_random_mask(
    rng: np.random.Generator, *, rows: int, columns: int, num_masked: int
) -> Bool[np.ndarray, "rows columns"]:
    """A mask with exactly `num_masked` positions, each equally likely."""
    mask = np.zeros(rows * columns, dtype=bool)
    mask[rng.permutation(rows * columns)[:num_masked]] = True
    return mask.reshape(rows, columns)


def sample_blockwise_mask(
    rng: np.random.Generator, *, rows: int, columns: int, num_masked: int
) -> Bool[np.ndarray, "rows columns"]:
    """A mask of rectangles of random area and aspect that covers exactly `num_masked` positions.

    Rectangles are added until `num_masked` positions are covered; of the last one, only as many
    positions are taken, row by row, as are still missing.
    """
    mask = np.zeros((rows, columns), dtype=bool)
    smallest = (min(rows, columns) // 3) ** 2
    while (missing := num_masked - int(mask.sum())) > 0:
        height, width = _sample_rectangle(rng, rows, columns, smallest, missing)
        top = rng.integers(rows - height + 1)
        left = rng.integers(columns - width + 1)
        block = mask[top : top + height, left : left + width]
        fresh = np.argwhere(~block)[:missing]
        block[fresh[:, 0], fresh[:, 1]] = True
    return mask


def _sample_rectangle(
    rng: np.random.Generator, rows: int, columns: int, smallest: int, missing: int
) -> tuple[int, int]:
    """Height and width in positions; the area is near a uniform sample up to what is missing."""
    low, high = min(smallest, missing), max(smallest, missing)
    for _ in range(_NUM_ATTEMPTS):
        area = rng.uniform(low, high)
        aspect = math.exp(rng.uniform(math.log(_MIN_ASPECT), -math.log(_MIN_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height <= rows and 0 < width <= columns:
            return height, width
    side = max(1, math.isqrt(missing))
    return min(side, rows), min(side, columns)
