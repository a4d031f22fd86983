"""All clips of a video from one reading, mixed into batches the same way everywhere."""

import numpy as np
import pytest
import torch
from video_files import FASTSTART, moving_frames, write_video

from ino.data.clips import WINDOW, ClipDataset, ClipSampling, VisitSampler
from ino.data.video_index import find_videos
from ino.errors import ConfigError

CLIPS = 3


def sampler_of(num_videos=23, batch_size=2, seed=0, **processes):
    return VisitSampler(
        num_videos, clips_per_video=CLIPS, batch_size=batch_size, seed=seed, **processes
    )


def batches_of(sampler, *, epoch=0, batch=0, batch_size=2):
    """Each clip as (video, number), from visits whose frames say so."""
    sampler.set_position(epoch, batch)
    pairs = list(sampler)
    assert len(pairs) == len(sampler)

    def visits():
        for start in range(0, len(pairs), batch_size):
            yield [
                torch.tensor([[video, clip] for clip in range(CLIPS) for _ in range(2)])
                for found, video in pairs[start : start + batch_size]
                if found == epoch
            ]

    return [[tuple(clip[0].tolist()) for clip in clips] for clips in sampler.batches(visits())]


def test_an_epoch_has_every_clip_of_the_videos_visited_once():
    batches = batches_of(sampler_of())
    assert len(batches) == sampler_of().num_batches == 11 * CLIPS
    clips = [clip for batch in batches for clip in batch]
    assert len(set(clips)) == len(clips) == 22 * CLIPS
    videos = {video for video, _ in clips}
    assert {(video, clip) for video in videos for clip in range(CLIPS)} == set(clips)


def test_no_batch_has_two_clips_of_a_video_and_a_window_is_mixed():
    batches = batches_of(sampler_of())
    assert all(len({video for video, _ in batch}) == 2 for batch in batches)
    first_lane = [batch[0] for batch in batches[: WINDOW * CLIPS]]
    assert len({video for video, _ in first_lane}) == WINDOW
    in_order = [
        (video, clip) for video in dict.fromkeys(v for v, _ in first_lane) for clip in range(CLIPS)
    ]
    assert first_lane != in_order


@pytest.mark.parametrize("batch", [0, 1, 12, 17, 32])
def test_resuming_goes_on_where_it_was(batch):
    whole = batches_of(sampler_of(), epoch=4)
    assert batches_of(sampler_of(), epoch=4, batch=batch) == whole[batch:]


def test_two_processes_take_what_one_takes():
    whole = batches_of(sampler_of(batch_size=4), batch_size=4)
    parts = [batches_of(sampler_of(rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_seed_and_epoch_decide():
    assert batches_of(sampler_of(), epoch=1) == batches_of(sampler_of(), epoch=1)
    assert batches_of(sampler_of(), epoch=1) != batches_of(sampler_of(), epoch=2)
    assert batches_of(sampler_of(seed=1)) != batches_of(sampler_of())


def test_too_few_videos_are_refused():
    with pytest.raises(ConfigError, match=r"visits 3 videos, fewer than the 4 clips.*data\.visits"):
        sampler_of(3, world_size=2)


def test_a_visit_gives_clips_as_long_and_as_far_apart_as_asked(tmp_path):
    for index in range(2):
        write_video(tmp_path / f"{index}.mp4", moving_frames(30), container=FASTSTART)
    videos = find_videos([tmp_path])
    sampling = ClipSampling(length=2, frame_step=3, clips_per_video=4)
    dataset = ClipDataset(videos, sampling=sampling, seed=0, quarantine=None, visits=True)
    single = ClipDataset(videos, sampling=sampling, seed=0, quarantine=None)
    visit = dataset[2, 1]
    assert visit.shape[0] == 8
    assert torch.equal(visit[:2], single[2, 1])  # drawn first
    starts = {np.asarray(clip[0]).tobytes() for clip in visit.unflatten(0, (4, 2))}
    assert len(starts) > 1
