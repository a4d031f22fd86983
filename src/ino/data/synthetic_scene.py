"""Scenes for generated video: who is in them, how all moves, and what a camera sees.

A scene is a textured ground and a few actors. All take their colours from one small palette, so
that raw colour tells little and the pattern around a point tells more; unlabelled distractors wear
the very colours of a labelled object in another pattern. Textures are fixed to what they cover: a
point of an object is the same point in every frame, however it turns, bends and grows.

The camera is ideal here; exposure, blur and noise are in `ino.data.synthetic`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from ino.data.synthetic_textures import (
    PATTERNS,
    REACH,
    Sprite,
    draw_ground,
    draw_palette,
    draw_sprite,
)
from ino.errors import ConfigError

MIN_VISIBLE = 0.015  # part of the first frame that every labelled object covers
MAX_LAYOUTS = 100  # tried before giving up; the first is mostly good
BEND, BEND_FREQUENCY = 0.12, 2.0  # radii, radians a radius
ROUNDNESS = 0.55  # radii from the contour to where an object's surface is flat
LIGHT = (-0.45, -0.6, 0.66)  # direction to it: above on the left, in front of the scene
SHADOW_SHIFT, SHADOW_DARKNESS = 0.14, 0.4  # radii to the right and down, 0..1


class Wave:
    """A smooth function of time that is drawn at random: a slow sine and a weak, faster one."""

    def __init__(
        self,
        rng: np.random.Generator,
        amplitude: Sequence[float] | Float64[np.ndarray, " components"],
        *,
        period: tuple[int, int],
    ) -> None:
        size = (2, len(amplitude))
        self._amplitude = np.asarray(amplitude) * [[0.85], [0.15]]
        self._speed = 2 * np.pi / rng.uniform(*period, size) * [[1.0], [2.6]]
        self._phase = rng.uniform(0, 2 * np.pi, size)

    def at(self, t: int) -> Float64[np.ndarray, " components"]:
        """One value a component at frame t, each within plus and minus its amplitude."""
        return (self._amplitude * np.sin(self._speed * t + self._phase)).sum(axis=0)


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
    """Everything that is drawn; the actors from the farthest to the nearest."""

    height: int
    width: int
    ground: Float32[np.ndarray, "ground_height ground_width 3"]  # 0..1
    actors: tuple[Actor, ...]
    camera: Wave  # x, y in pixels, rotation in radians, logarithm of the zoom
    shake: Wave  # x, y in pixels


def make_scene(rng: np.random.Generator, *, height: int, width: int, num_objects: int) -> Scene:
    """A scene whose labelled objects all cover at least MIN_VISIBLE of the first frame.

    Raises:
        ConfigError: They do not fit, which takes many objects in a very elongated frame.
    """
    palette = draw_palette(rng)
    scene = Scene(
        height=height,
        width=width,
        ground=draw_ground(rng, palette, height=height, width=width),
        actors=(),
        camera=Wave(rng, [0.1 * width, 0.1 * height, 0.08, 0.1], period=(80, 160)),
        shake=Wave(rng, [0.004 * width, 0.004 * height], period=(5, 9)),
    )
    size = math.sqrt(height * width)
    for _ in range(MAX_LAYOUTS):
        cast = _draw_cast(rng, palette, size=size, num_objects=num_objects)
        scene = replace(scene, actors=_place(rng, cast, height=height, width=width))
        _, seen = render(scene, 0)
        areas = np.bincount(seen.ravel(), minlength=num_objects + 1)[1:]
        if areas.min() >= MIN_VISIBLE * seen.size:
            return scene
    raise ConfigError(
        f"{num_objects} objects do not fit side by side in {height}x{width} pixels; give fewer "
        "objects or a less elongated frame"
    )


def _draw_cast(
    rng: np.random.Generator,
    palette: Float32[np.ndarray, "colours 3"],
    *,
    size: float,
    num_objects: int,
) -> list[tuple[int, float, Sprite]]:
    """Label, radius in pixels and look of the labelled objects, then of the distractors."""
    num_distractors = 1 + num_objects // 3
    # (label, whose colours, which pattern): no two of a clip have colours and pattern in common.
    roles = [(i + 1, i, i + i // len(PATTERNS)) for i in range(num_objects)]
    roles += [(0, i, i + 3) for i in range(num_distractors)]
    patterns = rng.permutation(PATTERNS)
    cast = []
    for label, owner, pattern in roles:
        radius = size * rng.uniform(0.33, 0.39) / math.sqrt(len(roles))
        if label == 0:
            radius *= 0.8  # it is to mislead, not to hide the others
        # Neighbours share one colour: the bands of the one are on the body of the other.
        colours = palette[np.arange(2 * owner, 2 * owner + 3) % len(palette)]
        name = str(patterns[pattern % len(patterns)])
        cast.append((label, radius, draw_sprite(rng, colours, pattern=name, radius=radius)))
    return cast


def render(
    scene: Scene, t: int
) -> tuple[Float32[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"]]:
    """The scene at frame t as an ideal camera sees it (0..1), and its labels.

    Colour and label of a pixel are those of what lies under its centre: nothing is blended across
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


