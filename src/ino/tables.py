"""Lines of texts as a table: on the screen, and as Markdown."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ino import __version__
from ino.system import atomic_path, write_text


def print_lines(
    lines: Iterable[Sequence[str]], console: Console, *, num_texts: int = 1, caption: str = ""
) -> None:
    """Prints a table whose first line are headings; all columns but `num_texts` are numbers.

    Words of texts are kept whole, and so are the labels of the first column, unless one takes a
    third of the screen.
    """
    headings, *rows = lines
    short = max(1, console.width // 6)
    rows = [
        [
            *row[:1],
            *(_lines_of_words(text, width=short) for text in row[1:num_texts]),
            *row[num_texts:],
        ]
        for row in rows
    ]
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, caption=caption or None)
    for index, heading in enumerate(headings):
        lengths = [len(line) for row in rows for line in row[index].split("\n")]
        table.add_column(
            heading,
            justify="right" if index >= num_texts else "left",
            overflow="fold",
            no_wrap=index < num_texts and max(lengths, default=0) <= console.width // 3,
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _lines_of_words(text: str, *, width: int) -> str:
    """The text on lines of about that width, none broken within a word."""
    return fill(text, width=width, break_long_words=False, break_on_hyphens=False)


def markdown(lines: Iterable[Sequence[str]], *, num_texts: int = 1) -> str:
    """The same as Markdown."""
    headings, *rows = lines
    aligned = ["---"] * num_texts + ["---:"] * (len(headings) - num_texts)
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, aligned, *rows])


def named_scores(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    pairs = zip(names, values, strict=True)
    return {name: None if math.isnan(value) else float(value) for name, value in pairs}


def write_scores(path: Path, content: Mapping[str, Any]) -> None:
    whole = {"software": {"name": "ino", "version": __version__}, **content}
    write_text(path, json.dumps(whole, indent=2) + "\n")


def percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes a CSV file, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
