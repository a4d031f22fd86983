"""One video file, opened with FFmpeg: its frames one after another, or some of them by number.

A frame is what the file stores, turned and mirrored as its display matrix says; pixels that are not
square and interlacing are left as they are. Where the picture's size changes midway, the first size
holds for all. Frame numbers count decoded frames from 0. Of several video streams, the one is read
that FFmpeg calls best.

Damage inside a file does not end it: every frame that can be decoded is given, and what was lost or
marked as damaged is counted. In `VideoFile.filled` the frame before stands in for each that was
lost, so that the frames after it keep their numbers.

Frames by number are read without decoding the whole file. First the times of all frames are found:
from the header of an MP4 or MOV file, else from all packets (the whole file is read but not
decoded). Then decoding starts at the key frame before each wanted frame and ends with it; frames in
between that no other frame refers to are skipped. Where times do not tell which frame is which, the
file is decoded from its start. All ways give the same frames.
"""

import io
import logging
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from itertools import groupby, islice
from pathlib import Path
from threading import Lock

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from cachetools import LRUCache, cached

from ino.data.images import MAX_PIXELS, NOMINAL_FPS
from ino.errors import VideoError

# One packet of these is one frame that is shown. VP8 (invisible frames) and MPEG-4 part 2 (packed
# B-frames) do not keep to that.
_FRAME_PER_PACKET = frozenset({"h264", "hevc", "vp9", "av1", "mjpeg", "prores", "ffv1", "rawvideo"})
# These containers store when a frame is shown; elsewhere (AVI) a parser guesses it.
_STORES_TIME_SHOWN = frozenset({"mov", "matroska", "mpegts"})
# Decoders of these can skip frames that others do not refer to.
_MARKS_UNREFERENCED = frozenset({"h264", "hevc"})
# Containers that hold their pictures themselves. Playlists (HLS, DASH, ffconcat, SDP) name other
# files, whatever their own name is: who opens one of a stranger would read what it names.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mjpeg,"
    "h261,h263,h264,hevc,vvc,av1,obu,vc1,m4v,mxf,nut,ivf,dv,yuv4mpegpipe,rm,wtv,dhav,cine,ser,"
    "mp3,flac,wav,aac"
)
_WITHOUT_DECODER = {"codec_whitelist": "none", "probesize": "32", "analyzeduration": "0"}
_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_MAX_HEADER_BYTES = 1 << 28  # of an MP4 file; that of a day of video has about a tenth of it
_MAX_CACHED_FRAMES = 1 << 22  # of all files together: 32 MiB of times
_RATE_TOLERANCE = 0.01  # by how much the header's frame rate may differ from that of the times
_LOG = logging.getLogger("ino")


