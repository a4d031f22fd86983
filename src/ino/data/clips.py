"""Which frames of which videos make a clip, in which order clips come, and to which process.

Everything random is a function of (seed, epoch, index) alone: the number of workers changes
nothing, and a resumed run reads what it would have read. Crops and colors are not sampled here but
on the device that trains (`ino.data.views`).
"""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ino.data.video import read_chosen
from ino.data.video_index import VideoIndex, check_machine, leave_out
from ino.errors import ConfigError, VideoError

_NUM_CANDIDATES = 100  # videos that may replace one; known broken ones cost nothing
_MAX_FAILURES = 20
_GOOD, _BROKEN = 1, 2

LEAST_OFTEN, MOST_OFTEN = 0.1, 3.0
"""How often a video is sampled, relative to the mean, with sampling by motion."""

_NUM_PLACES = 5  # of a video that are tried for a clip without a cut
_HISTOGRAM_SIZE = (64, 36)  # width and height of the frames that are compared
_HISTOGRAM_BINS = (8, 16, 16)  # of L, a and b
_LEAST_OVERLAP = 0.5  # of the histograms of two frames of one scene

WINDOW = 4
"""Visits of a lane whose clips are shuffled together (see `VisitSampler`). Their frames are kept in
memory: 5 clips of 4 frames of 256x340 pixels take 5 MiB per visit."""


class ClipSampling(NamedTuple):
    """How frames are chosen: every `frame_step`-th of the source, or `fps` per second of its time.

    The paper takes 4 frames, every 8th; the released code 4 frames at 8 frames per second, 5 clips
    per video and epoch.
    """

    length: int = 4
    """Frames per clip."""
    frame_step: int = 8
    """Source frames from one frame to the next; 0 where `fps` decides."""
    fps: float = 0.0
    """Frames per second of the source's time; a source with fewer repeats frames."""
    clips_per_video: int = 1
    """Clips sampled from each video in an epoch."""
    avoids_cuts: bool = False
    """Whether a clip that crosses a cut (`crosses_cut`) is replaced by one from another place of
    the video, of which four are tried."""


def frame_indices(
    num_frames: int, fps: float, *, sampling: ClipSampling, rng: np.random.Generator
) -> list[int]:
    """The frame numbers of one clip of a video, its start uniform over all that fit.

    With `frame_step` s: start + s k for k = 0 .. length - 1. With `fps` f the source is resampled
    to its frames floor(k fps / f), and a clip is `length` consecutive ones of those.

    Raises:
        VideoError: the video is too short.
    """
    if sampling.frame_step:
        stride, step = 1.0, sampling.frame_step
    else:
        stride, step = fps / sampling.fps, 1
    num_positions = math.floor(num_frames / stride)  # frames at which a clip can start
    span = (sampling.length - 1) * step + 1
    if num_positions < span:
        raise VideoError(
            f"a clip needs {math.ceil(span * stride)} frames and the video has {num_frames}: "
            "lower length or frame_step, or raise fps, to use it"
        )
    start = int(rng.integers(num_positions - span + 1))
    return [math.floor((start + step * k) * stride) for k in range(sampling.length)]


def sample_clips(
    read: Callable[[Callable[[int, float], list[int]]], np.ndarray],
    *,
    num_clips: int,
    sampling: ClipSampling,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "time height width 3"]:
    """Clips of a video, one after the other.

    Args:
        read: reads the frames whose numbers a function of the number of frames and the frame rate
            returns, such as `ino.data.video.read_chosen` of a path.
        num_clips: how many.
        sampling: which frames make a clip.
        rng: decides where clips start.

    Raises:
        VideoError: the video is too short or cannot be read.
    """

    def read_some(number: int) -> np.ndarray:
        return read(
            lambda num_frames, fps: [
                index
                for _ in range(number)
                for index in frame_indices(num_frames, fps, sampling=sampling, rng=rng)
            ]
        )

    clips = read_some(num_clips)
    if not sampling.avoids_cuts:
        return clips
    each = clips.reshape(num_clips, sampling.length, *clips.shape[1:])
    places = [place for place in range(num_clips) if crosses_cut(each[place])]
    for _ in range(_NUM_PLACES - 1):
        if not places:
            break
        others = read_some(len(places)).reshape(len(places), *each.shape[1:])
        for place, other in zip(tuple(places), others, strict=True):
            if not crosses_cut(other):
                each[place] = other
                places.remove(place)
    return each.reshape(clips.shape)


