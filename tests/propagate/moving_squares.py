"""A video with exact masks that is small enough for every test of propagation."""

from typing import Any

import numpy as np

from ino.propagate.protocols import get_protocol

HEIGHT, WIDTH = 45, 69


def moving_squares(num_frames, *, height=HEIGHT, width=WIDTH):
    """Frames and labels of two textured squares (1 and 2) on noise; they move 2 pixels a frame."""
    rng = np.random.default_rng(3)
    background = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    textures = [rng.integers(130, 256, (14, 14, 3), dtype=np.uint8) for _ in range(2)]
    for time in range(num_frames):
        frame, labels = background.copy(), np.zeros((height, width), dtype=np.uint8)
        for label, (top, left) in enumerate(((4, 2 * time + 2), (26, 50 - 2 * time)), start=1):
            place = slice(top, top + 14), slice(left, left + 14)
            frame[place] = textures[label - 1]
            labels[place] = label
        yield frame, labels


def iou(found, truth, label):
    return ((found == label) & (truth == label)).sum() / ((found == label) | (truth == label)).sum()


def small_sizes(name, *, height=HEIGHT, width=WIDTH) -> dict[str, Any]:
    """The sizes that a protocol names, as small as this video's."""
    usual = get_protocol(name)
    small = {"short_side": height, "long_side": width}
    small |= {"input_size": (height, width), "data_size": (height, width)}
    return {field: value for field, value in small.items() if getattr(usual, field) is not None}
