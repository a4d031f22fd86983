"""What a video's header tells, without reading the video: no packet is scanned, no frame decoded.

That makes it fit for many thousands of videos, and means that a fault inside a video stays unseen
here. What the header of an MP4 or MOV file promises is held against the file's length, so that one
that came half shows.
"""

import hashlib
import json
import logging
import math
import os
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import av
import numpy as np

from ino.data.decode import NOMINAL_FPS, VideoFile
from ino.data.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_pattern, is_video, open_sequence
from ino.errors import OutputError, VideoError
from ino.system import atomic_path, available_cores


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """What is known of a video before it is read.

    Attributes:
        num_frames: as `read_clip` counts them; 0 where only reading the file tells.
        fps: mean frames a second; 24 for images, which carry no time.
        height: of a frame as stored, before it is turned upright, in pixels.
        width: the same.
        seconds: how long it is by its own account; 0 where it does not say.
        fault: why it cannot be used, in a sentence; empty for a video that can.
    """

    num_frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    seconds: float = 0.0
    fault: str = ""


def read_header(path: Path) -> VideoHeader:
    """The header of a video file, a folder of images or an image sequence.

    Raises:
        VideoError: it is missing, empty, not a video, or cut short.
    """
    sequence = open_sequence(path)
    if sequence is not None:
        seconds = len(sequence) / NOMINAL_FPS
        return VideoHeader(len(sequence), NOMINAL_FPS, *sequence.size, seconds)
    return _of_container(path) or _of_stream(path)


def _of_container(path: Path) -> VideoHeader | None:
    """What an MP4 or MOV file's own header tells; None for others, or where it does not suffice."""
    try:
        with VideoFile(path, num_threads=1, decodes=False) as file:
            if "mp4" not in file.formats or not file.stream.frames:
                return None
            return _header_of(file)
    except VideoError:  # to be told by what opens it in full
        return None


def _of_stream(path: Path) -> VideoHeader:
    with VideoFile(path, num_threads=1) as file:
        return _header_of(file)


def _header_of(file: VideoFile) -> VideoHeader:
    num_frames = _count_in_header(file)
    context = file.stream.codec_context
    seconds = _seconds(file, num_frames)
    return VideoHeader(num_frames, file.fps, context.height, context.width, seconds)


def _count_in_header(file: VideoFile) -> int:
    """The exact number of frames, or 0; see `frame_index` for which codecs and containers tell it.

    Raises:
        VideoError: the file ends before the length that its header promises.
    """
    if "mp4" in file.formats and file.stream.frames:
        size = file.num_bytes
        entries = file.stream.index_entries
        is_whole = [entry.pos + entry.size <= size for entry in entries]
        if not all(is_whole):
            raise file.broken(sum(is_whole), "the file is cut short")
        if file.has_frame_per_packet:
            return sum(not entry.is_discard for entry in entries)
    elif file.is_cut(0):
        raise file.broken(0, "the file is cut short")
    return 0


def _seconds(file: VideoFile, num_frames: int) -> float:
    if file.stream.duration and file.stream.time_base:
        seconds = float(file.stream.duration * file.stream.time_base)
    elif file.container.duration:
        seconds = file.container.duration / av.time_base
    else:
        seconds = num_frames / file.fps
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def header_or_fault(path: Path) -> VideoHeader:
    """The header, or one that holds nothing but the reason why there is none."""
    try:
        return read_header(path)
    except VideoError as error:
        return VideoHeader(fault=str(error))
    except OSError as error:
        return VideoHeader(fault=f"{path} cannot be read: {error.strerror or error}")


# Which videos there are: in folders, as single files, and in text files that list them.
#
# No video is opened here: whether one can be read shows when it is.


_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES))
# A video's name may hold spaces and commas; a label after it is set off by one.
_NAME_AND_LABEL = re.compile(rf"(.+?(?:{_SUFFIXES}))(?:[\s,].*)?", re.IGNORECASE)