def _similarity(turn: float, scale: float) -> Float64[np.ndarray, "2 2"]:
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
    centre = np.linalg.solve(view, actor.home + actor.path.at(t) - offset)
    radius = 1 / math.sqrt(np.linalg.det(matrix))  # pixels of the frame
    height, width = labels.shape
    left, top = np.floor(centre - REACH * radius).astype(int).clip(0, (width, height))
    right, bottom = np.ceil(centre + REACH * radius).astype(int).clip(0, (width, height))
    if left == right or top == bottom:
        return
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    colour, depth = _look(actor, matrix.astype(np.float32), x, y, t)
    inside = depth > 0
    shift = np.array([[1, 0, SHADOW_SHIFT * radius], [0, 1, SHADOW_SHIFT * radius]])
    under = cv2.warpAffine(depth, shift, depth.shape[::-1], borderValue=-REACH)
    part = image[top:bottom, left:right]
    part *= 1 - SHADOW_DARKNESS * np.clip(0.5 + 3 * under, 0, 1)[..., None]
    part[inside] = (colour * _shading(depth, radius)[..., None])[inside].clip(0, 1)
    labels[top:bottom, left:right][inside] = actor.label


def _look(
    actor: Actor, matrix: np.ndarray, x: np.ndarray, y: np.ndarray, t: int
) -> tuple[np.ndarray, np.ndarray]:
    """The actor's colour and depth at offsets x, y (pixels) from its centre.

    Bending is one shear wave along each axis, which is invertible: nothing folds or tears.
    """
    phase_u, phase_v = actor.bend.at(t)
    u = matrix[0, 0] * x + matrix[0, 1] * y
    v = matrix[1, 0] * x + matrix[1, 1] * y
    u = u + BEND * np.sin(BEND_FREQUENCY * v + np.float32(phase_u))
    v = v + BEND * np.sin(BEND_FREQUENCY * u + np.float32(phase_v))
    texel = (len(actor.sprite.depth) - 1) / (2 * REACH)
    u, v = (u + REACH) * texel, (v + REACH) * texel
    colour = cv2.remap(actor.sprite.colour, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    depth = cv2.remap(actor.sprite.depth, u, v, cv2.INTER_LINEAR, borderValue=-REACH)
    return colour, depth


def _shading(
    depth: Float32[np.ndarray, "height width"], radius: float
) -> Float32[np.ndarray, "height width"]:
    """Brightness of a surface that is rounded towards its contour, lit from the upper left."""
    height = ROUNDNESS * np.sqrt(1 - (1 - np.clip(depth / ROUNDNESS, 0, 1)) ** 2)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=radius / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=radius / 8)
    facing = LIGHT[2] - slope_x * LIGHT[0] - slope_y * LIGHT[1]
    return 0.55 + 0.7 * np.clip(facing / np.sqrt(1 + slope_x**2 + slope_y**2), 0, 1)


def _place(
    rng: np.random.Generator,
    cast: Sequence[tuple[int, float, Sprite]],
    *,
    height: int,
    width: int,
) -> tuple[Actor, ...]:
    """Actors in a random order of depth, apart from each other in the first frame."""
    actors: list[Actor] = []
    for i in rng.permutation(len(cast)):
        path = Wave(rng, rng.uniform(0.1, 0.25, 2) * (width, height), period=(60, 120))
        homes = rng.uniform(-0.33, 0.33, (40, 2)) * (width, height)
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
