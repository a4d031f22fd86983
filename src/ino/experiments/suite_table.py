"""The table of a suite: what was measured, beside what was published, and the difference."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ino import __version__
from ino.experiments.rows import remark_lines, remarks_on
from ino.experiments.suite import scores_of, state_of
from ino.experiments.suite_data import DATA_SETS
from ino.experiments.suite_plan import OTHER_ENDINGS, SuitePlan, SuiteRow
from ino.system import write_text
from ino.tables import markdown

CAPTION = "percent; in brackets what was published, and measured minus published"


@dataclass(frozen=True)
class TableRow:
    """Scores of a row in percent, by name; empty where it is not done.

    `remarks` say where what was measured may not be what was published; `expects_file` that the row
    is absent for want of a file.
    """

    label: str
    about: str
    data: str
    protocol: str
    state: str
    measured: dict[str, float]
    published: dict[str, float]
    remarks: tuple[str, ...]
    expects_file: bool


def suite_rows(plan: SuitePlan, *, out: Path) -> list[TableRow]:
    """A line for each row, from what is on disk."""
    return [_table_row(row, out=out) for row in plan.rows]


def _table_row(row: SuiteRow, *, out: Path) -> TableRow:
    config, measured = row.config, scores_of(row, out=out)
    is_beside = not measured.keys().isdisjoint(config.published)
    given: dict[str, Any] = {"sequences": config.sequences, "precision": config.precision}
    return TableRow(
        label=row.label,
        about=config.about,
        data=config.data,
        protocol=row.protocol.name,
        state=state_of(row, out=out),
        measured=measured,
        published=config.published,
        remarks=remarks_on(row.protocol, **given) if is_beside else (),
        expects_file=row.expects_file,
    )


def num_texts(rows: list[TableRow]) -> int:
    """Columns of the table that hold words."""
    return 1 + any(row.about for row in rows) + (len({row.data for row in rows}) > 1)


def table_lines(rows: list[TableRow]) -> Iterator[list[str]]:
    """The texts of the table, line by line, headings first; only columns that hold something."""
    names = [
        name
        for data in dict.fromkeys(row.data for row in rows)
        for name in DATA_SETS[data].scores
        if any(name in row.measured or name in row.published for row in rows if row.data == data)
    ]
    names = list(dict.fromkeys(names))
    has_about = any(row.about for row in rows)
    several = len({row.data for row in rows}) > 1
    yield ["row", *["what"] * has_about, *["data"] * several, *names]
    for row in rows:
        yield [
            row.label,
            *[row.about] * has_about,
            *[row.data] * several,
            *(_cell(row.measured.get(name), row.published.get(name)) for name in names),
        ]


def note_lines(rows: list[TableRow]) -> list[str]:
    """What stands below the table: how scores beside published ones were measured, then how far
    the rows without scores are."""
    lines = remark_lines((row.label, row.remarks) for row in rows)
    lines += [f"{row.label}: {row.state}" for row in rows if not row.measured]
    return lines + [OTHER_ENDINGS] * any(row.expects_file for row in rows)


def write_suite_table(plan: SuitePlan, *, out: Path) -> list[TableRow]:
    """Writes table.json, in full precision, and table.md; gives their rows.

    Raises:
        OutputError: a file cannot be written.
    """
    rows = suite_rows(plan, out=out)
    title = f"# {plan.title}\n\n" if plan.title else ""
    notes = "".join(f"- {line}\n" for line in note_lines(rows))
    table = markdown(table_lines(rows), num_texts=num_texts(rows))
    text = f"{title}{table}\n{CAPTION[0].upper()}{CAPTION[1:]}.\n"
    write_text(out / "table.md", text + (f"\n{notes}" if notes else ""))
    content = {
        "software": {"name": "ino", "version": __version__},
        "title": plan.title,
        "rows": [_plain(row) for row in rows],
    }
    write_text(out / "table.json", json.dumps(content, indent=2) + "\n")
    return rows


def _cell(measured: float | None, published: float | None) -> str:
    shown = "-" if measured is None else f"{measured:.1f}"
    if published is None:
        return shown
    if measured is None:
        return f"- ({published:.1f})"
    return f"{shown} ({published:.1f}, {measured - published:+.1f})"


def _plain(row: TableRow) -> dict[str, Any]:
    names = dict.fromkeys([*row.measured, *row.published])
    return {
        "label": row.label,
        "about": row.about,
        "data": row.data,
        "protocol": row.protocol,
        "state": row.state,
        "remarks": list(row.remarks),
        "scores": {
            name: {
                "measured": (ours := row.measured.get(name)),
                "published": (theirs := row.published.get(name)),
                "difference": None if ours is None or theirs is None else ours - theirs,
            }
            for name in names
        },
    }
