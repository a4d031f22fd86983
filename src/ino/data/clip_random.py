"""One stream of random numbers a clip, so that what is drawn for a clip does not depend on which
other clips share its process."""

from typing import Any

import numpy as np

FIRST_CLIP_KEY = 1


class ClipRandom(np.random.Generator):
    """A generator for arrays whose last axis, or fastest index, is the clip.

    `random` and `uniform` draw a clip's numbers from the clip's own stream, everything else comes
    from the stream that all clips of a step share. Streams follow from the seed and from the
    clip's place among the clips of a step over all processes: two processes of one clip draw what
    one process of two clips draws.
    """

    def __init__(self, seed: list[int], *, num_clips: int, first_clip: int = 0) -> None:
        """Args:
        seed: of the step; not negative.
        num_clips: clips of this process.
        first_clip: place of the first of them among those of all processes.
        """
        super().__init__(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0,))))
        self.clips = [
            np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(FIRST_CLIP_KEY, clip)))
            for clip in range(first_clip, first_clip + num_clips)
        ]

    def random(self, size: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Numbers in 0..1: a multiple of the number of clips, with the clip running fastest."""
        return self._by_clip(size, lambda rng, count: rng.random(count))

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """Numbers in low..high, likewise."""
        return self._by_clip(size, lambda rng, count: rng.uniform(low, high, count))

    def _by_clip(self, size: Any, draw: Any) -> np.ndarray:
        assert isinstance(size, int)
        assert size % len(self.clips) == 0
        columns = [draw(rng, size // len(self.clips)) for rng in self.clips]
        return np.stack(columns, axis=-1).reshape(size)


def stream_of(rng: np.random.Generator, clip: int) -> np.random.Generator:
    """The stream of a clip of this process, counted from 0, or `rng` where clips share it."""
    return rng.clips[clip] if isinstance(rng, ClipRandom) else rng
