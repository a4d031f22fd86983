"""Two sets of masks compared sequence by sequence: which differ most, and where. Only numbers."""

import io
import itertools
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ino.data.davis import VideoSequence, read_davis
from ino.data.label_maps import VOID, read_labels
from ino.data.video import image_size, read_image
from ino.errors import ConfigError, MaskError, OutputError
from ino.overlay import draw_overlay, film_strip
from ino.report import page
from ino.report.page import Strip
from ino.report.sections import labelled_picture
from ino.system import atomic_path, new_folder, write_text
from ino.tables import markdown
from ino.tasks.davis import DavisScores, ObjectScore, read_davis_scores


@dataclass(frozen=True)
class Gap:
    """J&F of one sequence by two methods, fractions."""

    sequence: str
    a: float
    b: float

    @property
    def difference(self) -> float:
        """Above 0 where A is ahead."""
        return self.a - self.b


@dataclass(frozen=True)
class Comparison:
    """Two methods on the sequences that both have.

    Attributes:
        name_a: of the first method.
        name_b: of the second.
        a: its scores, of the common sequences only.
        b: the same of the second.
        gaps: from the sequence in which A is furthest ahead to that in which B is.
        left_out: sequences that only one of them has.
    """

    name_a: str
    name_b: str
    a: DavisScores
    b: DavisScores
    gaps: tuple[Gap, ...]
    left_out: tuple[str, ...]

    def ends(self, count: int) -> tuple[list[Gap], list[Gap]]:
        """Up to `count` sequences that are best for A against B, and others that are best for B."""
        first = list(self.gaps[:count])
        return first, list(reversed(self.gaps[max(len(first), len(self.gaps) - count) :]))

    def notes(self) -> list[str]:
        """What the means leave out."""
        if not self.left_out:
            return []
        return [
            f"Scored in one of the two only, and left out: {', '.join(self.left_out)}. Means are "
            f"over the {len(self.gaps)} sequences that both have, so they may differ from what an "
            "evaluation printed."
        ]

    def lines(self) -> list[list[str]]:
        """A table in percent: the means over objects, then a sequence a line."""
        means = [
            ("J&F, mean over objects", self.a.jf_mean, self.b.jf_mean),
            ("J", self.a.j_mean, self.b.j_mean),
            ("F", self.a.f_mean, self.b.f_mean),
        ]
        rows = [*means, *((gap.sequence, gap.a, gap.b) for gap in self.gaps)]
        return [
            ["", self.name_a, self.name_b, "difference"],
            *([name, _percent(a), _percent(b), f"{100 * (a - b):+.1f}"] for name, a, b in rows),
        ]


def compare_scores(names: tuple[str, str], a: DavisScores, b: DavisScores) -> Comparison:
    """Compares scores on the sequences that both have.

    Args:
        names: of the two methods.
        a: scores of the first.
        b: scores of the second.

    Raises:
        ConfigError: they have no sequence in common, or one has objects that the other lacks.
    """
    by_a, by_b = a.by_sequence(), b.by_sequence()
    common = by_a.keys() & by_b.keys()
    if not common:
        raise ConfigError(f"{names[0]} and {names[1]} have no sequence in common")
    kept_a, kept_b = (_kept(scores, common) for scores in (a, b))
    if unequal := sorted({*map(_identity, kept_a)} ^ {*map(_identity, kept_b)}):
        sequence, number = unequal[0]
        raise ConfigError(
            f"object {number} of {sequence} was scored in one of {names[0]} and {names[1]} only; "
            "evaluate both on the same data set"
        )
    gaps = sorted(
        (Gap(name, by_a[name], by_b[name]) for name in common),
        key=lambda gap: (-gap.difference, gap.sequence),
    )
    left_out = tuple(sorted(by_a.keys() ^ by_b.keys()))
    return Comparison(*names, DavisScores(kept_a), DavisScores(kept_b), tuple(gaps), left_out)


