"""Labels that follow the optical flow."""

import cv2
import numpy as np
import pytest
import torch

from ino.propagate.labels import harden_labels
from ino.propagate.refine import Motion, estimate_motion, refine_labels


def still(trust: np.ndarray) -> Motion:
    """A scene in which nothing moves."""
    row, column = np.indices(trust.shape, dtype=np.float32)
    return Motion(column, row, trust.astype(np.float32))


def test_by_hand():
    # One feature for each of four pixels: object 7 has 0.4, 0.6, 0.4 and 0.6.
    soft = torch.tensor([[[0.6, 0.4], [0.4, 0.6], [0.6, 0.4], [0.4, 0.6]]])
    before = np.array([[7, 7, 7, 0]], dtype=np.uint8)
    motion = still(np.array([[1.0, 1.0, 0.0, 1.0]]))
    labels, confidence, passed_on = refine_labels(soft, motion, before, ids=[0, 7], share=0.5)
    # 0.5 p + 0.5 m where the flow is trusted, p elsewhere.
    assert labels.tolist() == [[7, 7, 0, 0]]
    assert confidence == pytest.approx(np.array([[0.7, 0.8, 0.6, 0.7]]))
    assert passed_on[0, :, 1].tolist() == pytest.approx([0.7, 0.8, 0.4, 0.3])
    assert passed_on.sum(dim=-1)[0].tolist() == pytest.approx([1, 1, 1, 1])


def test_soft_labels_count_by_their_share_of_the_sum():
    soft = torch.tensor([[[0.3, 0.1]]])
    labels, confidence, _ = refine_labels(
        soft, still(np.ones((1, 1))), np.full((1, 1), 7, dtype=np.uint8), ids=[0, 7], share=0.6
    )
    assert labels.tolist() == [[7]] and confidence[0, 0] == pytest.approx(0.4 * 0.25 + 0.6)


def test_labels_come_from_where_pixels_were():
    before = np.zeros((6, 8), dtype=np.uint8)
    before[2:4, 1:3] = 5
    row, column = np.indices((6, 8), dtype=np.float32)
    motion = Motion(column - 3, row - 1, np.ones((6, 8), dtype=np.float32))
    soft = torch.full((3, 4, 2), 0.5)
    labels, *_ = refine_labels(soft, motion, before, ids=[0, 5], share=1.0)
    expected = np.zeros((6, 8), dtype=np.uint8)
    expected[3:5, 4:6] = 5
    assert (labels == expected).all()


def test_without_trust_they_are_those_of_the_features():
    soft = torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(0))
    soft /= soft.sum(dim=-1, keepdim=True)
    labels, *_ = refine_labels(
        soft,
        still(np.zeros((40, 48))),
        np.full((40, 48), 9, dtype=np.uint8),
        ids=[0, 4, 9],
        share=1.0,
    )
    expected = harden_labels(
        soft, ids=[0, 4, 9], stride=8, size=(40, 48), normalize=False, method="bilinear"
    )
    assert (labels == expected).all()


def test_the_motion_of_a_moved_texture():
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (96, 120, 3), dtype=np.uint8), (0, 0), 2)
    before, frame = texture[8:88, 10:110], texture[6:86, 13:113]  # it moves 3 left and 2 down
    motion = estimate_motion(before, frame)
    inner = slice(16, -16), slice(16, -16)
    row, column = np.indices((80, 100))
    assert np.abs(motion.column - column - 3)[inner].max() < 0.5
    assert np.abs(motion.row - row + 2)[inner].max() < 0.5
    assert motion.trust[inner].min() > 0.6
    assert not motion.trust[:, -2:].any()  # these pixels came from outside
    assert motion.trust.max() <= 1


def test_the_trust_is_low_where_another_picture_comes():
    rng = np.random.default_rng(1)
    before, frame = (
        cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), (0, 0), 2)
        for _ in range(2)
    )
    assert estimate_motion(before, frame).trust.mean() < 0.5
    assert estimate_motion(frame, frame).trust.min() > 0.99


@pytest.mark.parametrize("size", [(1, 1), (8, 40), (600, 500)])
def test_frames_of_any_size(size):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    motion = estimate_motion(frame, frame)
    assert motion.trust.shape == motion.row.shape == motion.column.shape == size
    assert motion.trust.min() > 0.9
