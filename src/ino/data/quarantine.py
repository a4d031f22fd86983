"""A file that names the videos that were left out of training, one JSON object a line.

Each video is named once, however many data workers and processes meet it. The file is a record to
look at: it is never read to decide what to leave out.
"""

import json
import os
from pathlib import Path

from ino.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: two workers that meet a video at once may both name it
    fcntl = None


def quarantine(file: Path, video: Path, *, reason: str) -> bool:
    """Whether the video is new to the file, to which it was then appended.

    Args:
        file: JSON lines with `path` and `reason`; created if missing.
        video: the video to name.
        reason: why it is left out.

    Raises:
        OutputError: the file cannot be written.
    """
    line = json.dumps({"path": str(video), "reason": reason}, ensure_ascii=False) + "\n"
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        with os.fdopen(descriptor, "r+b", buffering=0) as stream:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX)  # released when the file is closed
            stream.seek(0)
            earlier = stream.read()
            if str(video) in _named(earlier):
                return False
            # One write a line: lines of several processes never mix.
            stream.write((b"\n" if _ends_torn(earlier) else b"") + line.encode())
    except OSError as error:
        raise OutputError(f"cannot write the quarantine file {file}: {error.strerror}") from error
    return True


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
