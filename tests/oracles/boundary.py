"""J, F and their summaries from the definitions, pixel by pixel: slow, and without arrays."""

import math
from fractions import Fraction

import numpy as np

Pixels = set[tuple[int, int]]


def pixels(mask: np.ndarray, void: np.ndarray | None = None) -> Pixels:
    height, width = mask.shape
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        if mask[y, x] and not (void is not None and void[y, x])
    }


def region_similarity(prediction: np.ndarray, truth: np.ndarray, void=None) -> float:
    ours, theirs = pixels(prediction, void), pixels(truth, void)
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def boundary(mask: np.ndarray, void: np.ndarray | None = None) -> Pixels:
    """Pixels that differ from a neighbour to the right, below, or below to the right."""
    height, width = mask.shape
    inside = pixels(mask, void)
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        for dy, dx in ((0, 1), (1, 0), (1, 1))
        if y + dy < height and x + dx < width and ((y, x) in inside) != ((y + dy, x + dx) in inside)
    }


def contour_accuracy(
    prediction: np.ndarray, truth: np.ndarray, void=None, tolerance: float = 0.008
) -> float:
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    ours, theirs = boundary(prediction, void), boundary(truth, void)
    if not ours and not theirs:
        return 1.0
    precision = _matched(ours, theirs, radius) / len(ours) if ours else 1.0
    recall = _matched(theirs, ours, radius) / len(theirs) if theirs else 1.0
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def summary(values: list[float]) -> tuple[float, float, float]:
    """Mean, recall and decay; the quarters share the frame on their border."""
    last = len(values) - 1
    # Round half up, in exact arithmetic.
    borders = [math.floor(Fraction(quarter * last, 4) + Fraction(1, 2)) for quarter in range(5)]
    first_quarter = values[borders[0] : borders[1] + 1]
    last_quarter = values[borders[3] : borders[4] + 1]
    return (
        math.fsum(values) / len(values),
        sum(value > 0.5 for value in values) / len(values),
        math.fsum(first_quarter) / len(first_quarter) - math.fsum(last_quarter) / len(last_quarter),
    )


def _matched(points: Pixels, others: Pixels, radius: int) -> int:
    return sum(any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in points)
