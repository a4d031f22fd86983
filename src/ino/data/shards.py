"""Training clips from videos in tar files ("shards"), read in order from a disk, HTTP or a pipe.

The library webdataset opens what is not a file of this machine. A video is a member with a video's
suffix, or two or more images that directly follow one another in one folder of the tar file; other
members (labels, captions) are skipped. Only a root that begins with `pipe:` runs a command: names
of files and addresses never reach a shell.

The order is ours. Neither webdataset nor litdata can resume at any step, with any number of
workers, with the batches that an uninterrupted run has (webdataset keeps no position; litdata
needs files of its own format, and the same workers). Here the shards of an epoch, shuffled by
(seed, epoch), are dealt to a number of streams, and each clip of a batch is the next video of the
stream that its place in the batch belongs to. Streams depend on the number of shards and the size
of the global batch alone, so a batch is a function of (seed, epoch, number of the batch), whichever
process and worker makes it. To resume, videos before the position are skipped, not decoded. A
stream that ends starts again from its first shard.
"""

import contextlib
import glob
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ino.data.clips import ClipSampling, count_batches, sample_clips
from ino.data.decode import VideoFile, check_numbers
from ino.data.images import NOMINAL_FPS, is_image, natural_key, read_image
from ino.data.names import check_name
from ino.data.video import VIDEO_SUFFIXES
from ino.data.video_index import MACHINE_ERRORS, leave_out
from ino.errors import ConfigError, VideoError

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_REMOTE = re.compile(r"pipe:|(https?|ftps|sftp|scp|s3|gs|htgs|hf|ais)://")
_RANGE = re.compile(r"(-?\d{1,99})\.\.(-?\d{1,99})")  # of a name with braces
_MAX_SHARDS = 100_000
_MAX_MEMBER = 1 << 30  # bytes of a video, which is in memory as a whole
_MAX_HEADER = 1 << 20  # bytes of a member's name and attributes
_NUM_TRIES = 3  # of a shard that comes over a network
_MAX_GROUPS = 64
_MAX_STREAMS = 256
_MAX_FAILURES = 20


@dataclass(frozen=True)
class ShardVideo:
    """A video of a shard, not decoded.

    Attributes:
        name: shard and member.
        path: the same, short, as a path that names no file; for messages.
        files: names and bytes: one video file, or the images in the order shown.
    """

    name: str
    path: Path
    files: tuple[tuple[str, bytes], ...]

    def read_chosen(self, choose: Callable[[int, float], Sequence[int]]) -> np.ndarray:
        """Chosen frames, uint8 RGB, as `ino.data.video.read_chosen` gives them.

        Raises:
            VideoError: the video is broken or has no frame of that number.
        """
        name, content = self.files[0]
        if not is_image(Path(name)):
            with VideoFile(self.path, num_threads=1, content=content) as file:
                return file.read_frames_at(choose(file.count_frames(), file.fps))
        indices = choose(len(self.files), NOMINAL_FPS)
        check_numbers(self.path, indices, num_frames=len(self.files))
        frames: dict[int, np.ndarray] = {}
        size = None
        for index in sorted(set(indices)):
            name, content = self.files[index]
            frames[index] = read_image(self.path / name, size=size, content=content)
            size = frames[index].shape[0], frames[index].shape[1]
        return np.stack([frames[index] for index in indices])


class ShardCutError(VideoError):
    """A shard is not a whole tar file, or holds no video. Its whole videos have been yielded."""


def is_shards(root: str) -> bool:
    """Whether a root names shards and not a folder, a video or a list."""
    return root.endswith(_SUFFIXES) or _is_remote(root)


def _is_remote(shard: str) -> bool:
    return _REMOTE.match(shard) is not None


def expand_shards(roots: Sequence[str]) -> list[str]:
    """The shards that the roots name, sorted; {000..099} counts up, * stands for what is there.

    Raises:
        ConfigError: the library is missing, or a root is no shard or names over 100,000.
        VideoError: a file does not exist.
    """
    found: set[str] = set()
    for root in roots:
        if not is_shards(root):
            raise ConfigError(
                f"{root} is no shard, but others of data.root are: give either shards "
                f"({', '.join(_SUFFIXES)}, http://, s3://, pipe:) or folders, videos and lists"
            )
        for shard in _expand(root):
            if _is_remote(root):
                found.add(shard)
                continue
            files = glob.glob(shard) if "*" in shard else [shard]  # noqa: PTH207, of text
            # A file may be named like an address or a command.
            files = [f"./{file}" if _is_remote(file) else file for file in files]
            missing = [file for file in files if not Path(file).is_file()]
            if missing or not files:
                raise VideoError(
                    f"the shard {(missing or [shard])[0]} does not exist: check data.root"
                )
            found.update(files)
    return sorted(found)


