"""Figures of a report: features as colours, and curves of training as SVG. Pure functions.

Curves are drawn by hand, for an SVG of a few kilobytes stays sharp on every screen, follows the
page's colours and needs no plotting library.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 10, 24
CLIPPED = (2.0, 98.0)
"""Percentiles of a component that become 0 and 255."""


def feature_colours(
    maps: Sequence[Float[np.ndarray, "_ _ dim"]],
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """One RGB image a feature map: the first three principal components of all maps together.

    As the projection is shared, equal colours are equal features, in one map and across maps. The
    sign of a component is that which makes its largest coefficient positive.

    Args:
        maps: of one backbone, at least 3 dimensions; sizes may differ.
    """
    tokens = np.concatenate([one.reshape(-1, one.shape[-1]) for one in maps]).astype(np.float64)
    mean = tokens.mean(axis=0)
    covariance = np.cov(tokens, rowvar=False)
    axes = np.linalg.eigh(covariance).eigenvectors[:, :-4:-1]  # of the three largest eigenvalues
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(np.take_along_axis(axes, largest[None], axis=0) < 0, -1, 1)
    projected = (tokens - mean) @ axes
    low, high = np.percentile(projected, CLIPPED, axis=0)
    scaled = (projected - low) / np.where(high > low, high - low, 1)
    colours = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
    sizes = [one.shape[0] * one.shape[1] for one in maps]
    parts = np.split(colours, np.cumsum(sizes)[:-1])
    return [part.reshape(*one.shape[:2], 3) for part, one in zip(parts, maps, strict=True)]


def curve_svg(
    steps: Sequence[int] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    *,
    name: str,
    window: int = 9,
) -> str:
    """A line chart as SVG: the values, pale, and their running median, strong.

    Args:
        steps: where the values are, increasing; at least one.
        values: finite numbers.
        name: what is drawn, for those who hear the page.
        window: values that a running median looks at.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    smooth = running_median(y, window=window)
    ticks = nice_ticks(float(y.min()), float(y.max()))
    low, high = min(ticks[0], y.min()), max(ticks[-1], y.max())
    across = LEFT + (x - x[0]) / max(x[-1] - x[0], 1) * (WIDTH - LEFT - RIGHT)

    def down(value: np.ndarray | float) -> np.ndarray:
        return TOP + (high - np.asarray(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{tick:g}</text>'
        for tick, at in zip(ticks, down(np.array(ticks)), strict=True)
    )
    ends = "".join(
        f'<text class="tick" x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{label}</text>'
        for at, anchor, label in (
            (LEFT, "start", f"step {x[0]:g}"),
            (WIDTH - RIGHT, "end", f"{x[-1]:g}"),
        )
    )
    summary = f"{name}: {smooth[0]:.2f} at step {x[0]:g}, {smooth[-1]:.2f} at step {x[-1]:g}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{summary}">{grid}{ends}'
        f'<polyline class="raw" points="{_points(across, down(y))}"/>'
        f'<polyline class="smooth" points="{_points(across, down(smooth))}"/></svg>'
    )


def running_median(
    values: Float[np.ndarray, " steps"], *, window: int
) -> Float[np.ndarray, " steps"]:
    """The median of the up to `window` values around each value; fewer at the ends."""
    half = window // 2
    return np.array(
        [np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    )


def nice_ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """About `count` round numbers that enclose the range, in equal steps of 1, 2 or 5."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [round(step * number, 10) for number in range(first, last + 1)]


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
