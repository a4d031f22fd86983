"""Videos in tar files ("shards"), read by the library webdataset from a disk, HTTP or a pipe.

A video is a member with a video's suffix, or two and more images that directly follow one another
in one folder of the tar file. Other members (labels, captions) are passed over.
"""

import contextlib
import glob
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ino.data.clips import ClipSampling, count_batches, frame_indices
from ino.data.decode import NOMINAL_FPS, VideoFile, check_numbers
from ino.data.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_key, read_image
from ino.data.video_index import leave_out
from ino.errors import ConfigError, VideoError

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_NUM_TRIES = 3  # of a shard that comes over a network


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
        """As `ino.data.video.read_chosen`.

        Raises:
            VideoError: as there.
        """
        name, content = self.files[0]
        if not is_image_member(name):
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
    """A shard is not a whole tar file; its videos up to there were given."""


def is_shards(root: str) -> bool:
    """Whether a root names shards and not a folder, a video or a list."""
    return root.endswith(_SUFFIXES) or is_remote(root)


def is_remote(shard: str) -> bool:
    """Whether a shard is no file of this machine."""
    return "://" in shard or shard.startswith("pipe:")


def is_video_member(name: str) -> bool:
    """Whether a member of a tar file is a video by its name."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not _is_hidden(name)


def is_image_member(name: str) -> bool:
    """Whether a member of a tar file is an image by its name."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(name)


def expand_shards(roots: Sequence[str]) -> list[str]:
    """The shards that the roots name, sorted; {000..099} counts up, * stands for what is there.

    Raises:
        ConfigError: the library is missing, or a root is no shard.
        VideoError: a file does not exist.
    """
    expand = _library("shardlists").expand_urls
    found: set[str] = set()
    for root in roots:
        if not is_shards(root):
            raise ConfigError(
                f"{root} is no shard, but others of data.root are: give either shards "
                f"({', '.join(_SUFFIXES)}, http://, s3://, pipe:) or folders, videos and lists"
            )
        for shard in expand(root):
            if is_remote(shard):
                found.add(shard)
                continue
            files = glob.glob(shard) if "*" in shard else [shard]  # noqa: PTH207, of text
            missing = [file for file in files if not Path(file).is_file()]
            if missing or not files:
                raise VideoError(
                    f"the shard {(missing or [shard])[0]} does not exist: check data.root"
                )
            found.update(files)
    return sorted(found)


def read_shard(shard: str) -> Iterator[ShardVideo]:
    """The videos of a shard in their order; what comes over a network is tried three times.

    Raises:
        ShardCutError: the shard ends too early, is no tar file, or holds no video.
        VideoError: it cannot be read.
    """
    num_given = 0
    for attempt in range(_NUM_TRIES if is_remote(shard) else 1):
        try:
            for number, video in enumerate(_group(shard, _members(shard))):
                if number >= num_given:
                    yield video
                    num_given += 1
            break
        except tarfile.TarError as error:
            raise ShardCutError(
                f"the shard {shard} breaks off after {num_given} whole videos "
                f"({reason_of(error)}): copy it again to get the rest"
            ) from error
        except OSError as error:
            if attempt + 1 == (_NUM_TRIES if is_remote(shard) else 1):
                raise VideoError(
                    f"the shard {shard} cannot be read ({reason_of(error)}): see that it is there "
                    "and can be reached, then resume"
                ) from error
    if not num_given:
        raise ShardCutError(f"the shard {shard} holds no video: name shards that do")


