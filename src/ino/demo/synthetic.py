"""Generated video with exact instance masks, and its DAVIS and mp4 forms on disk.

A scene is a textured ground and a few actors. All take their colors from one small palette, so that
raw color tells little and the pattern around a point tells more; unlabeled distractors have the
colors of a labeled object in another pattern. Textures are fixed to what they cover: a point of an
object is the same point in every frame, however it turns, bends and grows.

Every byte follows from the arguments. It serves the demo, tests and benchmarks; it is no substitute
for footage in training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from ino.data.label_maps import write_labels
from ino.data.video import VideoWriter
from ino.errors import ConfigError
from ino.system import atomic_path, new_folder, write_text

REACH = 2.0  # half the side of a sprite, in radii of its object
TEXELS = 1.5  # samples per pixel in a sprite: enough for an object that comes closer
PATTERNS = ("stripes", "spots", "checks", "rings", "patches")
GROUND_COLOR = 0.42  # how far the ground goes from earth to the colors of the objects
MIN_VISIBLE = 0.015  # part of the first frame that every labeled object covers
MAX_LAYOUTS = 100  # tried before giving up; the first is mostly good
BEND, BEND_FREQUENCY = 0.12, 2.0  # radii, radians per radius
ROUNDNESS = 0.55  # radii from the contour to where an object's surface is flat
LIGHT = (-0.45, -0.6, 0.66)  # direction to it: above on the left, in front of the scene
SHADOW_SHIFT, SHADOW_DARKNESS = 0.14, 0.4  # radii to the right and down, 0..1
BLUR = 0.6  # of the camera, standard deviation in pixels
NOISE = 0.012  # of the camera, standard deviation for a range of 0..1


@dataclass(frozen=True)
class SyntheticClip:
    """Frames, and for each pixel the id of the object seen there (0: ground or distractor)."""

    frames: UInt8[np.ndarray, "num_frames height width 3"]
    labels: UInt8[np.ndarray, "num_frames height width"]


def generate_clip(
    seed: int, *, num_frames: int = 32, height: int = 128, width: int = 192, num_objects: int = 2
) -> SyntheticClip:
    """A clip that is the same, byte for byte, whenever the arguments are the same.

    Frame t does not depend on `num_frames`: a shorter clip is the beginning of a longer one.

    Args:
        seed: names the clip; at least 0.
        num_frames: at least 1; objects move by up to about 3% of the frame's width per frame.
        height: pixels, at least 32.
        width: pixels, at least 32.
        num_objects: labeled objects, 1 to 8, with ids from 1. Each covers at least 1.5% of the
            first frame; later one may be hidden or partly outside.

    Raises:
        ConfigError: an argument is out of range, or so many objects do not fit in such a long and
            narrow frame.
    """
    for name, value, lowest in (
        *(("seed", seed, 0), ("num_frames", num_frames, 1)),
        *(("height", height, 32), ("width", width, 32), ("num_objects", num_objects, 1)),
    ):
        if value < lowest:
            raise ConfigError(f"{name} is {value}; give a whole number of at least {lowest}")
    if num_objects > 8:
        raise ConfigError(f"num_objects is {num_objects}; give a whole number from 1 to 8")
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, height=height, width=width, num_objects=num_objects)
    tint = Wave(rng, [0.05, 0.05, 0.05, 0.1], period=(60, 120))  # of red, green, blue and all
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    labels = np.empty((num_frames, height, width), np.uint8)
    for t in range(num_frames):
        image, labels[t] = render(scene, t)
        *color, light = 1 + tint.at(t)
        image *= (light * np.array(color)).astype(np.float32)
        image = cv2.GaussianBlur(image, (0, 0), BLUR)
        image += NOISE * rng.standard_normal(image.shape, np.float32)
        frames[t] = (image * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return SyntheticClip(frames=frames, labels=labels)


def write_davis_layout(clips: Mapping[str, SyntheticClip], root: Path) -> None:
    """Writes the clips as a data set in the layout of DAVIS-2017, split val.

    Frames are JPEG of quality 95 in JPEGImages/480p/NAME, labels are indexed PNG in
    Annotations/480p/NAME, whatever the clips' size. The list ImageSets/2017/val.txt is written
    last: where it is, all is there.

    Args:
        clips: by name, at least one; a name is a folder's.
        root: a new or empty folder.

    Raises:
        ConfigError: there is no clip.
        OutputError: the folder holds something already or cannot be written to.
    """
    if not clips:
        raise ConfigError("a data set needs at least one clip, and none was given")
    new_folder(root)
    for name, clip in clips.items():
        frames = new_folder(root / "JPEGImages" / "480p" / name)
        annotations = new_folder(root / "Annotations" / "480p" / name)
        for t, (frame, labels) in enumerate(zip(clip.frames, clip.labels, strict=True)):
            with atomic_path(frames / f"{t:05d}.jpg") as temporary:
                Image.fromarray(frame).save(temporary, format="JPEG", quality=95)
            write_labels(annotations / f"{t:05d}.png", labels)
    names = "".join(f"{name}\n" for name in clips)
    write_text(new_folder(root / "ImageSets" / "2017") / "val.txt", names)


def write_videos(clips: Mapping[str, SyntheticClip], folder: Path) -> None:
    """Writes the frames of each clip to `folder`/NAME.mp4, 8 frames per second.

    Other files in the folder stay; each video appears whole or not at all.

    Args:
        clips: by name; a name is a file's, without suffix.
        folder: created where it is missing.

    Raises:
        OutputError: a file cannot be written.
    """
    new_folder(folder, overwrite=True)
    for name, clip in clips.items():
        with VideoWriter(folder / f"{name}.mp4", fps=8.0) as writer:
            for frame in clip.frames:
                writer.write(frame)


class Wave:
    """A smooth random function of time: a slow sine and a weak, faster one."""

    def __init__(
        self,
        rng: np.random.Generator,
        amplitude: Sequence[float] | np.ndarray,
        *,
        period: tuple[int, int],
    ) -> None:
        size = (2, len(amplitude))
        self._amplitude = np.asarray(amplitude) * [[0.85], [0.15]]
        self._speed = 2 * np.pi / rng.uniform(*period, size) * [[1.0], [2.6]]
        self._phase = rng.uniform(0, 2 * np.pi, size)

    def at(self, t: int) -> Float64[np.ndarray, " components"]:
        """One value per component at frame t, each within plus and minus its amplitude."""
        return (self._amplitude * np.sin(self._speed * t + self._phase)).sum(axis=0)


@dataclass(frozen=True)
class Sprite:
    """An object's look in its own coordinates, from -REACH to REACH radii on both axes."""

    color: Float32[np.ndarray, "side side 3"]  # 0..1
    depth: Float32[np.ndarray, "side side"]  # distance to the contour in radii, positive inside


