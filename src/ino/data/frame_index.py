"""Chosen frames of a video file by exact frame number, without decoding the whole file.

Frame numbers count decoded frames from 0. The times of all packets are read first (a whole file is
read but not decoded, once, and remembered while the file stays the same); then decoding starts at
the key frame before each wanted frame and ends with it. Where the times do not tell which frame is
which, the file is decoded from its start: slower, and just as exact.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import av
import numpy as np

from ino.data.container import VideoFile
from ino.errors import VideoError

# One packet of these is one frame that is shown. VP8 (invisible frames) and MPEG-4 part 2 (packed
# B-frames) do not keep to that.
_FRAME_PER_PACKET = frozenset({"h264", "hevc", "vp9", "av1", "mjpeg", "prores", "ffv1", "rawvideo"})
# These containers store when a frame is shown; elsewhere (AVI) a parser guesses it.
_STORES_TIME_SHOWN = frozenset({"mov", "matroska", "mpegts"})
_NUM_REMEMBERED = 64


@dataclass(frozen=True)
class _FrameTable:
    """The frames of a whole file, with times in its stream's time base.

    `shown` has the time of each frame, ascending; `keys` a row (shown, decoded) for each frame
    where decoding can start. Both are empty where times do not tell which frame is which.
    """

    num_frames: int
    shown: np.ndarray
    keys: np.ndarray


_tables: OrderedDict[tuple[Path, int, int], _FrameTable] = OrderedDict()


def count_frames(file: VideoFile) -> int:
    """The number of frames that decoding gives.

    Raises:
        VideoError: the file is cut short or broken.
    """
    return _table(file).num_frames


def read_numbered(file: VideoFile, indices: Sequence[int]) -> np.ndarray:
    """The frames of these numbers, uint8 RGB (len(indices), height, width, 3).

    Raises:
        VideoError: the file is cut short or broken, or has no frame of that number.
    """
    table = _table(file)
    check_numbers(file.path, indices, num_frames=table.num_frames)
    wanted = sorted(set(indices))
    frames = _read_by_seeking(file, table, wanted) or _read_through(file.path, wanted)
    return np.stack([frames[index] for index in indices])


def check_numbers(path: Path, indices: Sequence[int], *, num_frames: int) -> None:
    """Nothing, if a video of so many frames has all these.

    Raises:
        VideoError: it does not.
    """
    if min(indices) < 0 or max(indices) >= num_frames:
        raise VideoError(
            f"{path} has frames 0 to {num_frames - 1}, but frames {min(indices)} to "
            f"{max(indices)} were asked for: ask for frames that it has"
        )


def _table(file: VideoFile) -> _FrameTable:
    stat = file.path.stat()
    key = (file.path.absolute(), stat.st_size, stat.st_mtime_ns)
    if key not in _tables:
        _tables[key] = _read_table(file)
        if len(_tables) > _NUM_REMEMBERED:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    return _tables[key]


def _read_table(file: VideoFile) -> _FrameTable:
    shown, decoded, is_key, is_hidden = [], [], [], []
    try:
        for packet in file.packets():
            shown.append(packet.pts)
            decoded.append(packet.dts)
            is_key.append(packet.is_keyframe)
            is_hidden.append(packet.is_discard)  # decoded for others' sake, not shown
    except av.FFmpegError as error:
        raise file.broken(len(shown), error.strerror) from error
    if not shown or file.is_cut(len(shown)):
        raise file.broken(len(shown), "the file is cut short")
    if not _times_tell_frames(file, shown, decoded, is_key):
        with VideoFile(file.path, num_threads=file.num_threads) as fresh:
            num_frames = sum(1 for _ in fresh.decoded())
        return _FrameTable(num_frames, np.empty(0, np.int64), np.empty((0, 2), np.int64))
    keys = [
        (time, time if start is None else start)
        for time, start, key in zip(shown, decoded, is_key, strict=True)
        if key
    ]
    visible = [time for time, hidden in zip(shown, is_hidden, strict=True) if not hidden]
    return _FrameTable(len(visible), np.sort(visible), np.array(sorted(keys)))


def _times_tell_frames(
    file: VideoFile, shown: list[int | None], decoded: list[int | None], is_key: list[bool]
) -> bool:
    """Whether sorting the packets by time numbers the frames as decoding them does."""
    if file.stream.codec_context.codec.canonical_name not in _FRAME_PER_PACKET:
        return False
    if _STORES_TIME_SHOWN.isdisjoint(file.formats) and shown != decoded:
        return False
    times = {time for time in shown if time is not None}
    # What is shown before the first key frame may not be decodable.
    return len(times) == len(shown) and is_key[0] and shown[0] == min(times)


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
        # Some containers are searched by decoding time and may lead to a later key frame first.
        for target in dict.fromkeys((key_shown, key_decoded)):
            found = _decode_from(file, target, key_shown, numbers)
            if len(found) == len(numbers):
                break
        else:
            return {}
        frames.update(found)
    return frames


def _decode_from(
    file: VideoFile, target: int, key_shown: int, numbers: dict[int, int]
) -> dict[int, np.ndarray]:
    """Frames by number, for `numbers` by time, decoded from the key frame at `key_shown`."""
    found: dict[int, np.ndarray] = {}
    missing = set(numbers)
    try:
        file.container.seek(target, stream=file.stream)
        for position, packet in enumerate(file.packets()):
            time = packet.pts
            if time is None or (position == 0 and not (packet.is_keyframe and time <= key_shown)):
                break
            frames = file.stream.decode(packet)
            missing.discard(time)
            if not missing:  # the decoder holds all that is wanted: have it out, decode no more
                frames += file.stream.decode(None)
            for frame in frames:
                if frame.pts in numbers:
                    found[numbers[frame.pts]] = file.to_rgb(frame)
            if not missing:
                break
    except av.FFmpegError:
        return {}
    return found


def _read_through(path: Path, wanted: Iterable[int]) -> dict[int, np.ndarray]:
    """Frames by number, decoded from the file's start."""
    missing = set(wanted)
    found: dict[int, np.ndarray] = {}
    with VideoFile(path, num_threads=1) as file:
        for index, frame in enumerate(file.decoded()):
            if index in missing:
                found[index] = file.to_rgb(frame)
                missing.remove(index)
            if not missing:
                return found
    raise VideoError(f"{path} gives fewer frames than it did before: leave it as it is while used")
