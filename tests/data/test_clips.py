"""Clips hold the right frames, repeat exactly, and broken videos stop nothing but themselves."""

import contextlib
import dataclasses
import logging
import os
import pickle
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from video_files import FASTSTART, cut, moving_frames, quarantined, write_sound, write_video

from ino.data import clips as clips_module
from ino.data.clips import (
    WINDOW,
    ClipDataset,
    ClipSampler,
    ClipSampling,
    VisitSampler,
    clip_generators,
    crosses_cut,
    digest_of,
    frame_indices,
    motion_weights,
)
from ino.data.video import read_clip
from ino.data.video_index import find_videos, index_videos
from ino.data.views import CropGeometry, make_crops
from ino.errors import ConfigError, VideoError
from ino.kernels.crops import Photometric

NUM_GOOD = 8
SHORT = ClipSampling(length=3, frame_step=2)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Eight videos of 12 to 19 frames and different sizes."""
    folder = tmp_path_factory.mktemp("good")
    for index in range(NUM_GOOD):
        frames = moving_frames(12 + index, height=32 + 2 * index, width=48)
        write_video(folder / f"video{index}.mp4", frames, container=FASTSTART)
    return folder


@pytest.fixture(scope="module")
def mixed(good, tmp_path_factory) -> Path:
    """The good videos and one of each kind that cannot be used."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in good.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    cut(folder / "half.mp4", good / "video7.mp4")
    (folder / "zero.mp4").touch()
    write_sound(folder / "sound.mp4")
    (folder / "text.mp4").write_text("no video\n" * 50)
    write_video(folder / "short.mp4", moving_frames(4))
    return folder


BAD = {
    "half.mp4": "breaks off",
    "zero.mp4": "empty",
    "sound.mp4": "no pictures",
    "text.mp4": "cannot be read",
    "short.mp4": "needs 5 frames",
}


def dataset_of(folder: Path, *, seed: int = 0, quarantine: Path | None = None) -> ClipDataset:
    return ClipDataset(find_videos([folder]), sampling=SHORT, seed=seed, quarantine=quarantine)


def epoch_of(dataset: ClipDataset, *, epoch: int = 0, num_workers: int = 0) -> list[torch.Tensor]:
    sampler = ClipSampler(len(dataset), batch_size=1, seed=0)
    sampler.set_position(epoch)
    loader = DataLoader(dataset, sampler=sampler, collate_fn=list, num_workers=num_workers)
    return [clip for batch in loader for clip in batch]


def are_equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(*pair) for pair in zip(a, b, strict=True))


# Frames of a clip


def test_frame_steps_by_hand():
    rng = np.random.default_rng(0)
    paper = ClipSampling()
    assert frame_indices(25, 30.0, sampling=paper, rng=rng) == [0, 8, 16, 24]
    # 4 frames at 8 a second of a source at 30: every 3.75th, so that 15 frames are one clip.
    released = ClipSampling(frame_step=0, fps=8.0, clips_per_video=5)
    assert frame_indices(15, 30.0, sampling=released, rng=rng) == [0, 3, 7, 11]
    # A source at 4 frames a second is shown twice as often.
    assert frame_indices(2, 4.0, sampling=released, rng=rng) == [0, 0, 1, 1]


def test_starts_are_uniform_over_all_that_fit():
    rng = np.random.default_rng(0)
    starts = [frame_indices(28, 30.0, sampling=ClipSampling(), rng=rng)[0] for _ in range(2000)]
    counts = np.bincount(starts)
    assert len(counts) == 4
    assert counts.min() > 420


def two_scenes(num_frames: int) -> np.ndarray:
    """A reddish scene, then a bluish one, in both of which something moves."""
    frames = np.stack(moving_frames(num_frames, height=48, width=64)).astype(np.float32)
    half = num_frames // 2
    frames[:half] *= (1.0, 0.4, 0.3)
    frames[half:] *= (0.3, 0.4, 1.0)
    return frames.astype(np.uint8)


