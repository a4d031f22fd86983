"""In which order clips come, and which process takes which."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ino.errors import ConfigError


def count_batches(num_clips: int, *, global_batch: int, clips_per_visit: int = 1) -> int:
    """Whole batches of an epoch.

    Args:
        num_clips: of the epoch.
        global_batch: clips of a batch, over all processes.
        clips_per_visit: clips of a video that are read together, and no two in one batch.

    Raises:
        ConfigError: there is none.
    """
    num_visits = num_clips // clips_per_visit // global_batch
    if num_visits:
        return num_visits * clips_per_visit
    if num_clips >= global_batch:
        raise ConfigError(
            f"an epoch visits {num_clips // clips_per_visit} videos, fewer than the {global_batch} "
            "clips of one step, which are all of different videos: turn data.visits off"
        )
    raise ConfigError(
        f"an epoch has {num_clips} clips, fewer than the {global_batch} of one step: raise "
        "data.clips_per_video, lower data.batch_size, or give more videos"
    )


class ClipSampler(Sampler[tuple[int, int]]):
    """The (epoch, index) pairs of one epoch for one process, in the order of its batches.

    An epoch is a permutation drawn from (seed, epoch), cut into global batches, the last one left
    out if it is not full; each process takes its share of every batch. Iterating gives the rest of
    the epoch from the position that was set; the position is for the caller to move. As the epoch
    travels with the index, workers may persist.

    Args:
        num_clips: of an epoch, over all processes, before it is cut into batches.
        batch_size: clips a process.
        seed: not negative.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ConfigError: there are fewer clips than one global batch needs.
    """

    def __init__(
        self, num_clips: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_clips = num_clips
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._global_batch = batch_size * world_size
        self._epoch = 0
        self._batch = 0
        self.num_batches = count_batches(num_clips, global_batch=self._global_batch)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Makes the next iteration start at this batch of this epoch, both from 0."""
        self._epoch = epoch
        self._batch = batch

    def __len__(self) -> int:
        """The number of clips from the position to the end of the epoch."""
        return (self.num_batches - self._batch) * self._batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A spawn key keeps this stream apart from those that the clips are drawn from.
        seeds = np.random.SeedSequence([self._seed, self._epoch], spawn_key=(0,))
        order = np.random.default_rng(seeds).permutation(self.num_clips)
        batches = order[: self.num_batches * self._global_batch].reshape(
            self.num_batches, -1, self._batch_size
        )
        epoch = self._epoch
        own = batches[self._batch :, self._rank].ravel()
        return ((epoch, int(index)) for index in own)