def _expand(root: str) -> list[str]:
    """The names that the braces of a root stand for."""
    try:
        from braceexpand import braceexpand  # comes with webdataset
    except ImportError as error:
        raise ConfigError(
            "shards need the library webdataset: run `uv sync --extra shards` in the checkout "
            "of ino"
        ) from error
    # The library makes a list of each range before the first name.
    is_long = any(
        abs(int(last) - int(first)) >= _MAX_SHARDS for first, last in _RANGE.findall(root)
    )
    try:
        names = [] if is_long else list(islice(braceexpand(root), _MAX_SHARDS + 1))
    except ValueError as error:
        raise ConfigError(f"the braces of {root} do not match: check data.root") from error
    if not 0 < len(names) <= _MAX_SHARDS:
        raise ConfigError(f"{root} stands for more than {_MAX_SHARDS} shards: check data.root")
    return names


def survey_shards(
    shards: Sequence[str], *, num_stated: int
) -> tuple[list[str], int, dict[str, str]]:
    """The shards that hold videos, how many videos they hold together, and which shards are broken.

    Args:
        shards: as `expand_shards` gives them.
        num_stated: the number of videos in all shards as the user states it; 0 to count them by the
            headers of the tar files, which is not possible for remote shards.

    Raises:
        ConfigError: it is 0 and some shards are remote.
        VideoError: there is no video.
    """
    remote = [shard for shard in shards if _is_remote(shard)]
    if remote and not num_stated:
        raise ConfigError(
            f"{remote[0]} is not a file of this machine, and to count its videos would be to read "
            "all of it: say with data.shard_videos how many all shards hold together"
        )
    if num_stated:
        return list(shards), num_stated, {}
    counts = {shard: _count_videos(shard) for shard in shards}
    faults = {shard: fault for shard, (_, fault) in counts.items() if fault}
    num_videos = sum(count for count, _ in counts.values())
    if not num_videos:
        raise VideoError(f"no shard holds a video (the first: {next(iter(faults.values()))})")
    return [shard for shard, (count, _) in counts.items() if count], num_videos, faults


def _count_videos(shard: str) -> tuple[int, str]:
    """How many videos a local shard holds, and what is wrong with it."""
    num_videos = 0
    try:
        for _ in _group(shard, _headers(shard)):
            num_videos += 1
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if getattr(error, "errno", None) in MACHINE_ERRORS:
            raise _unreadable(shard, error) from error
        return num_videos, _breaks_off(shard, num_videos, error)
    return num_videos, "" if num_videos else _holds_none(shard)


def _headers(shard: str) -> Iterator[tuple[str, bytes]]:
    """Names of a local tar file's members, with no content."""
    num_bytes = Path(shard).stat().st_size
    with tarfile.open(shard, tarinfo=_Member) as archive:
        for member in cast(Iterable[_Member], archive):
            is_sparse = member.sparse is not None
            end = member.offset_data + (0 if is_sparse else member.size)
            if shard.endswith(".tar") and end > num_bytes:
                raise tarfile.ReadError("unexpected end of data")
            if member.is_part_of_video(shard):
                yield member.name, b""


class _Member(tarfile.TarInfo):
    """A member of a tar file, whose size is checked before it is read."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "size" and value < 0:  # the library would read the same header for ever
            raise tarfile.ReadError(f"a member of {value} bytes")
        super().__setattr__(name, value)

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        # A file of which no video is made is skipped; long names are read whole by the library.
        if not member.isreg() and member.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member

    def is_part_of_video(self, shard: str) -> bool:
        """Whether it is a video or a frame.

        Raises:
            tarfile.ReadError: it would not fit in memory.
            DatasetError: its name leads out of its folder.
        """
        path = PurePosixPath(self.name)
        # What webdataset's writers call its own notes.
        if not self.isreg() or re.match(r"__[^/]*__($|/)", self.name):
            return False
        is_video = path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")
        if not is_video and not is_image(Path(self.name)):
            return False
        for part in path.parts:
            check_name(part, source=f"the shard {shard}")
        if self.size > _MAX_MEMBER:
            raise tarfile.ReadError(f"{self.name} has {self.size} bytes, above {_MAX_MEMBER}")
        return True


def read_shard(shard: str) -> Iterator[ShardVideo]:
    """The videos of a shard in their order; what comes over a network is tried three times.

    Raises:
        ShardCutError: the shard ends too early, is no tar file, or holds no video.
        VideoError: it cannot be read.
        DatasetError: a name in it leads out of its folder.
    """
    num_given = 0
    num_tries = _NUM_TRIES if _is_remote(shard) else 1
    for tries_left in reversed(range(num_tries)):
        try:
            for number, video in enumerate(_group(shard, _members(shard))):
                if number >= num_given:
                    yield video
                    num_given += 1
            break
        except tarfile.TarError as error:
            raise ShardCutError(_breaks_off(shard, num_given, error)) from error
        except OSError as error:
            if not tries_left:
                raise _unreadable(shard, error) from error
    if not num_given:
        raise ShardCutError(_holds_none(shard))


def _members(shard: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a tar file's members that are part of a video."""
    stream = _opened(shard)
    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive:
            for member in cast(Iterable[_Member], archive):
                if member.is_part_of_video(shard) and (content := archive.extractfile(member)):
                    yield member.name, content.read()
                # Or all of them would stay in memory.
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
        # A tar file that ends between two members looks whole: only the sender's exit status, known
        # once everything was read, tells.
        while stream.read(1 << 16):
            pass
        stream.close()
    except (tarfile.TarError, EOFError, ValueError) as error:
        stream.close()  # raises an OSError if the transport failed and not the file
        raise tarfile.ReadError(str(error)) from error
    finally:
        with contextlib.suppress(OSError):  # a sender that was not read to its end complains
            stream.close()