class VideoFile:
    """An open video file, to be used in a `with` block.

    Args:
        path: a file that FFmpeg can read.
        num_threads: decoder threads; 0 is one per core.
        content: the file's bytes, if they are in memory; `path` then only names them.
        decodes: if False, only the container's header is read, in a tenth of the time, so what
            needs a decoder is unknown.

    Raises:
        VideoError: the file is missing, empty, not a video, or holds no pictures.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_threads: int = 0,
        content: bytes | None = None,
        decodes: bool = True,
    ) -> None:
        self.path = path
        self.num_threads = num_threads
        self.content = content
        self.container = _open(path, content, decodes=decodes)
        try:
            self.stream = _video_stream(self.container, path)
        except BaseException:
            self.container.close()
            raise
        self.stream.thread_type = "AUTO"
        self.stream.thread_count = num_threads
        self._size = (self.stream.codec_context.width, self.stream.codec_context.height)
        self._reformatter = VideoReformatter()
        self._is_torn = self._has_errors = False
        self._table: _FrameTable | None = None
        self._timed_fps: float | None = None
        self._matrix_works = True
        self.num_lost = 0
        """Frames that `decoded` could not give, by its number of packets."""
        self._waiting: list[int] = []  # a heap: times of packets whose frames have not come
        self._is_late = False  # the frame of one of them should have come
        self._incomplete: set[int | None] = set()  # times of frames given in part only

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def reopened(self) -> "VideoFile":
        """The same file, opened anew."""
        return VideoFile(self.path, num_threads=self.num_threads, content=self.content)

    def as_bytes(self) -> io.BufferedIOBase:
        """The file's bytes, to be closed after use."""
        return self.path.open("rb") if self.content is None else io.BytesIO(self.content)

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size if self.content is None else len(self.content)

    @property
    def fps(self) -> float:
        """Mean frames per second; 24 where the file does not say.

        Once the frames were counted, their times decide where the header tells something else.
        """
        rate = self.stream.average_rate or self.stream.guessed_rate
        stated = float(rate) if rate else NOMINAL_FPS
        timed = self._table.fps if self._table else self._timed_fps
        return timed if timed and abs(stated / timed - 1) > _RATE_TOLERANCE else stated

    @property
    def formats(self) -> frozenset[str]:
        """FFmpeg's names of the container's format, e.g. mov and mp4."""
        return frozenset(self.container.format.name.split(","))

    @property
    def has_frame_per_packet(self) -> bool:
        """Whether each packet is one frame that is shown."""
        return self.stream.codec_context.codec.canonical_name in _FRAME_PER_PACKET

    def stated_num_frames(self) -> int:
        """The number of frames in the header, or of packets where the header does not tell.

        Raises:
            VideoError: the packets cannot be read.
        """
        # Of Matroska and WebM, whose headers often lack or misstate the rate, the times are read.
        if self.stream.frames and "matroska" not in self.formats:
            if "mp4" in self.formats:  # an edit list may hide frames
                return sum(not entry.is_discard for entry in self.stream.index_entries)
            return self.stream.frames
        times: list[int | None] = []
        try:
            times.extend(packet.pts for packet in self.packets() if not packet.is_discard)
        except av.FFmpegError as error:
            raise self.broken(len(times), error.strerror) from error
        self._timed_fps = _mean_rate(self, times)
        return len(times)

    def packets(self) -> Iterator[Packet]:
        """Packets from the container's position to its end; a torn one at the end is left out."""
        torn: Packet | None = None
        for packet in self.container.demux(self.stream):
            if not packet.size:  # marks the end
                continue
            if torn is not None:  # it was not the last: damage, after which the file goes on
                self._incomplete.add(torn.pts)
                yield torn
                torn = None
            if packet.is_corrupt:
                torn = packet
            else:
                yield packet
        self._is_torn = torn is not None

    def decoded(self) -> Iterator[av.VideoFrame]:
        """Every frame of a file that was just opened that can be decoded, in the order shown.

        Raises:
            VideoError: the file breaks off, after all frames that could be decoded.
        """
        num_packets = num_shown = num_frames = 0
        reason = latest = None
        try:
            for packet in self.packets():
                num_packets += 1
                num_shown += not packet.is_discard
                if packet.pts is not None and not packet.is_discard:
                    heappush(self._waiting, packet.pts)
                for frame in self._decode(packet):
                    num_frames, latest = num_frames + 1, frame.pts
                    self._note(latest)
                    yield frame
                if self._has_errors and self.num_threads != 1:
                    yield from self._decoded_with_care(start=num_frames)
                    return
        except av.FFmpegError as error:
            reason = error.strerror or "it cannot be read"
        for frame in self._decode(None):
            num_frames, latest = num_frames + 1, frame.pts
            self._note(latest)
            yield frame
        if self.has_frame_per_packet:
            self.num_lost = max(0, num_shown - num_frames)
        if (self._has_errors or self.num_lost) and self.num_threads != 1:
            if latest is not None:
                yield from self._decoded_with_care(after=latest)
            return
        if reason is None and (not num_frames or self.is_cut(num_packets)):
            reason = "the file is cut short"
        if reason is not None:
            raise self.broken(num_frames, reason)

    def _decoded_with_care(
        self, *, start: int = 0, after: int | None = None
    ) -> Iterator[av.VideoFrame]:
        """The frames from a number on or after a time, decoded in one thread: with several, errors
        are lost and frames with them."""
        with VideoFile(self.path, num_threads=1, content=self.content) as file:
            try:
                for frame in islice(file.decoded(), start, None):
                    if after is None or (frame.pts is not None and frame.pts > after):
                        yield frame
            finally:
                self.num_lost, self._incomplete = file.num_lost, file._incomplete

    def filled(self) -> Iterator[av.VideoFrame]:
        """Like `decoded`, but with the frame before, or else the next one, in place of each that is
        lost, so that the frames have the numbers of `read_frames_at`.

        Raises:
            VideoError: see `decoded`.
        """
        table: _FrameTable | None = None
        before: av.VideoFrame | None = None
        number = 0
        for frame in self.decoded():
            if table is None and (self._is_late or self._has_errors or self.num_lost):
                table = self._known_times()
            if table is not None and frame.pts is not None:
                place = int(np.searchsorted(table.shown, frame.pts))
                if place < len(table.shown) and table.shown[place] == frame.pts:
                    if place < number:  # another stands in for it already
                        continue
                    for _ in range(number, place):
                        yield before or frame
                    number = place
            yield frame
            number, before = number + 1, frame
        if before is not None and self.num_lost:
            for _ in range(number, (table or self._known_times()).num_frames):
                yield before

    def _note(self, time: int | None) -> None:
        """Notes a frame that has come, and whether one that should be shown before it did not."""
        while time is not None and self._waiting and self._waiting[0] <= time:
            self._is_late |= heappop(self._waiting) < time

    def _known_times(self) -> "_FrameTable":
        """The times of all frames; none where the file does not tell them."""
        with suppress(VideoError), self.reopened() as file:
            if len((table := file._frames()).keys):
                return table
        return _FrameTable(0, np.empty(0, np.int64), np.empty((0, 2), np.int64), None)

    def _decode(self, packet: Packet | None) -> list[av.VideoFrame]:
        """The frames that a packet gives; none where it cannot be decoded."""
        try:
            frames = self.stream.decode(packet)
        except av.FFmpegError:
            self._has_errors = True
            if not self.has_frame_per_packet:  # else it is seen by the number of frames
                self.num_lost += 1
            return []
        self._incomplete.update(frame.pts for frame in frames if frame.is_corrupt)
        return frames

    def is_whole(self, frame: av.VideoFrame) -> bool:
        """Whether nothing of a decoded frame is known to be missing."""
        return not frame.is_corrupt and frame.pts not in self._incomplete

    @property
    def damage(self) -> str:
        """What was lost, once `decoded` has ended, in a few words; empty for a healthy file."""
        num_incomplete = len(self._incomplete)
        are = "is" if num_incomplete == 1 else "are"
        parts = [f"{self.num_lost} cannot be decoded"] * bool(self.num_lost)
        parts += [f"{num_incomplete} {are} incomplete"] * bool(num_incomplete)
        return f"of its frames, {' and '.join(parts)}" if parts else ""

    def to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """A decoded frame as uint8 RGB (height, width, 3), upright."""
        width, height = self._size
        try:
            converted = self._reformatter.reformat(
                frame, width=width, height=height, format="rgb24", threads=self.num_threads
            )
        except av.FFmpegError as error:
            raise VideoError(
                f"{self.path} has pixels of a kind that cannot be converted to RGB "
                f"({frame.format.name}): convert it to H.264 in MP4"
            ) from error
        image = converted.to_ndarray()
        if converted is frame:  # the decoder may still need its own memory
            image = image.copy()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return image if matrix is None else self._upright(image, matrix)

    def _upright(self, image: np.ndarray, matrix: SideData) -> np.ndarray:
        """The image turned by quarters and mirrored, nearest to what a display matrix says.

        The matrix takes a column and a row to (a column + c row, b column + d row).
        """
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if a * d == b * c:
            if self._matrix_works:
                _LOG.warning(
                    f"{self.path} has a display matrix that turns its frames into a line: they "
                    "are shown as stored"
                )
            self._matrix_works = False
            return image
        if abs(b) + abs(c) > abs(a) + abs(d):
            image, a, d = image.swapaxes(0, 1), c, b
        return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    def is_cut(self, num_packets: int) -> bool:
        """Whether the file holds less than its header promises, once all packets were read."""
        if self._is_torn:
            return True
        if "mp4" in self.formats and self.stream.frames:
            return num_packets < len(self.stream.index_entries)
        return "matroska" in self.formats and _is_matroska_cut(self)

    def broken(self, num_frames: int, reason: str | None) -> VideoError:
        """Builds the VideoError of a file that ends after so many frames."""
        return VideoError(
            f"{self.path} breaks off after {num_frames} frames ({reason}): "
            "copy the file again or repair it to get the rest"
        )

    def count_frames(self) -> int:
        """The number of frames that decoding gives.

        Raises:
            VideoError: the file is cut short or broken.
        """
        return self._frames().num_frames

    def times(self) -> np.ndarray | None:
        """When each frame is shown, in seconds after the first one; None where the file does not
        tell.

        Raises:
            VideoError: the file is cut short or broken.
        """
        shown, unit = self._frames().shown, self.stream.time_base
        return (shown - shown[0]) * float(unit) if len(shown) and unit else None

    def read_frames_at(self, indices: Sequence[int], *, fill: bool = False) -> np.ndarray:
        """The frames of these numbers, uint8 RGB (len(indices), height, width, 3).

        Args:
            indices: numbers from 0.
            fill: take those that are lost or incomplete as `filled` gives them.

        Raises:
            VideoError: the file is cut short, is damaged where it is read (unless `fill`), or has
                no frame of that number.
        """
        table = self._frames()
        check_numbers(self.path, indices, num_frames=table.num_frames)
        wanted = sorted(set(indices))
        frames = _read_by_seeking(self, table, wanted)
        if not frames:
            # Where the table numbers frames that cannot be decoded, numbers differ.
            frames = _read_through(self, wanted, to_the_end=len(table.keys) > 0, fill=fill)
        return np.stack([frames[index] for index in indices])

    def _frames(self) -> "_FrameTable":
        if self._table is None:
            if self.content is None:
                stat = self.path.stat()
                self._table = _cached_table(self, stat.st_size, stat.st_mtime_ns)
            else:  # it is read from memory once, so caching its table is of no use
                self._table = _find_frames(self)
        return self._table


