"""What a video's header tells, without reading the video: no packet is scanned, no frame decoded.

That makes it fit for many thousands of videos, and means that a fault inside a video stays unseen
here. What the header of an MP4 or MOV file promises is held against the file's length, so that one
that came half shows.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import av

from ino.data.container import NOMINAL_FPS, VideoFile
from ino.data.frame_sequence import open_sequence
from ino.errors import VideoError


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
        size = file.size
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
