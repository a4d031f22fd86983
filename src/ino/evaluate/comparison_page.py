"""Pictures of a comparison: strips of frames with masks, a scatter of J&F, and the page of both."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ino.data.frame_folder import image_size, read_image
from ino.data.label_png import read_labels
from ino.data.vos import VideoSequence
from ino.evaluate import page
from ino.evaluate.comparison import Comparison, Gap, mean_j, telling_frames
from ino.evaluate.overlay import draw_overlay, film_strip
from ino.evaluate.page import Strip
from ino.evaluate.report import labelled_picture

HEIGHT = 180
"""Pixels of each frame of a strip."""

INK, ACCENT, RIVAL, PALE = "#1d2329", "#0b7a75", "#b4532a", "#9aa5b0"


def comparison_strips(
    sequence: VideoSequence, folders: dict[str, Path], *, gap: Gap, count: int
) -> list[Strip]:
    """Strips of the truth and of each method, with the number of each frame in its corner.

    Args:
        sequence: with all its annotations.
        folders: of the predictions, by the method's name; the first two are A and B.
        gap: J&F of this sequence.
        count: frames to show (see `telling_frames`).
    """
    masks = {name: folder / sequence.name for name, folder in folders.items()}
    numbers = _shown(sequence, list(masks.values()), count=count)
    size = image_size(sequence.frames[0])
    frames = [read_image(sequence.frames[number], size=size) for number in numbers]
    truth = [sequence.annotations.get(number) for number in numbers]
    drawn = [_overlaid(frame, path) for frame, path in zip(frames, truth, strict=True)]
    drawn = [_numbered(image, number) for image, number in zip(drawn, numbers, strict=True)]
    rows = [Strip("Truth", film_strip([drawn], height=HEIGHT))]
    for (name, folder), score in zip(masks.items(), (gap.a, gap.b), strict=True):
        paths = [folder / f"{sequence.frames[number].stem}.png" for number in numbers]
        images = [_overlaid(frame, path) for frame, path in zip(frames, paths, strict=True)]
        strip = film_strip([images], height=HEIGHT)
        rows.append(Strip(name, strip, remark=f"J&F {100 * score:.1f}"))
    return rows


def strips_picture(rows: Sequence[Strip]) -> UInt8[np.ndarray, "height width 3"]:
    """The strips below each other with names and scores beside them."""
    named = [Strip(" ".join([row.name, row.remark]).strip(), row.image) for row in rows]
    return labelled_picture(named)


def scatter_picture(comparison: Comparison, *, num_named: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """J&F of each sequence by B (across) and A (up), with the diagonal; outliers have names.

    Args:
        comparison: of two methods.
        num_named: sequences at either end of the differences that get their names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.plot([0, 100], [0, 100], color=PALE, linewidth=1, zorder=1)
    for gap in comparison.gaps:
        colour = ACCENT if gap.difference >= 0 else RIVAL
        axes.scatter(100 * gap.b, 100 * gap.a, s=34, color=colour, linewidths=0, zorder=3)
    named = list(itertools.chain(*comparison.ends(num_named)))
    for gap, height in zip(named, _apart([100 * gap.a for gap in named], 3.4), strict=True):
        _name_point(axes, gap, height=height)
    axes.set_xlabel(f"J&F of {comparison.name_b}, %", color=INK)
    axes.set_ylabel(f"J&F of {comparison.name_a}, %", color=INK)
    ahead = sum(gap.difference > 0 for gap in comparison.gaps)
    axes.set_title(
        f"{comparison.name_a} is ahead in {ahead} of {len(comparison.gaps)} sequences",
        fontsize=11,
        color=INK,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e9ec", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    written = io.BytesIO()
    FigureCanvasAgg(figure).print_png(written)
    return np.asarray(Image.open(written).convert("RGB"))


def comparison_page(
    comparison: Comparison,
    *,
    scatter: np.ndarray,
    strips: Sequence[Sequence[tuple[Gap, Sequence[Strip]]]],
    notes: Sequence[str],
) -> str:
    """The whole HTML document.

    Args:
        comparison: of two methods.
        scatter: of `scatter_picture`.
        strips: of the sequences that are best for A, and of those that are best for B.
        notes: sentences below the table of means.
    """
    a, b = comparison.name_a, comparison.name_b
    head, *rows = comparison.lines()
    parts = [_table(head, rows[:3]), *(page.paragraph(note, soft=True) for note in notes)]
    image = f'<img src="{page.data_uri(scatter, lossless=True)}" alt="J&amp;F of each sequence"'
    style = "display:block;width:100%;max-width:36rem;height:auto;border-radius:8px"
    parts += [page.heading("Every sequence"), f'{image} style="{style}">']
    for name, other, shown in zip((a, b), (b, a), strips, strict=True):
        if shown:
            parts.append(page.heading(f"Best for {name} against {other}"))
        for gap, images in shown:
            leader = a if gap.difference >= 0 else b
            title = f"{gap.sequence}: {leader} ahead by {100 * abs(gap.difference):.1f} points"
            parts += [page.heading(title, level=3), page.strips(images, columns=[""])]
    parts += [page.heading("All scores"), _table(head, rows[3:])]
    return page.page(f"{a} against {b}", parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[page.text_cell(name), *map(page.number_cell, values)] for name, *values in rows]
    return page.table(head, cells)


def _shown(sequence: VideoSequence, folders: Sequence[Path], *, count: int) -> list[int]:
    """Numbers of the frames to show; only annotated ones tell how far the methods differ."""
    differences = np.zeros(len(sequence.frames))
    for number, path in sequence.annotations.items():
        truth = read_labels(path)
        stem = f"{sequence.frames[number].stem}.png"
        first, second = (mean_j(read_labels(folder / stem), truth) for folder in folders)
        differences[number] = first - second
    return telling_frames(differences, count=count)


def _overlaid(frame: np.ndarray, path: Path | None) -> np.ndarray:
    """The frame and its masks at the height of a strip, so that outlines stay one pixel wide."""
    small = film_strip([[frame]], height=HEIGHT)
    if path is None:
        return small
    size = (small.shape[1], small.shape[0])
    labels = cv2.resize(read_labels(path), size, interpolation=cv2.INTER_NEAREST)
    return draw_overlay(small, labels)


def _numbered(image: np.ndarray, number: int) -> np.ndarray:
    """The image with a number in its upper right corner."""
    small = image.copy()
    text, font, scale = str(number), cv2.FONT_HERSHEY_SIMPLEX, 0.6
    (wide, high), _ = cv2.getTextSize(text, font, scale, 1)
    left = max(0, small.shape[1] - wide - 10)
    small[: high + 12, left:] //= 3
    place = (left + 5, high + 6)
    cv2.putText(small, text, place, font, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return small


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Heights moved up so far that names at them do not cover each other."""
    moved = list(heights)
    last = -np.inf
    for index in np.argsort(heights, kind="stable"):
        moved[index] = last = max(moved[index], last + least)
    return moved


def _name_point(axes: Any, gap: Gap, *, height: float) -> None:
    """Writes a sequence's name beside its point: left of it where A is ahead, else right."""
    across = 100 * gap.b
    side = -1 if gap.difference > 0 else 1
    if not 25 < across < 75:  # there it would leave the picture
        side = 1 if across < 50 else -1
    axes.annotate(
        f"{gap.sequence} {100 * gap.difference:+.1f}",
        xy=(across, 100 * gap.a),
        xytext=(across + 2.2 * side, height),
        ha="left" if side > 0 else "right",
        va="center",
        fontsize=8,
        color=INK,
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
        arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "shrinkA": 0},
    )