def mean_j(
    predicted: UInt8[np.ndarray, "height width"], truth: UInt8[np.ndarray, "height width"]
) -> float:
    """J of one frame, the mean over the objects of either; 1 where there are none.

    Void is left out. For choosing frames to show: scores are those of `ino.tasks.davis`.
    """
    counted = truth != VOID
    predicted, truth = predicted[counted], truth[counted]
    found = [number for number in np.union1d(predicted, truth) if number not in (0, VOID)]
    shares = [
        ((predicted == number) & (truth == number)).sum()
        / ((predicted == number) | (truth == number)).sum()
        for number in found
    ]
    return float(np.mean(shares)) if shares else 1.0


def telling_frames(differences: Float[np.ndarray, " frames"], *, count: int) -> list[int]:
    """Frame 0, which is given, and one frame of each of `count` - 1 equal parts of the others.

    Of each part it is the frame with the largest absolute difference, the middle one among equals.
    The last frame is not scored, so it is not shown, unless there is no other.

    Args:
        differences: J of one method less J of the other, for every frame.
        count: frames to show, at least 1; fewer where there are fewer.
    """
    others: Sequence[int] = range(1, max(len(differences) - 1, min(2, len(differences))))
    parts = np.array_split(np.array(others, dtype=int), max(count - 1, 1))
    chosen = [0]
    for part in parts if count > 1 else []:
        if len(part):
            sizes = np.abs(differences[part])
            best = part[sizes >= sizes.max() - 1e-9]
            chosen.append(int(best[len(best) // 2]))
    return chosen


def _kept(scores: DavisScores, names: Set[str]) -> tuple[ObjectScore, ...]:
    return tuple(one for one in scores.objects if one.sequence in names)


def _identity(one: ObjectScore) -> tuple[str, int]:
    return one.sequence, one.object_id


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


# Pictures of a comparison: strips of frames with masks, a scatter of J&F, and the page of both.


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


# Two evaluations on DAVIS, from their folders to pictures, a table and one HTML page.


_OF_DATA = ("year", "split", "resolution")


def compare_evaluations(
    a: Path,
    b: Path,
    *,
    out: Path,
    root: Path | None = None,
    num_shown: int = 3,
    num_frames: int = 5,
    overwrite: bool = False,
) -> Comparison:
    """Compares what `ino evaluate davis`, or a row of a suite, left in two folders.

    Writes `comparison.html` (pictures within it), `scatter.png`, `strips/NN_SEQUENCE.png` in the
    order of the page, `table.md` and `comparison.json`.

    Args:
        a: folder of an evaluation.
        b: of another one of the same data set.
        out: folder of the results.
        root: of the data set; None for the one that `a` was evaluated on.
        num_shown: sequences shown that are best for A against B, and as many for B.
        num_frames: of each, the given frame among them.
        overwrite: accept a folder that holds something.

    Raises:
        ConfigError: the two have nothing in common, or a number is out of range.
        DatasetError: the data set is not as its layout says.
        MaskError: masks are missing, broken or of another size than their frames.
        OutputError: a folder is no evaluation on DAVIS, or results cannot be written.
    """
    if num_shown < 0 or num_frames < 1:
        raise ConfigError(
            f"{num_shown} sequences and {num_frames} frames cannot be shown; give 0 or more "
            "sequences and 1 or more frames"
        )
    names = names_apart(a, b)
    settings = _common_settings(a, b)
    comparison = compare_scores(names, *(read_davis_scores(one / "scores.json") for one in (a, b)))
    found = _sequences(a, settings, root, [gap.sequence for gap in comparison.gaps])
    folders = {name: one / "predictions" for name, one in zip(names, (a, b), strict=True)}
    _check_masks(found, list(folders.values()))
    new_folder(out, overwrite=overwrite)
    strips = [
        [
            (gap, comparison_strips(found[gap.sequence], folders, gap=gap, count=num_frames))
            for gap in gaps
        ]
        for gaps in comparison.ends(num_shown)
    ]
    new_folder(out / "strips", overwrite=True)
    written = set()
    for number, (gap, rows) in enumerate(itertools.chain(*strips), start=1):
        written.add(path := out / "strips" / f"{number:02d}_{gap.sequence}.png")
        _save(strips_picture(rows), path)
    for stale in {*(out / "strips").glob("[0-9][0-9]*_*.png")} - written:
        stale.unlink()  # of an earlier result that this one overwrites
    scatter = scatter_picture(comparison, num_named=max(num_shown, 3))
    _save(scatter, out / "scatter.png")
    text = comparison_page(comparison, scatter=scatter, strips=strips, notes=_notes(comparison))
    write_text(out / "comparison.html", text)
    below = "".join(f"\n{note}\n" for note in comparison.notes())
    write_text(out / "table.md", markdown(comparison.lines()) + below)
    write_text(out / "comparison.json", json.dumps(_plain(comparison, a, b), indent=2) + "\n")
    return comparison


def names_apart(a: Path, b: Path) -> tuple[str, str]:
    """The shortest ends of two paths that tell them apart.

    Raises:
        ConfigError: both are the same folder.
    """
    first, second = a.resolve().parts, b.resolve().parts
    if first == second:
        raise ConfigError(f"{a} and {b} are the same folder; give two evaluations")
    for length in range(1, max(len(first), len(second)) + 1):
        names = "/".join(first[-length:]), "/".join(second[-length:])
        if names[0] != names[1]:
            return names
    raise AssertionError("two paths that differ have ends that differ")


def _common_settings(a: Path, b: Path) -> dict[str, Any]:
    """What the two tell of their data set, A before B.

    Raises:
        ConfigError: they were evaluated on two.
    """
    ours, theirs = (_settings(one) for one in (a, b))
    for name in _OF_DATA:  # what one of them does not tell, as masks of other programs, is no other
        if name in ours and name in theirs and ours[name] != theirs[name]:
            raise ConfigError(
                f"{a} was evaluated with {name} {ours[name]}, {b} with {theirs[name]}; "
                "give two evaluations of the same data set"
            )
    return {name: value for name, value in theirs.items() if name in _OF_DATA} | ours


def _sequences(
    a: Path, settings: dict[str, Any], root: Path | None, names: list[str]
) -> dict[str, VideoSequence]:
    """The sequences by name, read as A was evaluated."""
    root = root or (Path(settings["root"]) if settings.get("root") else None)
    if root is None:
        raise ConfigError(f"{a / 'settings.json'} does not tell the data set; pass --root DAVIS")
    choice = {name: settings[name] for name in _OF_DATA if name in settings}
    return {one.name: one for one in read_davis(root, sequences=names, **choice)}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "settings.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}  # only scores and masks, perhaps of another program
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path} is broken: evaluate again, or remove it") from error


def _check_masks(sequences: dict[str, VideoSequence], folders: list[Path]) -> None:
    """Before anything is drawn; only the heads of files are read."""
    for one in sequences.values():
        for number, annotation in one.annotations.items():
            expected = image_size(one.frames[number])
            masks = [folder / one.name / f"{one.frames[number].stem}.png" for folder in folders]
            for path in (annotation, *masks):
                if not path.is_file():
                    raise MaskError(f"{path} does not exist: evaluate {path.parents[2]} again")
                if (found := image_size(path)) != expected:
                    raise MaskError(
                        f"{path} is {found[0]}x{found[1]} (height x width), but its frame is "
                        f"{expected[0]}x{expected[1]}: evaluate again, or pass the data set "
                        "that was evaluated as --root"
                    )


def _notes(comparison: Comparison) -> list[str]:
    notes = [
        "Pictures: the frame that was given, then of each equal part of the sequence the frame in "
        "which J of the two methods differs most, with its number. Scores are means over all "
        "frames, in percent; J&F of a sequence is the mean over its objects."
    ]
    return notes + comparison.notes()


def _plain(comparison: Comparison, a: Path, b: Path) -> dict[str, Any]:
    return {
        "a": {"name": comparison.name_a, "folder": str(a), "J&F": comparison.a.jf_mean},
        "b": {"name": comparison.name_b, "folder": str(b), "J&F": comparison.b.jf_mean},
        "sequences": {
            gap.sequence: {"a": gap.a, "b": gap.b, "difference": gap.difference}
            for gap in comparison.gaps
        },
        "left_out": list(comparison.left_out),
    }


def _save(image: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)
