"""Clips from shards that are read from front to back, in an order that anyone can work out.

The shards of an epoch, shuffled by (seed, epoch), are dealt to a number of streams; each clip of a
batch is the next video of the stream that its place in the batch belongs to. Streams depend on the
number of shards and the size of the global batch alone. So a batch is a function of (seed, epoch,
number of the batch), whichever process and worker makes it, and a run can be resumed anywhere:
videos before the position are passed over, not decoded. A stream that is at its end begins anew.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ino.data.clip_sampler import count_batches
from ino.data.clips import ClipSampling, frame_indices
from ino.data.quarantine import leave_out
from ino.data.shards import ShardCutError, ShardVideo, read_shard
from ino.errors import VideoError

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
