"""A network that looks its features up: the gray level of a frame is the number of a table's row,
as in the golden numbers."""

import numpy as np
import torch

GRID = (12, 17)
GRAY = 7
"""Levels from one frame to the next."""


class TableBackbone:
    stride = 16
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(self, features):
        """`features`: (frames, positions, dim)."""
        self.features = torch.from_numpy(features)

    def __call__(self, images, *, layer):
        assert images.shape[-2:] == (16 * GRID[0], 16 * GRID[1])
        number = round(float(images.mean()) * 255 / GRAY)
        return self.features[number].T.unflatten(1, GRID)[None]


def gray_frames(num_frames, size):
    return [np.full((*size, 3), GRAY * number, dtype=np.uint8) for number in range(num_frames)]
