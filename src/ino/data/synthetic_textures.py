"""Textures for generated video: a palette, patterned objects with limbs, and mottled ground.

All are drawn from one random generator, in floats from 0 to 1, and know nothing of time.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32

REACH = 2.0  # half the side of a sprite, in radii of its object
TEXELS = 1.5  # samples a pixel in a sprite: enough for an object that comes closer
GROUND_COLOUR = 0.42  # how far the ground goes from earth to the colours of the objects
PATTERNS = ("stripes", "spots", "checks", "rings", "patches")


@dataclass(frozen=True)
class Sprite:
    """An object's look in its own coordinates, from -REACH to REACH radii on both axes."""

    colour: Float32[np.ndarray, "side side 3"]  # 0..1
    depth: Float32[np.ndarray, "side side"]  # distance to the contour in radii, positive inside


def draw_palette(rng: np.random.Generator) -> Float32[np.ndarray, "colours 3"]:
    """Five colours of well spread hues, muted enough to pass for paint, earth or fur."""
    hue = (rng.uniform(0, 360) + np.arange(5) * 72 + rng.uniform(-20, 20, 5)) % 360
    value = rng.permutation(np.linspace(0.3, 0.95, 5))
    saturation = rng.uniform(0.35, 0.75, 5)
    hsv = np.stack([rng.permutation(hue), saturation, value], axis=-1).astype(np.float32)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


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


def _mix(
    first: np.ndarray, second: np.ndarray, part: np.ndarray
) -> Float32[np.ndarray, "height width 3"]:
    """`first` where `part` is negative, `second` where it is positive, softly."""
    return first + (second - first) * (0.5 + 0.5 * np.tanh(6 * part))[..., None]


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along a direction, and across it."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def _draw_pattern(
    rng: np.random.Generator, name: str, x: np.ndarray, y: np.ndarray
) -> Float32[np.ndarray, "side side"]:
    """Positive where the second colour goes; x and y in radii."""
    noise = _noise(rng, *x.shape, cell=0.35 * len(x) / (2 * REACH), octaves=2)
    speed = 2 * math.pi / rng.uniform(0.6, 0.85)
    along, across = _turned(x, y, rng.uniform(0, np.pi))
    u = speed * along + 0.4 * noise
    v = speed * across + 0.4 * noise
    if name == "stripes":
        return np.sin(u)
    if name == "spots":
        return np.sin(u) + np.sin(v) - 0.5
    if name == "checks":
        return 2 * np.sin(0.7 * u) * np.sin(0.7 * v)
    if name == "rings":
        return np.sin(speed * np.hypot(x, y) + 0.6 * noise)
    return noise


def draw_sprite(
    rng: np.random.Generator, colours: Float32[np.ndarray, "3 3"], *, pattern: str, radius: float
) -> Sprite:
    """A body patterned in the first two colours, with two to four limbs in bands of the third.

    Args:
        rng: Decides the shape and the texture.
        colours: RGB, 0..1.
        pattern: One of PATTERNS.
        radius: Of the body in pixels of the frame; sets how finely it is drawn.
    """
    side = 2 * math.ceil(REACH * radius * TEXELS)
    axis = np.linspace(-REACH, REACH, side, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    angle = np.arctan2(y, x)
    depth = 1 - np.hypot(x, y)
    for k in (2, 3, 4):
        height, phase = 0.12 * float(rng.uniform(-1, 1)), float(rng.uniform(0, 2 * np.pi))
        depth += height * np.cos(k * angle + phase)
    colour = _mix(colours[0], colours[1], _draw_pattern(rng, pattern, x, y))
    num_limbs = int(rng.integers(2, 5))
    start = rng.uniform(0, 2 * np.pi)
    for limb in range(num_limbs):
        turn = start + (limb + rng.uniform(-0.25, 0.25)) * 2 * math.pi / num_limbs
        along, across = _turned(x, y, turn)
        length, thickness = rng.uniform(1.2, 1.5), rng.uniform(0.24, 0.36)
        limb_depth = float(thickness) - np.hypot(along - along.clip(0.7, float(length)), across)
        bands = _mix(colours[2], colours[limb % 2], np.sin(15 * along) - 0.3)
        colour = np.where((limb_depth > np.maximum(depth, 0))[..., None], bands, colour)
        depth = np.maximum(depth, limb_depth)
    grain = 1 + 0.1 * _noise(rng, side, side, cell=0.4 * side / (2 * REACH), octaves=4)
    return Sprite(colour=np.clip(colour * grain[..., None], 0, 1), depth=depth)


def draw_ground(
    rng: np.random.Generator,
    palette: Float32[np.ndarray, "colours 3"],
    *,
    height: int,
    width: int,
) -> Float32[np.ndarray, "ground_height ground_width 3"]:
    """Grainy blots in the palette's colours dulled by earth, half as large again as the frame."""
    earth = np.float32(rng.uniform(0.2, 0.32)) * np.array([1, 0.94, 0.85], np.float32)
    rows, columns = 3 * height // 2, 3 * width // 2
    side = math.sqrt(height * width)
    blots = [_noise(rng, rows, columns, cell=0.4 * side, octaves=4) for _ in palette]
    weights = np.exp(4 * np.stack(blots, axis=-1))
    weights /= weights.sum(axis=-1, keepdims=True)
    colour = weights @ (earth + GROUND_COLOUR * (palette - earth))
    grain = 1 + 0.06 * _noise(rng, rows, columns, cell=0.1 * side, octaves=4)
    return np.clip(colour * grain[..., None], 0, 1)
