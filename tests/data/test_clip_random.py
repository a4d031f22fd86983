"""What is drawn for a clip goes with its place in the step, not with its process."""

import dataclasses

import torch

from ino.data.clips import clip_streams
from ino.data.views import CropGeometry, make_crops
from ino.kernels.crops import Photometric

SEED = [3, 7]


def test_crops_of_a_clip_are_the_same_in_any_process():
    clips = [torch.randint(0, 255, (2, 40 + 8 * n, 64, 3), dtype=torch.uint8) for n in range(4)]
    settings = {
        "geometry": CropGeometry(16, (0.05, 0.8)),
        "photometric": dataclasses.replace(Photometric(), blur=0.5),
        "num_crops": 3,
    }
    together = make_crops(clips, rng=clip_streams(SEED, num_clips=4), **settings)
    for first in (0, 2):
        streams = clip_streams(SEED, num_clips=2, first_clip=first)
        part = make_crops(clips[first : first + 2], rng=streams, **settings)
        torch.testing.assert_close(part, together[:, :, first : first + 2], atol=1e-5, rtol=0)


def test_streams_differ_by_clip_and_by_step():
    one, other = clip_streams(SEED, num_clips=2)
    (next_step,) = clip_streams([3, 8], num_clips=1)
    drawn = [stream.random(3).tolist() for stream in (one, other, next_step)]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]
