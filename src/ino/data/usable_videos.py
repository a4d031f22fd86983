"""Which videos of an index can give clips, and why the others cannot."""

from collections.abc import Sequence

import numpy as np

from ino.data.clips import ClipSampling, frame_indices
from ino.data.video_index import VideoIndex
from ino.errors import VideoError

_MANY = 20


def choose_usable(
    index: VideoIndex, sampling: ClipSampling
) -> tuple[list[str], float, dict[str, str]]:
    """The usable videos, how many seconds they are, and the reason for each of the others.

    A video whose header does not tell its number of frames counts as long enough.

    Raises:
        VideoError: no video is usable; or 20 or more are not, and they are the larger part.
    """
    too_short = _too_short(index.num_frames, index.fps, sampling)
    left_out: dict[str, str] = {}
    usable: list[str] = []
    seconds = 0.0
    for place, name in enumerate(index.names):
        length = (int(index.num_frames[place]), float(index.fps[place]))
        if place in index.faults:
            left_out[name] = index.faults[place]
        elif length in too_short:
            left_out[name] = f"{name}: {too_short[length]}"
        else:
            usable.append(name)
            seconds += float(index.seconds[place])
    if not usable or (len(left_out) >= _MANY and 2 * len(left_out) > len(index)):
        name, reason = next(iter(left_out.items()))
        raise VideoError(
            f"{len(left_out)} of the {len(index)} videos cannot be used (the first: {reason}): "
            "check the folder of videos and the clip's length and step"
        )
    return usable, seconds, left_out


def _too_short(
    num_frames: Sequence[int] | np.ndarray,
    fps: Sequence[float] | np.ndarray,
    sampling: ClipSampling,
) -> dict[tuple[int, float], str]:
    """Why a video of so many frames and such a rate is too short, for those that are."""
    reasons = {}
    rng = np.random.default_rng(0)  # where a clip would start is of no interest
    for length, rate in set(zip(map(int, num_frames), map(float, fps), strict=True)):
        if length:
            try:
                frame_indices(length, rate, sampling=sampling, rng=rng)
            except VideoError as error:
                reasons[length, rate] = str(error)
    return reasons
