"""Curves of runs, from their logs: one picture, a panel a question, a colour a run."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator

from ino.errors import ConfigError
from ino.system import atomic_path
from ino.train.log import LOG_NAME


@dataclass(frozen=True)
class Panel:
    """Numbers of the log that are drawn together, the first as a full line, the next dashed."""

    title: str
    names: tuple[str, ...]
    unit: str = ""
    scale: Literal["linear", "from 0", "log"] = "linear"


PANELS = (
    Panel("loss", ("loss",), "nats"),
    Panel("J&F on labelled sequences", ("eval_jf",), "percent"),
    Panel("global to global", ("g2g",), "nats"),
    Panel("local to global", ("l2g",), "nats"),
    Panel("masked prediction", ("masked",), "nats"),
    Panel("affinity", ("affinity",), "nats"),
    Panel("entropy of targets", ("entropy_class", "entropy_patch"), "nats"),
    Panel("student from target, KL", ("kl_g2g", "kl_l2g", "kl_masked"), "nats"),
    Panel("information of targets", ("information_class", "information_patch"), "nats"),
    Panel("spread of tokens", ("std_class", "std_patch"), "0 same, 1 all ways"),
    Panel("effective rank of patch tokens", ("rank_patch",), "directions"),
    Panel("gradient norm", ("grad_norm",), scale="log"),
    Panel("learning rate", ("lr",)),
    Panel("weight decay", ("weight_decay",)),
    Panel("teacher momentum", ("teacher_momentum",)),
    Panel("clips a second", ("clips_per_second",), scale="from 0"),
    Panel("waiting for data", ("waiting",), "share of time", scale="from 0"),
)
COLUMNS = 3
LARGEST = 1e30
"""Beyond it, as in damaged lines, axes cannot be divided."""
STYLES = ("-", "--", ":")
# Distinct in print and for most colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SMOOTHED_SHARE = 0.02
MIN_POINTS_TO_SMOOTH = 40


@dataclass(frozen=True)
class History:
    """The numbers of a run by name: steps done, as in the names of checkpoints, and values."""

    label: str
    series: dict[str, tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]]


def read_history(run: Path, *, label: str) -> History:
    """The log of a run, without a last line that a kill tore and without what is not finite.

    Args:
        run: its folder.
        label: in the legend.

    Raises:
        ConfigError: the folder is no run, or no step was logged yet.
    """
    path = run / LOG_NAME
    if not path.is_file():
        raise ConfigError(f"{run} is no run: it has no {LOG_NAME}; give the --out of ino train")
    points: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            numbers = json.loads(line)
            step = float(numbers["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        if not 0 <= step <= LARGEST:
            continue
        for name, value in numbers.items():
            if isinstance(value, int | float) and -LARGEST <= value <= LARGEST:
                # A line's step counts from 0: what it tells is known once that step is done.
                points.setdefault(name, []).append((step + 1, float(value)))
    if not points:
        raise ConfigError(f"{path} holds no step yet: wait for the first")
    columns = {name: np.array(found).T for name, found in points.items()}
    return History(label, {name: (steps, values) for name, (steps, values) in columns.items()})


def plot_runs(runs: Sequence[Path], *, out: Path) -> Path:
    """Draws the curves of one or several runs into a picture; its suffix says of which kind.

    Raises:
        ConfigError: see `read_history`; or the suffix is none of .png, .pdf and .svg.
        OutputError: it cannot be written.
    """
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--out {out} must end in .png, .pdf or .svg")
    labels = distinct_labels(runs)
    histories = [read_history(r, label=name) for r, name in zip(runs, labels, strict=True)]
    figure = draw(histories)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=150)
    return out


def draw(histories: Sequence[History]) -> Figure:
    """The picture; panels that no run has numbers for are left out.

    Raises:
        ConfigError: that is all of them.
    """
    panels = [
        panel
        for panel in PANELS
        if any(_shown(one, name) for one in histories for name in panel.names)
    ]
    if not panels:
        names = ", ".join(one.label for one in histories)
        raise ConfigError(f"the log of {names} has no number to draw: all are 0 or unknown")
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(4.0 * COLUMNS, 2.45 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    cells = list(grid.flat)
    for panel, axes in zip(panels, cells[: len(panels)], strict=True):
        _draw_panel(axes, panel, histories)
    for axes in cells[len(panels) :]:
        axes.remove()
    lines = [
        figure.axes[0].plot([], [], color=COLOURS[index % len(COLOURS)], linewidth=2)[0]
        for index in range(len(histories))
    ]
    figure.legend(
        lines,
        [one.label.replace("$", r"\$") for one in histories],  # no formulas
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=10,
    )
    return figure


def smooth(values: Float[np.ndarray, " points"], width: int) -> Float[np.ndarray, " points"]:
    """The mean over a window of `width` points around each, cut at the ends."""
    before, after = width // 2, (width + 1) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - before, 0)
    last = np.minimum(np.arange(len(values)) + after, len(values))
    return (sums[last] - sums[first]) / (last - first)


def distinct_labels(runs: Sequence[Path]) -> list[str]:
    """Names for the legend: as few last parts of the paths as tell the runs apart."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts), default=1) + 1):
        labels = ["/".join(one[-length:]) for one in parts]
        if len(set(labels)) == len(set(parts)):
            return labels
    return [str(run) for run in runs]


