"""Joints to maps and back."""

import numpy as np
import pytest
import torch

from ino.errors import ConfigError
from ino.tasks.jhmdb import JointMaps, draw_joints, locate_joints

SIZE, GRID = (240, 320), (40, 40)


def test_a_gaussian_by_hand():
    # 320 pixels are 40 positions: column 100 is position 12.5, which rounds to 13; row 60 is 10.
    drawn = draw_joints(np.array([[100.0, 60.0]]), image_size=SIZE, grid=GRID, maps=JointMaps())
    background, joint = drawn.unbind(dim=-1)
    assert joint[10, 13] == 1
    assert joint[10, 12] == joint[9, 13] == pytest.approx(np.exp(-2))
    assert joint[11, 14] == pytest.approx(np.exp(-4))
    assert (joint > 0).sum() == 25
    assert torch.equal(background, (joint == 0).float())


def test_there_and_back_within_half_a_position():
    rng = np.random.default_rng(0)
    joints = rng.uniform((16, 12), (300, 224), (15, 2))
    drawn = draw_joints(joints, image_size=SIZE, grid=GRID, maps=JointMaps())
    found = locate_joints(drawn, image_size=SIZE, maps=JointMaps())
    assert np.abs(found - joints).max(axis=0) == pytest.approx([4, 3], abs=1)
    assert (np.abs(found - joints) <= [4.01, 3.01]).all()


def test_the_mean_of_the_highest_by_hand():
    soft = torch.zeros(4, 8, 2)
    soft[1, 2, 1], soft[1, 4, 1], soft[3, 2, 1], soft[0, 0, 1] = 0.6, 0.3, 0.1, 0.05
    two = locate_joints(soft, image_size=(40, 80), maps=JointMaps(topk=2))
    np.testing.assert_allclose(two, [[10 * (2 * 0.6 + 4 * 0.3) / 0.9, 10]])
    three = locate_joints(soft, image_size=(40, 80), maps=JointMaps(topk=3))
    np.testing.assert_allclose(three, [[10 * (1.2 + 1.2 + 0.2), 10 * (0.6 + 0.3 + 0.3)]])


def test_more_positions_than_there_are():
    soft = torch.ones(1, 2, 2)
    found = locate_joints(soft, image_size=(10, 20), maps=JointMaps(topk=9))
    np.testing.assert_allclose(found, [[5, 0]])


def test_a_joint_outside_the_image_is_lost():
    joints = np.array([[-40.0, 10.0], [5.0, 5.0]])
    drawn = draw_joints(joints, image_size=SIZE, grid=GRID, maps=JointMaps())
    found = locate_joints(drawn, image_size=SIZE, maps=JointMaps())
    assert np.isnan(found[0]).all()
    assert not np.isnan(found[1]).any()


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"topk": 0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError, match="above 0 and topk 1 or more"):
        JointMaps(**wrong)