@pytest.mark.parametrize("visits", [False, True])
def test_clips_that_cross_a_cut_are_taken_from_elsewhere(visits, tmp_path):
    write_video(tmp_path / "a.mp4", two_scenes(24))
    allowed = ClipSampling(length=4, frame_step=2, clips_per_video=5)

    def clips_of(sampling: ClipSampling) -> list[np.ndarray]:
        dataset = ClipDataset(
            [tmp_path / "a.mp4"], sampling=sampling, seed=0, quarantine=None, visits=visits
        )
        keys = [(epoch, 0) for epoch in range(40 // (5 if visits else 1))]
        return [clip for key in keys for clip in dataset[key].numpy().reshape(-1, 4, 48, 64, 3)]

    before = clips_of(allowed)
    crossing = [crosses_cut(clip) for clip in before]
    assert 5 < sum(crossing) < 25  # 6 of 18 places
    after = clips_of(allowed._replace(avoids_cuts=True))
    assert sum(map(crosses_cut, after)) <= 1  # (6/18)^5 of all clips find no other place
    for was, crosses, now in zip(before, crossing, after, strict=True):
        assert crosses or np.array_equal(was, now)
    again = clips_of(allowed._replace(avoids_cuts=True))
    assert all(np.array_equal(*pair) for pair in zip(after, again, strict=True))


def test_a_video_of_cuts_alone_still_gives_its_clips(tmp_path):
    frames = np.stack(moving_frames(10, height=48, width=64)).astype(np.float32)
    frames[::2] *= (1.0, 0.4, 0.3)
    frames[1::2] *= (0.3, 0.4, 1.0)
    write_video(tmp_path / "a.mp4", frames.astype(np.uint8))
    sampling = ClipSampling(length=3, frame_step=1, avoids_cuts=True)
    dataset = ClipDataset([tmp_path / "a.mp4"], sampling=sampling, seed=0, quarantine=None)
    assert crosses_cut(dataset[0, 0].numpy())


def test_motion_and_darkness_are_no_cuts():
    moving = np.stack(moving_frames(6, height=48, width=64))
    assert not crosses_cut(moving)
    fading = moving * np.linspace(1, 0.8, 6)[:, None, None, None]
    assert not crosses_cut(fading.astype(np.uint8))
    assert not crosses_cut(np.zeros((2, 5, 7, 3), np.uint8))


@given(
    num_frames=st.integers(1, 400),
    fps=st.floats(1, 120),
    length=st.integers(1, 8),
    step=st.integers(1, 12) | st.floats(0.5, 60),
    seed=st.integers(0, 100),
)
def test_indices_lie_in_the_video_and_keep_the_pace(num_frames, fps, length, step, seed):
    if isinstance(step, int):
        sampling = ClipSampling(length=length, frame_step=step)
        pace = float(step)
    else:
        sampling = ClipSampling(length=length, frame_step=0, fps=step)
        pace = fps / step
    try:
        indices = frame_indices(num_frames, fps, sampling=sampling, rng=np.random.default_rng(seed))
    except VideoError as error:
        assert num_frames < length * pace
        assert f"the video has {num_frames}" in str(error)
        return
    assert len(indices) == length
    assert indices[0] >= 0
    assert indices[-1] < num_frames
    ideal = indices[0] + pace * np.arange(length)
    assert np.abs(np.array(indices) - ideal).max() <= 1


# Clips


def test_a_clip_is_the_frames_of_its_video(good):
    dataset = ClipDataset(
        find_videos([good]),
        sampling=ClipSampling(length=2, frame_step=11),
        seed=0,
        quarantine=None,
    )
    clip = dataset[3, 0]  # 12 frames: there is one start only
    assert clip.dtype == torch.uint8
    np.testing.assert_array_equal(clip.numpy(), read_clip(good / "video0.mp4", [0, 11]))


def test_clips_differ_by_seed_and_epoch_and_repeat_exactly(good):
    first = epoch_of(dataset_of(good))
    assert len(first) == NUM_GOOD
    assert are_equal(first, epoch_of(dataset_of(good)))
    dataset = dataset_of(good)
    clips = {
        key: dataset_of(good, seed=key[0])[key[1], key[2]].numpy().tobytes()
        for key in [(0, 0, 7), (1, 0, 7), (0, 1, 7), (0, 2, 7)]
    }
    assert len(set(clips.values())) > 1
    assert clips[0, 0, 7] == dataset[0, 7].numpy().tobytes()


def test_several_clips_a_video_start_at_different_frames(good):
    sampling = ClipSampling(length=1, frame_step=1, clips_per_video=5)
    dataset = ClipDataset(find_videos([good]), sampling=sampling, seed=0, quarantine=None)
    assert len(dataset) == 5 * NUM_GOOD
    clips = [dataset[0, 2 + NUM_GOOD * k].numpy() for k in range(5)]
    assert len({clip.shape for clip in clips}) == 1
    assert len({clip.tobytes() for clip in clips}) > 1


def test_weights_follow_motion_within_limits():
    np.testing.assert_allclose(motion_weights([1.0, 2.0, 3.0, np.nan]), [0.5, 1.0, 1.5, 1.0])
    for motion in ([0.0] * 9 + [50.0], [0.0] * 3, [1.0] * 50 + [1e9, 1e6], [np.nan] * 2):
        weights = motion_weights(motion)
        assert weights.mean() == pytest.approx(1)
        assert weights.max() <= 3 * (1 + 1e-9) and weights.min() >= 0.1 * (1 - 1e-9)
        assert (np.diff(weights[np.argsort(motion)]) >= -1e-12).all()


@pytest.mark.parametrize("visits", [False, True])
def test_with_weights_each_video_has_its_share_of_every_epoch(good, visits):
    videos, heights = find_videos([good]), 32 + 2 * np.arange(NUM_GOOD)
    weights = np.array([0.1, 0.3, 0.5, 0.5, 0.6, 1.0, 2.0, 3.0])
    sampling = SHORT._replace(clips_per_video=3)
    dataset, again = (
        ClipDataset(
            videos, sampling=sampling, seed=seed, quarantine=None, visits=visits, weights=weights
        )
        for seed in (1, 1)
    )
    num_items = NUM_GOOD * (1 if visits else 3)
    counts = []
    for epoch in range(6):
        clips = [dataset[epoch, item] for item in range(num_items)]
        counts.append([sum(clip.shape[1] == height for clip in clips) for height in heights])
        assert all(torch.equal(clip, again[epoch, item]) for item, clip in enumerate(clips))
    exact = num_items * weights / weights.sum()
    assert (np.abs(np.array(counts) - exact) < 1).all()
    assert len({tuple(one) for one in counts}) > 1  # where to round up changes


def test_broken_videos_are_replaced_and_named_once(mixed, tmp_path, caplog):
    quarantine = tmp_path / "quarantine.sqlite"
    dataset = dataset_of(mixed, quarantine=quarantine)
    with caplog.at_level(logging.WARNING, logger="ino"):
        clips = epoch_of(dataset) + epoch_of(dataset, epoch=1)
    assert len(clips) == 2 * (NUM_GOOD + len(BAD))
    assert all(clip.shape[0] == 3 for clip in clips)
    # Sizes tell videos apart: every good one is there.
    assert {clip.shape[1] for clip in clips} == {32 + 2 * index for index in range(NUM_GOOD)}
    reasons = {Path(path).name: reason for path, reason in quarantined(quarantine).items()}
    assert reasons.keys() == BAD.keys()
    assert all(BAD[name] in reason for name, reason in reasons.items())
    assert len(caplog.messages) == len(BAD)
    assert dataset.num_broken == len(BAD)


def test_a_broken_video_is_not_tried_again(mixed, monkeypatch):
    dataset = dataset_of(mixed)
    epoch_of(dataset)
    tried = []
    read = clips_module.read_chosen

    def recording(path, choose):
        tried.append(path.name)
        return read(path, choose)

    monkeypatch.setattr(clips_module, "read_chosen", recording)
    epoch_of(dataset, epoch=1)
    assert len(tried) == NUM_GOOD + len(BAD)
    assert not BAD.keys() & set(tried)


def test_workers_change_nothing(mixed, tmp_path):
    alone = epoch_of(dataset_of(mixed))
    quarantine = tmp_path / "quarantine.sqlite"
    dataset = dataset_of(mixed, quarantine=quarantine)
    assert are_equal(alone, epoch_of(dataset, num_workers=2))
    assert dataset.num_broken == len(BAD)  # found by workers, counted here
    assert sorted(Path(path).name for path in quarantined(quarantine)) == sorted(BAD)


def test_what_was_found_broken_before_a_restart_changes_nothing(mixed):
    dataset = dataset_of(mixed)
    whole = epoch_of(dataset) + epoch_of(dataset, epoch=1)
    again = epoch_of(dataset_of(mixed), epoch=1)
    assert are_equal(whole[len(again) :], again)


def test_mostly_broken_videos_stop_the_run(good, tmp_path):
    for index in range(30):
        (tmp_path / f"broken{index}.mp4").touch()
    for path in good.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(VideoError, match=r"2\d of the \d\d videos tried cannot be used"):
        epoch_of(dataset_of(tmp_path))


def test_a_few_videos_all_broken_stop_the_run(tmp_path):
    for index in range(3):
        (tmp_path / f"broken{index}.mp4").touch()
    with pytest.raises(VideoError, match="3 of the 3 videos tried cannot be used"):
        dataset_of(tmp_path)[0, 1]


# Order


def batches_of(sampler: ClipSampler, size: int) -> list[list[tuple[int, int]]]:
    pairs = list(sampler)
    assert len(pairs) == len(sampler)
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def test_an_epoch_is_a_permutation_of_its_own():
    sampler = ClipSampler(12, batch_size=3, seed=0)
    orders = []
    for epoch in range(2):
        sampler.set_position(epoch)
        pairs = list(sampler)
        assert {e for e, _ in pairs} == {epoch}
        assert sorted(index for _, index in pairs) == list(range(12))
        orders.append([index for _, index in pairs])
    assert orders[0] != orders[1]
    assert orders[0] != [index for _, index in ClipSampler(12, batch_size=3, seed=1)]


def test_resuming_gives_the_batches_that_were_left():
    sampler = ClipSampler(23, batch_size=4, seed=5)
    sampler.set_position(2)
    whole = batches_of(sampler, 4)
    assert len(whole) == sampler.num_batches == 5
    resumed = ClipSampler(23, batch_size=4, seed=5)
    resumed.set_position(2, 3)
    assert batches_of(resumed, 4) == whole[3:]


def test_processes_share_each_global_batch():
    whole = batches_of(ClipSampler(26, batch_size=6, seed=0), 6)
    ranks = [
        batches_of(ClipSampler(26, batch_size=3, seed=0, rank=rank, world_size=2), 3)
        for rank in range(2)
    ]
    assert len(whole) == 4
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole


def test_too_few_clips_for_a_batch_are_told():
    with pytest.raises(ConfigError, match="7 clips, fewer than the 8 of one step"):
        ClipSampler(7, batch_size=4, seed=0, world_size=2)


def test_persistent_workers_follow_the_epoch(good):
    dataset = dataset_of(good)
    sampler = ClipSampler(len(dataset), batch_size=2, seed=0)
    loader = DataLoader(
        dataset,
        batch_size=2,
        sampler=sampler,
        collate_fn=list,
        num_workers=1,
        persistent_workers=True,
    )
    for epoch, batch in ((0, 0), (1, 2)):
        sampler.set_position(epoch, batch)
        expected = [dataset[key] for key in sampler]
        assert are_equal([clip for clips in loader for clip in clips], expected)


# Visits


CLIPS = 3


def sampler_of(num_videos=23, batch_size=2, seed=0, **processes):
    return VisitSampler(
        num_videos, clips_per_video=CLIPS, batch_size=batch_size, seed=seed, **processes
    )


def visits_of(sampler, *, epoch=0, batch=0, batch_size=2):
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
    batches = visits_of(sampler_of())
    assert len(batches) == sampler_of().num_batches == 11 * CLIPS
    clips = [clip for batch in batches for clip in batch]
    assert len(set(clips)) == len(clips) == 22 * CLIPS
    videos = {video for video, _ in clips}
    assert {(video, clip) for video in videos for clip in range(CLIPS)} == set(clips)


def test_no_batch_has_two_clips_of_a_video_and_a_window_is_mixed():
    batches = visits_of(sampler_of())
    assert all(len({video for video, _ in batch}) == 2 for batch in batches)
    first_lane = [batch[0] for batch in batches[: WINDOW * CLIPS]]
    assert len({video for video, _ in first_lane}) == WINDOW
    in_order = [
        (video, clip) for video in dict.fromkeys(v for v, _ in first_lane) for clip in range(CLIPS)
    ]
    assert first_lane != in_order


@pytest.mark.parametrize("batch", [0, 1, 12, 17, 32])
def test_resuming_goes_on_where_it_was(batch):
    whole = visits_of(sampler_of(), epoch=4)
    assert visits_of(sampler_of(), epoch=4, batch=batch) == whole[batch:]


def test_two_processes_take_what_one_takes():
    whole = visits_of(sampler_of(batch_size=4), batch_size=4)
    parts = [visits_of(sampler_of(rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_seed_and_epoch_decide():
    assert visits_of(sampler_of(), epoch=1) == visits_of(sampler_of(), epoch=1)
    assert visits_of(sampler_of(), epoch=1) != visits_of(sampler_of(), epoch=2)
    assert visits_of(sampler_of(seed=1)) != visits_of(sampler_of())


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


# Random streams of clips


SEED = [3, 7]


def test_crops_of_a_clip_are_the_same_in_any_process():
    clips = [torch.randint(0, 255, (2, 40 + 8 * n, 64, 3), dtype=torch.uint8) for n in range(4)]
    settings = {
        "geometry": CropGeometry(16, (0.05, 0.8)),
        "photometric": dataclasses.replace(Photometric(), blur=0.5),
        "num_crops": 3,
    }
    together = make_crops(clips, rng=clip_generators(SEED, num_clips=4), **settings)
    for first in (0, 2):
        streams = clip_generators(SEED, num_clips=2, first_clip=first)
        part = make_crops(clips[first : first + 2], rng=streams, **settings)
        torch.testing.assert_close(part, together[:, :, first : first + 2], atol=1e-5, rtol=0)


def test_streams_differ_by_clip_and_by_step():
    one, other = clip_generators(SEED, num_clips=2)
    (next_step,) = clip_generators([3, 8], num_clips=1)
    drawn = [stream.random(3).tolist() for stream in (one, other, next_step)]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


# Many paths


PATHS = ["a.mp4", "folder/ü b.mp4", os.fsdecode(b"caf\xe9.mp4"), "/x/y.mkv"]


def test_a_data_set_is_hardly_larger_than_its_paths():
    """Which are those that were given, whatever their bytes."""
    dataset = ClipDataset(PATHS * 1000, sampling=SHORT, seed=0, quarantine=None)
    assert [dataset._path(index) for index in range(4)] == [Path(path) for path in PATHS]
    assert len(pickle.dumps(dataset._videos)) < 4000 * (max(map(len, PATHS)) + 2)


def test_digests_tell_lists_apart():
    digests = {digest_of(paths) for paths in ([], ["ab", "c"], ["a", "bc"], ["c", "ab"])}
    assert len(digests) == 4
    assert digest_of(PATHS) == digest_of([Path(path) for path in PATHS])


def test_too_many_open_files_stop_the_run_and_are_no_broken_video(good, tmp_path):
    quarantine = tmp_path / "quarantine.sqlite"
    dataset = ClipDataset(find_videos([good]), sampling=SHORT, seed=0, quarantine=quarantine)
    held = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(
            VideoError, match=r"Too many open files.*no fault of the video: .*ulimit"
        ):
            dataset[0, 0]
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert dataset.num_broken == 0
    assert not quarantine.exists()
    dataset[0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="a file that gives EIO is made of /proc")
def test_a_failing_disk_stops_the_run(good, tmp_path):
    (tmp_path / "bad.mp4").symlink_to("/proc/self/mem")
    dataset = ClipDataset([tmp_path / "bad.mp4"], sampling=SHORT, seed=0, quarantine=None)
    with pytest.raises(VideoError, match=r"Input/output error.*no fault of the video"):
        dataset[0, 0]
    with pytest.raises(VideoError, match="no fault of the video"):
        index_videos([tmp_path], file=None)
