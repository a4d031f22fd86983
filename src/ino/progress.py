"""Progress on stderr: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_PER_LINE = 10.0
"""Between two lines of progress where there is no terminal for a bar."""


@contextmanager
def progress(
    what: str, total: int | None = None, *, is_kept: bool = True
) -> Iterator[Callable[..., None]]:
    """Shows a bar once what it yields is called, after each of the `total` (0 or None: unknown);
    without a terminal, a line now and then."""
    console = Console(stderr=True)
    if not console.is_interactive:
        yield _Lines(what, total)
        return
    name = TextColumn("{task.description}", markup=False)
    columns = (name, MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=not is_kept)
    task = bar.add_task(what, total=total or None)

    def advance(num: int = 1, *, total: int | None = None) -> None:
        bar.start()
        bar.update(task, advance=num, total=total)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


class _Lines:
    """Progress without a terminal: a line every `SECONDS_PER_LINE`."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._last = time.monotonic()

    def __call__(self, num: int = 1, *, total: int | None = None) -> None:
        self._done += num
        self._total = total or self._total
        now = time.monotonic()
        if num and now - self._last >= SECONDS_PER_LINE:
            self._last = now
            known = f" of {self._total}" if self._total else ""
            print(f"{self._what}: {self._done}{known}", file=sys.stderr, flush=True)