def crosses_cut(clip: UInt8[np.ndarray, "time height width 3"]) -> bool:
    """Whether two successive frames seem to show different scenes: less than half of their colors
    are the same.

    Compared are histograms of 8 x 16 x 16 colors in Lab. docs/benchmarks.md ("Cuts") has how often
    that is wrong.
    """
    histograms = []
    for frame in clip:
        small = cv2.resize(frame, _HISTOGRAM_SIZE, interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
        counts = cv2.calcHist([lab], [0, 1, 2], None, _HISTOGRAM_BINS, [0, 256] * 3)
        histograms.append(counts / math.prod(_HISTOGRAM_SIZE))
    return any(
        float(np.minimum(first, second).sum()) < _LEAST_OVERLAP
        for first, second in itertools.pairwise(histograms)
    )


def choose_usable(
    index: VideoIndex, sampling: ClipSampling
) -> tuple[list[str], float, dict[str, str]]:
    """The videos of an index that can give clips, their total seconds, and why others cannot.

    A video whose header does not tell its number of frames counts as long enough.

    Raises:
        VideoError: no video is usable; or 20 or more are not, and they are the larger part.
    """
    lengths = list(zip(index.num_frames.tolist(), index.fps.tolist(), strict=True))
    too_short = {length: _why_too_short(*length, sampling) for length in set(lengths)}
    left_out: dict[str, str] = {}
    usable: list[int] = []
    for place, name in enumerate(index.names):
        if place in index.faults:
            left_out[name] = index.faults[place]
        elif reason := too_short[lengths[place]]:
            left_out[name] = f"{name}: {reason}"
        else:
            usable.append(place)
    if not usable or (len(left_out) >= _MAX_FAILURES and 2 * len(left_out) > len(index)):
        reason = next(iter(left_out.values()))
        raise VideoError(
            f"{len(left_out)} of the {len(index)} videos cannot be used (the first: {reason}): "
            "check the folder of videos and the clip's length and step"
        )
    seconds = float(index.seconds[usable].sum())
    return [index.names[place] for place in usable], seconds, left_out


def _why_too_short(num_frames: int, fps: float, sampling: ClipSampling) -> str:
    """Why such a video is too short for a clip; nothing if it is not or its length is unknown."""
    try:
        if num_frames:
            frame_indices(num_frames, fps, sampling=sampling, rng=np.random.default_rng(0))
    except VideoError as error:
        return str(error)
    return ""


def motion_weights(motion: Sequence[float]) -> np.ndarray:
    """How often each video is sampled, relative to the mean, by its motion.

    Proportional to it within `LEAST_OFTEN` and `MOST_OFTEN`; the mean is 1.

    Args:
        motion: of each video, see `ino.data.video_index.video_motion`; one whose motion is not
            known (NaN) counts as the median.
    """
    measured = np.asarray(motion, dtype=np.float64)
    known = measured[~np.isnan(measured)]
    measured = np.nan_to_num(measured, nan=float(np.median(known)) if len(known) else 1.0)
    measured = measured.clip(1e-3)
    weights = np.ones(len(measured))
    low, high = -9.0, 9.0  # decimal logarithm of the factor
    for _ in range(60):
        middle = (low + high) / 2
        weights = (10**middle * measured).clip(LEAST_OFTEN, MOST_OFTEN)
        low, high = (middle, high) if weights.mean() < 1 else (low, middle)
    return weights / weights.mean()


def clip_generators(
    seed: list[int], *, num_clips: int, first_clip: int = 0
) -> list[np.random.Generator]:
    """One random number generator for each clip of this process in a step.

    Its state depends only on the seed and on the clip's place in the global batch: two processes
    with one clip each sample the same numbers as one process with two clips. `first_clip` is the
    place of this process's first clip among those of all processes.
    """
    places = range(first_clip, first_clip + num_clips)
    seeds = (np.random.SeedSequence(seed, spawn_key=(1, place)) for place in places)
    return [np.random.default_rng(one) for one in seeds]


def digest_of(paths: Sequence[Path | str]) -> str:
    """A hash of the paths and their order, 16 hexadecimal digits."""
    encoded = [os.fsencode(path) for path in paths]
    bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return hashlib.sha256(bounds.tobytes() + b"".join(encoded)).hexdigest()[:16]


class ClipDataset(Dataset[Tensor]):
    """Clips by (epoch, index): the pairs that `ClipSampler` yields.

    Clip `index` is of video `index % num_videos`; with weights, of one sampled from (seed, epoch)
    and index, so that each video has as many clips as its weight says, rounded up or down. A video
    that is broken, cut short, without pictures or too short is named once in the log and the
    quarantine, not tried again, and replaced by one sampled from (seed, epoch, index).

    Args:
        videos: as `find_videos` gives them.
        sampling: which frames make a clip.
        seed: not negative.
        quarantine: the file that names the videos left out, or None.
        visits: an item is all clips of a video, one after the other: the pairs of `VisitSampler`.
        weights: how often each video is sampled, relative to the others; None for equally often.
    """

    def __init__(
        self,
        videos: Sequence[Path | str],
        *,
        sampling: ClipSampling,
        seed: int,
        quarantine: Path | None,
        visits: bool = False,
        weights: np.ndarray | None = None,
    ) -> None:
        # One array of bytes, which data workers share: no Python object for each path.
        self._videos = np.array([os.fsencode(video) for video in videos])
        self._sampling = sampling
        self._seed = seed
        self._quarantine = quarantine
        self._clips_at_once = sampling.clips_per_video if visits else 1
        num_items = len(self) // self._clips_at_once
        # A video has the items between the end of the one before it and its own.
        self._ends = None if weights is None else num_items * weights.cumsum() / weights.sum()
        # Shared by data workers, so that each learns what another found and the parent can count.
        self._state = torch.zeros(len(self._videos), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        """The number of clips per epoch."""
        return len(self._videos) * self._sampling.clips_per_video

    @property
    def num_broken(self) -> int:
        """How many videos were found unusable so far, by this process and its workers."""
        return int((self._state == _BROKEN).sum())

    def __getitem__(self, key: tuple[int, int]) -> UInt8[Tensor, "time height width 3"]:
        """The clip of an (epoch, index) pair; with `visits`, all clips of a video, concatenated.

        Raises:
            VideoError: 20 videos in a row, or most of the videos tried, cannot be used; or the
                machine is at fault, see `check_machine`.
        """
        epoch, index = key
        num_failures = 0
        for attempt, video in enumerate(self._candidates(epoch, index)):
            if self._state[video] == _BROKEN:
                continue
            rng = np.random.default_rng([self._seed, epoch, index, attempt])
            try:
                clips = sample_clips(
                    partial(read_chosen, self._path(video)),
                    num_clips=self._clips_at_once,
                    sampling=self._sampling,
                    rng=rng,
                )
            except (VideoError, OSError) as error:
                check_machine(self._path(video), error)
                num_failures += 1
                self._leave_out(video, error)
                if num_failures == _MAX_FAILURES:
                    break
            else:
                self._state[video] = _GOOD
                return torch.from_numpy(clips)
        raise self._too_many_broken()

    def _path(self, video: int) -> Path:
        return Path(os.fsdecode(self._videos[video]))

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """The video of a clip, then those that may replace it."""
        first = self._first_candidate(epoch, index)
        yield first
        rng = np.random.default_rng([self._seed, epoch, index, _NUM_CANDIDATES])
        size = min(_NUM_CANDIDATES, len(self._videos))
        others = rng.choice(len(self._videos), size, replace=False)
        yield from (int(video) for video in others if video != first)

    def _first_candidate(self, epoch: int, index: int) -> int:
        if self._ends is None:
            return index % len(self._videos)
        # One offset for an epoch: the numbers of clips are as even as they can be.
        seeds = np.random.SeedSequence([self._seed, epoch], spawn_key=(2,))
        offset = np.random.default_rng(seeds).random()
        found = int(np.searchsorted(self._ends, index + offset, side="right"))
        return min(found, len(self._videos) - 1)

    def _leave_out(self, video: int, error: Exception) -> None:
        self._state[video] = _BROKEN
        leave_out(self._quarantine, str(self._path(video)), reason=str(error))
        if self.num_broken >= _MAX_FAILURES and 2 * self.num_broken > self._num_tried:
            raise self._too_many_broken() from error

    @property
    def _num_tried(self) -> int:
        return int((self._state > 0).sum())

    def _too_many_broken(self) -> VideoError:
        where = f"; {self._quarantine} says why" if self._quarantine else ""
        return VideoError(
            f"{self.num_broken} of the {self._num_tried} videos tried cannot be used{where}: "
            "check the folder of videos and the clip's length and step"
        )


def count_batches(num_clips: int, *, global_batch: int, clips_per_visit: int = 1) -> int:
    """The number of whole batches per epoch.

    Args:
        num_clips: per epoch, over all processes.
        global_batch: clips per batch, over all processes.
        clips_per_visit: clips of a video that are read together, no two of them in one batch.

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

    An epoch is a permutation sampled from (seed, epoch), cut into global batches, the last one left
    out if it is not full; each process takes its share of every batch. Iterating gives the rest of
    the epoch from the position that was set; moving the position is up to the caller. As the epoch
    is part of each pair, workers may persist.

    `num_clips` counts those of all processes, before they are cut into batches, and `batch_size`
    those of this process.

    Raises:
        ConfigError: there are fewer clips than one global batch needs.
    """

    _clips_per_visit = 1

    def __init__(
        self, num_clips: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_clips = num_clips
        self._batch_size = batch_size
        self._seed = seed
        self._global_batch = batch_size * world_size
        self._own = slice(rank * batch_size, (rank + 1) * batch_size)
        self._epoch = self._batch = 0
        self.num_batches = count_batches(
            num_clips, global_batch=self._global_batch, clips_per_visit=self._clips_per_visit
        )

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Makes the next iteration start at this batch of this epoch, both from 0."""
        self._epoch, self._batch = epoch, batch

    def __len__(self) -> int:
        """The number of pairs from the position to the end of the epoch."""
        return (self.num_batches - self._batch) * self._batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self._pairs(self.num_clips, stream=0, first=self._batch)

    def _pairs(self, num_items: int, *, stream: int, first: int) -> Iterator[tuple[int, int]]:
        """Those of this process, of the whole global batches of a permutation from the first on."""
        epoch = self._epoch
        order = self._generator(epoch, stream=stream).permutation(num_items)
        order = order[: num_items // self._global_batch * self._global_batch]
        own = order.reshape(-1, self._global_batch)[first:, self._own]
        return ((epoch, int(item)) for item in own.ravel())

    def _generator(self, *place: int, stream: int) -> np.random.Generator:
        # A spawn key keeps these streams apart from those that clips are sampled from.
        seeds = np.random.SeedSequence([self._seed, *place], spawn_key=(stream,))
        return np.random.default_rng(seeds)


class VisitSampler(ClipSampler):
    """The (epoch, video) pairs of one process, and the batches made of the clips of their visits.

    Decoding a clip begins at a key frame, which may be hundreds of frames before it, so all clips
    of a video, read in one visit, cost hardly more than the last of them. Visits are dealt to the
    places of a global batch ("lanes"); a batch takes one clip of each lane, so no video is in a
    batch twice, and the clips of `WINDOW` visits of a lane come in random order. Which clip comes
    where is a function of seed and epoch: it is the same on any number of processes with the same
    global batch, and after resuming. `share` is `batch_size`, `seed`, `rank` and `world_size` of
    `ClipSampler`.

    Raises:
        ConfigError: there are fewer videos than one global batch has clips.
    """

    def __init__(self, num_videos: int, *, clips_per_video: int, **share: int) -> None:
        self._num_videos = num_videos
        self._clips_per_visit = clips_per_video
        super().__init__(num_videos * clips_per_video, **share)
        self._visits_per_lane = num_videos // self._global_batch
        self._batches_per_window = WINDOW * clips_per_video

    @property
    def _num_done(self) -> int:
        """Visits of a lane before the window of the position."""
        return self._batch // self._batches_per_window * WINDOW

    def __len__(self) -> int:
        """The number of visits from the position's window to the end of the epoch."""
        return (self._visits_per_lane - self._num_done) * self._batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self._pairs(self._num_videos, stream=1, first=self._num_done)

    def batches(self, visits: Iterator[list[Tensor]]) -> Iterator[list[Tensor]]:
        """The batches from the position to the end of the epoch.

        Args:
            visits: as a loader of this sampler gives them, a list of one visit per lane at a time;
                a visit is (clips x time, height, width, 3).
        """
        epoch, batch = self._epoch, self._batch
        while batch < self.num_batches:
            window, num_skipped = divmod(batch, self._batches_per_window)
            num_visits = min(WINDOW, self._visits_per_lane - window * WINDOW)
            num_clips = num_visits * self._clips_per_visit
            kept = [next(visits) for _ in range(num_visits)]
            orders = [
                self._generator(epoch, window, lane, stream=1).permutation(num_clips)
                for lane in range(self._own.start, self._own.stop)
            ]
            for place in range(num_skipped, num_clips):
                clips = []
                for lane, order in enumerate(orders):
                    visit, clip = divmod(int(order[place]), self._clips_per_visit)
                    frames = kept[visit][lane]
                    clips.append(frames.unflatten(0, (self._clips_per_visit, -1))[clip])
                yield clips
                batch += 1
