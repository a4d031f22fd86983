"""Which frames of which video make a training clip, and a data set of such clips.

Everything random is a function of (seed, epoch, index) alone: the number of workers changes
nothing, and a run that is resumed reads what it would have read. Crops and colours are not drawn
here but on the device that trains (views.py).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from ino.data.path_table import PathTable
from ino.data.quarantine import leave_out
from ino.data.video import read_chosen
from ino.errors import ConfigError, VideoError

_NUM_CANDIDATES = 100  # videos that may stand in for one clip; known broken ones cost nothing
_MAX_FAILURES = 20
_GOOD, _BROKEN = 1, 2


@dataclass(frozen=True)
class ClipSampling:
    """How frames are chosen: every `frame_step`-th of the source, or `fps` a second of its time.

    The paper takes 4 frames, every 8th; the released code 4 frames at 8 frames a second, 5 clips
    a video and epoch.

    Attributes:
        length: frames a clip.
        frame_step: source frames from one frame to the next; None where `fps` is given.
        fps: frames a second of the source's time; a source with fewer repeats frames.
        clips_per_video: clips drawn from each video in an epoch.

    Raises:
        ConfigError: a value is out of range, or not exactly one of `frame_step` and `fps` is given.
    """

    length: int = 4
    frame_step: int | None = 8
    fps: float | None = None
    clips_per_video: int = 1

    def __post_init__(self) -> None:
        if (self.frame_step is None) == (self.fps is None):
            raise ConfigError(
                f"a clip needs either frame_step or fps, but frame_step is {self.frame_step} and "
                f"fps is {self.fps}: give one and set the other to null"
            )
        for name in ("length", "frame_step", "fps", "clips_per_video"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} of a clip is {value}: give a number above 0")


def frame_indices(
    num_frames: int, fps: float, *, sampling: ClipSampling, rng: np.random.Generator
) -> list[int]:
    """The frame numbers of one clip, its start uniform over all that fit.

    With `frame_step` s: start + s k for k = 0 .. length - 1. With `fps` f the source is resampled
    to its frames floor(k fps / f), and a clip is `length` consecutive ones of those.

    Args:
        num_frames: of the video.
        fps: frames a second of the video.
        sampling: length and step.
        rng: one number is drawn.

    Raises:
        VideoError: the video is too short.
    """
    if sampling.frame_step is not None:
        stride, step = 1.0, sampling.frame_step
    else:
        assert sampling.fps is not None
        stride, step = fps / sampling.fps, 1
    num_positions = math.floor(num_frames / stride)  # frames that a start can be
    span = (sampling.length - 1) * step + 1
    if num_positions < span:
        raise VideoError(
            f"a clip needs {math.ceil(span * stride)} frames and the video has {num_frames}: "
            "lower length or frame_step, or raise fps, to use it"
        )
    start = int(rng.integers(num_positions - span + 1))
    return [math.floor((start + step * k) * stride) for k in range(sampling.length)]


class ClipDataset(Dataset[Tensor]):
    """Clips by (epoch, index): the pairs that `ClipSampler` yields.

    Clip `index` is of video `index % num_videos`. A video that is broken, cut short, without
    pictures or too short is named once in the log and in the quarantine file, not tried again, and
    replaced by one drawn from (seed, epoch, index).

    Args:
        videos: as `find_videos` gives them.
        sampling: which frames make a clip.
        seed: not negative.
        quarantine: a JSON-lines file that names the videos left out, or None.
        visits: an item is all clips of a video, one after the other: the pairs of `VisitSampler`.
    """

    def __init__(
        self,
        videos: Sequence[Path | str],
        *,
        sampling: ClipSampling,
        seed: int,
        quarantine: Path | None,
        visits: bool = False,
    ) -> None:
        self._videos = PathTable(videos)
        self._sampling = sampling
        self._seed = seed
        self._quarantine = quarantine
        self._clips_at_once = sampling.clips_per_video if visits else 1
        # Shared by data workers, so that each learns what another found and the parent can count.
        self._state = torch.zeros(len(self._videos), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        """The number of clips an epoch."""
        return len(self._videos) * self._sampling.clips_per_video

    @property
    def digest(self) -> str:
        """A short text that differs where the videos do."""
        return self._videos.digest()

    @property
    def num_broken(self) -> int:
        """How many videos were found unusable so far, by this process and its workers."""
        return int((self._state == _BROKEN).sum())

    def __getitem__(self, key: tuple[int, int]) -> UInt8[Tensor, "time height width 3"]:
        """The clip of an epoch's index, or the clips of its visit, one after the other.

        Raises:
            VideoError: 20 videos in a row, or most of the videos tried, cannot be used.
        """
        epoch, index = key
        num_failures = 0
        for attempt, video in enumerate(self._candidates(epoch, index)):
            if self._state[video] == _BROKEN:
                continue
            rng = np.random.default_rng([self._seed, epoch, index, attempt])
            try:
                clip = read_chosen(
                    self._videos[video],
                    lambda num_frames, fps, rng=rng: [
                        index
                        for _ in range(self._clips_at_once)
                        for index in frame_indices(
                            num_frames, fps, sampling=self._sampling, rng=rng
                        )
                    ],
                )
            except (VideoError, OSError) as error:
                num_failures += 1
                self._set_aside(video, error)
                if num_failures == _MAX_FAILURES:
                    break
                continue
            self._state[video] = _GOOD
            return torch.from_numpy(clip)
        raise self._too_many_broken()

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """The video of a clip, then those that may replace it."""
        first = index % len(self._videos)
        yield first
        rng = np.random.default_rng([self._seed, epoch, index, _NUM_CANDIDATES])
        size = min(_NUM_CANDIDATES, len(self._videos))
        others = rng.choice(len(self._videos), size, replace=False)
        yield from (int(video) for video in others if video != first)

    def _set_aside(self, video: int, error: Exception) -> None:
        self._state[video] = _BROKEN
        leave_out(self._quarantine, str(self._videos[video]), reason=str(error))
        num_broken = self.num_broken
        if num_broken >= _MAX_FAILURES and 2 * num_broken > int((self._state > 0).sum()):
            raise self._too_many_broken() from error

    def _too_many_broken(self) -> VideoError:
        where = f"; {self._quarantine} says why" if self._quarantine else ""
        return VideoError(
            f"{self.num_broken} of the {int((self._state > 0).sum())} videos tried cannot be "
            f"used{where}: check the folder of videos and the clip's length and step"
        )
