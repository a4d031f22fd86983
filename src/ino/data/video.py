"""Video in and out: what a video is, its frames in order, some of its frames, and an H.264 writer.

A video is a file that FFmpeg reads, or images (`ino.data.images`): a folder that directly holds
them, a pattern such as `frame_%05d.jpg`, or the pages of one file. Frames are uint8 RGB (height,
width, 3), numbered from 0 in display order. Images other than animations have no timestamps, so
their frame rate is nominal (24). Sound is not read.
"""

import logging
import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from ino.data.decode import VideoFile, check_numbers
from ino.data.images import is_image, is_pattern, open_sequence
from ino.errors import ConfigError, OutputError, VideoError
from ino.system import atomic_path

Item = TypeVar("Item")
Given = TypeVar("Given")

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
})
# fmt: on
_LOG = logging.getLogger("ino")
_WHOLE = {"movflags": "+faststart"}
_FRAGMENTS = {
    "movflags": "+empty_moov+default_base_moof",
    "frag_duration": "1000000",  # microseconds
    "flush_packets": "1",
}
_BT709 = 1  # the number of BT.709 among color primaries, transfer functions and matrices


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says.

    Attributes:
        num_frames: number of frames according to the header; of a folder, the number of images.
        fps: mean frames per second; 24 for images without timestamps.
        height: of the frames that `read_frames` returns, in pixels.
        width: of the frames that `read_frames` returns, in pixels.
    """

    num_frames: int
    fps: float
    height: int
    width: int


def is_video(path: Path) -> bool:
    """Whether `path` is a video file by its name, or a folder or pattern of images."""
    if path.is_dir():
        return any(is_image(entry) for entry in path.iterdir())
    if is_pattern(path):
        return True
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def video_name(video: Path) -> str:
    """What a video is called: its file or folder, or the folder of a pattern of images."""
    if is_pattern(video):
        return video.parent.resolve().name
    return video.resolve().stem if video.name in ("", "..") else video.stem


def frame_names(path: Path) -> list[str] | None:
    """The names without suffix of a folder's or pattern's images, in their order; None for a file,
    whose frames have numbers only.

    Raises:
        VideoError: the folder cannot be read or holds no image.
    """
    images = open_sequence(path)
    if images is None or path.is_file():
        return None
    return [Path(name).stem for name in images.names]


def frame_number(text: str, video: Path) -> int:
    """The number of a frame that is named by its number, its name in a folder of images, or a time,
    minutes:seconds or hours:minutes:seconds.

    Raises:
        ConfigError: it is none of these.
    """
    names = frame_names(video)
    if names is not None and text in names:
        return names.index(text)
    if text.isdecimal() and len(text) < 19:
        return int(text)
    if match := re.fullmatch(r"(?:(\d{1,9}):)?(\d{1,9}):(\d{1,9}(?:\.\d*)?)", text):
        seconds = 3600 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3])
        return _frame_at(seconds, video)
    raise ConfigError(
        f"{text!r} is no frame of {video}: give its number from 0, its name in a folder of images, "
        "or a time such as 1:23.5"
    )


def _frame_at(seconds: float, video: Path) -> int:
    """The number of the frame that is shown nearest to a time after the first one; of a time after
    the last one, a number that no frame has."""
    times, by_rate = frame_times(video), round(seconds * read_info(video).fps)
    if times is None or len(times) < 2:
        return by_rate
    if seconds > times[-1] + times[-1] / (len(times) - 1):
        return max(len(times), by_rate)
    return int(np.searchsorted((times[1:] + times[:-1]) / 2, seconds))


def frame_times(path: Path) -> np.ndarray | None:
    """When each frame of a video is shown, in seconds after the first one; None for images, and
    where a file does not tell, so that only the mean rate is known.

    Raises:
        VideoError: the video cannot be read.
    """
    if open_sequence(path) is not None:
        return None
    with VideoFile(path, num_threads=1) as file, suppress(VideoError):  # it is cut short
        return file.times()
    return None


def read_info(path: Path) -> VideoInfo:
    """Length, rate and size of a video, from its header and its first frame.

    Raises:
        VideoError: `path` is missing, empty, not a video, or holds no frame.
    """
    images = open_sequence(path)
    if images is not None:
        return VideoInfo(len(images), images.fps, *images.size)
    with VideoFile(path, num_threads=1) as file:
        height, width = file.to_rgb(next(file.decoded())).shape[:2]
    with VideoFile(path, num_threads=1) as file:  # counting packets begins at the start
        return VideoInfo(file.stated_num_frames(), file.fps, height, width)


def count_frames(path: Path) -> int:
    """The number of frames that `read_frames` gives, which the header of a file may not know.

    Raises:
        VideoError: the video cannot be read or is cut short.
    """
    images = open_sequence(path)
    if images is not None:
        return len(images)
    with VideoFile(path, num_threads=1) as file:
        return file.count_frames()


def read_frames(
    path: Path | str, *, value_range: tuple[float, float] | None = None, first: int = 0
) -> Iterator[np.ndarray]:
    """Every frame of a video, uint8 RGB (height, width, 3), one at a time in constant memory.

    Of a video that is damaged inside, the frame before stands in for each that cannot be decoded,
    and a warning at the end says how many are lost or incomplete.

    Args:
        path: a video.
        value_range: in images of more than 8 bits, the values that become 0 and 255; None for what
            the values of all frames span (whole numbers of more than 14 bits: for all of 16 bits).
            Of no effect on other videos.
        first: number of the frame to begin with; of a file, those before are decoded, too.

    Raises:
        VideoError: `path` is missing or not a video; or the video breaks off, after all frames
            that can be decoded were given.
    """
    path = Path(path)
    images = open_sequence(path)
    if images is not None:
        if value_range is None:
            images.tell_span()
        yield from images.read(range(first, len(images)), value_range=value_range)
        return
    with VideoFile(path) as file:
        try:
            for number, frame in enumerate(file.filled()):
                if number >= first:
                    yield file.to_rgb(frame)
        finally:
            if damage := file.damage:
                _LOG.warning(
                    f"{path} is damaged: {damage}; the frame before stands in for lost ones"
                )


def read_clip(
    path: Path,
    indices: Sequence[int],
    *,
    value_range: tuple[float, float] | None = None,
    fill: bool = False,
) -> np.ndarray:
    """Chosen frames of a video, uint8 RGB (len(indices), height, width, 3).

    They equal the frames of these numbers of `read_frames`. Decoding is single-threaded, for use
    in data workers.

    Args:
        path: a whole video.
        indices: frame numbers from 0, in any order, at least one.
        value_range: as in `read_frames`.
        fill: where the video is damaged, let the frame before stand in, as `read_frames` does.
            Which frames beside the damage can be decoded may depend on where decoding begins.

    Raises:
        VideoError: the video cannot be read, is cut short, has no frame of that number, or (unless
            `fill`) is damaged there.
    """
    return read_chosen(path, lambda num_frames, fps: indices, value_range=value_range, fill=fill)


def read_chosen(
    path: Path,
    choose: Callable[[int, float], Sequence[int]],
    *,
    value_range: tuple[float, float] | None = None,
    fill: bool = False,
) -> np.ndarray:
    """Like `read_clip`, but the frames are chosen by a function once the video is open.

    Args:
        path: a video that is not cut short.
        choose: called with the exact number of frames and the frame rate; returns frame numbers.
        value_range: as in `read_frames`.
        fill: as in `read_clip`.

    Returns:
        The frames, uint8 RGB (number of frames, height, width, 3).

    Raises:
        VideoError: as `read_clip`.
    """
    images = open_sequence(path)
    if images is not None:
        indices = choose(len(images), images.fps)
        check_numbers(path, indices, num_frames=len(images))
        wanted = sorted(set(indices))
        frames = dict(zip(wanted, images.read(wanted, value_range=value_range), strict=True))
        return np.stack([frames[index] for index in indices])
    with VideoFile(path, num_threads=1) as file:
        return file.read_frames_at(choose(file.count_frames(), file.fps), fill=fill)


class VideoWriter:
    """Writes frames to an H.264 file (yuv420p, BT.709, MP4 that plays while it loads).

    Used in a `with` block; the file appears when the block ends without an exception, and not
    otherwise. With `live`, it grows from the start and can be played at any time, also after an
    exception or a kill, up to a few seconds before its end: it is in fragments until the block
    ends. Sides of an odd length are padded by repeating the last row or column.

    Args:
        path: the file to write, e.g. out.mp4; its folder must exist.
        fps: frames per second.
        live: write the file itself, in fragments.

    Raises:
        OutputError: the file cannot be written, no frame came, or frames differ in size.
    """

    def __init__(self, path: Path | str, *, fps: float, live: bool = False) -> None:
        self._path = path = Path(path)
        self._is_live = live
        if not 0 < fps < math.inf:
            raise OutputError(f"cannot write {path} at {fps} frames per second: give more than 0")
        # NTSC rates are multiples of 1 / 1001; a time lapse may have a frame an hour.
        self._rate = (
            Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / Fraction(round(1 / fps))
        )
        self._size: tuple[int, ...] | None = None
        self._num_frames = 0
        self._last = -1

    def __enter__(self) -> "VideoWriter":
        if self._is_live:
            try:
                self._path.unlink(missing_ok=True)
                self._container = av.open(str(self._path), "w", format="mp4", options=_FRAGMENTS)
            except OSError as error:
                raise OutputError(f"cannot write {self._path}: {error.strerror}") from error
            return self
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            temporary.touch()  # a folder that is missing or read-only shows now, not at the end
            self._container = stack.enter_context(
                av.open(str(temporary), "w", format="mp4", options=_WHOLE)
            )
            self._exits = stack.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        if self._is_live:
            self._end_live(is_whole=failure[0] is None)
            return
        if failure[0] is not None:
            self._exits.__exit__(*failure)
            return
        with self._exits:
            if self._size is None:
                raise OutputError(f"cannot write {self._path}: no frame was given")
            self._encode(None)

    def _end_live(self, *, is_whole: bool) -> None:
        """Closes the file, and copies it into one that is not in fragments."""
        if self._size is None:
            with suppress(av.FFmpegError, OSError):
                self._container.close()
            self._path.unlink(missing_ok=True)
            if is_whole:
                raise OutputError(f"cannot write {self._path}: no frame was given")
            return
        try:
            self._encode(None)
            self._container.close()
        except (av.FFmpegError, OSError, OutputError) as error:
            if is_whole:
                raise OutputError(f"cannot write {self._path}: {error}") from error
            return
        if is_whole:
            with (
                atomic_path(self._path) as temporary,
                av.open(str(self._path)) as source,
                av.open(str(temporary), "w", format="mp4", options=_WHOLE) as target,
            ):
                stream = target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.stream = stream
                        target.mux(packet)

    def write(self, frame: np.ndarray, *, at: float | None = None) -> None:
        """Adds one frame, uint8 RGB (height, width, 3), shown after the one before, or from a time
        in seconds on."""
        if self._size is None:
            self._size = frame.shape
            self._stream = self._add_stream(frame.shape[0], frame.shape[1])
        if frame.shape != self._size:
            raise OutputError(
                f"cannot write {self._path}: frame {self._num_frames} has the shape {frame.shape} "
                f"and the first has {self._size}; give frames of one size"
            )
        odd = ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0))
        image = av.VideoFrame.from_ndarray(np.pad(frame, odd, mode="edge"), format="rgb24")
        picture = image.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        self._last = max(self._last + 1, 0 if at is None else round(at * float(self._rate)))
        picture.pts = self._last
        picture.time_base = 1 / self._rate
        self._num_frames += 1
        self._encode(picture)

    def _add_stream(self, height: int, width: int) -> VideoStream:
        # With macroblock trees the encoder does not give the same video each time.
        options = {"crf": "18", "preset": "fast", "x264-params": "mbtree=0"}
        stream = self._container.add_stream("libx264", rate=self._rate, options=options)
        stream.height = height + height % 2
        stream.width = width + width % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        return stream

    def _encode(self, picture: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(picture))
        except av.FFmpegError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error


def in_background(items: Iterable[Item], *, ahead: int = 3) -> Generator[Item, None, None]:
    """Prefetches items in a thread: yields them in order, computing up to `ahead` in advance.

    Exceptions raised in the thread are raised here. Close the result to end the thread, which also
    closes `items` if it is a generator.
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, iterator, end) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
            if isinstance(items, Generator):
                thread.submit(items.close).result()


def in_order(
    executor: Executor, function: Callable[[Given], Item], items: Iterable[Given], *, ahead: int
) -> Generator[Item, None, None]:
    """Yields the function of each item in order; an executor computes up to `ahead` in advance."""
    waiting: deque[Future[Item]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
