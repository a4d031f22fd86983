"""When each frame of an MP4 or MOV file is shown, from its header alone.

FFmpeg gives the place, size and decoding time of every frame as soon as such a file is open, but
not when a frame is shown; that is decoding time plus the offset that the box `ctts` holds
(ISO/IEC 14496-12, 8.6.1.3), which is read here. Fragmented files keep their tables elsewhere and
are not covered, nor are headers that are compressed or do not agree with what FFmpeg found.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ino.data.container import VideoFile

_LARGEST_HEADER = 1 << 28  # bytes; a day of video has about a tenth of it


@dataclass(frozen=True)
class HeaderFrames:
    """Frames as stored, one after another; times in the stream's time base.

    Attributes:
        shown: when each is shown.
        decoded: when each is decoded.
        is_key: whether decoding can start there.
        num_whole: how many lie wholly in the file; fewer than there are where it is cut short.
    """

    shown: np.ndarray
    decoded: np.ndarray
    is_key: np.ndarray
    num_whole: int


def read_header_frames(file: VideoFile) -> HeaderFrames | None:
    """The frames that the header lists, or None where it does not tell all."""
    if "mp4" not in file.formats:
        return None
    entries = [
        (entry.timestamp, entry.pos + entry.size, entry.is_keyframe, entry.is_discard)
        for entry in file.stream.index_entries
    ]
    if not entries or len(entries) != file.stream.frames:
        return None
    decoded, ends, is_key, is_hidden = (np.array(column) for column in zip(*entries, strict=True))
    if is_hidden.any():  # an edit list hides frames and moves the times of others
        return None
    offsets = _read_offsets(file, file.stream.id, num_frames=len(entries))
    if offsets is None:
        return None
    # As FFmpeg does: decoding is put so early that no frame is shown before it.
    shown = decoded + offsets + max(0, -int(offsets.min()))
    num_whole = int((ends <= file.size).sum())
    return HeaderFrames(shown, decoded, is_key, num_whole)


def _read_offsets(video: VideoFile, track: int, *, num_frames: int) -> np.ndarray | None:
    """From decoding to being shown, for each frame of a track, in its time base."""
    try:
        movie = _read_movie(video)
        table = _sample_table(movie, track)
        times = None if table is None else _child(table, b"ctts")
        if table is None:
            return None
        if times is None:  # shown in the order decoded
            return np.zeros(num_frames, np.int64)
        (num_runs,) = struct.unpack_from(">I", times, 4)
        runs = np.frombuffer(times, ">i4", 2 * num_runs, 8).reshape(-1, 2).astype(np.int64)
    except (struct.error, ValueError):  # boxes that do not fit into each other
        return None
    if runs[:, 0].min(initial=0) < 0 or runs[:, 0].sum() != num_frames:
        return None
    return np.repeat(runs[:, 1], runs[:, 0])


def _read_movie(video: VideoFile) -> memoryview:
    """The content of the box `moov`; empty where there is none."""
    with video.as_bytes() as file:
        end = video.size
        position = 0
        while position + 8 <= end:
            file.seek(position)
            size, kind = struct.unpack(">I4s", file.read(8))
            head = 8
            if size == 1:
                (size,) = struct.unpack(">Q", file.read(8))
                head = 16
            elif size == 0:  # to the end of the file
                size = end - position
            if size < head:
                break
            if kind == b"moov" and size <= _LARGEST_HEADER:
                return memoryview(file.read(size - head))
            position += size
    return memoryview(b"")


def _sample_table(movie: memoryview, track: int) -> memoryview | None:
    """The box `stbl` of a track, by the track's number."""
    for kind, content in _boxes(movie):
        if kind != b"trak":
            continue
        header = _child(content, b"tkhd")
        # The number follows two dates, which are longer in version 1.
        if header is None or struct.unpack_from(">I", header, 20 if header[0] else 12)[0] != track:
            continue
        inner: memoryview | None = content
        for name in (b"mdia", b"minf", b"stbl"):
            inner = None if inner is None else _child(inner, name)
        return inner
    return None


def _child(box: memoryview, kind: bytes) -> memoryview | None:
    return next((content for name, content in _boxes(box) if name == kind), None)


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    position = 0
    while position + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        if size < 8:  # neither long nor open boxes are found inside the header
            return
        yield kind, content[position + 8 : position + size]
        position += size