@dataclass(frozen=True)
class Actor:
    """An object in motion; label 0 is a distractor."""

    label: int
    sprite: Sprite
    radius: float  # pixels
    home: Float64[np.ndarray, "2"]  # x, y in pixels from the middle of the ground
    path: Wave  # x, y in pixels from its home
    angle: float  # radians
    pose: Wave  # radians added to the angle, logarithm of the scale
    bend: Wave  # two phases of the bending, radians


@dataclass(frozen=True)
class Scene:
    """Everything that is seen; the actors from the farthest to the nearest."""

    height: int
    width: int
    ground: Float32[np.ndarray, "ground_height ground_width 3"]  # 0..1
    actors: tuple[Actor, ...]
    camera: Wave  # x, y in pixels, rotation in radians, logarithm of the zoom
    shake: Wave  # x, y in pixels


def make_scene(rng: np.random.Generator, *, height: int, width: int, num_objects: int) -> Scene:
    """A scene whose labeled objects all cover at least MIN_VISIBLE of the first frame.

    Raises:
        ConfigError: they do not fit, which takes many objects in a very elongated frame.
    """
    palette = sample_palette(rng)
    scene = Scene(
        height=height,
        width=width,
        ground=draw_ground(rng, palette, height=height, width=width),
        actors=(),
        camera=Wave(rng, [0.1 * width, 0.1 * height, 0.08, 0.1], period=(80, 160)),
        shake=Wave(rng, [0.004 * width, 0.004 * height], period=(5, 9)),
    )
    for _ in range(MAX_LAYOUTS):
        scene = replace(scene, actors=_sample_actors(rng, palette, (width, height), num_objects))
        _, seen = render(scene, 0)
        areas = np.bincount(seen.ravel(), minlength=num_objects + 1)[1:]
        if areas.min() >= MIN_VISIBLE * seen.size:
            return scene
    raise ConfigError(
        f"{num_objects} objects do not fit side by side in {height}x{width} pixels; give fewer "
        "objects or a less elongated frame"
    )