def _opened(shard: str) -> Any:
    """The stream of a shard."""
    if not _is_remote(shard):
        return Path(shard).open("rb")
    from webdataset.gopen import Pipe, gopen

    if shard.startswith("s3://"):
        return Pipe(["aws", "s3", "cp", shard, "-"], mode="rb", ignore_status=[141])
    return gopen(shard, "rb")


def _group(shard: str, members: Iterable[tuple[str, bytes]]) -> Iterator[ShardVideo]:
    """Videos, the images of one folder together."""
    images: list[tuple[str, bytes]] = []
    folder, num_bytes = "", 0

    def video(name: str, files: list[tuple[str, bytes]]) -> ShardVideo:
        return ShardVideo(f"{shard}/{name}", Path(PurePosixPath(shard).name) / name, tuple(files))

    def sequence() -> Iterator[ShardVideo]:
        if len(images) > 1:  # a single one is a video's thumbnail
            yield video(folder, sorted(images, key=lambda image: natural_key(image[0])))

    for name, content in members:
        path = PurePosixPath(name)
        is_frame = is_image(Path(name))
        if not is_frame or str(path.parent) != folder:
            yield from sequence()
            images, num_bytes = [], 0
        if is_frame:
            num_bytes += len(content)
            if num_bytes > _MAX_MEMBER:
                raise tarfile.ReadError(f"the images of one folder have over {_MAX_MEMBER} bytes")
            folder = str(path.parent)
            images.append((path.name, content))
        else:
            yield video(name, [(path.name, content)])
    yield from sequence()


def _unreadable(shard: str, error: Exception) -> VideoError:
    return VideoError(
        f"the shard {shard} cannot be read ({_reason_of(error)}): see that it is there and can be "
        "reached, then resume"
    )


def _breaks_off(shard: str, num_videos: int, error: Exception) -> str:
    return (
        f"the shard {shard} breaks off after {num_videos} whole videos ({_reason_of(error)}): copy "
        "it again to get the rest"
    )


def _holds_none(shard: str) -> str:
    return f"the shard {shard} holds no video: name shards that do"


def _reason_of(error: Exception) -> str:
    """What the system or the library says, in short."""
    words = str(error)
    if "could not be opened" in words or "empty file" in words:
        return "it is empty or no tar file"
    if status := re.search(r"exit (-?\d+) \(read\)", words):
        return f"what reads it ended with status {status[1]}"
    return getattr(error, "strerror", None) or words


