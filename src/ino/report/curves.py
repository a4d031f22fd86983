"""Plots the metrics of training runs from their logs: one panel per metric, one color per run."""

import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from ino.errors import ConfigError
from ino.report.strips import distinct_names
from ino.system import atomic_path
from ino.train.log import LOG_NAME


@dataclass(frozen=True)
class Panel:
    """Metrics that are plotted together: the first as a solid line, then dashed, then dotted."""

    title: str
    names: tuple[str, ...]
    unit: str = ""
    scale: Literal["linear", "from 0", "log"] = "linear"


PANELS = (
    Panel("loss", ("loss",), "nats"),
    Panel("J&F on labelled sequences", ("eval_jf",), "percent"),
    Panel("predicted J&F on videos without labels", ("judge_jf",), "percent"),
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
    Panel("clips per second", ("clips_per_second",), scale="from 0"),
    Panel("waiting for data", ("waiting",), "share of time", scale="from 0"),
)
NUM_COLUMNS = 3
LARGEST = 1e30
"""Larger numbers, as in damaged lines of a log, are left out, as axes cannot show them."""
LINE_STYLES = ("-", "--", ":")
# Distinct in print and for most color-blind readers (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SMOOTHED_SHARE = 0.02
MIN_POINTS_TO_SMOOTH = 40


@dataclass(frozen=True)
class History:
    """The metrics of a run by name: arrays of the number of steps done, and of the values."""

    label: str
    series: dict[str, tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]]

    def shows(self, name: str) -> bool:
        """Whether a metric was logged and is not 0 in every step, as switched-off terms are."""
        return name in self.series and bool(np.any(self.series[name][1] != 0))


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
    """Plots the curves of one or several runs into a picture of the kind that its suffix names.

    Raises:
        ConfigError: see `read_history`; or the suffix is none of .png, .pdf and .svg.
        OutputError: it cannot be written.
    """
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--out {out} must end in .png, .pdf or .svg")
    names = distinct_names(runs)
    figure = plot_curves(
        [read_history(run, label=name) for run, name in zip(runs, names, strict=True)]
    )
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=150)
    return out


def plot_style() -> AbstractContextManager[None]:
    """A context in which figures have a pale grid, few frames, and no formulas in text."""
    return matplotlib.rc_context(
        {
            "figure.constrained_layout.use": True,
            "text.parse_math": False,  # a $ in a name is a $
            "font.size": 8,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": "0.92",
            "legend.frameon": False,
        }
    )


def plot_curves(histories: Sequence[History], *, panels: Sequence[Panel] = PANELS) -> Figure:
    """A figure of the metrics of all runs; panels without data are left out.

    Raises:
        ConfigError: no panel has data.
    """
    panels = [one for one in panels if any(h.shows(name) for h in histories for name in one.names)]
    if not panels:
        names = ", ".join(one.label for one in histories)
        raise ConfigError(f"the log of {names} has no number to plot: all are 0 or unknown")
    rows = math.ceil(len(panels) / NUM_COLUMNS)
    with plot_style():
        figure = Figure(figsize=(4.0 * NUM_COLUMNS, 2.45 * rows + 0.5))
        grid = figure.subplots(rows, NUM_COLUMNS, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _plot_panel(axes, panel, histories)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        lines = [
            figure.axes[0].plot([], [], color=COLORS[index % len(COLORS)], linewidth=2)[0]
            for index in range(len(histories))
        ]
        labels = [one.label for one in histories]
        figure.legend(lines, labels, loc="outside upper left", ncols=4, fontsize=10)
    return figure


def smooth(values: Float[np.ndarray, " points"], width: int) -> Float[np.ndarray, " points"]:
    """The mean over a window of `width` points around each, cut at the ends."""
    window = np.ones(width)
    num_points = np.convolve(np.ones_like(values), window, mode="same")
    return np.convolve(values, window, mode="same") / num_points


def _plot_panel(axes: Axes, panel: Panel, histories: Sequence[History]) -> None:
    styles = dict(zip(panel.names, LINE_STYLES, strict=False))
    shown = [name for name in panel.names if any(one.shows(name) for one in histories)]
    for index, history in enumerate(histories):
        for name in shown:
            if history.shows(name):
                color = COLORS[index % len(COLORS)]
                _plot_line(axes, *history.series[name], color=color, style=styles[name])
    if len(shown) > 1:
        for name in shown:
            axes.plot([], [], color="0.35", linestyle=styles[name], label=name.partition("_")[2])
        axes.legend(handlelength=2.2, borderaxespad=0.2)
    axes.set(title=panel.title, xlabel="steps done", ylabel=panel.unit)
    axes.tick_params(which="both", labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.margins(x=0.01)
    # Tick labels say it all: no offset or factor above the panel, no powers.
    if panel.scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_PlainLogFormatter())
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(labelOnlyBase=False))
    else:
        if panel.scale == "from 0":
            axes.set_ylim(bottom=0)
        if max(map(abs, axes.get_ylim())) < 1e-3:
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.ticklabel_format(axis="y", style="plain", useOffset=False)


class _PlainLogFormatter(LogFormatter):
    """Labels those ticks that matplotlib would, as 6 and 20."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _plot_line(
    axes: Axes,
    steps: Float[np.ndarray, " points"],
    values: Float[np.ndarray, " points"],
    *,
    color: str,
    style: str,
) -> None:
    """A line; a noisy one is faint, and its moving mean is plotted over it."""
    if len(values) < MIN_POINTS_TO_SMOOTH:
        marker = "o" if len(values) < 12 else None
        axes.plot(steps, values, color=color, linestyle=style, linewidth=1.5, marker=marker, ms=3)
        return
    width = max(3, round(SMOOTHED_SHARE * len(values)))
    axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.25)
    axes.plot(steps, smooth(values, width), color=color, linestyle=style, linewidth=1.5)
