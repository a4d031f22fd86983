"""`ino compare`: two evaluations on DAVIS, sequence by sequence, as a table, pictures and a page.

It shows in which sequences the two differ most, and the frames in which they do. Scores are read,
not computed; other data sets are not covered.
"""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ino.data.davis import VideoSequence
from ino.data.images import image_size
from ino.data.label_maps import VOID, read_labels
from ino.errors import ConfigError, OutputError
from ino.metrics import region_similarity
from ino.report.curves import plot_style
from ino.report.page import write_page
from ino.report.strips import (
    StripGroup,
    distinct_names,
    draw_strips,
    find_sequence,
    mask_path,
    mask_strips,
    read_mask,
    refuse_seeds,
    save_picture,
)
from ino.schema import read_json
from ino.system import atomic_path, new_folder, write_text
from ino.tables import markdown, markdown_cell, percent, shown
from ino.tasks.davis import DavisScores, read_davis_scores

HEIGHT = 180
"""Pixels of each frame of a strip."""

COLOR_A, COLOR_B, PALE = "#0b7a75", "#b4532a", "#9aa5b0"


@dataclass(frozen=True)
class Gap:
    """A score of two methods, such as J&F of one sequence, as fractions."""

    name: str
    a: float
    b: float

    @property
    def difference(self) -> float:
        """Above 0 where A is ahead."""
        return self.a - self.b


@dataclass(frozen=True)
class Comparison:
    """Two methods and their scores on the sequences that both have."""

    name_a: str
    name_b: str
    a: DavisScores
    b: DavisScores
    gaps: tuple[Gap, ...]
    """From the sequence in which A is furthest ahead to that in which B is."""
    left_out: tuple[str, ...]
    """Sequences that only one of them has."""

    def ends(self, count: int) -> tuple[list[Gap], list[Gap]]:
        """Up to `count` sequences where A is furthest ahead, and up to `count` others for B."""
        first = list(self.gaps[:count])
        return first, list(reversed(self.gaps[max(len(first), len(self.gaps) - count) :]))

    def notes(self) -> list[str]:
        """Notes for below the table: the sequences that only one method has, if there are any."""
        if not self.left_out:
            return []
        return [
            f"Scored in one of the two only, and left out: {', '.join(self.left_out)}. Means are "
            f"over the {len(self.gaps)} sequences that both have, so they may differ from what an "
            "evaluation printed."
        ]

    def lines(self) -> list[list[str]]:
        """A table in percent: headings, three means over objects, then one row per sequence."""
        means = [
            Gap("J&F, mean over objects", self.a.jf_mean, self.b.jf_mean),
            Gap("J", self.a.j_mean, self.b.j_mean),
            Gap("F", self.a.f_mean, self.b.f_mean),
        ]
        texts = (
            [one.name, percent(one.a), percent(one.b), f"{100 * one.difference:+.1f}"]
            for one in (*means, *self.gaps)
        )
        return [["", self.name_a, self.name_b, "difference"], *texts]


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
    """Compares what `ino evaluate davis`, or a row of an experiment, left in two folders.

    Writes `comparison.html` (pictures within it), `scatter.png`, `strips/NN_SEQUENCE.png` in the
    order of the page, `table.md` and `comparison.json`.

    Args:
        a: folder of an evaluation.
        b: of another one on the same data set.
        out: folder of the results.
        root: of the data set; None for the one that `a` was evaluated on.
        num_shown: sequences shown that are best for A against B, and as many for B.
        num_frames: of each, the given frame among them.
        overwrite: accept a folder that holds something.

    Raises:
        ConfigError: the two have nothing in common, or a number is out of range.
        DatasetError: the data set is not as its layout says.
        MaskError: masks that are shown are missing, broken or of another size than their frames.
        OutputError: a folder is no evaluation on DAVIS, or results cannot be written.
    """
    if num_shown < 0 or num_frames < 1:
        raise ConfigError(
            f"{num_shown} sequences and {num_frames} frames cannot be shown; give 0 or more "
            "sequences and 1 or more frames"
        )
    if a.resolve() == b.resolve():
        raise ConfigError(f"{a} and {b} are the same folder; give two evaluations")
    for one in (a, b):
        refuse_seeds(one)
    name_a, name_b = distinct_names([a, b])
    settings = _common_settings(a, b)
    if root is None and settings["root"] is None:
        raise ConfigError(f"{a / 'settings.json'} does not tell the data set; pass --root DAVIS")
    root, resolution = root or Path(settings["root"]), settings.get("resolution", "480p")
    scores_a, scores_b = (read_davis_scores(one / "scores.json") for one in (a, b))
    comparison = compare_scores((name_a, name_b), scores_a, scores_b)
    ends = comparison.ends(num_shown)
    folders = {name_a: a / "predictions", name_b: b / "predictions"}
    strips = {
        gap.name: _gap_strips(
            find_sequence(root, gap.name, resolution=resolution), folders, gap, count=num_frames
        )
        for gap in itertools.chain(*ends)
    }
    scatter = plot_scatter(comparison, num_named=max(num_shown, 3))

    new_folder(out, overwrite=overwrite)
    _write_strips(strips, out / "strips")
    with atomic_path(out / "scatter.png") as temporary:
        scatter.savefig(temporary, dpi=200)
    write_page(
        out / "comparison.html",
        "comparison.html",
        title=f"{name_a} against {name_b}",
        comparison=comparison,
        lines=comparison.lines(),
        scatter=scatter,
        ends=[[strips[gap.name] for gap in gaps] for gaps in ends],
    )
    notes = "".join(f"\n{markdown_cell(note)}\n" for note in comparison.notes())
    write_text(out / "table.md", markdown(comparison.lines()) + notes)
    content = {
        "a": {"name": name_a, "folder": str(a), "J&F": comparison.a.jf_mean},
        "b": {"name": name_b, "folder": str(b), "J&F": comparison.b.jf_mean},
        "sequences": {
            gap.name: {"a": gap.a, "b": gap.b, "difference": gap.difference}
            for gap in comparison.gaps
        },
        "left_out": comparison.left_out,
    }
    write_text(out / "comparison.json", json.dumps(content, indent=2) + "\n")
    return comparison


