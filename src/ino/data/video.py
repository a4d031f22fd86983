"""Video in, video out: what a video is, its frames, some of its frames, and a writer for H.264.

A video is a file that FFmpeg reads, a folder that directly holds images, or a pattern of images
(`frame_%05d.jpg`). Frames are uint8 RGB (height, width, 3), numbered from 0 as they are shown.
Sound is not read.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from ino.data import frame_index
from ino.data.container import NOMINAL_FPS, VideoFile
from ino.data.frame_folder import is_image, read_image
from ino.data.frame_index import check_numbers, read_numbered
from ino.data.frame_sequence import is_pattern, open_sequence
from ino.errors import OutputError
from ino.files import atomic_path

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
})
# fmt: on
_BT709 = 1  # the number of BT.709 among color primaries, transfer functions and matrices


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says.

    Attributes:
        num_frames: the header's count; the number of images of a folder.
        fps: mean frames a second; 24 for a folder, whose images carry no time.
        height: of a frame as `read_frames` gives it, in pixels.
        width: the same.
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


def read_info(path: Path) -> VideoInfo:
    """Length, rate and size of a video, from its header and its first frame.

    Raises:
        VideoError: `path` is missing, empty, not a video, or holds no frame.
    """
    images = open_sequence(path)
    if images is not None:
        return VideoInfo(len(images), NOMINAL_FPS, *images.size)
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
        return frame_index.count_frames(file)


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Every frame of a video, uint8 RGB (height, width, 3), one at a time in constant memory.

    Raises:
        VideoError: `path` is missing or not a video; or the video breaks off, after all frames
            that are whole were given.
    """
    images = open_sequence(path)
    if images is not None:
        for image in images:
            yield read_image(image, size=images.size)
        return
    with VideoFile(path) as file:
        for frame in file.decoded():
            yield file.to_rgb(frame)


def read_clip(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Chosen frames of a video, uint8 RGB (len(indices), height, width, 3).

    They equal the frames of these numbers of `read_frames`. Decoding is single-threaded, for use
    in data workers.

    Args:
        path: a whole video.
        indices: frame numbers from 0, in any order, at least one.

    Raises:
        VideoError: the video cannot be read, is cut short, or has no frame of that number.
    """
    return read_chosen(path, lambda num_frames, fps: indices)


def read_chosen(path: Path, choose: Callable[[int, float], Sequence[int]]) -> np.ndarray:
    """As `read_clip`, with frames that are chosen once the video is open: one opening, not two.

    Args:
        path: a whole video.
        choose: gives frame numbers for the exact number of frames and the frames a second.

    Raises:
        VideoError: as `read_clip`.
    """
    images = open_sequence(path)
    if images is not None:
        indices = choose(len(images), NOMINAL_FPS)
        check_numbers(path, indices, num_frames=len(images))
        frames = {i: read_image(images[i], size=images.size) for i in sorted(set(indices))}
        return np.stack([frames[index] for index in indices])
    with VideoFile(path, num_threads=1) as file:
        return read_numbered(file, choose(frame_index.count_frames(file), file.fps))


class VideoWriter:
    """Writes frames to an H.264 file (yuv420p, BT.709, MP4 that plays while it loads).

    Used in a `with` block; the file appears when the block ends without an exception, and not
    otherwise. Sides of an odd length are padded by repeating the last row or column.

    Args:
        path: the file to write, e.g. out.mp4; its folder must exist.
        fps: frames a second.

    Raises:
        OutputError: the file cannot be written, no frame came, or frames differ in size.
    """

    def __init__(self, path: Path, *, fps: float) -> None:
        self._path = path
        # NTSC rates are multiples of 1 / 1001.
        self._rate = Fraction(fps).limit_denominator(1001) if math.isfinite(fps) else Fraction(0)
        if self._rate <= 0:
            raise OutputError(f"cannot write {path} at {fps} frames a second: give a rate above 0")
        self._size: tuple[int, ...] | None = None
        self._num_frames = 0

    def __enter__(self) -> "VideoWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            temporary.touch()  # a folder that is missing or read-only shows now, not at the end
            self._container = stack.enter_context(
                av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"})
            )
            self._exits = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._exits.__exit__(kind, error, trace)
            return
        with self._exits:
            if self._size is None:
                raise OutputError(f"cannot write {self._path}: no frame was given")
            self._encode(None)

    def write(self, frame: np.ndarray) -> None:
        """Adds one frame, uint8 RGB (height, width, 3)."""
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
        picture.pts = self._num_frames
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