def _shown(history: History, name: str) -> bool:
    """Whether there is something to see; a term that is off is 0 in every step."""
    return name in history.series and bool(np.any(history.series[name][1] != 0))


def _draw_panel(axes: Axes, panel: Panel, histories: Sequence[History]) -> None:
    styles = {name: STYLES[index % len(STYLES)] for index, name in enumerate(panel.names)}
    drawn = [name for name in panel.names if any(_shown(one, name) for one in histories)]
    for index, history in enumerate(histories):
        colour = COLOURS[index % len(COLOURS)]
        for name in drawn:
            if _shown(history, name):
                _draw_line(axes, *history.series[name], colour=colour, style=styles[name])
    if len(drawn) > 1:
        for name in drawn:
            short = name.partition("_")[2]
            axes.plot([], [], color="0.35", linestyle=styles[name], label=short)
        axes.legend(frameon=False, fontsize=8, handlelength=2.2, borderaxespad=0.2)
    if panel.scale == "log":
        axes.set_yscale("log")
    elif panel.scale == "from 0":
        axes.set_ylim(bottom=0)
    axes.set_title(panel.title, fontsize=10, loc="left", fontweight="bold")
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.set_xlabel("steps done", fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    _plain_numbers(axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)


def _plain_numbers(axes: Axes) -> None:
    """Has the labels of the values say it all: no offset or factor above the panel, no powers."""
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_formatter(_PlainLogFormatter())
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(labelOnlyBase=False))
    elif max(map(abs, axes.get_ylim())) < 1e-3:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    else:
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)


class _PlainLogFormatter(LogFormatter):
    """Labels those ticks that matplotlib would, as 6 and 20."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def short_number(value: float) -> str:
    """A small number as 5e-5, 1.5e-4 or 0."""
    digits, exponent = f"{value:.6e}".split("e")
    return f"{float(digits):g}e{int(exponent)}" if value else "0"


def _draw_line(
    axes: Axes,
    steps: Float[np.ndarray, " points"],
    values: Float[np.ndarray, " points"],
    *,
    colour: str,
    style: str,
) -> None:
    """A line; a noisy one is faint, and its moving mean is drawn over it."""
    if len(values) < MIN_POINTS_TO_SMOOTH:
        marker = "o" if len(values) < 12 else None
        axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.5, marker=marker, ms=3)
        return
    width = max(3, round(SMOOTHED_SHARE * len(values)))
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.25)
    axes.plot(steps, smooth(values, width), color=colour, linestyle=style, linewidth=1.5)