def compare_scores(names: tuple[str, str], a: DavisScores, b: DavisScores) -> Comparison:
    """Compares the scores of two methods with these names on the sequences that both have.

    Raises:
        ConfigError: they have no sequence in common, or one has objects that the other lacks.
    """
    by_a, by_b = a.by_sequence(), b.by_sequence()
    common = by_a.keys() & by_b.keys()
    if not common:
        raise ConfigError(f"{names[0]} and {names[1]} have no sequence in common")
    a, b = (
        DavisScores(tuple(one for one in scores.objects if one.sequence in common))
        for scores in (a, b)
    )
    objects = ({(one.sequence, one.object_id) for one in scores.objects} for scores in (a, b))
    if unequal := sorted(set.symmetric_difference(*objects)):
        sequence, number = unequal[0]
        raise ConfigError(
            f"object {number} of {sequence} was scored in one of {names[0]} and {names[1]} only; "
            "evaluate both on the same data set"
        )
    gaps = (Gap(name, by_a[name], by_b[name]) for name in sorted(common))
    gaps = sorted(gaps, key=lambda gap: -gap.difference)
    return Comparison(*names, a, b, tuple(gaps), tuple(sorted(by_a.keys() ^ by_b.keys())))


def mean_similarity(
    predicted: UInt8[np.ndarray, "height width"], truth: UInt8[np.ndarray, "height width"]
) -> float:
    """J of one frame, the mean over the objects of either map; 1 where there are none.

    Void is left out. It chooses the frames to show; scores are those of `ino.tasks.davis`.
    """
    counted = truth != VOID
    objects = set(np.unique(predicted[counted])) | set(np.unique(truth[counted]))
    values = [
        region_similarity(predicted == number, truth == number, ~counted)
        for number in objects - {0, VOID}
    ]
    return float(np.mean(values)) if values else 1.0


