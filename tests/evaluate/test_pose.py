"""PCK by hand, and every choice of the rule."""

import math

import numpy as np
import pytest

from ino.data.jhmdb import PoseVideo
from ino.errors import ConfigError, DatasetError
from ino.metrics import PckRule, joint_errors, score_joints
from ino.tasks.jhmdb import score_jhmdb

SIZE = (100, 100)
# Three joints; their box is 30 x 40 with a diagonal of 50, so the person's size is 30.
TRUTH = np.array([[[10, 10], [40, 10], [40, 50]]] * 3, dtype=float)


def shifted(*shifts) -> np.ndarray:
    """The truth with (frame, joint, dx, dy) added."""
    found = TRUTH.copy()
    for frame, joint, dx, dy in shifts:
        found[frame, joint] += (dx, dy)
    return found


def score(predicted, **choices):
    rule = PckRule(**choices)
    return score_joints([joint_errors(predicted, TRUTH, image_size=SIZE, rule=rule)], rule=rule)


def test_by_hand():
    # 3 px are 0.1 of 30 and just correct, 5 px (3, 4) are 0.167, 6.1 px are above 0.2.
    scores = score(shifted((1, 0, 3, 0), (2, 0, 3, 4), (1, 1, 0, 6.1), (0, 2, 90, 0)))
    assert scores.by_joint[0.1] == (0.5, 0.5, 1.0)
    assert scores.by_joint[0.2] == (1.0, 0.5, 1.0)
    assert scores.pck(0.1) == pytest.approx(2 / 3)
    assert scores.pck(0.2) == pytest.approx(2.5 / 3)
    assert (scores.num_videos, scores.num_joints) == (1, 6)


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


def test_equals_a_slow_version():
    rng = np.random.default_rng(0)
    truth = rng.uniform(-10, 120, (30, 15, 2))
    predicted = truth + rng.normal(0, 12, truth.shape)
    predicted[rng.random((30, 15)) < 0.2] = np.nan
    rule = PckRule()
    errors = joint_errors(predicted, truth, image_size=SIZE, rule=rule)
    scores = score_joints([errors], rule=rule)
    for threshold in (0.1, 0.2):
        expected = slow_pck(predicted, truth, threshold)
        assert 0 < np.mean(expected) < 1
        assert scores.by_joint[threshold] == pytest.approx(expected, abs=1e-12)


def test_the_first_frame_may_count():
    scores = score(shifted((0, 2, 90, 0)), first_frame=True)
    assert scores.by_joint[0.1] == (1, 1, pytest.approx(2 / 3))


def test_the_longer_side():
    # The size is 0.6 x 40 = 24, so 2.5 px are 0.104.
    far = shifted((1, 0, 2.5, 0))
    assert score(far).by_joint[0.1][0] == 1
    assert score(far, size="longer-side").by_joint[0.1][0] == 0.5
    assert score(far, size="longer-side", scale=1.0).by_joint[0.1][0] == 1


def test_lost_joints_count_neither_for_pck_nor_for_the_box():
    lost = TRUTH.copy()
    lost[:, 2] = np.nan  # what is left is 30 wide and 0 high: a size of 18
    lost[1, 0, 0] += 2.0
    scores = score(lost)
    assert scores.by_joint[0.1][:2] == (0.5, 1.0)
    assert np.isnan(scores.by_joint[0.1][2])
    assert scores.pck(0.1) == 0.75
    wrong = score(lost, lost="wrong")
    assert wrong.by_joint[0.1] == (1.0, 1.0, 0.0)


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


def test_joints_are_weighed_over_videos_together():
    rule = PckRule()
    one = np.array([[0.0], [0.0], [0.0]])
    other = np.array([[1.0]])
    scores = score_joints([one, other], rule=rule)
    assert scores.by_joint[0.1] == (0.75,)
    assert scores.num_videos == 2


def test_nothing_to_score():
    with pytest.raises(ConfigError, match="no joint of any frame counts"):
        score_joints([np.full((3, 15), np.nan)], rule=PckRule())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read as an array"),
        (b"text", "cannot be read as an array"),
        (np.zeros((2, 15, 2)), "2 x 15 x 2 of float64, but floats 3 x 15 x 2"),
        (np.zeros((3, 15, 2), dtype=int), "of int64, but floats"),
    ],
)
def test_predictions_that_do_not_fit(tmp_path, monkeypatch, content, words):
    video = PoseVideo("run", "one", (tmp_path / "1.png",) * 3, tmp_path / "joints.mat")
    monkeypatch.setattr("ino.tasks.jhmdb.read_joints", lambda _: np.zeros((4, 15, 2)))
    (tmp_path / "run").mkdir()
    if isinstance(content, bytes):
        (tmp_path / "run/one.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "run/one.npy", content)
    with pytest.raises(DatasetError, match=words):
        score_jhmdb(tmp_path, [video])
