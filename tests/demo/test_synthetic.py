"""Generated clips: repeatable, labeled exactly, followable by their texture, and on disk."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

import ino.demo.synthetic as synthetic
from ino.data.davis import read_davis
from ino.data.label_maps import read_labels
from ino.data.video import read_frames, read_info
from ino.demo.synthetic import (
    PATTERNS,
    REACH,
    Sprite,
    Wave,
    draw_ground,
    draw_sprite,
    generate_clip,
    make_scene,
    render,
    sample_palette,
    write_davis_layout,
    write_videos,
)
from ino.errors import ConfigError, OutputError

COLORS = np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]], np.float32)


@pytest.fixture(scope="module")
def clips():
    return {
        "ants": generate_clip(3, num_frames=3, height=48, width=64, num_objects=1),
        "bees": generate_clip(4, num_frames=4, height=48, width=80, num_objects=2),
    }


def test_same_arguments_give_same_bytes():
    first, second = (generate_clip(5, num_frames=4) for _ in range(2))
    assert first.frames.tobytes() == second.frames.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()


def test_seeds_differ():
    first, second = (generate_clip(seed, num_frames=1) for seed in (5, 6))
    assert np.abs(first.frames.astype(int) - second.frames).mean() > 10
    assert (first.labels != second.labels).mean() > 0.02


def test_shorter_clip_is_the_beginning_of_a_longer_one():
    short, long = (generate_clip(7, num_frames=n) for n in (3, 6))
    np.testing.assert_array_equal(short.frames, long.frames[:3])
    np.testing.assert_array_equal(short.labels, long.labels[:3])


@pytest.mark.parametrize("size", [(128, 192), (32, 32), (33, 200), (150, 47)])
@pytest.mark.parametrize("num_objects", [1, 2, 5, 8])
def test_first_frame_shows_every_object(size, num_objects):
    height, width = size
    for seed in range(3):
        clip = generate_clip(
            seed, num_frames=1, height=height, width=width, num_objects=num_objects
        )
        assert clip.frames.shape == (1, height, width, 3)
        assert clip.labels.shape == (1, height, width)
        assert clip.labels.max() <= num_objects
        areas = np.bincount(clip.labels[0].ravel(), minlength=num_objects + 1)
        assert areas[1:].min() >= 0.015 * height * width


def test_frames_fill_the_range_of_a_picture():
    frames = generate_clip(8, num_frames=2).frames
    low, high = np.percentile(frames, [2, 98])
    assert low < 70
    assert high > 150
    assert frames.std(axis=(1, 2)).min() > 15  # every channel of every frame has contrast


def test_everything_moves_smoothly():
    labels = generate_clip(9, num_frames=24).labels
    changed = (labels[1:] != labels[:-1]).mean(axis=(1, 2))
    assert changed.max() < 0.08
    assert (labels[-1] != labels[0]).mean() > 2 * changed.mean()


def texture_shift(clip, label, t, *, gap, half=8):
    """How far (y, x) the patch deepest inside an object moves by its pixels; None if it is thin."""
    mask = np.zeros_like(clip.labels[t])
    mask[1:-1, 1:-1] = clip.labels[t, 1:-1, 1:-1] == label  # the frame's border ends it too
    inner = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    y, x = np.unravel_index(inner.argmax(), inner.shape)
    if inner[y, x] < half * 1.5:
        return None
    patch = clip.frames[t, y - half : y + half + 1, x - half : x + half + 1]
    match = cv2.matchTemplate(clip.frames[t + gap], patch, cv2.TM_CCOEFF_NORMED)
    return np.subtract(np.unravel_index(match.argmax(), match.shape), (y - half, x - half))


def overlap(first, second):
    return np.count_nonzero(first & second) / np.count_nonzero(first | second)


def test_labels_follow_the_texture():
    """Where a patch of an object goes, as its pixels tell, there its mask goes."""
    gap, moved, still = 4, [], []
    for seed in range(6):
        clip = generate_clip(seed, num_frames=25)
        for label in (1, 2):
            for t in range(0, 20, gap):
                shift = texture_shift(clip, label, t, gap=gap)
                if shift is None or np.abs(shift).max() < 4:
                    continue
                before, after = clip.labels[t] == label, clip.labels[t + gap] == label
                height, width = before.shape
                step = np.float64([[1, 0, shift[1]], [0, 1, shift[0]]])
                moved_mask = cv2.warpAffine(before.astype(np.uint8), step, (width, height)) > 0
                moved.append(overlap(moved_mask, after))
                still.append(overlap(before, after))
    assert len(moved) >= 10
    assert np.median(moved) > 0.75
    assert np.median(moved) > np.median(still) + 0.1
    assert np.mean(np.greater(moved, still)) > 0.85


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"height": 31}, "height is 31"),
        ({"width": 16}, "width is 16"),
        ({"num_objects": 0}, "num_objects is 0"),
        ({"num_objects": 9}, "num_objects is 9.*from 1 to 8"),
    ],
)
def test_bad_arguments(options, named):
    with pytest.raises(ConfigError, match=named):
        generate_clip(**{"seed": 0, "num_frames": 1, **options})


def test_davis_layout_is_read_back(clips, tmp_path):
    root = tmp_path / "generated"
    write_davis_layout(clips, root)
    sequences = read_davis(root, year=2017, split="val", resolution="480p")
    assert [sequence.name for sequence in sequences] == ["ants", "bees"]
    for sequence, clip in zip(sequences, clips.values(), strict=True):
        assert len(sequence.frames) == len(clip.frames)
        assert sequence.frames[0].name == "00000.jpg"
        assert list(sequence.annotations) == list(range(len(clip.labels)))
        for t, path in enumerate(sequence.frames):
            stored = np.asarray(Image.open(path)).astype(int)
            assert np.abs(stored - clip.frames[t]).mean() < 5
            np.testing.assert_array_equal(read_labels(sequence.annotations[t]), clip.labels[t])


def test_davis_layout_does_not_mix_with_what_is_there(clips, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        write_davis_layout(clips, tmp_path)


def test_davis_layout_needs_a_clip(tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        write_davis_layout({}, tmp_path / "generated")
    assert not (tmp_path / "generated").exists()


def test_davis_layout_has_no_list_until_all_is_there(clips, tmp_path, monkeypatch):
    def full_disk(path, labels):
        if "bees" in path.parts:
            raise OutputError("disk full")

    monkeypatch.setattr(synthetic, "write_labels", full_disk)
    with pytest.raises(OutputError, match="disk full"):
        write_davis_layout(clips, tmp_path / "generated")
    assert not list(tmp_path.rglob("val.txt"))


def test_videos_are_read_back(clips, tmp_path):
    folder = tmp_path / "new" / "videos"
    write_videos(clips, folder)
    for name, clip in clips.items():
        path = folder / f"{name}.mp4"
        info = read_info(path)
        assert (info.num_frames, info.height, info.width) == clip.labels.shape
        assert info.fps == pytest.approx(8)
        stored = np.stack(list(read_frames(path))).astype(int)
        assert np.abs(stored - clip.frames).mean() < 8


def test_videos_stand_beside_others(clips, tmp_path):
    (tmp_path / "mine.mp4").write_bytes(b"mine")
    write_videos({"ants": clips["ants"]}, tmp_path)
    assert (tmp_path / "mine.mp4").read_bytes() == b"mine"
    assert (tmp_path / "ants.mp4").stat().st_size > 0


def scene_of(seed, *, num_objects=3):
    return make_scene(np.random.default_rng(seed), height=96, width=128, num_objects=num_objects)


def painted(actor, color):
    """The actor in a texture of its own: one color for all, or one a point."""
    shape = (*actor.sprite.depth.shape, 3)
    flat = np.ascontiguousarray(np.broadcast_to(color, shape), dtype=np.float32)
    return replace(actor, sprite=Sprite(color=flat, depth=actor.sprite.depth))


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_what_was_painted(seed):
    """Light and shade scale a color but keep its ratios, which name the actor of each pixel."""
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
def test_distractors_wear_an_objects_colors_in_another_pattern(num_objects, monkeypatch):
    looks = []
    original = synthetic.draw_sprite

    def spy(rng, colors, *, pattern, radius):
        looks.append((colors.tobytes(), pattern))
        return original(rng, colors, pattern=pattern, radius=radius)

    monkeypatch.setattr(synthetic, "draw_sprite", spy)
    scene = scene_of(1, num_objects=num_objects)
    looks = looks[-len(scene.actors) :]  # of the layout that was kept
    assert len(set(looks)) == len(looks)
    objects, distractors = looks[:num_objects], looks[num_objects:]
    assert distractors
    assert {colors for colors, _ in distractors} <= {colors for colors, _ in objects}
    assert sorted(a.label for a in scene.actors if a.label) == list(range(1, num_objects + 1))


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(synthetic, "MIN_VISIBLE", 0.6)
    monkeypatch.setattr(synthetic, "MAX_LAYOUTS", 2)
    with pytest.raises(ConfigError, match="3 objects do not fit"):
        scene_of(0)


def test_wave_stays_within_its_amplitude_and_fills_it():
    wave = Wave(np.random.default_rng(0), [3.0, 0.5], period=(20, 30))
    values = np.array([wave.at(t) for t in range(600)])
    assert (np.abs(values) <= [3.0, 0.5]).all()
    assert (np.abs(values).max(axis=0) > [2.5, 0.4]).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_object_is_whole_and_has_all_its_colors(pattern):
    for seed in range(5):
        sprite = draw_sprite(np.random.default_rng(seed), COLORS, pattern=pattern, radius=24.0)
        inside = sprite.depth > 0
        num_parts, _ = cv2.connectedComponents(inside.astype(np.uint8))
        assert num_parts == 2  # outside, and one piece inside
        border = np.concatenate([sprite.depth[[0, -1]].ravel(), sprite.depth[:, [0, -1]].ravel()])
        assert border.max() < -0.02
        shares = np.bincount(sprite.color[inside].argmax(axis=-1), minlength=3) / inside.sum()
        assert shares.min() > 0.04


def test_patterns_differ():
    sprites = [
        draw_sprite(np.random.default_rng(0), COLORS, pattern=pattern, radius=24.0).color
        for pattern in PATTERNS
    ]
    for i, first in enumerate(sprites):
        for second in sprites[i + 1 :]:
            assert (first.argmax(axis=-1) != second.argmax(axis=-1)).mean() > 0.1


def test_ground_shows_the_palette():
    """Every color of the objects comes back in the ground, in hue if not in strength."""
    rng = np.random.default_rng(0)
    palette = sample_palette(rng)
    ground = draw_ground(rng, palette, height=96, width=128)
    assert ground.shape == (144, 192, 3)
    assert 0 <= ground.min() <= ground.max() <= 1
    dull = ground - ground.mean(axis=(0, 1))
    vivid = palette - palette.mean(axis=0)
    closeness = dull @ vivid.T / np.linalg.norm(dull, axis=-1, keepdims=True)
    closeness = closeness / np.linalg.norm(vivid, axis=-1)
    assert ((closeness > 0.9).mean(axis=(0, 1)) > 0.01).all()
