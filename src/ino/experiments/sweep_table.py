"""The table of a sweep: mean and spread over seeds, beside what was published."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from ino import __version__, tables
from ino.experiments.rows import remark_lines, remarks_on
from ino.experiments.sweep import read_scores
from ino.experiments.sweep_plan import Plan
from ino.system import write_text
from ino.tables import markdown

SCORES = {"J&F": "J&F-Mean", "J": "J-Mean", "F": "F-Mean"}


@dataclass(frozen=True)
class Row:
    """Scores of a label by one evaluation, in percent, each a list over the seeds done.

    `remarks` say where what was measured may not be what was published.
    """

    label: str
    short_side: int | None
    network: str
    seeds: list[int]
    num_seeds: int
    scores: dict[str, list[float]]
    published: float | None
    remarks: tuple[str, ...] = ()


def table_rows(plan: Plan, *, out: Path) -> list[Row]:
    """A row for each label and evaluation, from what is on disk."""
    rows = []
    for label in dict.fromkeys(cell.label for cell in plan.cells):
        cells = [cell for cell in plan.cells if cell.label == label]
        for one in plan.passes_of(cells[0]):
            folders = {cell.seed: out / cell.name / one.name for cell in cells}
            found = {seed: read_scores(folder) for seed, folder in folders.items()}
            done = {seed: means for seed, means in found.items() if means is not None}
            scores = {
                name: [100 * means[column] for means in done.values()]
                for name, column in SCORES.items()
            }
            published = plan.published.get(label)
            side = one.protocol.short_side
            row = Row(label, side, one.network, list(done), len(cells), scores, published)
            if done and published is not None:
                remarks = remarks_on(one.protocol, sequences=plan.evaluation.sequences)
                row = replace(row, remarks=remarks)
            rows.append(row)
    return rows


def print_table(rows: list[Row], console: Console) -> None:
    """Prints the table: mean ± sample standard deviation, in percent."""
    tables.print_table(cells_of(rows), console)
    for line in _notes(rows):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_table(rows: list[Row], folder: Path) -> None:
    """Writes table.json, in full precision, and table.md.

    Raises:
        OutputError: a file cannot be written.
    """
    content = {"software": {"name": "ino", "version": __version__}, "rows": [*map(_plain, rows)]}
    notes = "".join(f"- {line}\n" for line in _notes(rows))
    for name, text in (
        ("table.md", markdown(cells_of(rows)) + (f"\n{notes}" if notes else "")),
        ("table.json", json.dumps(content, indent=2) + "\n"),
    ):
        write_text(folder / name, text)


def cells_of(rows: list[Row]) -> Iterator[list[str]]:
    """The texts of the table, line by line, headings first; only columns that tell rows apart."""
    sides = len({row.short_side for row in rows}) > 1
    networks = len({row.network for row in rows}) > 1
    published = any(row.published is not None for row in rows)
    yield [
        "row",
        *["short side"] * sides,
        *["network"] * networks,
        "seeds",
        *SCORES,
        *["published J&F"] * published,
    ]
    for row in rows:
        num_done = len(row.seeds)
        yield [
            row.label,
            *[str(row.short_side or "native")] * sides,
            *[row.network] * networks,
            str(num_done) if num_done == row.num_seeds else f"{num_done} of {row.num_seeds}",
            *map(_spread, row.scores.values()),
            *["" if row.published is None else f"{row.published:.1f}"] * published,
        ]


def _notes(rows: list[Row]) -> list[str]:
    return remark_lines((row.label, row.remarks) for row in rows)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _plain(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "short_side": row.short_side,
        "network": row.network,
        "seeds": row.seeds,
        "published": row.published,
        "remarks": list(row.remarks),
        **{
            name: {
                "mean": fmean(values) if values else None,
                "std": stdev(values) if len(values) > 1 else None,
                "values": values,
            }
            for name, values in row.scores.items()
        },
    }
