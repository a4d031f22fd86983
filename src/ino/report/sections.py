"""Figures of a report: features as colours, and curves of training as SVG. Pure functions.

Curves are drawn by hand, for an SVG of a few kilobytes stays sharp on every screen, follows the
page's colours and needs no plotting library.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from ino.data.davis import VideoSequence
from ino.data.label_maps import read_labels
from ino.data.video import image_size, read_image
from ino.overlay import draw_overlay, film_strip
from ino.report import page
from ino.report.page import Strip
from ino.system import write_text
from ino.tasks.davis import DavisScores

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 10, 24
CLIPPED = (2.0, 98.0)
"""Percentiles of a component that become 0 and 255."""


def feature_colors(
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


# The page of a comparison: scores, film strips, features and curves in one HTML file.
#
# What was compared and why is told by the caller; the numbers in print are in ino.tasks.davis.


NUM_SHOWN = 5
"""Frames of a film strip."""

TERMS = {
    "loss": "the sum that is minimised",
    "g2g": "a frame's crop from another frame's crop",
    "l2g": "the same from small crops",
    "masked": "hidden patches from visible ones",
    "affinity": "which patches of two frames belong together",
}
"""Terms of the objective in the log of a run, in the order of the page, and what each asks for."""


@dataclass(frozen=True)
class Method:
    """One row of a comparison: its name, what it is, its scores, and the folder of its masks."""

    name: str
    about: str
    scores: DavisScores
    predictions: Path


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading and markup."""

    title: str
    parts: Sequence[str]


def write_report(
    path: Path, *, title: str, lead: Sequence[str], sections: Sequence[Section]
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: where the file will be; an existing one is replaced.
        title: of the page.
        lead: markup that comes first.
        sections: follow in this order.

    Raises:
        OutputError: the file cannot be written.
    """
    parts = [*lead]
    for section in sections:
        parts += [page.heading(section.title), *section.parts]
    write_text(path, page.page(title, parts))


def score_table(methods: Sequence[Method]) -> str:
    """A row a method, J&F, J and F in percent; the method with the best J&F is set apart."""
    rows = [
        [
            page.text_cell(method.name, remark=method.about),
            page.bar_cell(method.scores.jf_mean),
            page.number_cell(f"{100 * method.scores.j_mean:.1f}"),
            page.number_cell(f"{100 * method.scores.f_mean:.1f}"),
        ]
        for method in methods
    ]
    return page.table(["", "J&F", "J", "F"], rows, chosen=methods.index(best_method(methods)))


def best_method(methods: Sequence[Method]) -> Method:
    """The one with the best J&F, the first of equals."""
    return max(methods, key=lambda method: method.scores.jf_mean)


def telling_sequences(methods: Sequence[Method]) -> dict[str, str]:
    """The best, the median and the worst sequence of the best method: name to what it is.

    Fewer if there are fewer.
    """
    names = list(best_method(methods).scores.by_sequence())
    chosen: dict[str, str] = {}
    for name, what in (
        (names[0], "Best"),
        (names[-1], "Worst"),
        (names[len(names) // 2], "Median"),
    ):
        chosen.setdefault(name, what)
    return {name: chosen[name] for name in names if name in chosen}


def shown_frames(num_frames: int, *, count: int = NUM_SHOWN) -> list[int]:
    """Up to `count` frame numbers, evenly from the first frame to the last but one.

    The last frame is not scored, so it is not shown.
    """
    last = max(num_frames - 2, 0)
    return sorted({round(last * number / max(count - 1, 1)) for number in range(count)})


def sequence_strips(
    sequence: VideoSequence, methods: Sequence[Method], *, zoom: int = 1
) -> tuple[list[int], list[Strip]]:
    """The numbers of the frames shown, and strips of the frames, the truth and each method.

    Args:
        sequence: with all its annotations.
        methods: whose masks are drawn, with their J&F of this sequence.
        zoom: enlarges frames before masks are drawn, for contours that stay fine.
    """
    numbers = shown_frames(len(sequence.frames))
    size = image_size(sequence.frames[0])
    frames = [_enlarged(read_image(sequence.frames[t], size=size), zoom) for t in numbers]
    truth = [sequence.annotations[t] for t in numbers]
    rows = [Strip("Frame", film_strip([frames])), Strip("Truth", _drawn(frames, truth, zoom))]
    for method in methods:
        folder = method.predictions / sequence.name
        masks = [folder / f"{sequence.frames[t].stem}.png" for t in numbers]
        score = f"{100 * method.scores.by_sequence()[sequence.name]:.1f}"
        rows.append(Strip(method.name, _drawn(frames, masks, zoom), remark=score))
    return numbers, rows


def _drawn(frames: Sequence[np.ndarray], masks: Sequence[Path], zoom: int) -> np.ndarray:
    labels = [_enlarged(read_labels(path), zoom) for path in masks]
    return film_strip([[draw_overlay(*pair) for pair in zip(frames, labels, strict=True)]])


def _enlarged(image: np.ndarray, zoom: int) -> np.ndarray:
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)


def film_section(sequences: Sequence[VideoSequence], methods: Sequence[Method]) -> list[str]:
    """Film strips of the best, the median and the worst sequence (see `telling_sequences`)."""
    by_name = {sequence.name: sequence for sequence in sequences}
    parts = []
    for name, what in telling_sequences(methods).items():
        numbers, rows = sequence_strips(by_name[name], methods)
        columns = [f"frame {t}" if t else "frame 0, given" for t in numbers]
        parts += [page.heading(f"{what}: {name}", level=3), page.strips(rows, columns=columns)]
    return parts


def labelled_picture(rows: Sequence[Strip], *, gap: int = 8) -> np.ndarray:
    """All strips below each other, their names written beside them on white."""
    font = ImageFont.load_default(size=max(12, rows[0].image.shape[0] // 9))
    margin = round(max(font.getlength(row.name) for row in rows)) + 3 * gap
    height = sum(row.image.shape[0] + gap for row in rows) - gap
    width = margin + max(row.image.shape[1] for row in rows)
    canvas = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for row in rows:
        middle = top + row.image.shape[0] // 2
        draw.text((gap, middle), row.name, fill="black", font=font, anchor="lm")
        canvas.paste(Image.fromarray(row.image), (margin, top))
        top += row.image.shape[0] + gap
    return np.asarray(canvas)


def curve_section(log: Path) -> list[str]:
    """A chart of each term of a run's log; steps where it is 0 or no number are left out."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figures = []
    for name, about in TERMS.items():
        found = [(line["step"], line[name]) for line in lines if line[name]]
        if found:
            steps, values = zip(*found, strict=True)
            caption = f"<figcaption>{name}<small>{about}</small></figcaption>"
            figures.append(f"<figure>{caption}{curve_svg(steps, values, name=name)}</figure>")
    return [f'<div class="curves">{"".join(figures)}</div>']


def feature_section(
    frames: Sequence[np.ndarray], colours: Mapping[str, Sequence[np.ndarray]]
) -> str:
    """Frames, and below them each network's features as colours, enlarged to the frames' size.

    Args:
        frames: RGB.
        colours: name of a network to an image a frame (see `figures.feature_colors`).
    """
    rows = [Strip("Frame", film_strip([frames]))]
    for name, images in colours.items():
        fitted = [
            np.asarray(Image.fromarray(image).resize(frame.shape[1::-1], Image.Resampling.NEAREST))
            for image, frame in zip(images, frames, strict=True)
        ]
        rows.append(Strip(name, film_strip([fitted])))
    return page.strips(rows, columns=["" for _ in frames], lossless=True)
