"""An index of videos: what the header of each tells, found once and kept in a file.

Only what is new or changed (by path, size and time of change) is looked at again, and what could
not be used. The result depends on the videos alone: not on what the index held, nor on the order in
which the headers came.
"""

import logging
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ino.data.cores import available_cores
from ino.data.frame_sequence import is_pattern
from ino.data.index_file import (
    IndexDamagedError,
    Journal,
    Known,
    NoIndexError,
    read_index,
    write_index,
)
from ino.data.video_header import VideoHeader, header_or_fault
from ino.data.video_list import find_names
from ino.errors import OutputError

_CHUNK = 64  # videos that a thread takes at a time, and lines that reach the disk together
_MOST_THREADS = 32  # folders on a network answer late, not slowly
_LOG = logging.getLogger("ino")


@dataclass(frozen=True)
class VideoIndex:
    """Videos in the order of `find_videos`, with columns of what their headers tell.

    Attributes:
        names: paths; kept as text, which takes a tenth of the memory.
        num_frames: of each; 0 where only reading the file tells.
        fps: frames a second.
        sizes: height and width in pixels.
        seconds: of each; 0 where the header does not say.
        faults: why a video cannot be used, by its place in `names`.
        num_read: how many headers were read for this, the others being known.
    """

    names: list[str]
    num_frames: np.ndarray
    fps: np.ndarray
    sizes: np.ndarray
    seconds: np.ndarray
    faults: dict[int, str]
    num_read: int

    def __len__(self) -> int:
        return len(self.names)


def index_videos(
    roots: Sequence[Path],
    *,
    file: Path | None,
    on_found: Callable[[int], None] = lambda num_videos: None,
    on_header: Callable[[int], None] = lambda num_more: None,
) -> VideoIndex:
    """The index of all videos of the roots, brought up to date.

    Args:
        roots: as `find_videos` takes them.
        file: where the index is kept; None to keep none.
        on_found: called once with the number of videos.
        on_header: called with the number of videos that were dealt with since the last call.

    Raises:
        VideoError: there is no video, or a folder cannot be read.
        OutputError: the file cannot be written.
    """
    names = find_names(roots)
    on_found(len(names))
    known = {} if file is None else _read_known(file)
    table = _Columns()
    kept: list[tuple[str, Known]] = []
    num_read = 0
    with Journal(file) as journal:
        for states in _look_at_all(names, known):
            usable = [state for state in states if not state.known.header.fault]
            journal.add((state.key, state.known) for state in usable if state.is_new)
            num_read += sum(state.is_new for state in states)
            for state in states:
                table.append(state.known.header)
            if file is not None:
                kept += ((state.key, state.known) for state in usable)
            on_header(len(states))
    index = table.index_of(names, num_read=num_read)
    if file is not None and (num_read > len(index.faults) or len(kept) != len(known)):
        write_index(file, kept)
    return index


class _State(NamedTuple):
    """What is known of a video now, by its absolute path, and whether it had to be found out."""

    key: str
    known: Known
    is_new: bool


def _read_known(file: Path) -> dict[str, Known]:
    """What the index holds; nothing if it is damaged, which is told."""
    try:
        return read_index(file)
    except NoIndexError as error:
        raise OutputError(
            f"{file} is no index of videos but another file, which is left as it is: choose "
            "another place with data.index or --index"
        ) from error
    except IndexDamagedError as error:
        _LOG.warning("the index %s is damaged (%s): all headers are read again", file, error)
        file.unlink(missing_ok=True)
        return {}
    except OSError as error:
        raise OutputError(
            f"the index {file} cannot be read ({error.strerror}): choose another with data.index"
        ) from error


def _look_at_all(names: Sequence[str], known: dict[str, Known]) -> Iterator[list[_State]]:
    """The videos' states, chunk by chunk in their order, found by several threads."""
    num_threads = min(_MOST_THREADS, 4 * available_cores())
    chunks = (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))
    executor = ThreadPoolExecutor(num_threads)
    try:
        # Few chunks ahead: futures of all of them would take more than the index.
        waiting = deque(
            executor.submit(_look_at, chunk, known) for chunk in islice(chunks, 2 * num_threads)
        )
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(executor.submit(_look_at, chunk, known) for chunk in islice(chunks, 1))
    finally:
        executor.shutdown(cancel_futures=True)


def _look_at(names: Sequence[str], known: dict[str, Known]) -> list[_State]:
    states = []
    for name in names:
        try:
            # A pattern's images come and go with the folder's time of change.
            stat = os.stat(Path(name).parent if "%" in name and is_pattern(Path(name)) else name)
            size, time = stat.st_size, stat.st_mtime_ns
        except OSError:  # the header's fault says so
            size = time = 0
        key = os.path.abspath(name)
        before = known.get(key)
        if before is not None and before.size == size and before.time == time:
            states.append(_State(key, before, False))
        else:
            states.append(_State(key, Known(size, time, header_or_fault(Path(name))), True))
    return states


class _Columns:
    """Headers as columns, which take a fraction of the memory of as many objects."""

    def __init__(self) -> None:
        self._num_frames = array("q")
        self._fps = array("d")
        self._sizes = array("i")
        self._seconds = array("d")
        self._faults: dict[int, str] = {}

    def append(self, header: VideoHeader) -> None:
        if header.fault:
            self._faults[len(self._fps)] = header.fault
        self._num_frames.append(header.num_frames)
        self._fps.append(header.fps)
        self._sizes.extend((header.height, header.width))
        self._seconds.append(header.seconds)

    def index_of(self, names: list[str], *, num_read: int) -> VideoIndex:
        return VideoIndex(
            names,
            np.array(self._num_frames),
            np.array(self._fps),
            np.array(self._sizes).reshape(-1, 2),
            np.array(self._seconds),
            self._faults,
            num_read,
        )
