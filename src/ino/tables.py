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
from rich.table import Table
from rich.text import Text

from ino import __version__
from ino.system import atomic_path, write_text

Rows = Iterable[Sequence[str]]

_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters, breaks of lines, changes of direction, and what is no character."""


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
            the right. Text is wrapped between words only, and the first column is not wrapped
            unless it needs more than a third of the screen.
        has_total: print the last row below a line, as a total.
        caption: printed below the table.
    """
    headings, *body = rows
    headings = [_shown_lines(heading) for heading in headings]
    body = [[shown(text) for text in row] for row in body]
    width = max(1, console.width // 6)
    body = [
        [_wrap(text, width) if 0 < index < num_texts else text for index, text in enumerate(row)]
        for row in body
    ]
    total = body.pop() if has_total else [""] * len(headings)
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        show_footer=has_total,
        caption=Text(_shown_lines(caption)) if caption else None,
    )
    for index, heading in enumerate(headings):
        is_text = index < num_texts
        longest = max((len(line) for row in body for line in row[index].split("\n")), default=0)
        table.add_column(
            Text(heading),
            footer=Text(total[index]),
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=is_text and longest <= console.width // 3,
        )
    for row in body:
        table.add_row(*map(Text, row))
    console.print(table)


def _shown_lines(text: str) -> str:
    return "\n".join(map(shown, text.split("\n")))


def _wrap(text: str, width: int) -> str:
    return fill(text, width=width, break_long_words=False, break_on_hyphens=False)


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