def find_videos(roots: Sequence[Path]) -> list[Path]:
    """Every video of the roots, once each, sorted by path.

    A root is one of
    - a folder: its video files and those of its subfolders; a folder that directly holds two or
      more images and no video file is one video (YouTube-VOS: JPEGImages/<video>/*.jpg). Hidden
      files and folders are left out, links are followed;
    - a video file;
    - a pattern of images: shots/frame_%05d.jpg;
    - a text file with a path a line, relative to the text file's folder; what follows the path
      after a space or comma (Kinetics: a label) is left out, and so are lines that begin with #.

    Args:
        roots: folders, video files, patterns and lists.

    Raises:
        VideoError: a root is missing or neither of these, a folder cannot be read, or there is no
            video in all of them.
    """
    return [Path(name) for name in find_names(roots)]


def find_names(roots: Sequence[Path]) -> list[str]:
    """As `find_videos`, as text: a tenth of the memory where there are very many."""
    found: dict[str, str] = {}
    for root in roots:
        for name in _videos_of(root):
            found.setdefault(os.path.abspath(name), name)
    if not found:
        raise VideoError(
            f"no video was found in {', '.join(map(str, roots)) or 'an empty list of roots'}: "
            f"give files with {_listed(VIDEO_SUFFIXES)}, or folders that directly hold images "
            f"({_listed(IMAGE_SUFFIXES)})"
        )
    # Folder by folder, as paths compare.
    return [found[name] for name in sorted(found, key=lambda name: name.split(os.sep))]


def _videos_of(root: Path) -> Iterator[str]:
    if root.is_dir():
        return _walk(root)
    if is_pattern(root):
        return iter([str(root)])
    if not root.exists():
        raise VideoError(f"{root} does not exist: give a folder, a video, or a list of videos")
    if is_video(root):
        return iter([str(root)])
    return map(str, _read_list(root))


def _walk(root: Path) -> Iterator[str]:
    visited: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder above
            subfolders.clear()
            continue
        visited.add(real)
        # Sorted: of a folder that is reached twice, the same path is kept on every machine.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        videos = [file for file in files if _has_suffix(file, VIDEO_SUFFIXES)]
        yield from (os.path.join(folder, file) for file in videos)
        if not videos and sum(_has_suffix(file, IMAGE_SUFFIXES) for file in files) > 1:
            yield folder


def _refuse(error: OSError) -> NoReturn:
    raise VideoError(
        f"the folder {error.filename} cannot be read ({error.strerror}): allow it, or name only "
        "the folders that can be read"
    ) from error


def _has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes


def _read_list(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VideoError(
            f"{path} is neither a video ({_listed(VIDEO_SUFFIXES)}) nor a text file that lists "
            "videos: give one of these or a folder"
        ) from error
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            match = _NAME_AND_LABEL.fullmatch(line)
            yield path.parent / (match[1] if match else re.split(r"[\s,]", line)[0])


def _listed(suffixes: frozenset[str]) -> str:
    return " ".join(sorted(suffixes))


# The file that an index of videos is kept in: JSON lines, one a video.
#
# The first line tells the format. New lines are appended while videos are looked at, so that what
# was done outlives a kill; at the end the file is replaced by a sorted one. A last line that is
# torn is dropped; anything else that is not as it should be makes the whole file worthless.


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


# An index of videos: what the header of each tells, found once and kept in a file.
#
# Only what is new or changed (by path, size and time of change) is looked at again, and what could
# not be used. The result depends on the videos alone: not on what the index held, nor on the order
# in which the headers came.


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


# A file that names the videos that were left out of training, one JSON object a line.
#
# Each video is named once, however many data workers and processes meet it. The file is a record to
# look at: it is never read to decide what to leave out.


try:
    import fcntl
except ImportError:  # Windows: two workers that meet a video at once may both name it
    fcntl = None


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
            lines = [
                _quarantine_line(path, why) for path, why in reasons.items() if path not in named
            ]
            if lines:
                # One write: lines of several processes never mix.
                stream.write((b"\n" if _ends_torn(earlier) else b"") + b"".join(lines))
    except OSError as error:
        raise OutputError(f"cannot write the quarantine file {file}: {error.strerror}") from error
    return len(lines)


def _quarantine_line(path: str, reason: str) -> bytes:
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
