"""Scores of arrays: golden numbers of the official evaluation, oracles, and cases by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ino.errors import ConfigError
from ino.metrics import (
    PckRule,
    Points,
    boundary_f,
    boundary_map,
    boundary_radius,
    class_iou,
    contour_accuracy,
    correct_fraction,
    count_labels,
    joint_errors,
    region_similarity,
    score_labels,
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


def test_label_maps_equal_the_oracle():
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


def test_label_maps_by_hand():
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


def brute_force(ours: np.ndarray, theirs: np.ndarray, radius: int) -> float:
    squared = ((ours[:, None] - theirs[None]) ** 2).sum(axis=-1)
    near = squared <= radius**2
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def draw_points(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    return np.unique(
        np.stack([rng.integers(height, size=count), rng.integers(width, size=count)], axis=1),
        axis=0,
    )


def found_f(ours: np.ndarray, theirs: np.ndarray, radius: int) -> float:
    return boundary_f(Points(*ours.T), Points(*theirs.T), radius=radius)


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 7, 8, 18, 36, 63, 64, 65, 150])
@pytest.mark.parametrize(("height", "width"), [(1, 500), (500, 1), (40, 63), (300, 400)])
def test_matched_boundaries_equal_brute_force(radius, height, width):
    rng = np.random.default_rng(radius)
    for count in (1, 3, 20):
        ours, theirs = (draw_points(rng, height, width, count) for _ in range(2))
        assert found_f(ours, theirs, radius) == brute_force(ours, theirs, radius)


@pytest.mark.parametrize("radius", [5, 13, 65])
def test_the_disk_is_closed(radius):
    """Points at exactly the radius match, others do not: 5, 13 and 65 are whole on a slope too."""
    here = np.array([[100, 100]])
    slopes = {5: (3, 4), 13: (5, 12), 65: (16, 63)}
    for dy, dx in [(0, radius), (radius, 0), slopes[radius]]:
        for sign in (1, -1):
            there = np.add(here, [dy, sign * dx])
            assert found_f(here, there, radius) == 1
            assert found_f(here, np.add(there, [0, sign]), radius) == 0
            assert found_f(here, np.add(there, [1, 0]), radius) == 0


def test_boundaries_without_points():
    none, one = np.empty((0, 2), dtype=int), np.array([[3, 4]])
    assert found_f(none, none, 3) == 1
    assert found_f(none, one, 3) == found_f(one, none, 3) == 0


SIZE = (100, 100)
# Three joints; their box is 30 x 40 with a diagonal of 50, so the person's size is 30.
TRUTH = np.array([[[10, 10], [40, 10], [40, 50]]] * 3, dtype=float)


def shifted(*shifts) -> np.ndarray:
    """The truth with (frame, joint, dx, dy) added."""
    found = TRUTH.copy()
    for frame, joint, dx, dy in shifts:
        found[frame, joint] += (dx, dy)
    return found


def pck(predicted, threshold=0.1, **choices) -> list[float]:
    errors = joint_errors(predicted, TRUTH, image_size=SIZE, rule=PckRule(**choices))
    return correct_fraction(errors, threshold).tolist()


def test_pck_by_hand():
    # 3 px are 0.1 of 30 and just correct, 5 px (3, 4) are 0.167, 6.1 px are above 0.2.
    found = shifted((1, 0, 3, 0), (2, 0, 3, 4), (1, 1, 0, 6.1), (0, 2, 90, 0))
    assert pck(found, 0.1) == [0.5, 0.5, 1.0]
    assert pck(found, 0.2) == [1.0, 0.5, 1.0]


def slow_pck(predicted, truth, threshold: float) -> list[float]:
    """Joint by joint and frame by frame, as the released codes define it."""
    correct, total = [0] * truth.shape[1], [0] * truth.shape[1]
    for frame in range(1, len(truth)):
        seen = [j for j in range(truth.shape[1]) if not math.isnan(predicted[frame, j, 0])]
        columns = [truth[frame, j, 0] for j in seen]
        rows = [truth[frame, j, 1] for j in seen]
        size = 0.6 * math.hypot(max(columns) - min(columns), max(rows) - min(rows))
        for j in seen:
            distance = math.dist(predicted[frame, j], truth[frame, j])
            total[j] += 1
            correct[j] += distance / size <= threshold
    return [c / t for c, t in zip(correct, total, strict=True)]


def test_pck_equals_a_slow_version():
    rng = np.random.default_rng(0)
    truth = rng.uniform(-10, 120, (30, 15, 2))
    predicted = truth + rng.normal(0, 12, truth.shape)
    predicted[rng.random((30, 15)) < 0.2] = np.nan
    errors = joint_errors(predicted, truth, image_size=SIZE, rule=PckRule())
    for threshold in (0.1, 0.2):
        expected = slow_pck(predicted, truth, threshold)
        assert 0 < np.mean(expected) < 1
        assert correct_fraction(errors, threshold) == pytest.approx(expected, abs=1e-12)


def test_the_first_frame_may_count():
    assert pck(shifted((0, 2, 90, 0)), first_frame=True) == [1, 1, pytest.approx(2 / 3)]


def test_the_longer_side():
    # The size is 0.6 x 40 = 24, so 2.5 px are 0.104.
    far = shifted((1, 0, 2.5, 0))
    assert pck(far)[0] == 1
    assert pck(far, size="longer-side")[0] == 0.5
    assert pck(far, size="longer-side", scale=1.0)[0] == 1


def test_lost_joints_count_neither_for_pck_nor_for_the_box():
    lost = TRUTH.copy()
    lost[:, 2] = np.nan  # what is left is 30 wide and 0 high: a size of 18
    lost[1, 0, 0] += 2.0
    assert pck(lost) == pytest.approx([0.5, 1.0, math.nan], nan_ok=True)
    assert pck(lost, lost="wrong") == [1.0, 1.0, 0.0]


def test_joints_outside_the_image():
    truth = TRUTH.copy()
    truth[1, 2] = (40, 100)  # one row below the last
    rule = PckRule(skip_outside=True)
    errors = joint_errors(truth, truth, image_size=SIZE, rule=rule)
    assert np.isnan(errors).tolist() == [[False, False, True], [False, False, False]]
    assert not np.isnan(joint_errors(truth, truth, image_size=SIZE, rule=PckRule())).any()


def test_a_person_of_size_0():
    truth = np.full((2, 3, 2), 7.0)
    predicted = truth.copy()
    predicted[1, 0, 0] += 0.1
    errors = joint_errors(predicted, truth, image_size=SIZE, rule=PckRule())
    assert errors.tolist() == [[np.inf, 0, 0]]


def test_no_joint_that_counts():
    with pytest.raises(ConfigError, match="no joint of any frame counts"):
        correct_fraction(np.full((3, 15), np.nan), 0.1)


PARTS_TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=np.uint8)
PARTS_FOUND = np.array([[0, 0, 0, 1], [0, 1, 1, 2]], dtype=np.uint8)


def test_iou_by_hand():
    confusion = count_labels(PARTS_FOUND, PARTS_TRUTH, num_classes=4)
    assert confusion.tolist() == [[3, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = class_iou(confusion)
    assert iou[:2].tolist() == [3 / 5, 2 / 4]
    assert np.isnan(iou[2:]).all()


def test_a_class_that_is_only_predicted_counts_as_0():
    only = np.full_like(PARTS_TRUTH, 2)
    iou = class_iou(count_labels(only, PARTS_TRUTH, num_classes=4))
    assert iou[:3].tolist() == [0, 0, 0]
    assert np.isnan(iou[3])
