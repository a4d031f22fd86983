"""The file that an index of videos is kept in: JSON lines, one a video.

The first line tells the format. New lines are appended while videos are looked at, so that what
was done outlives a kill; at the end the file is replaced by a sorted one. A last line that is torn
is dropped; anything else that is not as it should be makes the whole file worthless.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ino.data.video_header import VideoHeader
from ino.errors import OutputError
from ino.files import atomic_path

try:
    import fcntl
except (
    ImportError
):  # Windows: two runs that begin at once may spoil the index, which is then redone
    fcntl = None

_FORMAT = {"ino_index": 1}
_BEGIN = b'{"ino_index":'
_WHERE_BEGIN_IS = 1 << 16


@dataclass(frozen=True, slots=True)
class Known:
    """What was found of a video, and the state of the file in which it was found.

    Attributes:
        size: bytes.
        time: when it was last changed, in nanoseconds.
        header: what it tells.
    """

    size: int
    time: int
    header: VideoHeader


class IndexDamagedError(Exception):
    """An index cannot be trusted; the message is which line."""


class NoIndexError(Exception):
    """A file is no index at all and belongs to somebody."""


def default_index(roots: Sequence[Path]) -> Path:
    """Where the index of these roots is kept: in the user's cache folder, XDG_CACHE_HOME if set."""
    # Absolute, or the same words in two folders would share a file.
    name = "\n".join(sorted({str(root.absolute()) for root in roots}))
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ino" / f"index-{digest}.jsonl"


def read_index(path: Path) -> dict[str, Known]:
    """What an index holds, by the absolute path of the video; nothing where there is none.

    Raises:
        NoIndexError: the file has no first line of an index near its start.
        IndexDamagedError: it is of another version, or broken inside.
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(_WHERE_BEGIN_IS)
        # A kill may leave less than the first line, and a failing disk zeros.
        if begin.strip(b"\0") and not _BEGIN.startswith(begin) and _BEGIN not in begin:
            raise NoIndexError
        content = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise IndexDamagedError("it is no text") from error
    lines = content.split("\n")
    del content
    lines.pop()  # nothing, or what a killed run began to write
    if not lines:
        return {}
    known: dict[str, Known] = {}
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            if number == 1:
                if value != _FORMAT:
                    raise ValueError
                continue
            name, size, time, *header = value
            known[_text(name)] = Known(int(size), int(time), _header(header))
        except (ValueError, TypeError) as error:
            raise IndexDamagedError(f"line {number}") from error
    return known


def write_index(path: Path, known: Iterable[tuple[str, Known]]) -> None:
    """Replaces an index.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_line(_FORMAT))
        file.writelines(_line(_as_list(name, one)) for name, one in known)


class Journal:
    """An index that grows: a context manager, whose lines go to the disk whole.

    Only one process at a time adds to an index; what others add is dropped, for them to find out
    anew next time.

    Args:
        path: the index, created with its folder if it is not there; None to keep nothing.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._start = b""
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cut_torn_line(self._file)
        except BlockingIOError:
            self._close()
        except OSError as error:
            self._close()
            raise _cannot_write(path, error) from error

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, known: Iterable[tuple[str, Known]]) -> None:
        """Appends a line for each video.

        Raises:
            OutputError: they cannot be written.
        """
        lines = b"".join(_line(_as_list(name, one)) for name, one in known)
        if self._file is None or self._path is None or not lines:
            return
        try:
            self._file.write(self._start + lines)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        self._start = b""

    def _cut_torn_line(self, file: BinaryIO) -> None:
        file.seek(0)
        num_whole = file.read().rfind(b"\n") + 1
        file.truncate(num_whole)
        self._start = b"" if num_whole else _line(_FORMAT)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write the index {path} ({error.strerror}): choose another place with data.index"
    )


def _as_list(name: str, known: Known) -> list:
    header = known.header
    return [
        name,
        known.size,
        known.time,
        header.num_frames,
        header.fps,
        header.height,
        header.width,
        header.seconds,
        header.fault,
    ]


def _header(values: list) -> VideoHeader:
    num_frames, fps, height, width, seconds, fault = values
    return VideoHeader(
        int(num_frames), float(fps), int(height), int(width), float(seconds), _text(fault)
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _line(value: object) -> bytes:
    # Names that are no text keep their bytes as escapes.
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