def check_numbers(path: Path, indices: Sequence[int], *, num_frames: int) -> None:
    """Raises a VideoError if a video of so many frames lacks one of these numbers."""
    if min(indices) < 0 or max(indices) >= num_frames:
        raise VideoError(
            f"{path} has frames 0 to {num_frames - 1}, but frames {min(indices)} to "
            f"{max(indices)} were asked for: ask for frames that it has"
        )


def _open(path: Path, content: bytes | None, *, decodes: bool) -> InputContainer:
    if content is None and not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise VideoError(f"{path} {what}: give a video file or a folder of images")
    try:
        if (path.stat().st_size if content is None else len(content)) == 0:
            raise VideoError(f"{path} is empty (0 bytes): copy the file again")
        # Absolute, so that "a:b.mp4" is no protocol.
        return av.open(
            str(path.absolute()) if content is None else io.BytesIO(content),
            mode="r",
            options={
                "protocol_whitelist": "file",
                "format_whitelist": _FORMATS,
                **({} if decodes else _WITHOUT_DECODER),
            },
            metadata_errors="ignore",
        )
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path} cannot be read as a video ({error.strerror}): "
            "give a video, or copy it again if it is one that was not copied whole"
        ) from error


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:  # the cover of a song
        raise VideoError(f"{path} holds no pictures, only sound or data: give a video file")
    assert isinstance(stream, VideoStream)
    if stream.codec_context is None or not stream.codec_context.width:
        raise VideoError(
            f"{path} is in a format that cannot be decoded here: convert it to H.264 in MP4"
        )
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"{path} has frames of {height}x{width} pixels, more than can be worked on "
            f"({MAX_PIXELS}): make them smaller"
        )
    return stream