class ShardClips(IterableDataset[list[Tensor]]):
    """The batches of one process, from the position that was set to the end of the epoch.

    Batch b takes from phase b % num_phases; within a batch, equal parts take from the groups. With
    as many phases as workers, or a multiple, no two workers read the same shard; with as many
    groups as processes, or a multiple, no two processes do.

    A video that is broken or too short is named once in the log and the quarantine; the next usable
    one of its stream, which also has its own turn, replaces it.

    Args:
        shards: as `expand_shards` gives them; at least one.
        num_clips: per epoch, over all processes.
        batch_size: clips per process.
        quarantine: the file that names what is left out, or None.

    Raises:
        ConfigError: there are fewer clips than one global batch needs.
    """

    def __init__(
        self,
        shards: Sequence[str],
        *,
        num_clips: int,
        batch_size: int,
        sampling: ClipSampling,
        seed: int,
        quarantine: Path | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._shards = list(shards)
        self._sampling = sampling
        self._seed = seed
        self._quarantine = quarantine
        self._left_out: set[str] = set()
        self.num_clips = num_clips
        self.global_batch = batch_size * world_size
        self.places = range(rank * batch_size, (rank + 1) * batch_size)
        groups = range(1, min(_MAX_GROUPS, len(shards)) + 1)
        self.num_groups = max(n for n in groups if self.global_batch % n == 0)
        max_phases = min(_MAX_STREAMS, len(shards)) // self.num_groups
        self.num_phases = max(n for n in (1, 2, 4, 8) if n <= max_phases)
        self.num_batches = count_batches(num_clips, global_batch=self.global_batch)
        # Epoch and batch, shared with workers that persist from epoch to epoch.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Makes the next iteration start at this batch of this epoch, both from 0."""
        self._position.copy_(torch.tensor([epoch, batch]))

    def source_of(self, batch: int, place: int) -> tuple[int, int]:
        """The stream, and the item in it, for a place in a global batch."""
        per_group = self.global_batch // self.num_groups
        phase, group = batch % self.num_phases, place // per_group
        stream = phase * self.num_groups + group
        return stream, (batch // self.num_phases) * per_group + place % per_group

    def shards_of(self, stream: int, *, epoch: int) -> list[str]:
        """The shards that a stream reads in an epoch, in its order."""
        seeds = np.random.SeedSequence([self._seed, epoch], spawn_key=(1,))
        order = np.random.default_rng(seeds).permutation(len(self._shards))
        own = order[stream :: self.num_phases * self.num_groups]
        return [self._shards[int(place)] for place in own]

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Yields batches: lists of clips, each uint8 (time, height, width, 3).

        In a worker process, it yields every n-th batch, n being the number of workers.

        Raises:
            VideoError: 20 videos in a row, or all of a stream, cannot be used; or a shard cannot be
                read.
        """
        epoch, first = self._position.tolist()
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        streams: dict[int, _Stream] = {}
        for batch in range(first + number, self.num_batches, num_workers):
            clips = []
            for place in self.places:
                stream, item = self.source_of(batch, place)
                if stream not in streams:
                    videos = self._videos_of(self.shards_of(stream, epoch=epoch))
                    streams[stream] = _Stream(videos)
                streams[stream].skip_to(item)
                clips.append(self._clip(streams[stream], epoch, batch * self.global_batch + place))
            yield clips

    def _clip(self, stream: "_Stream", epoch: int, index: int) -> Tensor:
        """The clip of an index of the epoch, from the stream's next usable video."""
        for attempt in range(_MAX_FAILURES):
            video = stream.ahead(attempt)
            if video.name in self._left_out:
                continue
            rng = np.random.default_rng([self._seed, epoch, index, attempt])
            try:
                clip = sample_clips(
                    video.read_chosen, num_clips=1, sampling=self._sampling, rng=rng
                )
            except VideoError as error:
                self._leave_out(video.name, str(error))
            else:
                return torch.from_numpy(clip)
        where = f"; {self._quarantine} says why" if self._quarantine else ""
        raise VideoError(
            f"{_MAX_FAILURES} videos in a row cannot be used{where}: check the shards and the "
            "clip's length and step"
        )

    def _videos_of(self, shards: Sequence[str]) -> Iterator[ShardVideo]:
        """The videos of shards in their order, over and over; of all shards if these have none."""
        while True:
            num_videos = 0
            for shard in shards:
                try:
                    for video in read_shard(shard):
                        num_videos += 1
                        yield video
                except ShardCutError as error:
                    self._leave_out(shard, str(error))
            if not num_videos and len(shards) == len(self._shards):
                raise VideoError(
                    f"none of the {len(shards)} shards holds a video ({shards[0]} was the first): "
                    "check data.root"
                )
            shards = shards if num_videos else self._shards

    def _leave_out(self, name: str, reason: str) -> None:
        if name not in self._left_out:
            self._left_out.add(name)
            leave_out(self._quarantine, name, reason=reason)


class _Stream:
    """Videos by number, read from front to back; those ahead are kept until they are skipped."""

    def __init__(self, videos: Iterator[ShardVideo]) -> None:
        self._videos = videos
        self._first = 0
        self._kept: deque[ShardVideo] = deque()

    def skip_to(self, item: int) -> None:
        """Moves to an item at or after the present one."""
        while self._first < item:
            if self._kept:
                self._kept.popleft()
            else:
                next(self._videos)
            self._first += 1

    def ahead(self, num_videos: int) -> ShardVideo:
        """The video so many after the present one."""
        while len(self._kept) <= num_videos:
            self._kept.append(next(self._videos))
        return self._kept[num_videos]
