"""Textures of generated video: whole objects, patterns that differ, ground in the same colours."""

import cv2
import numpy as np
import pytest

from ino.demo.synthetic import PATTERNS, draw_ground, draw_palette, draw_sprite

COLOURS = np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]], np.float32)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_object_is_whole_and_has_all_its_colours(pattern):
    for seed in range(5):
        sprite = draw_sprite(np.random.default_rng(seed), COLOURS, pattern=pattern, radius=24.0)
        inside = sprite.depth > 0
        num_parts, _ = cv2.connectedComponents(inside.astype(np.uint8))
        assert num_parts == 2  # outside, and one piece inside
        border = np.concatenate([sprite.depth[[0, -1]].ravel(), sprite.depth[:, [0, -1]].ravel()])
        assert border.max() < -0.02
        shares = np.bincount(sprite.colour[inside].argmax(axis=-1), minlength=3) / inside.sum()
        assert shares.min() > 0.04


def test_patterns_differ():
    sprites = [
        draw_sprite(np.random.default_rng(0), COLOURS, pattern=pattern, radius=24.0).colour
        for pattern in PATTERNS
    ]
    for i, first in enumerate(sprites):
        for second in sprites[i + 1 :]:
            assert (first.argmax(axis=-1) != second.argmax(axis=-1)).mean() > 0.1


def test_ground_shows_the_palette():
    """Every colour of the objects comes back in the ground, in hue if not in strength."""
    rng = np.random.default_rng(0)
    palette = draw_palette(rng)
    ground = draw_ground(rng, palette, height=96, width=128)
    assert ground.shape == (144, 192, 3)
    assert 0 <= ground.min() <= ground.max() <= 1
    dull = ground - ground.mean(axis=(0, 1))
    vivid = palette - palette.mean(axis=0)
    closeness = dull @ vivid.T / np.linalg.norm(dull, axis=-1, keepdims=True)
    closeness = closeness / np.linalg.norm(vivid, axis=-1)
    assert ((closeness > 0.9).mean(axis=(0, 1)) > 0.01).all()
