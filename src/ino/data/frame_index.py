"""Chosen frames of a video file by exact frame number, without decoding the whole file.

Frame numbers count decoded frames from 0. The times of all frames come first: from the header of an
MP4 or MOV file, else from all packets (a whole file is read but not decoded). They are remembered
while the file stays the same. Then decoding starts at the key frame before each wanted frame and
ends with it; frames in between that no other frame needs are passed over. Where the times do not
tell which frame is which, the file is decoded from its start. All ways give the same frames.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from weakref import WeakKeyDictionary

import av
import numpy as np

from ino.data.container import VideoFile
from ino.data.mp4_header import read_header_frames
from ino.data.remembered import Remembered
from ino.errors import VideoError

# These containers store when a frame is shown; elsewhere (AVI) a parser guesses it.
_STORES_TIME_SHOWN = frozenset({"mov", "matroska", "mpegts"})
# Their decoders can leave out frames that others do not refer to.
_MARKS_UNREFERENCED = frozenset({"h264", "hevc"})
_MOST_REMEMBERED = 1 << 22  # frames of all files together: 32 MiB
_WEIGHT = 64  # of a file beside its frames


@dataclass(frozen=True)
class _FrameTable:
    """The frames of a whole file, with times in its stream's time base.

    `shown` has the time of each frame, ascending; `keys` a row (shown, decoded) for each frame
    where decoding can start. Both are empty where times do not tell which frame is which.
    """

    num_frames: int
    shown: np.ndarray
    keys: np.ndarray


_tables: Remembered[_FrameTable] = Remembered(
    most=_MOST_REMEMBERED, weigh=lambda table: _WEIGHT + len(table.shown)
)

_tables_of_open: WeakKeyDictionary[VideoFile, _FrameTable] = WeakKeyDictionary()


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
    frames = _read_by_seeking(file, table, wanted) or _read_through(file, wanted)
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
    if file.content is not None:  # it came with others and will not soon come again
        if file not in _tables_of_open:
            _tables_of_open[file] = _table_of_header(file) or _table_of_packets(file)
        return _tables_of_open[file]
    stat = file.path.stat()
    key = (file.path.absolute(), stat.st_size, stat.st_mtime_ns)
    return _tables.get(key, lambda: _table_of_header(file) or _table_of_packets(file))


def _table_of_header(file: VideoFile) -> _FrameTable | None:
    """The table of a file whose header tells it, else None.

    Raises:
        VideoError: the file ends before its last frame.
    """
    frames = read_header_frames(file)
    if frames is None:
        return None
    if frames.num_whole < len(frames.shown):
        raise file.broken(frames.num_whole, "the file is cut short")
    if not _times_tell_frames(file, frames.shown, frames.decoded, frames.is_key):
        return None
    keys = np.stack([frames.shown, frames.decoded], axis=1)[frames.is_key]
    return _FrameTable(len(frames.shown), np.sort(frames.shown), keys[np.argsort(keys[:, 0])])


def _table_of_packets(file: VideoFile) -> _FrameTable:
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
    if None in shown or not _times_tell_frames(
        file, np.array(shown), np.array(decoded), np.array(is_key)
    ):
        with file.again() as fresh:
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
    file: VideoFile, shown: np.ndarray, decoded: np.ndarray, is_key: np.ndarray
) -> bool:
    """Whether sorting the frames by time numbers them as decoding does."""
    if not file.has_frame_per_packet:
        return False
    if _STORES_TIME_SHOWN.isdisjoint(file.formats) and not np.array_equal(shown, decoded):
        return False
    # What is shown before the first key frame may not be decodable.
    return bool(len(np.unique(shown)) == len(shown) and is_key[0] and shown[0] == shown.min())


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
        # decoder that passed frames over may have been misled about their order: it tries again.
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

    Unless `whole`, frames that are not wanted and that no other frame refers to are left out.
    """
    context = file.stream.codec_context
    leaves_out = not whole and context.codec.canonical_name in _MARKS_UNREFERENCED
    found: dict[int, np.ndarray] = {}
    missing = set(numbers)
    try:
        file.container.seek(target, stream=file.stream)
        for position, packet in enumerate(file.packets()):
            time = packet.pts
            if time is None or (position == 0 and not (packet.is_keyframe and time <= key[0])):
                break
            if packet.dts == key[1] and time != key[0]:  # the header was not what it seemed
                break
            context.skip_frame = "NONREF" if leaves_out and time not in numbers else "DEFAULT"
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
    finally:
        context.skip_frame = "DEFAULT"
    return found


def _read_through(file: VideoFile, wanted: Iterable[int]) -> dict[int, np.ndarray]:
    """Frames by number, decoded from the file's start."""
    missing = set(wanted)
    found: dict[int, np.ndarray] = {}
    with file.again() as fresh:
        for index, frame in enumerate(fresh.decoded()):
            if index in missing:
                found[index] = fresh.to_rgb(frame)
                missing.remove(index)
            if not missing:
                return found
    raise VideoError(
        f"{file.path} gives fewer frames than it did before: leave it as it is while used"
    )
