"""One command at a time writes into a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ino.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: nothing is held
    fcntl = None

NAME = ".lock"  # hidden: a folder that holds nothing else is empty


@contextmanager
def folder_lock(out: Path, *, command: str = "ino train") -> Iterator[None]:
    """Within, no other process can hold the folder; the system frees it when this process dies.

    A lock of the process, not of the open file: processes that decode do not inherit it, so that a
    run that was killed can resume at once. Where locks or the folder cannot be had, none is held.

    Args:
        out: the folder, created where it is missing.
        command: that holds it, for the message to another one.

    Raises:
        OutputError: another process holds it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / NAME).open("a")
    except OSError:  # said by what writes the results
        yield
        return
    with file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # POSIX allows either
            raise OutputError(
                f"another {command} is writing into {out}: wait for its end or choose another --out"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