def _is_matroska_cut(video: VideoFile) -> bool:
    """Whether the file ends before the length that its Segment element states (RFC 8794)."""
    with video.as_bytes() as file:
        position = 0
        for identity in (_EBML_HEADER, _EBML_SEGMENT):
            file.seek(position)
            head = file.read(12)
            if len(head) < 12 or head[:4] != identity:
                return False
            num_bytes = 9 - head[4].bit_length()
            unknown = (1 << (7 * num_bytes)) - 1  # all bits set: a recording of open length
            size = int.from_bytes(head[4 : 4 + num_bytes], "big") & unknown
            if size == unknown:
                return False
            position += 4 + num_bytes + size
    return video.num_bytes < position


@dataclass(frozen=True)
class _FrameTable:
    """The frames of a whole file, with times in its stream's time base.

    `shown` has the time of each frame, ascending; `keys` one row (shown, decoded) per frame at
    which decoding can start. Both are empty where times do not tell which frame is which. `fps` is
    the mean rate by these times; None where they do not tell it.
    """

    num_frames: int
    shown: np.ndarray
    keys: np.ndarray
    fps: float | None


@cached(
    LRUCache(_MAX_CACHED_FRAMES, lambda table: min(64 + len(table.shown), _MAX_CACHED_FRAMES)),
    key=lambda file, num_bytes, time: (file.path.absolute(), num_bytes, time),
    lock=Lock(),
)
def _cached_table(file: VideoFile, num_bytes: int, time: int) -> _FrameTable:
    """The frames of a file, found once for each size and time of change."""
    return _find_frames(file)


def _find_frames(file: VideoFile) -> _FrameTable:
    return _frames_of_header(file) or _frames_of_packets(file)


