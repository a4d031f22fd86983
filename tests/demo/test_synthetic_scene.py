"""Generated scenes: labels say exactly what was painted, and textures stay on their objects."""

from dataclasses import replace

import numpy as np
import pytest

import ino.demo.synthetic as synthetic_scene
from ino.demo.synthetic import REACH, Sprite, Wave, make_scene, render
from ino.errors import ConfigError


def scene_of(seed, *, num_objects=3):
    return make_scene(np.random.default_rng(seed), height=96, width=128, num_objects=num_objects)


def painted(actor, colour):
    """The actor in a texture of its own: one colour for all, or one a point."""
    shape = (*actor.sprite.depth.shape, 3)
    flat = np.ascontiguousarray(np.broadcast_to(colour, shape), dtype=np.float32)
    return replace(actor, sprite=Sprite(colour=flat, depth=actor.sprite.depth))


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_what_was_painted(seed):
    """Light and shade scale a colour but keep its ratios, which name the actor of each pixel."""
    scene = scene_of(seed)
    directions = np.array(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]], np.float32
    )[: len(scene.actors) + 1]
    actors = tuple(painted(a, 0.6 * d) for a, d in zip(scene.actors, directions[1:], strict=True))
    scene = replace(scene, actors=actors, ground=np.full_like(scene.ground, 0.6) * directions[0])
    names = np.array([0, *(actor.label for actor in actors)])
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    for t in (0, 9, 30):
        image, labels = render(scene, t)
        closeness = image @ unit.T / np.linalg.norm(image, axis=-1, keepdims=True)
        assert closeness.max(axis=-1).min() > 0.999  # every pixel is of one actor alone
        np.testing.assert_array_equal(names[closeness.argmax(axis=-1)], labels)


@pytest.mark.parametrize("seed", range(3))
def test_nearer_actors_hide_farther_ones(seed):
    scene = scene_of(seed)
    actors = tuple(replace(actor, label=i + 1) for i, actor in enumerate(scene.actors))
    num_hidden = 0
    for t in range(0, 60, 10):
        expected = np.zeros((scene.height, scene.width), np.uint8)
        for actor in actors:
            _, alone = render(replace(scene, actors=(actor,)), t)
            num_hidden += np.count_nonzero(expected[alone > 0])
            expected[alone > 0] = actor.label
        _, labels = render(replace(scene, actors=actors), t)
        np.testing.assert_array_equal(labels, expected)
    assert num_hidden > 0


@pytest.mark.parametrize("seed", range(3))
def test_mask_and_texture_bend_together(seed):
    """With its own coordinates for a texture, an object shows only points inside its contour."""
    scene = scene_of(seed, num_objects=1)
    actor = next(actor for actor in scene.actors if actor.label == 1)
    side = len(actor.sprite.depth)
    axis = np.linspace(-REACH, REACH, side)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    coded = np.stack([0.3 + 0.1 * u, 0.3 + 0.1 * v, np.full_like(u, 0.3)], axis=-1)
    scene = replace(scene, actors=(painted(actor, coded),))
    for t in (0, 13, 26, 39):
        image, labels = render(scene, t)
        seen = image[labels == 1]
        own = (seen[:, :2] / seen[:, 2:] - 1) * 3  # light scales all three alike
        column, row = ((own + REACH) / (2 * REACH) * (side - 1)).round().astype(int).T
        assert actor.sprite.depth[row, column].min() > -0.08


def test_objects_turn_and_move():
    scene = scene_of(0)
    places = np.array([[a.home + a.path.at(t) for a in scene.actors] for t in range(40)])
    steps = np.linalg.norm(np.diff(places, axis=0), axis=-1)
    assert steps.max() < 0.03 * 128
    assert (steps.sum(axis=0) > 8).all()
    turns = np.array([[a.pose.at(t)[0] for a in scene.actors] for t in range(40)])
    assert (np.ptp(turns, axis=0) > 0.1).all()


@pytest.mark.parametrize("num_objects", range(1, 9))
def test_distractors_wear_an_objects_colours_in_another_pattern(num_objects, monkeypatch):
    looks = []
    draw = synthetic_scene.draw_sprite

    def spy(rng, colours, *, pattern, radius):
        looks.append((colours.tobytes(), pattern))
        return draw(rng, colours, pattern=pattern, radius=radius)

    monkeypatch.setattr(synthetic_scene, "draw_sprite", spy)
    scene = scene_of(1, num_objects=num_objects)
    looks = looks[-len(scene.actors) :]  # of the layout that was kept
    assert len(set(looks)) == len(looks)
    objects, distractors = looks[:num_objects], looks[num_objects:]
    assert distractors
    assert {colours for colours, _ in distractors} <= {colours for colours, _ in objects}
    assert sorted(a.label for a in scene.actors if a.label) == list(range(1, num_objects + 1))


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(synthetic_scene, "MIN_VISIBLE", 0.6)
    monkeypatch.setattr(synthetic_scene, "MAX_LAYOUTS", 2)
    with pytest.raises(ConfigError, match="3 objects do not fit"):
        scene_of(0)


def test_wave_stays_within_its_amplitude_and_fills_it():
    wave = Wave(np.random.default_rng(0), [3.0, 0.5], period=(20, 30))
    values = np.array([wave.at(t) for t in range(600)])
    assert (np.abs(values) <= [3.0, 0.5]).all()
    assert (np.abs(values).max(axis=0) > [2.5, 0.4]).all()
