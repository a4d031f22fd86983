"""Writes tables of strings to the screen, CSV and Markdown, and results to JSON; `shown` makes any
text fit to be shown.

A table is a list of rows, of which the first holds the headings. `percent` and `fraction` format
numbers.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ino import __version__
from ino.system import atomic_path, write_text

Rows = Iterable[Sequence[str]]

_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters, breaks of lines, changes of direction, and what is no character."""

_UNLIMITED = 1_000_000
"""Characters of a screen that any table fits on."""


def shown(text: object) -> str:
    """The text of names, messages and paths as it is shown anywhere, on one line: characters that
    would control a terminal or an editor, and bytes that are no text, are escaped (\\x1b)."""
    return _UNSHOWN.sub(_escaped, str(text))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode("ascii")


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; "-" for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def fraction(value: float | None) -> str:
    """Three decimals, as the official evaluation of DAVIS writes them; empty for None."""
    return "" if value is None else f"{value:.3f}"


def print_table(
    rows: Rows,
    console: Console,
    *,
    num_texts: int = 1,
    has_total: bool = False,
    caption: str = "",
) -> None:
    """Prints a table; its texts are shown as they are, never read as markup.

    Args:
        rows: headings first.
        console: where to print.
        num_texts: number of leading columns with text; the others hold numbers and are aligned to
            the right. Long cells are broken between words, those of the first column last.
            Where a table does not fit on the screen, each row is printed as a list of its cells, as
            `psql` does.
        has_total: print the last row below a line, as a total.
        caption: printed below the table.
    """
    headings, *body = rows
    headings = [_shown_lines(heading) for heading in headings]
    body = [[shown(text) for text in row] for row in body]
    at_any_width = console.options.update(width=_UNLIMITED)
    wide, narrow = console.width // 4, console.width // 8
    for first, width, breaks_headings in (
        (_UNLIMITED, wide, False),
        (_UNLIMITED, wide, True),
        (_UNLIMITED, narrow, True),
        (_UNLIMITED, 1, True),
        (wide, narrow, True),
    ):
        table = Table(box=SIMPLE_HEAD, collapse_padding=True, show_footer=has_total)
        columns = []
        for index, (heading, *cells) in enumerate(zip(headings, *body, strict=True)):
            cells = [_wrap(cell, width if index else first) for cell in cells]
            longest = max((len(line) for cell in cells for line in cell.split("\n")), default=0)
            total = cells.pop() if has_total else ""
            table.add_column(
                Text(_wrap(heading, longest) if breaks_headings else heading),
                footer=Text(total),
                justify="left" if index < num_texts else "right",
            )
            columns.append(cells)
        for row in zip(*columns, strict=True):
            table.add_row(*map(Text, row))
        if Measurement.get(console, at_any_width, table).maximum <= console.width:
            console.print(table)
            break
    else:
        for row in body:
            _print_list(headings, row, console)
    if caption:
        console.print(Text(_shown_lines(caption)), end="\n\n")


def _print_list(headings: Sequence[str], row: Sequence[str], console: Console) -> None:
    """A row as a list: its first cell, and below it a line for each other one that is not empty."""
    cells = Table.grid(padding=(0, 2))
    cells.add_column(no_wrap=True)
    cells.add_column(overflow="fold")
    for heading, text in zip(headings[1:], row[1:], strict=True):
        if text:
            cells.add_row(Text(" ".join(heading.split())), Text(" ".join(text.split())))
    console.print(Text(row[0], overflow="fold"))
    console.print(Padding(cells, (0, 0, 1, 2)))


def _shown_lines(text: str) -> str:
    return "\n".join(map(shown, text.split("\n")))


def _wrap(text: str, width: int) -> str:
    """Each line of the text broken between words."""
    lines = text.split("\n")
    return "\n".join(
        fill(line, width=max(1, width), break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


def markdown(rows: Rows, *, num_texts: int = 1) -> str:
    """The table as Markdown, numbers aligned to the right."""
    headings, *body = rows
    alignment = ["---"] * num_texts + ["---:"] * (len(headings) - num_texts)
    return "".join(
        f"| {' | '.join(map(markdown_cell, row))} |\n" for row in [headings, alignment, *body]
    )


def markdown_cell(text: str) -> str:
    """A text for a cell of a table in Markdown, in which it is not read as anything else."""
    return re.sub(r"[|<`\\]", r"\\\g<0>", shown(text))


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes the table as CSV, whole or not at all; raises OutputError where that is impossible.

    A text that spreadsheets would run, for it begins with one of = + - @ and is no number, gets an
    apostrophe in front.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_as_cell, row) for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def _as_cell(value: object) -> str:
    text = "" if value is None else shown(value)
    if not text.lstrip().startswith(("=", "+", "-", "@")):
        return text
    try:
        float(text)
    except ValueError:
        return text if text == "-" else f"'{text}"
    return text


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes values as JSON, the version of this software first, whole or not at all.

    What JSON does not have, such as a path, is written as text, and NaN as null.

    Raises:
        OutputError: the file cannot be written.
    """
    whole = {"software": {"name": "ino", "version": __version__}, **_without_nan(content)}
    write_text(path, json.dumps(whole, indent=2, default=str) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
