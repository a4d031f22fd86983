"""Finds the videos of a collection, reads their headers, and stores which videos are usable.

The header of a video tells its length, rate and size in a fraction of the time that reading it
takes, so many thousands of videos can be looked at before training. No packet is scanned and no
frame decoded: a fault inside a video stays unseen here and shows when it is read. What the header
of an MP4 or MOV file promises is compared with the file's length, which shows one that was not
copied whole. How much moves in the videos is measured on request, from a few of their frames.

The results are stored in two SQLite files with the same tables. The index caches the headers of a
collection: only videos that are new, changed or unusable are read again, and the result does not
depend on what was cached. The quarantine records the videos that a training run left out, and why;
it is never read to decide what to leave out. Both files stay intact if a process is killed, and
several processes may write to them at the same time. They use a rollback journal, as SQLite's
write-ahead log does not work on network file systems.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import av
import cv2
import numpy as np

from ino.data.decode import VideoFile
from ino.data.images import IMAGE_SUFFIXES, holds_pages, is_pattern, open_sequence
from ino.data.video import VIDEO_SUFFIXES, is_video, read_chosen
from ino.errors import OutputError, VideoError
from ino.schema import parse_json
from ino.system import available_cores, read_file, write_text

_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES))
# A video's name may hold spaces and commas; a label after it is set off by one.
_NAME_AND_LABEL = re.compile(rf"(.+?(?:{_SUFFIXES}))(?:[\s,].*)?", re.IGNORECASE)
_CHUNK = 64  # videos that a thread takes at a time
_MAX_THREADS = 32  # folders on a network answer late, not slowly
_SECONDS_BETWEEN_WRITES = 1.0
_SECONDS_TO_WAIT = 60.0  # for other processes that write the same file
_APPLICATION_ID = 0x696E6F76  # SQLite's field that tells an application's own files
_COLUMNS = "path, size, time, num_frames, fps, height, width, seconds"
_TABLE = """
CREATE TABLE videos (
    path BLOB PRIMARY KEY, size INTEGER, time INTEGER, num_frames INTEGER, fps REAL, height INTEGER,
    width INTEGER, seconds REAL, fault TEXT
) WITHOUT ROWID
"""  # paths are bytes, as not all of them are text
_MOTION_TABLE = """
CREATE TABLE IF NOT EXISTS motion (
    path BLOB PRIMARY KEY, size INTEGER, time INTEGER, motion REAL
) WITHOUT ROWID
"""
_NUM_PAIRS = 4  # of frames whose motion is measured
_MOTION_SIDE = 96  # short side at which it is measured, in pixels
_MOTION_THREADS = 8  # each holds the frames of a video
MACHINE_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO})
"""Errors of the system that say nothing about the file that was read."""

_LOG = logging.getLogger("ino")


class VideoHeader(NamedTuple):
    """What is known of a video before it is read.

    Attributes:
        num_frames: as `read_clip` counts them; 0 where only reading the file tells.
        fps: mean frames per second; 24 for images without timestamps.
        height, width: of a frame as stored, before it is turned upright, in pixels.
        seconds: duration by its own account; 0 where it does not say.
        fault: why it cannot be used, in a sentence; empty for a usable video.
    """

    num_frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    seconds: float = 0.0
    fault: str = ""


def read_header(path: Path) -> VideoHeader:
    """The header of a video file, a folder of images or an image sequence.

    If the video is missing, empty, not a video or cut short, `fault` says so.

    Raises:
        VideoError: the machine is at fault, see `check_machine`.
    """
    try:
        sequence = open_sequence(path)
        if sequence is not None:
            seconds = len(sequence) / sequence.fps
            return VideoHeader(len(sequence), sequence.fps, *sequence.size, seconds)
        with (
            contextlib.suppress(VideoError),  # to be raised by what opens it in full
            VideoFile(path, num_threads=1, decodes=False) as file,
        ):
            # Which of several streams is best is seen once they are decoded.
            is_sure = len(file.container.streams.video) == 1
            if is_sure and "mp4" in file.formats and file.stream.frames:
                return _header_of(file)
        with VideoFile(path, num_threads=1) as file:
            return _header_of(file)
    except VideoError as error:
        check_machine(path, error)
        return VideoHeader(fault=str(error))
    except OSError as error:
        check_machine(path, error)
        return VideoHeader(fault=f"{path} cannot be read: {error.strerror or error}")


def check_machine(path: Path, error: Exception) -> None:
    """Checks that it is the video's fault that it could not be read, by reading its bytes.

    Args:
        path: of the video.
        error: why it could not be read.

    Raises:
        VideoError: too many files are open, the disk or the network that it is on fails, or its
            handle is stale.
    """
    cause: BaseException | None = error
    try:
        while cause is not None:
            # A damaged video can have FFmpeg's I/O error, a file that can be read cannot.
            if getattr(cause, "errno", None) in MACHINE_ERRORS - {errno.EIO}:
                raise cause
            cause = cause.__cause__
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 22):
                    pass
    except OSError as fault:
        if fault.errno in MACHINE_ERRORS:
            advice = "allow more with ulimit -n" if fault.errno == errno.EMFILE else "see to that"
            raise VideoError(
                f"{path} cannot be read ({fault.strerror}), which is no fault of the video: "
                f"{advice} and start again"
            ) from fault


def _header_of(file: VideoFile) -> VideoHeader:
    num_frames = _count_in_header(file)
    if file.stream.duration and file.stream.time_base:
        seconds = float(file.stream.duration * file.stream.time_base)
    elif file.container.duration:
        seconds = file.container.duration / av.time_base
    else:
        seconds = num_frames / file.fps
    seconds = seconds if math.isfinite(seconds) and seconds > 0 else 0.0
    context = file.stream.codec_context
    return VideoHeader(num_frames, file.fps, context.height, context.width, seconds)


def _count_in_header(file: VideoFile) -> int:
    """The exact number of frames, or 0 where the codec or container does not tell.

    Raises:
        VideoError: the file ends before the length that its header promises.
    """
    if "mp4" in file.formats and file.stream.frames:
        num_bytes = file.num_bytes
        entries = file.stream.index_entries
        is_whole = [entry.pos + entry.size <= num_bytes for entry in entries]
        if not all(is_whole):
            raise file.broken(sum(is_whole), "the file is cut short")
        if file.has_frame_per_packet:
            return sum(not entry.is_discard for entry in entries)
    elif file.is_cut(0):
        raise file.broken(0, "the file is cut short")
    return 0


def find_videos(roots: Sequence[Path]) -> list[str]:
    """The paths of all videos of the roots, each once, sorted folder by folder.

    No video is opened but the first image of a folder, if its kind may hold pages. Paths are text,
    which takes a tenth of the memory of `Path`.

    A root is one of
    - a folder: its video files and those of its subfolders; a folder that directly holds two or
      more images and no video file is one video (YouTube-VOS: JPEGImages/<video>/*.jpg), unless
      the first image holds several pages: then each is a video. Hidden files and folders are left
      out, links are followed;
    - a video file, TIFF stack or animated image;
    - a pattern of images: shots/frame_%05d.jpg;
    - a text file with one path per line, relative to the text file's folder; what follows the path
      after a space or comma (Kinetics: a label) is ignored, and so are lines that begin with #.

    Raises:
        VideoError: a root is missing or none of these, a folder cannot be read, or no video was
            found.
    """
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
    if is_video(root) or (root.is_file() and holds_pages(root)):
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
        images = sorted(file for file in files if _has_suffix(file, IMAGE_SUFFIXES))
        # One is opened: frames of a video are many, and so may be the folders of them.
        if images and holds_pages(Path(folder, images[0])):
            videos, images = videos + images, []
        yield from (os.path.join(folder, file) for file in videos)
        if not videos and len(images) > 1:
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
        lines = read_file(path).decode("utf-8-sig").splitlines()
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


@dataclass(frozen=True)
class VideoIndex:
    """Videos in the order of `find_videos`, with arrays of what their headers tell.

    Attributes:
        names: paths.
        num_frames: of each; 0 where only reading the file tells.
        fps: frames per second.
        sizes: height and width in pixels.
        seconds: duration of each; 0 where the header does not say.
        motion: of each, see `video_motion`; NaN where it was not measured.
        faults: why a video cannot be used, by its place in `names`.
        num_read: how many headers were read for this; the others were known.
    """

    names: list[str]
    num_frames: np.ndarray
    fps: np.ndarray
    sizes: np.ndarray
    seconds: np.ndarray
    motion: np.ndarray
    faults: dict[int, str]
    num_read: int

    def __len__(self) -> int:
        return len(self.names)


def default_index(roots: Sequence[Path]) -> Path:
    """Where the index of these roots is kept: in the user's cache folder, XDG_CACHE_HOME if set.

    Raises:
        OutputError: the user has no home folder.
    """
    # Absolute, or the same words in two folders would share a file.
    name = "\n".join(sorted({str(root.absolute()) for root in roots}))
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OutputError(
            "there is no home folder to keep the index in: set HOME or XDG_CACHE_HOME, or "
            "name a file with --index (for ino train, --data.index)"
        ) from error
    return cache / "ino" / f"index-{digest}.sqlite"


def index_videos(
    roots: Sequence[Path],
    *,
    file: Path | None,
    on_progress: Callable[[int, int], None] = lambda num_more, num_videos: None,
) -> VideoIndex:
    """The index of all videos of the roots, brought up to date.

    Args:
        roots: as `find_videos` takes them.
        file: where the index is kept; None to keep none.
        on_progress: called repeatedly, with the number of videos looked at since the last call, and
            of all videos.

    Raises:
        VideoError: there is no video, or a folder cannot be read.
        OutputError: the file cannot be written, or is not an index.
    """
    names = find_videos(roots)
    on_progress(0, len(names))
    headers: list[VideoHeader] = []
    num_read = 0
    with _records(file, "index") as records:
        rows = records.execute(f"SELECT {_COLUMNS} FROM videos WHERE fault IS NULL")
        known = {
            (key := os.fsdecode(path)): _Found(
                key, size, changed, VideoHeader(*header), is_new=False
            )
            for path, size, changed, *header in rows
        }
        fresh: list[_Found] = []
        last_write = time.monotonic()
        try:
            for chunk in _look_at_all(names, known):
                headers += (found.header for found in chunk)
                fresh += (found for found in chunk if found.is_new)
                on_progress(len(chunk), len(names))
                if time.monotonic() > last_write + _SECONDS_BETWEEN_WRITES:
                    num_read += len(fresh)
                    _write_found(records, fresh)
                    fresh, last_write = [], time.monotonic()
        finally:  # what was read outlives an interruption
            num_read += len(fresh)
            _write_found(records, fresh)
        with records:  # what is left of these is no longer there
            records.executemany("DELETE FROM videos WHERE path = ?", _keys(known))
            records.execute("DELETE FROM motion WHERE path NOT IN (SELECT path FROM videos)")
        rows = records.execute(
            "SELECT path, motion FROM motion JOIN videos USING (path, size, time)"
        )
        motion = {os.fsdecode(path): value for path, value in rows}
    return VideoIndex(
        names,
        num_frames=np.array([header.num_frames for header in headers]),
        fps=np.array([header.fps for header in headers]),
        sizes=np.array([(header.height, header.width) for header in headers]),
        seconds=np.array([header.seconds for header in headers]),
        motion=np.array([motion.get(os.path.abspath(name), math.nan) for name in names]),
        faults={place: header.fault for place, header in enumerate(headers) if header.fault},
        num_read=num_read,
    )


def measure_motion(
    index: VideoIndex,
    *,
    file: Path | None,
    on_progress: Callable[[int, int], None] = lambda num_more, num_videos: None,
) -> VideoIndex:
    """The index with the motion of all usable videos, measured where it is not known.

    It stays NaN for a video whose frames cannot be read.

    Args:
        index: as `index_videos` gives it.
        file: where that index is kept; None if nowhere.
        on_progress: as in `index_videos`, counting the videos to measure.

    Raises:
        VideoError: the machine is at fault, see `check_machine`.
        OutputError: the file cannot be written.
    """
    motion, fresh = index.motion.copy(), []
    places = [i for i in np.flatnonzero(np.isnan(motion)).tolist() if i not in index.faults]
    executor = ThreadPoolExecutor(min(_MOTION_THREADS, available_cores()))
    with _records(file, "index") as records:
        last_write = time.monotonic()
        try:
            found = executor.map(_motion_or_nan, [index.names[place] for place in places])
            for place, value in zip(places, found, strict=True):
                motion[place] = value
                if not math.isnan(value):
                    fresh.append((value, os.fsencode(os.path.abspath(index.names[place]))))
                on_progress(1, len(places))
                if time.monotonic() > last_write + _SECONDS_BETWEEN_WRITES:
                    _write_motion(records, fresh)
                    fresh, last_write = [], time.monotonic()
        finally:  # what was measured outlives an interruption
            executor.shutdown(cancel_futures=True)
            _write_motion(records, fresh)
    return dataclasses.replace(index, motion=motion)


def video_motion(path: Path) -> float:
    """How fast things move in a video: mean speed of its pixels, in percent of the short side per
    second.

    It is measured by optical flow between the frames of four pairs, which are spread over the
    video and a quarter of a second apart. Motion of the camera counts. 0 for a single frame.

    Raises:
        VideoError: as `ino.data.video.read_clip`.
    """
    seconds = 0.0

    def choose(num_frames: int, fps: float) -> list[int]:
        nonlocal seconds
        gap = min(max(1, round(fps / 4)), num_frames - 1)
        seconds = gap / fps
        starts = np.linspace(0, num_frames - 1 - gap, _NUM_PAIRS).astype(int)
        return [frame for start in starts.tolist() for frame in (start, start + gap)]

    frames = read_chosen(path, choose)
    if not seconds:
        return 0.0
    height, width = frames.shape[1:3]
    scale = _MOTION_SIDE / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [
        cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        for frame in frames
    ]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    moved = [
        np.linalg.norm(flow.calc(first, second, np.empty(0)), axis=-1).mean()
        for first, second in zip(small[::2], small[1::2], strict=True)
    ]
    return 100 * float(np.mean(moved)) / _MOTION_SIDE / seconds


def _motion_or_nan(name: str) -> float:
    try:
        return video_motion(Path(name))
    except (VideoError, OSError) as error:
        check_machine(Path(name), error)
        return math.nan


def _write_motion(records: sqlite3.Connection, fresh: Sequence[tuple[float, bytes]]) -> None:
    """Keeps motion, by path, of videos whose headers are kept."""
    with records:
        records.executemany(
            "INSERT OR REPLACE INTO motion SELECT path, size, time, ? FROM videos WHERE path = ?",
            fresh,
        )


def write_faults(index: VideoIndex, file: Path) -> None:
    """Writes the videos that cannot be used, one JSON object with `path` and `reason` per line.

    Raises:
        OutputError: the file cannot be written.
    """
    faults = ({"path": index.names[i], "reason": fault} for i, fault in index.faults.items())
    write_text(file, "".join(json.dumps(fault) + "\n" for fault in faults))


def summarize(index: VideoIndex) -> list[list[str]]:
    """A table of what the usable videos are like, for `ino.tables.print_table`."""
    usable = np.setdiff1d(np.arange(len(index)), list(index.faults))
    seconds, sizes = index.seconds[usable], index.sizes[usable]
    rows = [
        ["videos", str(len(usable)), ""],
        ["broken", str(len(index.faults)), ""],
        ["hours", f"{seconds.sum() / 3600:.2f}", ""],
    ]
    if len(usable):
        low, median, high = np.percentile(seconds, [5, 50, 95])
        rows.append(["median seconds", f"{median:.1f}", f"5% to 95%: {low:.1f} to {high:.1f}"])
    if len(motion := index.motion[usable][~np.isnan(index.motion[usable])]):
        low, median, high = np.percentile(motion, [5, 50, 95])
        rows.append(
            ["median motion, % per second", f"{median:.1f}", f"5% to 95%: {low:.1f} to {high:.1f}"]
        )
    for name, values in (
        ("width x height", [f"{width}x{height}" for height, width in sizes.tolist()]),
        ("frames per second", [f"{fps:.3g}" for fps in index.fps[usable]]),
    ):
        kinds = Counter(sorted(values)).most_common()
        for kind, count in kinds[:5]:
            rows.append([name, kind, f"{100 * count / len(values):.0f}%"])
            name = ""
        if len(kinds) > 5:
            rows.append(["", f"{len(kinds) - 5} others", ""])
    return rows


def wide_video_remark(
    index: VideoIndex,
    *,
    scale: tuple[float, float] = (0.8, 0.95),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> str:
    """A warning if, in most usable videos, no random crop of this scale and ratio fits the frame.

    Empty otherwise.

    A crop of the share s of a frame and the aspect a is at most as high as the frame if a >= s W /
    H, and at most as wide if a <= W / (s H). Where no s and a of the ranges fit, torchvision's
    RandomResizedCrop takes the largest center crop of an allowed aspect, the same one each time.
    """
    usable = np.setdiff1d(np.arange(len(index)), list(index.faults))
    aspects = index.sizes[usable, 1] / index.sizes[usable, 0]
    widest, tallest = ratio[1] / scale[0], ratio[0] * scale[0]
    never_fit = (aspects > widest) | (aspects < tallest)
    if not 2 * never_fit.sum() > len(usable):
        return ""
    middle = float(np.median(aspects[never_fit]))
    share = min(ratio[1] / middle, middle / ratio[0])
    return (
        f"{100 * never_fit.mean():.0f}% of the videos are wider than {widest:.2f}:1 or narrower "
        f"than {tallest:.2f}:1, where global crops of scale {scale[0]:g} to {scale[1]:g} and ratio "
        f"{ratio[0]:.2f} to {ratio[1]:.2f} never fit: all of them are the same center crop, at "
        f"{middle:.2f}:1 {100 * share:.0f}% of the frame; views.ratio can allow wider ones"
    )


class _Found(NamedTuple):
    """A video by its absolute path: the state of its file, its header, and whether that is new."""

    key: str
    size: int  # bytes
    time: int  # of the last change, in nanoseconds
    header: VideoHeader
    is_new: bool = True


def _look_at_all(names: Sequence[str], known: dict[str, _Found]) -> Iterator[list[_Found]]:
    """The videos chunk by chunk in their order, looked at by several threads."""
    num_threads = min(_MAX_THREADS, 4 * available_cores())
    chunks = (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))
    executor = ThreadPoolExecutor(num_threads)
    try:
        yield from executor.map(partial(_look_at, known=known), chunks)
    finally:
        executor.shutdown(cancel_futures=True)


def _look_at(names: Sequence[str], known: dict[str, _Found]) -> list[_Found]:
    """What is found of some videos; taken out of what is known."""
    found = []
    for name in names:
        try:
            # A pattern's images come and go with the folder's time of change.
            stat = os.stat(Path(name).parent if "%" in name and is_pattern(Path(name)) else name)
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:  # the header's fault says so
            size = changed = 0
        key = os.path.abspath(name)
        before = known.pop(key, None)
        if before is None or (before.size, before.time) != (size, changed):
            before = _Found(key, size, changed, read_header(Path(name)))
        found.append(before)
    return found


def _write_found(records: sqlite3.Connection, fresh: Sequence[_Found]) -> None:
    """Keeps the headers of usable videos; unusable ones are looked at each time."""
    rows = [
        (os.fsencode(found.key), found.size, found.time, *found.header[:-1])
        for found in fresh
        if not found.header.fault
    ]
    with records:
        records.executemany(
            "DELETE FROM videos WHERE path = ?",
            _keys(found.key for found in fresh if found.header.fault),
        )
        records.executemany(
            f"INSERT OR REPLACE INTO videos ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
        )


def _keys(paths: Iterable[str]) -> Iterator[tuple[bytes]]:
    return ((os.fsencode(path),) for path in paths)


def leave_out(file: Path | None, name: str, *, reason: str) -> bool:
    """Adds a video to the quarantine and logs a warning; returns whether it was new there.

    Args:
        file: the quarantine, created if missing; None to log only. If it cannot be written, this is
            logged, and training continues.
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
    """Adds videos, with the reason by path, to the quarantine; returns how many were new there.

    Raises:
        OutputError: the file cannot be written.
    """
    with _records(file, "quarantine") as records:
        return _add_faults(records, reasons)


def _add_faults(records: sqlite3.Connection, reasons: Mapping[str, str]) -> int:
    rows = [
        (os.fsencode(path), reason.encode(errors="backslashreplace").decode())
        for path, reason in reasons.items()
    ]
    with records:
        sql = "INSERT OR IGNORE INTO videos (path, fault) VALUES (?, ?)"
        return records.executemany(sql, rows).rowcount


@contextlib.contextmanager
def _records(path: Path | None, what: str) -> Iterator[sqlite3.Connection]:
    """The SQLite file of an index or a quarantine, created if it is missing, in memory for None.

    What earlier versions kept as text, in this file or beside it, is taken over. A damaged file is
    made anew, with a warning.

    Raises:
        OutputError: it cannot be read or written, or belongs to someone else.
    """
    try:
        try:
            records = _connect(path, what)
        except sqlite3.DatabaseError as error:
            if path is None or isinstance(error, sqlite3.OperationalError):
                raise
            _LOG.warning("the %s %s is damaged (%s): it is made anew", what, path, error)
            for part in (path, Path(f"{path}-journal")):
                part.unlink(missing_ok=True)
            records = _connect(path, what)
        with contextlib.closing(records):
            yield records
    except sqlite3.Error as error:
        advice = ": choose another place with data.index" if what == "index" else ""
        raise OutputError(f"cannot write the {what} {path} ({error}){advice}") from error


def _connect(path: Path | None, what: str) -> sqlite3.Connection:
    text = b""
    if path is not None:
        try:
            text = _take_text(path, what)
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise sqlite3.OperationalError(error.strerror or str(error)) from error
    records = sqlite3.connect(path or ":memory:", timeout=_SECONDS_TO_WAIT)
    try:
        records.execute("PRAGMA synchronous = NORMAL")
        (state,) = records.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        with records:
            records.execute("BEGIN IMMEDIATE")
            (application,) = records.execute("PRAGMA application_id").fetchone()
            if application != _APPLICATION_ID:
                if records.execute("SELECT name FROM sqlite_master").fetchone():
                    raise _not_ours(path, what)
                records.execute(_TABLE)
                records.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            records.execute(_MOTION_TABLE)  # earlier versions had none
        _add_text(records, text)
    except BaseException:
        records.close()
        raise
    return records


def _take_text(path: Path, what: str) -> bytes:
    """What an earlier version kept as text, in this file or beside it; the text file is removed."""
    for file in (path, path.with_suffix(".jsonl")):
        with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
            begin = stream.read(16)
            if begin.startswith((b'{"ino_index":', b'{"path":')):
                content = begin + stream.read()
                file.unlink()
                return content
            if file == path and begin.strip(b"\0") and not begin.startswith(b"SQLite format 3"):
                raise _not_ours(path, what)
    return b""


def _add_text(records: sqlite3.Connection, text: bytes) -> None:
    """Adds the lines of an earlier version's index or quarantine; torn ones are skipped."""
    found: list[_Found] = []
    reasons: dict[str, str] = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            value = parse_json(line.decode())
            if isinstance(value, list):
                name, size, changed, num_frames, fps, height, width, seconds, _ = value
                header = VideoHeader(
                    int(num_frames), float(fps), int(height), int(width), float(seconds)
                )
                found.append(_Found(str(name), int(size), int(changed), header))
            elif "path" in value:
                reasons[str(value["path"])] = str(value["reason"])
    _write_found(records, found)
    _add_faults(records, reasons)


def _not_ours(path: Path | None, what: str) -> OutputError:
    return OutputError(
        f"{path} is no {what} of videos but another file, which is left as it is: choose another "
        "place" + (" with data.index or --index" if what == "index" else "")
    )
