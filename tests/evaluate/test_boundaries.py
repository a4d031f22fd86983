"""Matching of boundaries: exact at any radius and any width of rows."""

import numpy as np
import pytest

from ino.metrics import Points, boundary_f


def brute_force(ours: np.ndarray, theirs: np.ndarray, radius: int) -> float:
    squared = ((ours[:, None] - theirs[None]) ** 2).sum(axis=-1)
    near = squared <= radius**2
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def draw(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    return np.unique(
        np.stack([rng.integers(height, size=count), rng.integers(width, size=count)], axis=1),
        axis=0,
    )


def found(ours: np.ndarray, theirs: np.ndarray, radius: int) -> float:
    return boundary_f(Points(*ours.T), Points(*theirs.T), radius=radius)


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 7, 8, 18, 36, 63, 64, 65, 150])
@pytest.mark.parametrize(("height", "width"), [(1, 500), (500, 1), (40, 63), (300, 400)])
def test_equals_brute_force(radius, height, width):
    rng = np.random.default_rng(radius)
    for count in (1, 3, 20):
        ours, theirs = (draw(rng, height, width, count) for _ in range(2))
        assert found(ours, theirs, radius) == brute_force(ours, theirs, radius)


@pytest.mark.parametrize("radius", [5, 13, 65])
def test_the_disk_is_closed(radius):
    """Points at exactly the radius match, others do not: 5, 13 and 65 are whole on a slope too."""
    here = np.array([[100, 100]])
    slopes = {5: (3, 4), 13: (5, 12), 65: (16, 63)}
    for dy, dx in [(0, radius), (radius, 0), slopes[radius]]:
        for sign in (1, -1):
            there = np.add(here, [dy, sign * dx])
            assert found(here, there, radius) == 1
            assert found(here, np.add(there, [0, sign]), radius) == 0
            assert found(here, np.add(there, [1, 0]), radius) == 0


def test_without_points():
    none, one = np.empty((0, 2), dtype=int), np.array([[3, 4]])
    assert found(none, none, 3) == 1
    assert found(none, one, 3) == found(one, none, 3) == 0
