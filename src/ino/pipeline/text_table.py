"""Lines of texts as a table: on the screen, and as Markdown."""

from collections.abc import Iterable, Sequence
from textwrap import fill

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


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
