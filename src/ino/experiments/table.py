"""The table of an experiment, beside the published numbers: printed, as files, and as plots.

    DIR/table.md, .csv, .json        written after each row
    DIR/figure.png                   where values are varied
    DIR/curve.png                    where runs are scored on the way

It is read from the folders of the trials each time; scores are in percent.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from ino.experiments.plan import Plan
from ino.experiments.rows import ROWS, Plot
from ino.experiments.trial import PREDICTED
from ino.report.curves import COLORS, plot_style
from ino.system import atomic_path, write_text
from ino.tables import markdown, markdown_cell, print_table, shown, write_csv, write_json

_CAPTION = "percent; in brackets what was published, and measured minus published"
_OTHER_ENDINGS = (
    "in place of .pth a file may end with .pt, .pth.tar, .tar or .safetensors, or be a run's folder"
)

TableRow = Mapping[str, Any]
"""A row of table.json."""


def table_rows(plan: Plan) -> list[dict[str, Any]]:
    """The rows of table.json, one per label and evaluation, from the files in the folder."""
    rows = []
    for label, group in itertools.groupby(plan.trials, key=lambda trial: trial.label):
        trials = list(group)
        row = trials[0].row
        states = {trial.name: trial.read_state().words for trial in trials}
        for one in trials[0].evaluations:
            found = {trial.seed: trial.read_scores(one) for trial in trials}
            done = {seed: scores for seed, scores in found.items() if scores is not None}
            scores = {}
            trains = trials[0].weights is None and row.train is not None
            published = row.published if one.step is None else {}
            for name in (*row.scores, PREDICTED):
                values = [of_seed[name] for of_seed in done.values() if name in of_seed]
                if values or name in published:
                    scores[name] = _score(values, published.get(name))
            is_beside = any(score["difference"] is not None for score in scores.values())
            rows.append(
                {
                    "label": label,
                    "about": row.about,
                    "data": row.data,
                    "protocol": row.protocol,
                    "short_side": one.protocol.short_side,
                    "network": one.network,
                    "step": (one.step or plan.steps) if trains else None,
                    "seeds": list(done),
                    "num_seeds": len(trials),
                    "states": states,
                    "remarks": list(one.remarks) if is_beside else [],
                    "scores": scores,
                }
            )
    return rows


def _score(values: Sequence[float], published: float | None) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds."""
    measured = fmean(values) if values else None
    return {
        "measured": measured,
        "std": stdev(values) if len(values) > 1 else None,
        "values": values,
        "published": published,
        "difference": None if measured is None or published is None else measured - published,
    }


def table_lines(rows: Sequence[TableRow]) -> tuple[list[list[str]], int]:
    """The texts of the table, headings first, and how many of the columns are words.

    Columns that would say the same of all rows are left out.
    """
    columns = {"row": [row["label"] for row in rows]}
    for heading, key in (("what", "about"), ("data", "data"), ("network", "network")):
        column = [row[key] or "" for row in rows]
        if len(set(column)) > 1:
            columns[heading] = column
    num_texts = len(columns)
    sides = [str(row["short_side"] or "native") for row in rows]
    if len(set(columns["row"])) < len(rows) and len(set(sides)) > 1:
        columns["short side"] = sides
    if any(row["step"] is not None for row in rows):
        columns["steps"] = ["" if row["step"] is None else str(row["step"]) for row in rows]
    if any(row["num_seeds"] > 1 for row in rows):
        columns["seeds"] = [_seeds(len(row["seeds"]), row["num_seeds"]) for row in rows]
    for name in _score_names(rows):
        columns[name] = [_cell(row["scores"].get(name)) for row in rows]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))], num_texts


def _seeds(num_done: int, num_seeds: int) -> str:
    return f"{num_done} of {num_seeds}" if num_done < num_seeds else str(num_done)


def _score_names(rows: Sequence[TableRow]) -> list[str]:
    present = {name for row in rows for name in row["scores"]}
    names = [name for kind in ROWS.values() for name in kind.scores]
    return [name for name in (*names, PREDICTED) if name in present]


