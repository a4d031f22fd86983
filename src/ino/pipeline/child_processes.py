"""Processes that share a larger work: where they print, what is said of their end, and that end."""

import os
from collections.abc import Collection
from multiprocessing.process import BaseProcess
from pathlib import Path


def print_into(path: Path) -> None:
    """Sends everything that this process and its children print to the end of a file, for good."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)


def ended(process: BaseProcess, *, log: Path) -> str:
    """Why the work of a process that is gone has failed, for its error file.

    Args:
        process: that was joined.
        log: what it printed.
    """
    return f"its process ended with status {process.exitcode}; see {log}\n"


def stop_all(processes: Collection[BaseProcess]) -> None:
    """Ends processes and waits until they are gone."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
