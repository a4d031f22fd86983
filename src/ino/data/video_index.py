"""An index of videos: what the header of each tells, found once and kept in a file.

Only what is new or changed (by path, size and time of change) is looked at again, and what could
not be used. The result depends on the videos alone: not on what the index held, nor on the order in
which the headers came.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ino.data.frame_sequence import is_pattern
from ino.data.index_file import IndexDamagedError, Journal, Known, read_index, write_index
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
    table = _Columns(len(names))
    kept: list[tuple[str, Known]] = []
    num_read = 0
    with Journal(file) as journal:
        for start, states in _look_at_all(names, known):
            new = [
                (os.path.abspath(names[start + place]), state)
                for place, (state, is_new) in enumerate(states)
                if is_new and not state.header.fault
            ]
            journal.add(new)
            num_read += sum(is_new for _, is_new in states)
            for place, (state, _) in enumerate(states, start=start):
                table.set(place, state.header)
                if file is not None and not state.header.fault:
                    kept.append((os.path.abspath(names[place]), state))
            on_header(len(states))
    index = VideoIndex(names, *table.columns, table.faults, num_read)
    if file is not None and (num_read > len(index.faults) or len(kept) != len(known)):
        write_index(file, kept)
    return index


def _read_known(file: Path) -> dict[str, Known]:
    """What the index holds; nothing if it is damaged, which is told."""
    try:
        return read_index(file)
    except IndexDamagedError as error:
        _LOG.warning("the index %s is damaged (%s): all headers are read again", file, error)
        file.unlink(missing_ok=True)
        return {}
    except OSError as error:
        raise OutputError(
            f"the index {file} cannot be read ({error.strerror}): choose another with data.index"
        ) from error


def _look_at_all(
    names: Sequence[str], known: dict[str, Known]
) -> Iterator[tuple[int, list[tuple[Known, bool]]]]:
    """Places and states of the videos, chunk by chunk in their order, found by several threads."""
    num_threads = min(_MOST_THREADS, 4 * (os.cpu_count() or 1))
    starts = iter(range(0, len(names), _CHUNK))
    executor = ThreadPoolExecutor(num_threads)

    def submit(start: int):
        return start, executor.submit(_look_at, names[start : start + _CHUNK], known)

    try:
        # Few chunks ahead: a list of futures for all of them would take more than the index.
        waiting = [submit(start) for start in islice(starts, 2 * num_threads)]
        while waiting:
            start, future = waiting.pop(0)
            yield start, future.result()
            waiting += [submit(start) for start in islice(starts, 1)]
    finally:
        executor.shutdown(cancel_futures=True)


def _look_at(names: Sequence[str], known: dict[str, Known]) -> list[tuple[Known, bool]]:
    """The state of each video, and whether it is new."""
    states = []
    for name in names:
        try:
            # A pattern's images come and go with the folder's time of change.
            stat = os.stat(Path(name).parent if "%" in name and is_pattern(Path(name)) else name)
            state = stat.st_size, stat.st_mtime_ns
        except OSError:  # the header's fault says so
            state = 0, 0
        before = known.get(os.path.abspath(name))
        if before is not None and (before.size, before.time) == state:
            states.append((before, False))
        else:
            states.append((Known(*state, header_or_fault(Path(name))), True))
    return states


class _Columns:
    """Headers as columns."""

    def __init__(self, num_videos: int) -> None:
        self.columns = (
            np.zeros(num_videos, np.int64),
            np.zeros(num_videos),
            np.zeros((num_videos, 2), np.int32),
            np.zeros(num_videos),
        )
        self.faults: dict[int, str] = {}

    def set(self, place: int, header: VideoHeader) -> None:
        values = (header.num_frames, header.fps, (header.height, header.width), header.seconds)
        for column, value in zip(self.columns, values, strict=True):
            column[place] = value
        if header.fault:
            self.faults[place] = header.fault