def _cell(score: Mapping[str, Any] | None) -> str:
    """Such as "66.2 ± 0.3 (67.0, -0.8)"."""
    if score is None:
        return "-"
    text = "-" if score["measured"] is None else f"{score['measured']:.1f}"
    if score["std"] is not None:
        text += f" ± {score['std']:.1f}"
    if score["published"] is None:
        return text
    difference = "" if score["difference"] is None else f", {score['difference']:+.1f}"
    return f"{text} ({score['published']:.1f}{difference})"


def note_lines(rows: Sequence[TableRow], *, with_done: bool = False) -> list[str]:
    """What stands below the table: how scores beside published ones were measured, then how far
    the rows are."""
    labels: dict[str, dict[str, None]] = {}
    states: dict[str, None] = {}
    for row in rows:
        for remark in row["remarks"]:
            labels.setdefault(remark, {})[row["label"]] = None
        has_scores = any(score["values"] for score in row["scores"].values())
        for name, state in row["states"].items():
            if with_done or not (has_scores and state.startswith("done")):
                states[f"{name}: {state}"] = None
    lines = [*(f"{remark}: {', '.join(named)}" for remark, named in labels.items()), *states]
    if any("is expected in" in state for state in states):
        lines.append(_OTHER_ENDINGS)
    return lines


def print_rows(plan: Plan, *, with_done: bool = False) -> None:
    """Prints the table of the rows that are asked for, and the notes below it."""
    rows = [row for row in table_rows(plan) if row["label"] in plan.labels]
    lines, num_texts = table_lines(rows)
    print_table(lines, Console(), num_texts=num_texts, caption=_CAPTION)
    for note in note_lines(rows, with_done=with_done):
        print(shown(note))


def write_tables(plan: Plan) -> None:
    """Writes table.md, table.csv, table.json and the plots.

    Raises:
        OutputError: a file cannot be written.
    """
    rows: list[dict[str, Any]] = []
    # Again where another process has finished a row meanwhile, and written it before this one.
    while rows != (rows := table_rows(plan)):
        lines, num_texts = table_lines(rows)
        notes = "".join(f"- {markdown_cell(note)}\n" for note in note_lines(rows))
        title = f"# {shown(plan.title)}\n\n" if plan.title else ""
        text = f"{title}{markdown(lines, num_texts=num_texts)}\nP{_CAPTION[1:]}.\n"
        write_text(plan.out / "table.md", text + (f"\n{notes}" if notes else ""))
        write_json(plan.out / "table.json", {"title": plan.title, "rows": rows})
        write_csv(plan.out / "table.csv", _csv_lines(rows))
        if plan.plots:
            ends = [row for row in rows if row["step"] in (None, plan.steps)]
            _draw(plan.plots, ends, plan.out / "figure.png")
        if plan.steps is not None:
            untrained = {one.label for one in plan.trials if one.row.weights == "untrained"}
            _plot_curve(rows, untrained, plan.out / "curve.png")


def _csv_lines(rows: Sequence[TableRow]) -> Iterator[list[str]]:
    """Scores in full precision, one line for each row of the table."""
    names, kinds = _score_names(rows), ("measured", "std", "published")
    heads = ["label", "about", "data", "protocol", "short_side", "network", "step"]
    yield [*heads, "num_seeds", *(f"{name} {kind}" for name in names for kind in kinds)]
    for row in rows:
        scores = [row["scores"].get(name, {}).get(kind) for name in names for kind in kinds]
        cells = [*(row[head] for head in heads), len(row["seeds"]), *scores]
        yield ["" if cell is None else str(cell) for cell in cells]


