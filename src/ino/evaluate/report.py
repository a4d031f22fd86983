"""The page of a comparison: scores, film strips, features and curves in one HTML file.

What was compared and why is told by the caller; the numbers in print are in ino.evaluate.tables.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ino.data.frame_folder import image_size, read_image
from ino.data.label_png import read_labels
from ino.data.vos import VideoSequence
from ino.evaluate import page
from ino.evaluate.davis import DavisScores
from ino.evaluate.figures import curve_svg
from ino.evaluate.overlay import draw_overlay, film_strip
from ino.evaluate.page import Strip
from ino.files import write_text

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
        colours: name of a network to an image a frame (see `figures.feature_colours`).
    """
    rows = [Strip("Frame", film_strip([frames]))]
    for name, images in colours.items():
        fitted = [
            np.asarray(Image.fromarray(image).resize(frame.shape[1::-1], Image.Resampling.NEAREST))
            for image, frame in zip(images, frames, strict=True)
        ]
        rows.append(Strip(name, film_strip([fitted])))
    return page.strips(rows, columns=["" for _ in frames], lossless=True)
