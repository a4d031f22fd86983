"""Files that appear whole or not at all, and output folders that are not overwritten unasked.

Nothing here knows what is in a file: the caller writes to the temporary path that it is given.
"""

import math
import os
import re
import secrets
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ino.errors import OutputError

_LEFTOVER = re.compile(
    r"\.(?P<machine>[0-9a-f]{8})-(?P<process>[1-9][0-9]*)-[0-9a-f]{8}(\.[^.]*)?$"
)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, which becomes `path` when the block ends.

    The file is synced to disk and renamed when the block ends without an exception, and removed
    otherwise, so that `path` is never half written and an older file stays until the new one is
    whole. The temporary name begins with a dot and keeps the suffix, for libraries that tell the
    format by it; what a process that was killed left is found by `remove_leftovers`. A link is
    followed: the file it points to is replaced.

    Args:
        path: where the file will be; its folder must exist.

    Raises:
        OutputError: the file cannot be written there.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        # A rename over a device such as /dev/null would replace the device itself.
        raise OutputError(
            f"cannot write {path}: there is something that is not a file; name a file"
        )
    mark = f"{_machine():08x}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.stem[:40]}.{mark}{target.suffix}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        # Another file's failure inside the block (an input that vanished) is not an output's.
        if error.filename is not None and Path(os.fsdecode(error.filename)) != temporary:
            raise
        raise OutputError(f"cannot write {path}: {_reason(error, target.parent)}") from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8, whole or not at all (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def new_folder(
    path: Path, *, overwrite: bool = False, advice: str = "choose another --out or pass --overwrite"
) -> Path:
    """The folder `path`, created with its parents if needed, empty and writable.

    Hidden files do not count. Nothing is ever deleted but `remove_leftovers`: with `overwrite` the
    files that are there stay until a result of the same name replaces them.

    Args:
        path: the folder to create.
        overwrite: accept a folder that already holds something.
        advice: what to do where it does and `overwrite` is off.

    Raises:
        OutputError: the folder holds something and `overwrite` is off, or it cannot be written to.
    """
    check_new_folder(path, overwrite=overwrite, advice=advice)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # permission bits alone do not tell (root, mounts)
            pass
    except OSError as error:
        raise _unwritable(path, error) from error
    remove_leftovers(path)
    return path


def check_new_folder(path: Path, *, overwrite: bool = False, advice: str) -> None:
    """Checks of `new_folder` that create nothing, for before long work.

    Raises:
        OutputError: there is a file, or a folder that holds something and `overwrite` is off.
    """
    try:
        if not path.exists():
            return
        if not path.is_dir():
            raise OutputError(f"{path} is a file, but a folder is written: choose another --out")
        is_empty = all(entry.name.startswith(".") for entry in path.iterdir())
    except OSError as error:
        raise _unwritable(path, error) from error
    if not is_empty and not overwrite:
        raise OutputError(f"{path} is not empty: {advice}")


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left of files in a folder of results and two levels below.

    The name of a temporary file says which process of which machine writes it. Files of processes
    that run are left alone, and so are those of other machines, where that cannot be told.
    """
    for pattern in (".*", "*/.*", "*/*/.*"):
        for path in folder.glob(pattern):
            marks = _LEFTOVER.search(path.name)
            if marks is None or int(marks["machine"], 16) != _machine():
                continue
            if not _runs(int(marks["process"])):
                with suppress(OSError):  # another process may do the same at this moment
                    path.unlink()


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write to the folder {folder}: {error.strerror or error}")


def _machine() -> int:
    """A number for this machine; processes of two containers never see each other's numbers."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        space = 0
    return zlib.crc32(f"{socket.gethostname()} {space}".encode())


def _runs(process: int) -> bool:
    """Whether a process of that number runs, as far as can be told."""
    if os.name != "posix":
        return True  # there a signal of 0 would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _sync(path: Path) -> None:
    with path.open("rb+") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut; only POSIX systems can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError, folder: Path) -> str:
    if not folder.is_dir():
        return f"the folder {folder} does not exist; create it first"
    return error.strerror or str(error)


# One command at a time writes into a folder.


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


# How many processor cores this process may use.


_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores that the system grants: fewer than the machine has under SLURM, taskset or a container.

    Returns:
        At least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _granted_share(cores)))


def _granted_share(otherwise: int) -> int:
    """What a container may use of them, by the quota of its control group."""
    try:
        quota, period = _QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # none, or "max"
        return otherwise