def _draw(plots: Sequence[Plot], rows: Sequence[TableRow], path: Path) -> None:
    """The main score over each varied value: mean and standard deviation over seeds as dots with
    bars, published numbers as rings."""
    figure = Figure(figsize=(3.2 * len(plots), 3), layout="constrained")
    first = {row["label"]: row for row in reversed(rows)}  # of several evaluations
    grid = figure.subplots(1, len(plots), squeeze=False, sharey=True)[0]
    for axes, plot in zip(grid, plots, strict=True):
        labels = sorted(plot.points, key=plot.points.__getitem__)
        main = next(iter(ROWS[first[labels[0]]["data"]].scores))
        points = [(plot.points[one], first[one]["scores"].get(main, {})) for one in labels]
        done = [(x, score) for x, score in points if score.get("values")]
        means = [score["measured"] for _, score in done]
        spread = [score["std"] or 0 for _, score in done]
        looks: dict[str, Any] = {"color": "#0072B2", "capsize": 3, "label": "measured"}
        axes.errorbar([x for x, _ in done], means, yerr=spread, fmt="o-", **looks)
        known = [(x, score["published"]) for x, score in points if score.get("published")]
        looks = {"color": "#D55E00", "fillstyle": "none", "label": "published"}
        axes.plot([x for x, _ in known], [y for _, y in known], "o", **looks)
        axes.margins(x=0.15)
        axes.set_xticks([x for x, _ in points])
        axes.set_xlabel(plot.title, parse_math=False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.set_ylabel(f"{main} (percent)")
        axes.label_outer()
    figure.axes[0].legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


Seeded = Mapping[int | None, float]
"""A score by seed, percent."""


def _plot_curve(rows: Sequence[TableRow], untrained: Collection[str], path: Path) -> None:
    """Scores over the steps of each row that trains, and those of given weights as lines across.

    Dots and lines are means over seeds, bars and bands standard deviations. The panels are the main
    score, the same minus that of the random weights of the same seed, and what was predicted
    without labels, as far as they are there; there is a line of panels for each data set, short
    side and network.
    """
    kinds = dict.fromkeys(_kind(row) for row in rows if row["step"] is not None)
    mains = [next(iter(ROWS[data].scores)) for data, _, _ in kinds]
    names = [(False, ""), *[(True, "")] * any(row["label"] in untrained for row in rows)]
    names += [(False, PREDICTED)] * any(PREDICTED in row["scores"] for row in rows)
    with plot_style():
        figure = Figure(figsize=(3.6 * len(names), 3 * len(kinds)))
        grid = figure.subplots(len(kinds), len(names), squeeze=False)
        for line, kind, main in zip(grid, kinds, mains, strict=True):
            shown_rows = [row for row in rows if _kind(row)[:2] == kind[:2]]
            shown_rows = [row for row in shown_rows if row["network"] in (None, kind[2])]
            starts = [_seeded(row, main) for row in shown_rows if row["label"] in untrained]
            for axes, (is_gain, name) in zip(line, names, strict=True):
                _plot_panel(
                    axes, shown_rows, name or main, starts[0] if is_gain and starts else None
                )
                about = " above untrained, same seed" * is_gain
                axes.set_title(f"{name or main}{about}")
        figure.axes[0].legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _kind(row: TableRow) -> tuple[str, int | None, str | None]:
    return row["data"], row["short_side"], row["network"]


def _seeded(row: TableRow, name: str) -> Seeded:
    """The main score, which every seed that is done has, or none."""
    values = row["scores"].get(name, {}).get("values")
    return dict(zip(row["seeds"], values, strict=True)) if values else {}


def _plot_panel(axes: Axes, rows: Sequence[TableRow], name: str, start: Seeded | None) -> None:
    """One score, or with `start` how far it is above that of the same seed."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    steps = sorted({row["step"] for row in rows} - {None})
    for number, label in enumerate(labels):
        points = []
        for row in rows:
            if row["label"] == label:
                found = list(row["scores"].get(name, {}).get("values", ()))
                if start is not None:
                    seeded = _seeded(row, name).items()
                    found = [value - start[seed] for seed, value in seeded if seed in start]
                if found:
                    points.append((row["step"], fmean(found), stdev(found) if found[1:] else 0.0))
        if not points:
            continue
        looks: dict[str, Any] = {"color": COLORS[number % len(COLORS)], "label": label}
        x, means, spread = zip(*points, strict=True)
        if x[0] is None:
            axes.axhline(means[0], linestyle="--", **looks)
            looks["label"] = None
            axes.axhspan(means[0] - spread[0], means[0] + spread[0], alpha=0.12, lw=0, **looks)
        else:
            x = [one * 1.015**number for one in x]  # bars stand side by side
            axes.errorbar(x, means, yerr=spread, fmt="o-", ms=3, lw=1.5, capsize=2, **looks)
    axes.set(xscale="log", xlabel="steps", ylabel="percent" if start is None else "points")
    axes.set_xticks(steps, [str(one) for one in steps])
    axes.minorticks_off()