def _sample_actors(
    rng: np.random.Generator, palette: np.ndarray, size: tuple[int, int], num_objects: int
) -> tuple[Actor, ...]:
    """Actors in a random order of depth, apart from each other in the first frame."""
    num_distractors = 1 + num_objects // 3
    # (label, whose colors, which pattern): no two of a clip have colors and pattern in common.
    roles = [(i + 1, i, i + i // len(PATTERNS)) for i in range(num_objects)]
    roles += [(0, i, i + 3) for i in range(num_distractors)]
    patterns = rng.permutation(PATTERNS)
    cast = []
    for label, owner, pattern in roles:
        radius = math.sqrt(math.prod(size)) * rng.uniform(0.33, 0.39) / math.sqrt(len(roles))
        if label == 0:
            radius *= 0.8  # it is to mislead, not to hide the others
        # Neighbors share one color: the bands of the one are on the body of the other.
        colors = palette[np.arange(2 * owner, 2 * owner + 3) % len(palette)]
        name = str(patterns[pattern % len(patterns)])
        cast.append((label, radius, draw_sprite(rng, colors, pattern=name, radius=radius)))

    actors: list[Actor] = []
    for i in rng.permutation(len(cast)):
        path = Wave(rng, rng.uniform(0.1, 0.25, 2) * size, period=(60, 120))
        homes = rng.uniform(-0.33, 0.33, (40, 2)) * size
        others = [actor.home + actor.path.at(0) for actor in actors]
        gaps = [min((math.dist(h + path.at(0), o) for o in others), default=0.0) for h in homes]
        label, radius, sprite = cast[i]
        actors.append(
            Actor(
                label=label,
                sprite=sprite,
                radius=radius,
                home=homes[int(np.argmax(gaps))],
                path=path,
                angle=rng.uniform(0, 2 * np.pi),
                pose=Wave(rng, [rng.uniform(0.3, 0.9), 0.18], period=(55, 120)),
                bend=Wave(rng, [2.5, 2.5], period=(35, 70)),
            )
        )
    return tuple(actors)


def render(
    scene: Scene, t: int
) -> tuple[Float32[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"]]:
    """The scene at frame t as an ideal camera sees it (0..1), and its labels.

    Color and label of a pixel are those of what lies under its center: nothing is blended across
    a contour, so the labels are exact.
    """
    pan_x, pan_y, turn, zoom = scene.camera.at(t)
    view = _similarity(turn, math.exp(zoom))
    middle = np.array([scene.width - 1, scene.height - 1]) / 2
    offset = np.array([pan_x, pan_y]) + scene.shake.at(t) - view @ middle
    ground_middle = np.array([scene.ground.shape[1] - 1, scene.ground.shape[0] - 1]) / 2
    image = cv2.warpAffine(
        scene.ground,
        np.column_stack([view, offset + ground_middle]),
        (scene.width, scene.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    labels = np.zeros((scene.height, scene.width), np.uint8)
    for actor in scene.actors:
        _paint(image, labels, actor, t, view=view, offset=offset)
    return image, labels


def _similarity(turn: float, scale: float) -> np.ndarray:
    cosine, sine = scale * math.cos(turn), scale * math.sin(turn)
    return np.array([[cosine, -sine], [sine, cosine]])


def _paint(
    image: np.ndarray,
    labels: np.ndarray,
    actor: Actor,
    t: int,
    *,
    view: np.ndarray,
    offset: np.ndarray,
) -> None:
    """Draws an actor and its shadow over what is there; `view` and `offset` map pixel to ground."""
    swing, growth = actor.pose.at(t)
    own = _similarity(-actor.angle - swing, math.exp(-growth) / actor.radius)
    matrix = own @ view  # pixel of the frame -> radii of the actor
    center = np.linalg.solve(view, actor.home + actor.path.at(t) - offset)
    radius = 1 / math.sqrt(np.linalg.det(matrix))  # pixels of the frame
    height, width = labels.shape
    left, top = np.floor(center - REACH * radius).astype(int).clip(0, (width, height))
    right, bottom = np.ceil(center + REACH * radius).astype(int).clip(0, (width, height))
    if left == right or top == bottom:
        return
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    x, y = x - np.float32(center[0]), y - np.float32(center[1])
    color, depth = _look(actor, matrix.astype(np.float32), x, y, t)
    inside = depth > 0
    shift = np.array([[1, 0, SHADOW_SHIFT * radius], [0, 1, SHADOW_SHIFT * radius]])
    under = cv2.warpAffine(depth, shift, depth.shape[::-1], borderValue=-REACH)
    part = image[top:bottom, left:right]
    part *= 1 - SHADOW_DARKNESS * np.clip(0.5 + 3 * under, 0, 1)[..., None]
    part[inside] = (color * _shading(depth, radius)[..., None])[inside].clip(0, 1)
    labels[top:bottom, left:right][inside] = actor.label


def _look(
    actor: Actor, matrix: np.ndarray, x: np.ndarray, y: np.ndarray, t: int
) -> tuple[np.ndarray, np.ndarray]:
    """The actor's color and depth at offsets x, y (pixels) from its center.

    Bending is one shear wave along each axis, which is invertible: nothing folds or tears.
    """
    phase_u, phase_v = actor.bend.at(t)
    u = matrix[0, 0] * x + matrix[0, 1] * y
    v = matrix[1, 0] * x + matrix[1, 1] * y
    u = u + BEND * np.sin(BEND_FREQUENCY * v + np.float32(phase_u))
    v = v + BEND * np.sin(BEND_FREQUENCY * u + np.float32(phase_v))
    texel = (len(actor.sprite.depth) - 1) / (2 * REACH)
    u, v = (u + REACH) * texel, (v + REACH) * texel
    color = cv2.remap(actor.sprite.color, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    depth = cv2.remap(actor.sprite.depth, u, v, cv2.INTER_LINEAR, borderValue=-REACH)
    return color, depth


def _shading(depth: np.ndarray, radius: float) -> np.ndarray:
    """Brightness of a surface that is rounded towards its contour, lit from the upper left."""
    height = ROUNDNESS * np.sqrt(1 - (1 - np.clip(depth / ROUNDNESS, 0, 1)) ** 2)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=radius / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=radius / 8)
    facing = LIGHT[2] - slope_x * LIGHT[0] - slope_y * LIGHT[1]
    return 0.55 + 0.7 * np.clip(facing / np.sqrt(1 + slope_x**2 + slope_y**2), 0, 1)


def sample_palette(rng: np.random.Generator) -> Float32[np.ndarray, "colors 3"]:
    """Five colors of well spread hues, muted enough to pass for paint, earth or fur."""
    hue = (rng.uniform(0, 360) + np.arange(5) * 72 + rng.uniform(-20, 20, 5)) % 360
    value = rng.permutation(np.linspace(0.3, 0.95, 5))
    saturation = rng.uniform(0.35, 0.75, 5)
    hsv = np.stack([rng.permutation(hue), saturation, value], axis=-1).astype(np.float32)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def draw_sprite(
    rng: np.random.Generator, colors: Float32[np.ndarray, "3 3"], *, pattern: str, radius: float
) -> Sprite:
    """A body patterned in the first two colors, with two to four limbs in bands of the third.

    Args:
        rng: decides the shape and the texture.
        colors: RGB, 0..1.
        pattern: one of PATTERNS.
        radius: of the body in pixels of the frame; sets how finely it is drawn.
    """
    side = 2 * math.ceil(REACH * radius * TEXELS)
    axis = np.linspace(-REACH, REACH, side, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    angle = np.arctan2(y, x)
    depth = 1 - np.hypot(x, y)
    for k in (2, 3, 4):
        height, phase = 0.12 * float(rng.uniform(-1, 1)), float(rng.uniform(0, 2 * np.pi))
        depth += height * np.cos(k * angle + phase)
    color = _mix(colors[0], colors[1], _pattern(rng, pattern, x, y))
    num_limbs = int(rng.integers(2, 5))
    start = rng.uniform(0, 2 * np.pi)
    for limb in range(num_limbs):
        turn = start + (limb + rng.uniform(-0.25, 0.25)) * 2 * math.pi / num_limbs
        along, across = _turned(x, y, turn)
        length, thickness = rng.uniform(1.2, 1.5), rng.uniform(0.24, 0.36)
        limb_depth = float(thickness) - np.hypot(along - along.clip(0.7, float(length)), across)
        bands = _mix(colors[2], colors[limb % 2], np.sin(15 * along) - 0.3)
        color = np.where((limb_depth > np.maximum(depth, 0))[..., None], bands, color)
        depth = np.maximum(depth, limb_depth)
    grain = 1 + 0.1 * _noise(rng, side, side, cell=0.4 * side / (2 * REACH), octaves=4)
    return Sprite(color=np.clip(color * grain[..., None], 0, 1), depth=depth)


def draw_ground(
    rng: np.random.Generator,
    palette: Float32[np.ndarray, "colors 3"],
    *,
    height: int,
    width: int,
) -> Float32[np.ndarray, "ground_height ground_width 3"]:
    """Grainy blots in the palette's colors dulled by earth, half as large again as the frame."""
    earth = np.float32(rng.uniform(0.2, 0.32)) * np.array([1, 0.94, 0.85], np.float32)
    rows, columns = 3 * height // 2, 3 * width // 2
    side = math.sqrt(height * width)
    blots = [_noise(rng, rows, columns, cell=0.4 * side, octaves=4) for _ in palette]
    weights = np.exp(4 * np.stack(blots, axis=-1))
    weights /= weights.sum(axis=-1, keepdims=True)
    color = weights @ (earth + GROUND_COLOR * (palette - earth))
    grain = 1 + 0.06 * _noise(rng, rows, columns, cell=0.1 * side, octaves=4)
    return np.clip(color * grain[..., None], 0, 1)


def _pattern(rng: np.random.Generator, name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Positive where the second color goes; x and y in radii."""
    noise = _noise(rng, *x.shape, cell=0.35 * len(x) / (2 * REACH), octaves=2)
    speed = 2 * math.pi / rng.uniform(0.6, 0.85)
    along, across = _turned(x, y, rng.uniform(0, np.pi))
    u, v = speed * along + 0.4 * noise, speed * across + 0.4 * noise
    match name:
        case "stripes":
            return np.sin(u)
        case "spots":
            return np.sin(u) + np.sin(v) - 0.5
        case "checks":
            return 2 * np.sin(0.7 * u) * np.sin(0.7 * v)
        case "rings":
            return np.sin(speed * np.hypot(x, y) + 0.6 * noise)
    return noise


def _noise(
    rng: np.random.Generator, height: int, width: int, *, cell: float, octaves: int
) -> Float32[np.ndarray, "height width"]:
    """Smooth noise of mean 0 and deviation about 1, its widest bumps `cell` pixels apart."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        step = cell / 2**octave
        shape = (math.ceil(height / step) + 2, math.ceil(width / step) + 2)
        bumps = rng.standard_normal(shape, np.float32) / 1.6**octave
        total += cv2.resize(bumps, (width, height), interpolation=cv2.INTER_CUBIC)
    return total


def _mix(first: np.ndarray, second: np.ndarray, part: np.ndarray) -> np.ndarray:
    """`first` where `part` is negative, `second` where it is positive, softly."""
    return first + (second - first) * (0.5 + 0.5 * np.tanh(6 * part))[..., None]


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along a direction, and across it."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x
