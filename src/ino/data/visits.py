"""All clips of a video from one visit, and batches that mix the clips of many visits.

Decoding a clip begins at a key frame, which may be hundreds of frames before it; several clips of a
video cost hardly more than the last of them. Visits are dealt to as many lanes as a global batch
has places; a batch takes one clip of each lane, so that no video is in a batch twice, and the clips
of a window of visits come in random order. Which clip comes where is a function of seed and epoch:
it is the same on any number of processes with the same global batch, and after resuming.
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from ino.data.clip_sampler import count_batches

WINDOW = 4
"""Visits of a lane whose clips are mixed. Their frames are kept: 5 clips of 4 frames of 256x340
pixels are 5 MiB a visit."""


class VisitSampler(Sampler[tuple[int, int]]):
    """The (epoch, video) pairs of one process, lane by lane, and the batches made of their clips.

    Args:
        num_videos: over all processes, each visited once an epoch.
        clips_per_video: clips of a visit.
        batch_size: clips a process and step.
        seed: not negative.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ConfigError: there are fewer videos than one global batch has clips.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        clips_per_video: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._num_videos = num_videos
        self._clips_per_video = clips_per_video
        self._batch_size = batch_size
        self._seed = seed
        self._first_lane = rank * batch_size
        self._num_lanes = batch_size * world_size
        self._epoch = 0
        self._batch = 0
        self.num_clips = num_videos * clips_per_video
        self.num_batches = count_batches(
            self.num_clips, global_batch=self._num_lanes, clips_per_visit=clips_per_video
        )
        self._num_visits = num_videos // self._num_lanes  # of each lane
        self._batches_per_window = WINDOW * clips_per_video

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Makes the next iteration start at the window of this batch of this epoch, from 0."""
        self._epoch = epoch
        self._batch = batch

    def __len__(self) -> int:
        """The number of visits from the position to the end of the epoch."""
        done = self._batch // self._batches_per_window * WINDOW
        return (self._num_visits - done) * self._batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self._epoch
        order = self._generator(epoch).permutation(self._num_videos)
        visits = order[: self._num_visits * self._num_lanes].reshape(-1, self._num_lanes)
        done = self._batch // self._batches_per_window * WINDOW
        own = visits[done:, self._first_lane : self._first_lane + self._batch_size]
        return ((epoch, int(video)) for video in own.ravel())

    def batches(self, visits: Iterator[list[Tensor]]) -> Iterator[list[Tensor]]:
        """The batches from the position to the end of the epoch.

        Args:
            visits: as a loader of this sampler gives them, a list of one visit of each lane at a
                time; a visit is (clips x time, height, width, 3).
        """
        epoch, batch = self._epoch, self._batch
        while batch < self.num_batches:
            window, skipped = divmod(batch, self._batches_per_window)
            num_visits = min(WINDOW, self._num_visits - window * WINDOW)
            kept = [next(visits) for _ in range(num_visits)]
            orders = [
                self._generator(epoch, window, self._first_lane + lane).permutation(
                    num_visits * self._clips_per_video
                )
                for lane in range(self._batch_size)
            ]
            for place in range(skipped, num_visits * self._clips_per_video):
                clips = []
                for lane, order in enumerate(orders):
                    visit, clip = divmod(int(order[place]), self._clips_per_video)
                    frames = kept[visit][lane]
                    clips.append(frames.unflatten(0, (self._clips_per_video, -1))[clip])
                yield clips
                batch += 1

    def _generator(self, *place: int) -> np.random.Generator:
        # A spawn key keeps these streams apart from those that clips are drawn from.
        return np.random.default_rng(np.random.SeedSequence([self._seed, *place], spawn_key=(1,)))
