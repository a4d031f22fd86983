"""One video file, opened with FFmpeg: its packets, its frames one after another, its faults.

A frame is what the file stores, turned as its display matrix says; pixels that are not square and
interlacing are left as they are. Where the picture's size changes midway, the first size holds for
all. Frames by number: frame_index.py.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ino.errors import VideoError

NOMINAL_FPS = 24.0  # for what has no frame rate of its own
# One packet of these is one frame that is shown. VP8 (invisible frames) and MPEG-4 part 2 (packed
# B-frames) do not keep to that.
_FRAME_PER_PACKET = frozenset({"h264", "hevc", "vp9", "av1", "mjpeg", "prores", "ffv1", "rawvideo"})
_WITHOUT_DECODER = {"codec_whitelist": "none", "probesize": "32", "analyzeduration": "0"}
_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT = b"\x18\x53\x80\x67"


class VideoFile:
    """An open video file, to be used in a `with` block.

    Args:
        path: a file that FFmpeg can read.
        num_threads: decoder threads; 0 is one for each core.
        content: the file's bytes, where they are at hand; `path` then only names them.
        decodes: False for the container's own header alone: a tenth of the time, and what only a
            decoder can tell is not there.

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
        self._is_torn = False

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def again(self) -> "VideoFile":
        """The same file, opened anew."""
        return VideoFile(self.path, num_threads=self.num_threads, content=self.content)

    def as_bytes(self) -> io.BufferedIOBase:
        """The file's bytes, to be closed after use."""
        return self.path.open("rb") if self.content is None else io.BytesIO(self.content)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.path.stat().st_size if self.content is None else len(self.content)

    @property
    def fps(self) -> float:
        """Mean number of frames a second of the source's time; 24 where the file does not say."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate else NOMINAL_FPS

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
        if not self.stream.frames:
            num_frames = 0
            try:
                for packet in self.packets():
                    num_frames += not packet.is_discard
            except av.FFmpegError as error:
                raise self.broken(num_frames, error.strerror) from error
            return num_frames
        if "mp4" in self.formats:  # an edit list may hide frames
            return sum(not entry.is_discard for entry in self.stream.index_entries)
        return self.stream.frames

    def packets(self) -> Iterator[Packet]:
        """Packets from where the container stands to its end, or to the first that is torn."""
        for packet in self.container.demux(self.stream):
            if packet.is_corrupt:
                self._is_torn = True
                return
            if packet.size:  # an empty one marks the end
                yield packet

    def decoded(self) -> Iterator[av.VideoFrame]:
        """Every frame of a file that was just opened, in the order shown.

        Raises:
            VideoError: where the file breaks off, after all whole frames were given.
        """
        num_packets = num_frames = 0
        try:
            for packet in self.packets():
                num_packets += 1
                for frame in self.stream.decode(packet):
                    num_frames += 1
                    yield frame
            for frame in self.stream.decode(None):
                num_frames += 1
                yield frame
        except av.FFmpegError as error:
            raise self.broken(num_frames, error.strerror) from error
        if not num_frames or self.is_cut(num_packets):
            raise self.broken(num_frames, "the file is cut short")

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
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))

    def is_cut(self, num_packets: int) -> bool:
        """Whether less is there than the header promises, once all packets were read."""
        if self._is_torn:
            return True
        if "mp4" in self.formats and self.stream.frames:
            return num_packets < len(self.stream.index_entries)
        return "matroska" in self.formats and _is_matroska_cut(self)

    def broken(self, num_frames: int, reason: str | None) -> VideoError:
        """The error for a file of which only the first `num_frames` frames are whole."""
        return VideoError(
            f"{self.path} breaks off after {num_frames} whole frames ({reason}): "
            "copy the file again or repair it to get the rest"
        )


def _open(path: Path, content: bytes | None, *, decodes: bool) -> InputContainer:
    if content is None and not path.exists():
        raise VideoError(f"{path} does not exist: give a video file or a folder of images")
    try:
        if (path.stat().st_size if content is None else len(content)) == 0:
            raise VideoError(f"{path} is empty (0 bytes): copy the file again")
        # Absolute, so that "a:b.mp4" is no protocol; a playlist may not lead to the network.
        return av.open(
            str(path.absolute()) if content is None else io.BytesIO(content),
            mode="r",
            options={"protocol_whitelist": "file", **({} if decodes else _WITHOUT_DECODER)},
            metadata_errors="ignore",
        )
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path} cannot be read as a video ({error.strerror}): "
            "give a video, or copy it again if it is one that came half"
        ) from error


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic  # the cover of a song
    ]
    if not streams:
        raise VideoError(f"{path} holds no pictures, only sound or data: give a video file")
    stream = streams[0]
    if stream.codec_context is None or not stream.codec_context.width:
        raise VideoError(
            f"{path} is in a format that cannot be decoded here: convert it to H.264 in MP4"
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
    return video.size < position
