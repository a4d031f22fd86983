"""The file of a run's numbers: one JSON line a step, which outlives kills and full disks."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from ino.files import write_text

LOG_NAME = "log.jsonl"
_LOG = logging.getLogger("ino")


class LogFile:
    """Appends a line for each step.

    Opened for a run that resumes, it drops the lines of steps that will be done again, so that the
    file holds each step once. Lines that a full disk refuses are kept in memory and written once
    there is room.
    """

    def __init__(self, path: Path, *, first_step: int) -> None:
        """Args:
        path: of the file.
        first_step: the step that comes first, counted from 0.

        Raises:
            OutputError: the file cannot be written.
        """
        _drop_lines_from(path, first_step)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        self._has_warned = False

    def write(self, numbers: Mapping[str, int | float]) -> None:
        """Appends numbers by name; JSON knows none that are not finite, they are null."""
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._unwritten += json.dumps(finite).encode() + b"\n"
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not self._has_warned:
                _LOG.warning(
                    "cannot write %s (%s): the run goes on and writes its lines when there is room",
                    self._path,
                    error.strerror,
                )
            self._has_warned = True

    def close(self) -> None:
        self._file.close()


def _drop_lines_from(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            is_earlier = json.loads(line)["step"] < step
        except (ValueError, KeyError, TypeError, RecursionError):
            break  # torn by a kill, or damaged
        if not is_earlier:
            break
        kept.append(line)
    write_text(path, "".join(kept))