def most_different_frames(differences: Float[np.ndarray, " frames"], *, count: int) -> list[int]:
    """The frames to show: frame 0, and one frame of each of `count` - 1 equal parts of the rest.

    Of each part it is the frame with the largest absolute difference, the middle one among equals.
    The last frame is not scored, so it is not shown, unless there is no other.

    Args:
        differences: J of one method less J of the other, for every frame.
        count: frames to show, at least 1; fewer where there are fewer.
    """
    num_frames = len(differences)
    others = np.arange(1, max(num_frames - 1, min(2, num_frames)))
    chosen = [0]
    for part in np.array_split(others, count - 1) if count > 1 else []:
        if len(part):
            sizes = np.abs(differences[part])
            best = part[sizes >= sizes.max() - 1e-9]
            chosen.append(int(best[len(best) // 2]))
    return chosen


def plot_scatter(comparison: Comparison, *, num_named: int) -> Figure:
    """A scatter plot of J&F, in percent, of each sequence: B on the x axis, A on the y axis.

    The `num_named` sequences with the largest differences in either direction are labeled.
    """
    a, b = comparison.name_a, comparison.name_b
    with plot_style():
        figure = Figure(figsize=(5.4, 5.4))
        axes = figure.add_subplot()
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        axes.plot([0, 100], [0, 100], color=PALE, linewidth=1, zorder=1)
        axes.scatter(
            [100 * gap.b for gap in comparison.gaps],
            [100 * gap.a for gap in comparison.gaps],
            s=34,
            color=[COLOR_A if gap.difference >= 0 else COLOR_B for gap in comparison.gaps],
            linewidths=0,
            zorder=3,
        )
        named = list(itertools.chain(*comparison.ends(num_named)))
        for gap, height in zip(named, _apart([100 * gap.a for gap in named]), strict=True):
            _name_point(axes, gap, height=height)
        axes.set_xlabel(f"J&F of {b}, %")
        axes.set_ylabel(f"J&F of {a}, %")
        ahead = sum(gap.difference > 0 for gap in comparison.gaps)
        axes.set_title(f"{a} is ahead in {ahead} of {len(comparison.gaps)} sequences")
    return figure


def _apart(heights: Sequence[float], least: float = 3.4) -> list[float]:
    """Heights moved up so far that names at them do not cover each other."""
    moved = list(heights)
    last = -np.inf
    for index in np.argsort(heights, kind="stable"):
        moved[index] = last = max(moved[index], last + least)
    return moved


def _name_point(axes: Axes, gap: Gap, *, height: float) -> None:
    """Writes a sequence's name beside its point: left of it where A is ahead, else right."""
    across = 100 * gap.b
    side = -1 if gap.difference > 0 else 1
    if not 25 < across < 75:  # there it would leave the picture
        side = 1 if across < 50 else -1
    axes.annotate(
        f"{shown(gap.name)} {100 * gap.difference:+.1f}",
        xy=(across, 100 * gap.a),
        xytext=(across + 2.2 * side, height),
        ha="left" if side > 0 else "right",
        va="center",
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
        arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "shrinkA": 0},
    )


def _gap_strips(
    sequence: VideoSequence, folders: dict[str, Path], gap: Gap, *, count: int
) -> StripGroup:
    """Truth, A and B on the frames that tell; only annotated frames say how far they differ."""
    differences = np.zeros(len(sequence.frames))
    for position, annotation in sequence.annotations.items():
        size = image_size(sequence.frames[position])
        truth = read_labels(annotation)
        a, b = (
            mean_similarity(read_mask(mask_path(folder, sequence, position), size=size), truth)
            for folder in folders.values()
        )
        differences[position] = a - b
    name_a, name_b = folders
    leader = name_a if gap.difference >= 0 else name_b
    return mask_strips(
        sequence,
        folders,
        most_different_frames(differences, count=count),
        title=f"{gap.name}: {leader} ahead by {100 * abs(gap.difference):.1f} points",
        remarks={name_a: f"J&F {100 * gap.a:.1f}", name_b: f"J&F {100 * gap.b:.1f}"},
        height=HEIGHT,
    )


def _write_strips(groups: dict[str, StripGroup], folder: Path) -> None:
    """Writes NN_SEQUENCE.png, and removes those of an older result that this one overwrites."""
    new_folder(folder, overwrite=True)
    names = [re.sub(r"[/\\]", "_", name) for name in groups]
    paths = [folder / f"{i:02d}_{name}.png" for i, name in enumerate(names, start=1)]
    for path, group in zip(paths, groups.values(), strict=True):
        save_picture(draw_strips([group]), path)
    for stale in {*folder.glob("[0-9][0-9]*_*.png")} - {*paths}:
        stale.unlink()


def _common_settings(a: Path, b: Path) -> dict[str, Any]:
    """What the two tell of their data set; masks of other programs come without settings."""
    ours, theirs = _settings(a), _settings(b)
    for name in ("year", "split", "resolution"):
        if name in ours and name in theirs and ours[name] != theirs[name]:
            raise ConfigError(
                f"{a} was evaluated with {name} {ours[name]}, {b} with {theirs[name]}; "
                "give two evaluations of the same data set"
            )
    return {**theirs, "root": None, **ours}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "settings.json"
    try:
        return dict(read_json(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path} is broken: evaluate again, or remove it") from error
