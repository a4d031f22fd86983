"""A stream of random numbers for each clip of a step, whichever process has the clip."""

import numpy as np

_CLIPS_KEY = 1


def clip_streams(
    seed: list[int], *, num_clips: int, first_clip: int = 0
) -> list[np.random.Generator]:
    """A generator for each of some clips of a step.

    It follows from the seed and from the clip's place among the clips of all processes: two
    processes of one clip draw what one process of two clips draws.

    Args:
        seed: of the step; not negative.
        num_clips: clips of this process.
        first_clip: place of the first of them among those of all processes.
    """
    places = range(first_clip, first_clip + num_clips)
    return [
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_CLIPS_KEY, place)))
        for place in places
    ]
