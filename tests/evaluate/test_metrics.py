"""J, F and summaries: golden numbers of the official evaluation, the oracle, and cases by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ino.metrics import (
    boundary_map,
    boundary_radius,
    contour_accuracy,
    region_similarity,
    summarize,
)
from oracles import boundary as oracle

EXACT = 1e-12


@pytest.fixture(scope="module")
def official(golden):
    return golden("jf_synthetic")


def drawn_pairs(official) -> list[str]:
    return [key[: -len("_gt")] for key in official if key.startswith("syn_") and key[-3:] == "_gt"]


def blobs(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A few random boxes."""
    mask = np.zeros(shape, dtype=bool)
    for _ in range(3):
        y, x = rng.integers(shape[0]), rng.integers(shape[1])
        mask[y : y + rng.integers(1, 12), x : x + rng.integers(1, 12)] ^= True
    return mask


def test_golden_j_f_and_boundaries(official):
    pairs = drawn_pairs(official)
    assert len(pairs) == 19
    for pair in pairs:
        prediction, truth = official[f"{pair}_pred"] > 0, official[f"{pair}_gt"] > 0
        j, f = region_similarity(prediction, truth), contour_accuracy(prediction, truth)
        assert j == pytest.approx(official[f"{pair}_J"], abs=EXACT), pair
        assert f == pytest.approx(official[f"{pair}_F"], abs=EXACT), pair
        np.testing.assert_array_equal(boundary_map(truth), official[f"{pair}_gt_bmap"], pair)


def test_golden_void(official):
    prediction, truth = official["syn_box_shift_pred"] > 0, official["syn_box_shift_gt"] > 0
    void = official["void"] > 0
    j, f = region_similarity(prediction, truth, void), contour_accuracy(prediction, truth, void)
    assert j == pytest.approx(official["void_box_shift_J"], abs=EXACT)
    assert f == pytest.approx(official["void_box_shift_F"], abs=EXACT)


def test_golden_radius(official):
    for (height, width), radius in zip(
        official["bound_pix_shapes"], official["bound_pix"], strict=True
    ):
        assert boundary_radius(int(height), int(width)) == radius


def test_golden_objects_over_frames(official):
    truth, prediction = official["multi_gt"][1:-1], official["multi_pred"][1:-1]
    for index in range(3):
        pairs = [(p == index + 1, t == index + 1) for p, t in zip(prediction, truth, strict=True)]
        for row, metric in enumerate((region_similarity, contour_accuracy)):
            values = [metric(*pair) for pair in pairs]
            expected = official[f"multi_{'JF'[row]}"][index]
            np.testing.assert_allclose(values, expected, rtol=0, atol=EXACT)
            summary = summarize(values)
            np.testing.assert_allclose(
                (summary.mean, summary.recall, summary.decay),
                official["multi_stats_JF_MRD"][index, row],
                rtol=0,
                atol=EXACT,
            )


@pytest.mark.parametrize("name", ["v5", "v40", "v104", "nan", "half", "v2", "v1"])
def test_golden_summaries(official, name):
    summary = summarize(official[f"stat_{name}_in"])
    np.testing.assert_allclose(
        (summary.mean, summary.recall, summary.decay),
        official[f"stat_{name}_MRD"],
        rtol=0,
        atol=EXACT,
    )


def test_golden_summary_above_256_frames_has_the_right_decay(official):
    values = official["stat_v300_in"]
    summary = summarize(values)
    mean, recall, wrong_decay = official["stat_v300_MRD"]
    assert math.isnan(wrong_decay)  # the official code's fault
    assert (summary.mean, summary.recall) == pytest.approx((mean, recall), abs=EXACT)
    assert summary.decay == pytest.approx(oracle.summary(values.tolist())[2], abs=EXACT)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 6, 7, 8, 9, 48, 255, 256, 257, 1001])
def test_summary_equals_oracle(num_frames):
    values = np.random.default_rng(num_frames).random(num_frames)
    summary = summarize(values)
    expected = oracle.summary(values.tolist())
    assert (summary.mean, summary.recall, summary.decay) == pytest.approx(expected, abs=EXACT)


def test_summary_by_hand():
    # Nine frames: quarters are frames 0-2 and 6-8.
    values = [1.0, 0.8, 0.6, 0.5, 0.5, 0.5, 0.3, 0.2, 0.1]
    summary = summarize(values)
    assert summary.mean == pytest.approx(0.5)
    assert summary.recall == pytest.approx(3 / 9)
    assert summary.decay == pytest.approx(0.8 - 0.2)


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan] * 3 + [0.5] * 5])
def test_summary_without_numbers_is_refused(values):
    with pytest.raises(ValueError, match="is a number"):
        summarize(values)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (20, 31), (40, 24)])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_void", [False, True])
def test_equals_oracle(shape, seed, with_void):
    rng = np.random.default_rng(seed)
    prediction, truth = blobs(rng, shape), blobs(rng, shape)
    void = rng.random(shape) < 0.1 if with_void else None
    expected = oracle.region_similarity(prediction, truth, void)
    assert region_similarity(prediction, truth, void) == pytest.approx(expected, abs=EXACT)
    for tolerance in (0.008, 0.05, 0.2):
        expected = oracle.contour_accuracy(prediction, truth, void, tolerance)
        found = contour_accuracy(prediction, truth, void, tolerance=tolerance)
        assert found == pytest.approx(expected, abs=EXACT)
    assert {tuple(point) for point in np.argwhere(boundary_map(truth)).tolist()} == oracle.boundary(
        truth
    )


def test_contour_by_hand():
    # Boundaries of two vertical edges, 3 pixels apart, in an image with a radius of 1 or 3 pixels.
    truth, prediction = np.zeros((6, 40), dtype=bool), np.zeros((6, 40), dtype=bool)
    truth[:, :20], prediction[:, :23] = True, True
    assert boundary_map(truth).nonzero()[1].tolist() == [19] * 6
    assert contour_accuracy(prediction, truth) == 0.0
    assert contour_accuracy(prediction, truth, tolerance=0.07) == 1.0
    assert region_similarity(prediction, truth) == 20 / 23


def test_void_hides_an_error():
    truth, prediction = np.zeros((30, 30), dtype=bool), np.zeros((30, 30), dtype=bool)
    truth[5:15, 5:15] = True
    prediction[5:15, 5:20] = True
    void = np.zeros_like(truth)
    void[:, 15:22] = True
    assert region_similarity(prediction, truth) < 1
    assert contour_accuracy(prediction, truth) < 1
    assert region_similarity(prediction, truth, void) == 1
    assert contour_accuracy(prediction, truth, void) == 1


@settings(max_examples=60, deadline=None)
@given(
    masks=arrays(bool, st.tuples(st.just(2), st.integers(1, 12), st.integers(1, 12))),
    tolerance=st.sampled_from([0.008, 0.1, 0.3]),
)
def test_bounds_symmetry_and_identity(masks, tolerance):
    first, second = masks
    for metric in (region_similarity, lambda a, b: contour_accuracy(a, b, tolerance=tolerance)):
        assert 0 <= metric(first, second) <= 1
        assert metric(first, second) == pytest.approx(metric(second, first), abs=EXACT)
        assert metric(first, first) == 1
