"""Files that appear whole or not at all or are read whole, output folders, the lock of a folder,
usable cores, signals.

Nothing here knows what is in a file: the caller writes to the temporary path that it is given.
"""

import errno
import os
import re
import secrets
import signal
import socket
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ino.errors import OutputError

LOCK_NAME = ".lock"
"""The hidden file of `folder_lock`, which stays in the folder."""

_LEFTOVER = re.compile(
    r"\.(?P<machine>[0-9a-f]{8})-(?P<process>[1-9][0-9]*)-[0-9a-f]{8}(\.[^.]*)?$"
)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, which becomes `path` when the block ends.

    The file is synced to disk and renamed when the block ends without an exception, and removed
    otherwise, so `path` is never half written and an older file stays until the new one is whole.
    The temporary name begins with a dot and keeps the suffix, by which libraries tell the format.
    The file a link points to is replaced, not the link.

    Args:
        path: where the file will be; its folder must exist.

    Raises:
        OutputError: the file cannot be written there.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        # A rename over a device such as /dev/null would replace the device itself.
        raise OutputError(f"cannot write {path}: it exists and is not a file; name a file")
    mark = f"{_machine():08x}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.stem[:40]}.{mark}{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        # An input that vanished inside the block is not a failure of this file.
        if error.filename is not None and Path(os.fsdecode(error.filename)) != temporary:
            raise
        reason = error.strerror or str(error)
        if not target.parent.is_dir():
            reason = f"the folder {target.parent} does not exist; create it first"
        raise OutputError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut; only POSIX systems can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8, whole or not at all (see `atomic_path`).

    Bytes of file names that are no text are written as they are.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def read_file(path: Path, *, max_bytes: int = 1 << 28) -> bytes:
    """The whole content of a file.

    Raises:
        OSError: it cannot be read, is larger than `max_bytes`, or is a device or a pipe, which may
            have no end; `strerror` says which.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe and not a file", str(path))
    if state.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"it holds more than {max_bytes} bytes", str(path))
    return path.read_bytes()


_ADVICE = "choose another --out or pass --overwrite"


def check_new_folder(path: Path, *, overwrite: bool = False, advice: str = _ADVICE) -> None:
    """Checks whether `new_folder` may use `path`, without creating anything.

    Raises:
        OutputError: `path` is a file, or a folder that holds something and `overwrite` is off.
    """
    try:
        if not path.exists():
            if path.is_symlink():
                raise OutputError(f"{path} is a link that leads nowhere: choose another --out")
            return
        if not path.is_dir():
            raise OutputError(f"{path} is a file, but a folder is written: choose another --out")
        is_empty = all(entry.name.startswith(".") for entry in path.iterdir())
    except OSError as error:
        raise _unwritable(path, error) from error
    if not is_empty and not overwrite:
        raise OutputError(f"{path} is not empty: {advice}")


def new_folder(path: Path, *, overwrite: bool = False, advice: str = _ADVICE) -> Path:
    """The folder `path`, created with its parents if needed, empty (but for hidden files) and
    writable.

    Only `remove_leftovers` deletes anything: with `overwrite`, files stay until a result of the
    same name replaces them.

    Args:
        path: the folder to create.
        overwrite: accept a folder that already holds something.
        advice: what the message suggests if it does and `overwrite` is off.

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


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write to the folder {folder}: {error.strerror or error}")


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of killed processes from a folder and two levels below it.

    A temporary file's name says which process of which machine writes it. Files of running
    processes stay, and so do those of other machines, whose processes cannot be checked.
    """
    for pattern in (".*", "*/.*", "*/*/.*"):
        for path in folder.glob(pattern):
            marks = _LEFTOVER.search(path.name)
            if marks is None or int(marks["machine"], 16) != _machine():
                continue
            if not _is_running(int(marks["process"])):
                with suppress(OSError):  # another process may do the same at this moment
                    path.unlink()


def _machine() -> int:
    """A number for this machine; containers that do not see each other's processes differ."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        namespace = 0
    return zlib.crc32(f"{socket.gethostname()} {namespace}".encode())


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # there, signal 0 would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


@contextmanager
def folder_lock(out: Path, *, command: str = "ino train") -> Iterator[None]:
    """While the block runs, no other process can lock the folder.

    The operating system releases the lock when this process dies, however it dies; its child
    processes do not inherit it, so a killed run can resume at once. Where the folder cannot be
    created or the file system has no locks, nothing is locked.

    Args:
        out: the folder, created if it is missing.
        command: the command that holds the lock, for the message to another one.

    Raises:
        OutputError: another process holds the lock.
    """
    from filelock import FileLock, Timeout  # slow to import for `ino --help`

    # Hidden, so that a folder that holds nothing else counts as empty. A lock file that outlived
    # its process would have to be removed by hand (`fallback_to_soft`).
    lock = FileLock(out / LOCK_NAME, is_singleton=True, thread_local=False, fallback_to_soft=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise OutputError(
            f"another {command} is writing into {out}: wait until it ends or choose another --out"
        ) from error
    except OSError:
        yield  # whatever writes the results reports a folder that cannot be written
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def handle_signals(*names: str, handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within, the handler gets these signals; outside the main thread Python handles none."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [signal.Signals[name] for name in names if is_main and hasattr(signal, name)]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, other in previous.items():
            signal.signal(number, other)


def available_cores() -> int:
    """The number of cores this process may use, at least 1: affinity (SLURM, taskset) and container
    quotas count."""
    from loky import cpu_count  # slow to import for `ino --help`

    return cpu_count()