def _frames_of_header(file: VideoFile) -> _FrameTable | None:
    """The frames that the header of an MP4 or MOV file lists; None where it does not tell all.

    Raises:
        VideoError: the file ends before its last frame.
    """
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
    offsets = _composition_offsets(file, num_frames=len(entries))
    if offsets is None:
        return None
    num_whole = int((ends <= file.num_bytes).sum())
    if num_whole < len(entries):
        raise file.broken(num_whole, "the file is cut short")
    # As FFmpeg does: decoding is put so early that no frame is shown before it.
    shown = decoded + offsets + max(0, -int(offsets.min()))
    return _as_table(file, shown, decoded, is_key, is_hidden)


def _frames_of_packets(file: VideoFile) -> _FrameTable:
    rows: list[tuple] = []
    try:
        rows.extend(  # a hidden frame is decoded for others' sake, not shown
            (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard)
            for packet in file.packets()
        )
    except av.FFmpegError as error:
        raise file.broken(len(rows), error.strerror) from error
    if not rows or file.is_cut(len(rows)):
        raise file.broken(len(rows), "the file is cut short")
    shown, decoded, is_key, is_hidden = (np.array(column) for column in zip(*rows, strict=True))
    if None not in shown and (table := _as_table(file, shown, decoded, is_key, is_hidden)):
        return table
    with file.reopened() as fresh:
        num_frames = sum(1 for _ in fresh.decoded())
    fps = _mean_rate(file, shown.tolist())
    return _FrameTable(num_frames, np.empty(0, np.int64), np.empty((0, 2), np.int64), fps)


def _mean_rate(file: VideoFile, times: Sequence[int | None]) -> float | None:
    """Frames per second by the time of each; None where times are missing or may go back."""
    time_base = file.stream.time_base
    if time_base is None or None in times or "mpegts" in file.formats:
        return None
    different = np.unique(np.array(times, np.int64))
    if len(different) < 2:
        return None
    return float((len(different) - 1) / (int(different[-1] - different[0]) * time_base))


def _as_table(
    file: VideoFile,
    shown: np.ndarray,
    decoded: np.ndarray,
    is_key: np.ndarray,
    is_hidden: np.ndarray,
) -> _FrameTable | None:
    """The frames in the order shown, from one entry per frame in the order stored; None where
    sorting them by time does not number them as decoding does."""
    if not file.has_frame_per_packet:
        return None
    if _STORES_TIME_SHOWN.isdisjoint(file.formats) and not np.array_equal(shown, decoded):
        return None
    shown, is_key, is_hidden = shown.astype(np.int64), is_key.astype(bool), is_hidden.astype(bool)
    # What is shown before the first key frame may not be decodable.
    if len(np.unique(shown)) < len(shown) or not is_key[0] or shown[0] != shown.min():
        return None
    # Decoders reorder frames between key frames, never across: elsewhere times go back.
    latest = np.maximum.accumulate(shown)
    if (shown[1:] < latest[:-1])[is_key[1:]].any():
        return None
    decoded = np.where(decoded == None, shown, decoded).astype(np.int64)  # noqa: E711
    keys = np.stack([shown, decoded], axis=1)[is_key]
    visible = np.sort(shown[~is_hidden])
    return _FrameTable(len(visible), visible, keys, _mean_rate(file, visible.tolist()))


def _composition_offsets(video: VideoFile, *, num_frames: int) -> np.ndarray | None:
    """For each frame as stored, the time from decoding to being shown; None where unknown.

    FFmpeg gives place, size and decoding time of every frame once an MP4 or MOV file is open, but
    not when it is shown: that is in the box `ctts` (ISO/IEC 14496-12, 8.6.1.3). Fragmented files
    and those with compressed headers are not covered.
    """
    try:
        table = _sample_table(_read_movie(video), video.stream.id)
        if table is None:
            return None
        times = _find_box(table, b"ctts")
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
        end = video.num_bytes
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
            if kind == b"moov" and size <= _MAX_HEADER_BYTES:
                return memoryview(file.read(size - head))
            position += size
    return memoryview(b"")


def _sample_table(movie: memoryview, track: int) -> memoryview | None:
    """The box `stbl` of the track of that number."""
    for kind, content in _boxes(movie):
        header = _find_box(content, b"tkhd") if kind == b"trak" else None
        # The number follows two dates, which are longer in version 1.
        if header and struct.unpack_from(">I", header, 20 if header[0] else 12)[0] == track:
            return _find_box(content, b"mdia", b"minf", b"stbl")
    return None


