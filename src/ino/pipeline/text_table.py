"""Lines of texts as a table: on the screen, and as Markdown."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def print_lines(
    lines: Iterable[Sequence[str]], console: Console, *, num_texts: int = 1, caption: str = ""
) -> None:
    """Prints a table whose first line are headings; all columns but `num_texts` are numbers.

    Labels, in the first column, are kept whole unless the longest takes a third of the screen.
    """
    headings, *rows = lines
    longest = max((len(row[0]) for row in rows), default=0)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, caption=caption or None)
    for index, heading in enumerate(headings):
        table.add_column(
            heading,
            justify="right" if index >= num_texts else "left",
            overflow="fold",
            no_wrap=index == 0 and longest <= console.width // 3,
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(lines: Iterable[Sequence[str]], *, num_texts: int = 1) -> str:
    """The same as Markdown."""
    headings, *rows = lines
    aligned = ["---"] * num_texts + ["---:"] * (len(headings) - num_texts)
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, aligned, *rows])
