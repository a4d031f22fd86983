"""The sheet shows the crops that the networks see, and grey where the student sees nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.models.student_teacher import Views
from ino.train.loop import train
from ino.train.monitors import GAP, MIN_SIDE, contact_sheet

MEAN, STD = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))


def normalised(levels):
    return (levels / 255 - MEAN) / STD


def test_pixels_come_back_and_masked_patches_are_grey():
    levels = torch.randint(0, 256, (2, 1, 3, MIN_SIDE, MIN_SIDE)).float()
    masked = torch.tensor([[1, 20]])  # first row, second column; second row, first column
    sheet = contact_sheet(Views(normalised(levels), None, masked), patch_size=8)
    for frame in range(2):
        left = GAP + frame * (MIN_SIDE + GAP)
        shown = sheet[GAP : GAP + MIN_SIDE, left : left + MIN_SIDE]
        expected = levels[frame, 0].permute(1, 2, 0).numpy().astype(np.uint8)
        expected[:8, 8:16] = expected[8:16, :8] = 128
        np.testing.assert_array_equal(shown, expected)


def test_local_crops_stand_below_their_frame():
    frames = normalised(torch.zeros(2, 1, 3, MIN_SIDE, MIN_SIDE))
    local = normalised(torch.full((2, 3, 1, 3, 64, 64), 200.0))
    local[1] = normalised(torch.full((3, 1, 3, 64, 64), 100.0))
    sheet = contact_sheet(Views(frames, local), patch_size=8)
    row = sheet[GAP + MIN_SIDE + GAP]
    assert (row[GAP : GAP + 64] == 200).all()
    assert (row[MIN_SIDE + 2 * GAP :][:64] == 100).all()


@pytest.mark.parametrize("in_generative", [True, False])
def test_a_run_leaves_pictures_as_often_as_asked(config, tmp_path, in_generative):
    config.run.pictures_every = 3
    config.masking.probability = float(in_generative)
    train(config, out=tmp_path / "run")
    pictures = sorted((tmp_path / "run/pictures").iterdir())
    assert [path.name for path in pictures] == [f"step_{step:08d}.png" for step in (0, 3, 6)]
    assert np.asarray(Image.open(pictures[0])).shape[1] > 4 * MIN_SIDE
    config.run.pictures_every = 0
    train(config, out=tmp_path / "none")
    assert not (tmp_path / "none/pictures").exists()