def _find_box(box: memoryview, *path: bytes) -> memoryview | None:
    """The content of the first box of that name in a box, or of a box in it, and so on."""
    found: memoryview | None = box
    for name in path:
        found = next((content for kind, content in _boxes(found or b"") if kind == name), None)
    return found


def _boxes(content: memoryview | bytes) -> Iterator[tuple[bytes, memoryview]]:
    view = memoryview(content)
    position = 0
    while position + 8 <= len(view):
        size, kind = struct.unpack_from(">I4s", view, position)
        if size < 8:  # neither long nor open boxes are found inside the header
            return
        yield kind, view[position + 8 : position + size]
        position += size


def _read_by_seeking(
    file: VideoFile, table: _FrameTable, wanted: Sequence[int]
) -> dict[int, np.ndarray]:
    """Frames by number; none where seeking does not lead to all of them."""
    if not len(table.keys):
        return {}
    frames: dict[int, np.ndarray] = {}
    keys = np.searchsorted(table.keys[:, 0], table.shown[wanted], side="right") - 1
    pairs = zip(keys.tolist(), wanted, strict=True)
    for key, group in groupby(pairs, key=lambda pair: pair[0]):
        numbers = {int(table.shown[index]): index for _, index in group}
        key_shown, key_decoded = table.keys[key].tolist()
        # Some containers are searched by decoding time and may lead to a later key frame first. A
        # decoder that skipped frames may have been misled about their order: it tries again.
        targets = dict.fromkeys((key_shown, key_decoded))
        for target, whole in [*((t, False) for t in targets), *((t, True) for t in targets)]:
            found = _decode_from(file, target, (key_shown, key_decoded), numbers, whole=whole)
            if len(found) == len(numbers):
                break
        else:
            return {}
        frames.update(found)
    return frames


def _decode_from(
    file: VideoFile, target: int, key: tuple[int, int], numbers: dict[int, int], *, whole: bool
) -> dict[int, np.ndarray]:
    """Frames by number, for `numbers` by time, decoded from the key frame at `key`.

    Unless `whole`, frames that are not wanted and that no other frame refers to are skipped.
    """
    context = file.stream.codec_context
    skips = not whole and context.codec.canonical_name in _MARKS_UNREFERENCED
    found: dict[int, np.ndarray] = {}
    missing = set(numbers)
    try:
        file.container.seek(target, stream=file.stream)
        for position, packet in enumerate(file.packets()):
            time = packet.pts
            if time is None or (position == 0 and not (packet.is_keyframe and time <= key[0])):
                break
            if packet.dts == key[1] and time != key[0]:  # the header was wrong
                break
            context.skip_frame = "NONREF" if skips and time not in numbers else "DEFAULT"
            frames = file.stream.decode(packet)
            missing.discard(time)
            if not missing:  # the decoder holds all that is wanted: flush it, decode no more
                frames += file.stream.decode(None)
            for frame in frames:
                if frame.pts in numbers and file.is_whole(frame):
                    found[numbers[frame.pts]] = file.to_rgb(frame)
            if not missing:
                break
    except av.FFmpegError:
        return {}
    finally:
        context.skip_frame = "DEFAULT"
    return found


@cache
def _tell_damage(path: Path) -> None:
    """Warns once; how much is lost is only known at the end."""
    _LOG.warning(f"{path} is damaged: the frame before stands in for each that cannot be decoded")


def _read_through(
    file: VideoFile, wanted: Iterable[int], *, to_the_end: bool, fill: bool
) -> dict[int, np.ndarray]:
    """Frames by number, decoded from the file's start."""
    missing = set(wanted)
    found: dict[int, np.ndarray] = {}
    to_the_end = to_the_end and not fill  # else damage further on shows that numbers differ
    with file.reopened() as fresh:
        for index, frame in enumerate(fresh.filled() if fill else fresh.decoded()):
            if index in missing:
                if not fill and not fresh.is_whole(frame):
                    raise VideoError(
                        f"frame {index} of {file.path} is incomplete: copy the file again or "
                        "repair it"
                    )
                found[index] = fresh.to_rgb(frame)
                missing.remove(index)
            if not missing and not to_the_end:
                break
        if fill and (fresh._is_late or fresh._has_errors or fresh._incomplete or fresh.num_lost):
            _tell_damage(file.path)
        if to_the_end and (damage := fresh.damage):
            raise VideoError(f"{file.path} is damaged: {damage}; copy it again or repair it")
    if missing:
        raise VideoError(
            f"{file.path} gives fewer frames than it did before: do not change it while it is in "
            "use"
        )
    return found