def _members(shard: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a tar file's members."""
    url = f"pipe:aws s3 cp {shard} -" if shard.startswith("s3://") else shard
    stream = _library("gopen").gopen(url, "rb")
    try:
        for member in _library("tariterators").tar_file_iterator(
            stream, select_files=lambda name: is_video_member(name) or is_image_member(name)
        ):
            yield member["fname"], member["data"]
        # A tar file that ends between two members looks whole: the sender's status tells. It is
        # known once all was heard.
        while stream.read(1 << 16):
            pass
        stream.close()
    except (tarfile.TarError, EOFError) as error:
        stream.close()  # tells, by an OSError, if the transport failed and not the file
        raise tarfile.ReadError(str(error).partition(" @ ")[0]) from error
    finally:
        with contextlib.suppress(OSError):  # a sender that was not heard to its end complains
            stream.close()


def _group(shard: str, members: Iterator[tuple[str, bytes]]) -> Iterator[ShardVideo]:
    """Videos, the images of one folder together."""
    images: list[tuple[str, bytes]] = []
    folder = ""

    def video(name: str, files: list[tuple[str, bytes]]) -> ShardVideo:
        return ShardVideo(f"{shard}/{name}", Path(PurePosixPath(shard).name) / name, tuple(files))

    def sequence() -> Iterator[ShardVideo]:
        if len(images) > 1:  # a single one is a video's thumbnail
            yield video(folder, sorted(images, key=lambda image: natural_key(image[0])))

    for path, content in members:
        name = PurePosixPath(path)
        if not is_image_member(path) or str(name.parent) != folder:
            yield from sequence()
            images = []
        if is_image_member(path):
            folder = str(name.parent)
            images.append((name.name, content))
        else:
            yield video(path, [(name.name, content)])
    yield from sequence()


def _library(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise ConfigError(
            "shards need the library webdataset: install it with pip install 'ino[shards]'"
        ) from error


def _is_hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".")


def reason_of(error: Exception) -> str:
    """What the system or the library says, short."""
    words = str(error)
    if "could not be opened" in words or "empty file" in words:
        return "it is empty or no tar file"
    if status := re.search(r"exit (-?\d+) \(read\)", words):
        return f"what reads it ended with status {status[1]}"
    return getattr(error, "strerror", None) or words


# Clips from shards that are read from front to back, in an order that anyone can work out.
#
# The shards of an epoch, shuffled by (seed, epoch), are dealt to a number of streams; each clip of
# a batch is the next video of the stream that its place in the batch belongs to. Streams depend on
# the number of shards and the size of the global batch alone. So a batch is a function of (seed,
# epoch, number of the batch), whichever process and worker makes it, and a run can be resumed
# anywhere: videos before the position are passed over, not decoded. A stream that is at its end
# begins anew.


_MOST_GROUPS = 64
_MOST_STREAMS = 256
_MAX_FAILURES = 20


class ShardSchedule:
    """Where in an epoch a process is, and which stream gives which clip.

    Batch b takes from phase b % phases; within a batch, equal parts take from the groups. With as
    many phases as workers, or a multiple, no two workers read the same shard; with as many groups
    as processes, or a multiple, no two processes do.

    Args:
        num_clips: of an epoch, over all processes.
        num_shards: at least 1.
        batch_size: clips a process.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ConfigError: there are fewer clips than one global batch needs.
    """

    def __init__(
        self,
        num_clips: int,
        *,
        num_shards: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_clips = num_clips
        self.batch_size = batch_size
        self.global_batch = batch_size * world_size
        self.first_place = rank * batch_size
        most = min(_MOST_GROUPS, num_shards)
        self.num_groups = max(n for n in range(1, most + 1) if self.global_batch % n == 0)
        most = min(_MOST_STREAMS, num_shards) // self.num_groups
        self.num_phases = max(n for n in (1, 2, 4, 8) if n <= most)
        self.num_batches = count_batches(num_clips, global_batch=self.global_batch)
        # Shared with workers that persist from epoch to epoch.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and batch, both from 0."""
        epoch, batch = self._position.tolist()
        return epoch, batch

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Makes the next iteration start at this batch of this epoch, both from 0."""
        self._position.copy_(torch.tensor([epoch, batch]))

    def __len__(self) -> int:
        """The number of clips of this process from the position to the end of the epoch."""
        return (self.num_batches - self.position[1]) * self.batch_size

    def source_of(self, batch: int, place: int) -> tuple[int, int]:
        """Stream and item of it for a place in a global batch."""
        a_group = self.global_batch // self.num_groups
        phase, group = batch % self.num_phases, place // a_group
        stream = phase * self.num_groups + group
        return stream, (batch // self.num_phases) * a_group + place % a_group

    def shards_of(self, stream: int, shards: Sequence[str], *, seed: int, epoch: int) -> list[str]:
        """What a stream reads in an epoch, in its order."""
        seeds = np.random.SeedSequence([seed, epoch], spawn_key=(1,))
        order = np.random.default_rng(seeds).permutation(len(shards))
        return [shards[int(place)] for place in order[stream :: self.num_phases * self.num_groups]]


class ShardClips(IterableDataset[list[Tensor]]):
    """The batches of one process, from the schedule's position to the end of the epoch.

    A video that is broken or too short is named once in the log and the quarantine file; the next
    usable one of its stream, which also has its own turn, stands in for it.

    Args:
        shards: as `expand_shards` gives them.
        schedule: which stream gives which clip.
        sampling: which frames make a clip.
        seed: not negative.
        quarantine: a JSON-lines file that names what is left out, or None.
    """

    def __init__(
        self,
        shards: Sequence[str],
        *,
        schedule: ShardSchedule,
        sampling: ClipSampling,
        seed: int,
        quarantine: Path | None,
    ) -> None:
        self._shards = list(shards)
        self._schedule = schedule
        self._sampling = sampling
        self._seed = seed
        self._quarantine = quarantine
        self._left_out: set[str] = set()

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Batches, uint8 (time, height, width, 3) each clip; of a worker, every n-th.

        Raises:
            VideoError: 20 videos in a row, or all of a stream, cannot be used; or a shard cannot be
                read.
        """
        schedule = self._schedule
        epoch, first = schedule.position
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        streams: dict[int, _Stream] = {}
        for batch in range(first + number, schedule.num_batches, num_workers):
            clips = []
            for place in range(schedule.batch_size):
                at = schedule.first_place + place
                stream, item = schedule.source_of(batch, at)
                if stream not in streams:
                    shards = schedule.shards_of(stream, self._shards, seed=self._seed, epoch=epoch)
                    streams[stream] = _Stream(self._videos_of(shards))
                index = batch * schedule.global_batch + at
                clips.append(self._clip(streams[stream], item, epoch=epoch, index=index))
            yield clips

    def _clip(self, stream: "_Stream", item: int, *, epoch: int, index: int) -> Tensor:
        """The clip of an index of the epoch, from the first usable video at or after an item."""
        stream.pass_over(item)
        for attempt in range(_MAX_FAILURES):
            video = stream.ahead(attempt)
            if video.name in self._left_out:
                continue
            rng = np.random.default_rng([self._seed, epoch, index, attempt])
            try:
                clip = video.read_chosen(
                    lambda num_frames, fps, rng=rng: frame_indices(
                        num_frames, fps, sampling=self._sampling, rng=rng
                    )
                )
            except VideoError as error:
                self._leave_out(video.name, str(error))
                continue
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
            if num_videos:
                continue
            if len(shards) == len(self._shards):
                raise VideoError(
                    f"none of the {len(shards)} shards holds a video ({shards[0]} was the first): "
                    "check data.root"
                )
            shards = self._shards

    def _leave_out(self, name: str, reason: str) -> None:
        if name in self._left_out:
            return
        self._left_out.add(name)
        leave_out(self._quarantine, name, reason=reason)


class _Stream:
    """Videos by number, read from front to back; those ahead are kept until they are passed."""

    def __init__(self, videos: Iterator[ShardVideo]) -> None:
        self._videos = videos
        self._first = 0
        self._kept: deque[ShardVideo] = deque()

    def pass_over(self, item: int) -> None:
        """Moves to an item, not before the present one."""
        while self._first < item:
            if self._kept:
                self._kept.popleft()
            else:
                next(self._videos)
            self._first += 1

    def ahead(self, steps: int) -> ShardVideo:
        """The video so many after the present one."""
        while len(self._kept) <= steps:
            self._kept.append(next(self._videos))
        return self._kept[steps]


# How many videos shards hold, and which shards are broken, before any is read through.


def survey_shards(
    shards: Sequence[str], *, num_stated: int
) -> tuple[list[str], int, dict[str, str]]:
    """The shards that hold videos, how many all of them hold, and what is wrong with which shard.

    Args:
        shards: as `expand_shards` gives them.
        num_stated: what the user says of all of them; 0 to count, which remote ones do not allow.

    Raises:
        ConfigError: it is 0 and some shards are remote.
        VideoError: there is no video.
    """
    remote = [shard for shard in shards if is_remote(shard)]
    if remote and not num_stated:
        raise ConfigError(
            f"{remote[0]} is not a file of this machine, and to count its videos would be to read "
            "all of it: say with data.shard_videos how many all shards hold together"
        )
    if num_stated:
        return list(shards), num_stated, {}
    counts = {shard: count_videos(shard) for shard in shards}
    faults = {shard: fault for shard, (_, fault) in counts.items() if fault}
    num_videos = sum(count for count, _ in counts.values())
    if not num_videos:
        raise VideoError(f"no shard holds a video (the first: {next(iter(faults.values()))})")
    return [shard for shard, (count, _) in counts.items() if count], num_videos, faults


def count_videos(shard: str) -> tuple[int, str]:
    """How many videos a local shard has, by its members' headers, and what is wrong with it."""
    num_videos = num_images = 0
    previous = None
    is_plain = shard.endswith(".tar")
    try:
        size = Path(shard).stat().st_size
        with tarfile.open(shard) as archive:
            for member in archive:
                name = member.name
                if is_plain and member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                if not member.isreg() or not (is_video_member(name) or is_image_member(name)):
                    continue
                folder = str(PurePosixPath(name).parent) if is_image_member(name) else None
                num_images = num_images + 1 if folder is not None and folder == previous else 1
                num_videos += folder is None or num_images == 2
                previous = folder
    except (tarfile.TarError, EOFError, OSError) as error:
        return num_videos, (
            f"the shard {shard} breaks off after {num_videos} videos ({reason_of(error)}): copy it "
            "again to get the rest"
        )
    if not num_videos:
        return 0, f"the shard {shard} holds no video: name shards that do"
    return num_videos, ""
