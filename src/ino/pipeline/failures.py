"""Why a part of a larger work failed, kept in a file while the other parts go on."""

import traceback
from pathlib import Path

from ino.errors import InoError


def failure_text(error: Exception) -> str:
    """One line for what a user can mend, else that line and the whole story."""
    if isinstance(error, InoError):
        return f"{' '.join(str(error).split())}\n"
    last = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{last}\n\n{''.join(traceback.format_exception(error))}"


def first_line(path: Path) -> str:
    """What `failure_text` says first."""
    return path.read_text(encoding="utf-8").splitlines()[0]
