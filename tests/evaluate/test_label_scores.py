"""Scores of all objects of a frame equal those of one object after the other."""

import numpy as np
import pytest

from ino.metrics import contour_accuracy, region_similarity, score_labels
from oracles import boundary as oracle


def noise(rng: np.random.Generator, shape: tuple[int, int], num_objects: int) -> np.ndarray:
    return rng.integers(0, num_objects + 1, shape).astype(np.uint8)


def blocks(rng: np.random.Generator, shape: tuple[int, int], num_objects: int) -> np.ndarray:
    """Noise of 5x5 pixels, so that boundaries are not everywhere."""
    small = noise(rng, (shape[0] // 5 + 1, shape[1] // 5 + 1), num_objects)
    return np.kron(small, np.ones((5, 5), dtype=np.uint8))[: shape[0], : shape[1]]


def one_by_one(prediction, truth, num_objects, metric) -> list[float]:
    void = truth == 255
    labels = range(1, num_objects + 1)
    return [metric(prediction == label, truth == label, void) for label in labels]


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (2, 2), (37, 61), (64, 130)])
@pytest.mark.parametrize("num_objects", [1, 3, 254])
@pytest.mark.parametrize("draw", [noise, blocks])
@pytest.mark.parametrize("with_void", [False, True])
def test_equals_object_by_object(shape, num_objects, draw, with_void):
    rng = np.random.default_rng(num_objects)
    prediction, truth = draw(rng, shape, num_objects), draw(rng, shape, num_objects)
    if with_void:
        truth[rng.random(shape) < 0.2] = 255
    j, f = score_labels(prediction, truth, num_objects=num_objects)
    np.testing.assert_array_equal(j, one_by_one(prediction, truth, num_objects, region_similarity))
    np.testing.assert_array_equal(f, one_by_one(prediction, truth, num_objects, contour_accuracy))


def test_equals_oracle():
    rng = np.random.default_rng(7)
    truth = blocks(rng, (24, 31), 3)
    prediction = np.roll(truth, (1, 2), axis=(0, 1))
    j, f = score_labels(prediction, truth, num_objects=3)
    expected = one_by_one(prediction, truth, 3, oracle.region_similarity)
    np.testing.assert_allclose(j, expected, rtol=0, atol=1e-12)
    expected = one_by_one(prediction, truth, 3, oracle.contour_accuracy)
    np.testing.assert_allclose(f, expected, rtol=0, atol=1e-12)


def test_labels_that_are_not_scored_are_background():
    truth = np.zeros((9, 9), dtype=np.uint8)
    truth[2:5, 2:5], truth[6:8, 6:8] = 1, 7
    prediction = np.where(truth == 1, truth, 0).astype(np.uint8)
    j, f = score_labels(prediction, truth, num_objects=2)
    assert j.tolist() == [1, 1]
    assert f.tolist() == [1, 1]


def test_by_hand():
    """Two 2x2 squares; the prediction of the first is one row lower, the second is missing."""
    truth = np.zeros((40, 40), dtype=np.uint8)
    truth[10:12, 10:12], truth[30:32, 30:32] = 1, 2
    prediction = np.zeros_like(truth)
    prediction[11:13, 10:12] = 1
    j, f = score_labels(prediction, truth, num_objects=2)
    assert j.tolist() == [2 / 6, 0]
    # The boundaries are rings of eight pixels, four of them shared; the radius is 1.
    assert f.tolist() == [1, 0]
    assert contour_accuracy(prediction == 1, truth == 1, tolerance=0.0) == 0.5
