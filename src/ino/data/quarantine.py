"""A file that names the videos that were left out of training, one JSON object a line.

Each video is named once, however many data workers and processes meet it. The file is a record to
look at: it is never read to decide what to leave out.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from ino.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: two workers that meet a video at once may both name it
    fcntl = None

_LOG = logging.getLogger("ino")


def leave_out(file: Path | None, name: str, *, reason: str) -> bool:
    """Whether what is left out is new to the file, to which it was then appended; tells it if so.

    Args:
        file: JSON lines with `path` and `reason`, created if missing; None to tell alone. One that
            cannot be written costs its line, not the training.
        name: path of a video, or shard and member.
        reason: why it is left out.
    """
    try:
        is_new = file is None or quarantine_all(file, {name: reason}) == 1
    except OutputError as error:
        _LOG.warning("%s", error)
        is_new = True
    if is_new:
        _LOG.warning("left out of training: %s", reason if name in reason else f"{name}: {reason}")
    return is_new


def quarantine_all(file: Path, reasons: Mapping[str, str]) -> int:
    """How many of these videos are new to the file, to which they were then appended.

    Args:
        file: JSON lines with `path` and `reason`; created if missing.
        reasons: why each is left out, by its path.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        with os.fdopen(descriptor, "r+b", buffering=0) as stream:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX)  # released when the file is closed
            stream.seek(0)
            earlier = stream.read()
            named = _named(earlier)
            lines = [_line(path, why) for path, why in reasons.items() if path not in named]
            if lines:
                # One write: lines of several processes never mix.
                stream.write((b"\n" if _ends_torn(earlier) else b"") + b"".join(lines))
    except OSError as error:
        raise OutputError(f"cannot write the quarantine file {file}: {error.strerror}") from error
    return len(lines)


def _line(path: str, reason: str) -> bytes:
    return (json.dumps({"path": path, "reason": reason}, ensure_ascii=False) + "\n").encode(
        errors="backslashreplace"
    )


def _ends_torn(content: bytes) -> bool:
    """Whether a run was killed while it wrote the last line."""
    return bool(content) and not content.endswith(b"\n")


def _named(content: bytes) -> set[str]:
    names = set()
    for line in content.splitlines():
        try:
            names.add(json.loads(line)["path"])
        except (ValueError, KeyError, TypeError):  # a torn line names nothing
            continue
    return names
