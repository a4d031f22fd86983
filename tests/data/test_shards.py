"""Clips of shards are the same whoever reads them; faults of shards are told in a sentence."""

import functools
import http.server
import io
import logging
import sys
import tarfile
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from video_files import moving_frames, quarantined, write_video

from ino.data import shards as shards_module
from ino.data.clips import ClipSampling, crosses_cut
from ino.data.shards import (
    ShardClips,
    ShardCutError,
    ShardVideo,
    expand_shards,
    read_shard,
    survey_shards,
)
from ino.data.video import read_clip
from ino.errors import ConfigError, DatasetError, VideoError

SHORT = ClipSampling(length=2, frame_step=2)
NUM_VIDEOS = 13


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> list[bytes]:
    """Videos whose heights tell them apart."""
    folder = tmp_path_factory.mktemp("contents")
    return [
        write_video(
            folder / f"{number}.mp4", moving_frames(6, height=16 + 2 * number, width=32)
        ).read_bytes()
        for number in range(NUM_VIDEOS)
    ]


@pytest.fixture(scope="module")
def folder(contents, tmp_path_factory) -> Path:
    """Five shards of 3, 3, 3, 3 and 1 videos, with what WebDataset puts beside them."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(5):
        members = []
        for number in range(3 * shard, min(3 * shard + 3, NUM_VIDEOS)):
            members += [
                (f"{number:03d}.json", b"{}"),
                (f"{number:03d}.jpg", b"a thumbnail"),
                (f"{number:03d}.mp4", contents[number]),
            ]
        write_tar(folder / f"{shard:02d}.tar", members)
    return folder


def clips_of(
    shards: list[str],
    *,
    batch_size: int = 2,
    first: int = 0,
    epoch: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    num_clips: int = 2 * NUM_VIDEOS,
    quarantine: Path | None = None,
) -> list[list[torch.Tensor]]:
    data = ShardClips(
        shards,
        num_clips=num_clips,
        batch_size=batch_size,
        sampling=SHORT,
        seed=seed,
        quarantine=quarantine,
        rank=rank,
        world_size=world_size,
    )
    data.set_position(epoch, first)
    return list(DataLoader(data, batch_size=None, collate_fn=list, num_workers=num_workers))


def as_bytes(batches: list[list[torch.Tensor]]) -> list[list[tuple[tuple[int, ...], bytes]]]:
    return [[(tuple(clip.shape), clip.numpy().tobytes()) for clip in clips] for clips in batches]


# What is in a shard


def test_a_shard_gives_the_frames_of_its_videos(folder, contents, tmp_path):
    videos = list(read_shard(str(folder / "01.tar")))
    assert [video.name for video in videos] == [
        f"{folder}/01.tar/{number:03d}.mp4" for number in (3, 4, 5)
    ]
    path = tmp_path / "video.mp4"
    path.write_bytes(contents[4])
    frames = videos[1].read_chosen(lambda num_frames, fps: [num_frames - 1, 0])
    np.testing.assert_array_equal(frames, read_clip(path, [5, 0]))


def test_images_of_one_folder_are_a_video_in_natural_order(tmp_path):
    members = []
    for name, value in (("a/2.png", 20), ("a/10.png", 100), ("b/1.png", 7), ("b/2.png", 8)):
        buffer = io.BytesIO()
        Image.new("RGB", (6, 4), (value, 0, 0)).save(buffer, "png")
        members.append((name, buffer.getvalue()))
    shard = str(write_tar(tmp_path / "images.tar", members))
    videos = list(read_shard(shard))
    assert [video.name for video in videos] == [f"{shard}/a", f"{shard}/b"]
    assert survey_shards([shard], num_stated=0) == ([shard], 2, {})
    assert videos[0].read_chosen(lambda n, fps: [0, n - 1])[:, 0, 0, 0].tolist() == [20, 100]


def test_braces_and_stars_name_shards(folder):
    every = [str(folder / f"{shard:02d}.tar") for shard in range(5)]
    assert expand_shards([f"{folder}/{{00..04}}.tar"]) == every
    assert expand_shards([f"{folder}/*.tar", every[0]]) == every
    with pytest.raises(VideoError, match=r"05\.tar does not exist"):
        expand_shards([f"{folder}/{{00..05}}.tar"])
    with pytest.raises(ConfigError, match="give either shards"):
        expand_shards([every[0], str(folder)])


def test_without_the_library_the_way_to_it_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(ConfigError, match="uv sync --extra shards"):
        expand_shards([f"{folder}/00.tar"])


def test_videos_are_counted_by_the_headers_of_members(folder):
    every = expand_shards([f"{folder}/*.tar"])
    assert survey_shards(every, num_stated=0) == (every, NUM_VIDEOS, {})
    with pytest.raises(ConfigError, match=r"data\.shard_videos"):
        survey_shards(["http://host/0.tar"], num_stated=0)
    assert survey_shards(["http://host/0.tar"], num_stated=7) == (["http://host/0.tar"], 7, {})


# Which clip comes when


def plan(num_clips: int, *, num_shards: int, batch_size: int, **share: int) -> ShardClips:
    """Of shards that are not there: what is read when."""
    return ShardClips(
        [str(number) for number in range(num_shards)],
        num_clips=num_clips,
        batch_size=batch_size,
        sampling=SHORT,
        seed=0,
        quarantine=None,
        **share,
    )


def test_streams_give_each_video_its_turn():
    schedule = plan(640, num_shards=32, batch_size=4)
    assert (schedule.num_groups, schedule.num_phases) == (4, 8)
    seen = {schedule.source_of(batch, place) for batch in range(160) for place in range(4)}
    assert seen == {(stream, item) for stream in range(32) for item in range(20)}
    dealt = [schedule.shards_of(s, epoch=1) for s in range(32)]
    assert sorted(chain(*dealt)) == sorted(map(str, range(32)))
    assert dealt != [schedule.shards_of(s, epoch=2) for s in range(32)]


@pytest.mark.parametrize("num_shards", [1, 3, 8, 1000])
@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_there_are_never_more_streams_than_shards(num_shards, batch_size):
    schedule = plan(10**6, num_shards=num_shards, batch_size=batch_size)
    assert 1 <= schedule.num_groups * schedule.num_phases <= min(num_shards, 256)
    assert batch_size % schedule.num_groups == 0


def test_no_two_workers_of_a_cluster_read_one_stream():
    # 8 processes of 8 workers, 4 clips each: 32 x 8 streams.
    owners: dict[int, set[tuple[int, int]]] = {}
    for rank in range(8):
        schedule = plan(10**5, num_shards=999, batch_size=4, rank=rank, world_size=8)
        for batch in range(64):
            for place in schedule.places:
                stream, _ = schedule.source_of(batch, place)
                owners.setdefault(stream, set()).add((rank, batch % 8))
    assert len(owners) == 256
    assert {len(who) for who in owners.values()} == {1}


def test_an_epoch_shows_every_video(folder):
    batches = clips_of(expand_shards([f"{folder}/*.tar"]), batch_size=1, num_clips=4 * NUM_VIDEOS)
    assert {clips[0].shape[1] for clips in batches} == {16 + 2 * n for n in range(NUM_VIDEOS)}


def test_epochs_and_seeds_differ_and_repeat(folder):
    every = expand_shards([f"{folder}/*.tar"])
    first = as_bytes(clips_of(every))
    assert first == as_bytes(clips_of(every))
    assert first != as_bytes(clips_of(every, epoch=1))
    assert first != as_bytes(clips_of(every, seed=1))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers, folder):
    every = expand_shards([f"{folder}/*.tar"])
    assert as_bytes(clips_of(every, num_workers=num_workers)) == as_bytes(clips_of(every))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_each_global_batch(world_size, folder):
    every = expand_shards([f"{folder}/*.tar"])
    whole = as_bytes(clips_of(every, batch_size=4))
    ranks = [
        as_bytes(clips_of(every, batch_size=4 // world_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_gives_the_batches_that_were_left_and_decodes_no_others(
    num_workers, folder, monkeypatch
):
    every = expand_shards([f"{folder}/*.tar"])
    whole = as_bytes(clips_of(every, epoch=3))
    decoded = []
    read = ShardVideo.read_chosen

    def recording(self, choose):
        decoded.append(self.name)
        return read(self, choose)

    monkeypatch.setattr(ShardVideo, "read_chosen", recording)
    resumed = clips_of(every, epoch=3, first=9, num_workers=num_workers)
    assert as_bytes(resumed) == whole[9:]
    assert len(decoded) in (0, 2 * len(resumed))  # in workers they are not seen from here


def test_persistent_workers_follow_the_epoch(folder):
    every = expand_shards([f"{folder}/*.tar"])
    data = ShardClips(every, num_clips=26, batch_size=2, sampling=SHORT, seed=0, quarantine=None)
    loader = DataLoader(
        data, batch_size=None, collate_fn=list, num_workers=1, persistent_workers=True
    )
    for epoch, batch in ((0, 0), (1, 11)):
        data.set_position(epoch, batch)
        assert as_bytes(list(loader)) == as_bytes(clips_of(every, epoch=epoch, first=batch))


def test_too_few_clips_for_a_batch_are_told():
    with pytest.raises(ConfigError, match="7 clips, fewer than the 8 of one step"):
        plan(7, num_shards=2, batch_size=4, world_size=2)


# Faults


def test_broken_videos_are_replaced_and_named_once(folder, contents, tmp_path, caplog):
    members = [(f"{n}.mp4", contents[n]) for n in range(4)]
    members[1] = ("1.mp4", contents[1][:200])
    members[2] = ("2.mp4", b"")
    shard = str(write_tar(tmp_path / "some.tar", members))
    quarantine = tmp_path / "quarantine.sqlite"
    with caplog.at_level(logging.WARNING, logger="ino"):
        whole = clips_of([shard], quarantine=quarantine)
    assert {clip.shape[1] for clips in whole for clip in clips} == {16, 22}
    assert quarantined(quarantine).keys() == {f"{shard}/1.mp4", f"{shard}/2.mp4"}
    assert len(caplog.messages) == 2
    # What was found broken before a restart changes nothing.
    assert as_bytes(clips_of([shard], first=5)) == as_bytes(whole[5:])


def test_a_shard_cut_short_gives_what_is_whole_and_is_named(contents, tmp_path, caplog):
    whole = write_tar(tmp_path / "whole.tar", [(f"{n}.mp4", contents[n]) for n in range(4)])
    shard = tmp_path / "cut.tar"
    shard.write_bytes(whole.read_bytes()[: 2 * len(contents[0]) + 2500])
    _, num_whole, faults = survey_shards([str(shard)], num_stated=0)
    assert 0 < num_whole < 4
    assert f"breaks off after {num_whole} whole videos" in faults[str(shard)]
    with pytest.raises(ShardCutError, match=f"breaks off after {num_whole} whole videos"):
        list(read_shard(str(shard)))
    quarantine = tmp_path / "quarantine.sqlite"
    with caplog.at_level(logging.WARNING, logger="ino"):
        clips_of([str(shard)], quarantine=quarantine)
    assert list(quarantined(quarantine)) == [str(shard)]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("kind", ["empty", "text", "without videos"])
def test_shards_without_videos_are_told(kind, tmp_path):
    path = tmp_path / "0.tar"
    if kind == "without videos":
        write_tar(path, [("a.json", b"{}")])
    else:
        path.write_bytes(b"" if kind == "empty" else b"no tar" * 400)
    reason = "holds no video:" if kind == "without videos" else r"\(it is empty or no tar file\)"
    with pytest.raises(VideoError, match=rf"no shard holds a video .*0\.tar .*{reason}"):
        survey_shards([str(path)], num_stated=0)
    with pytest.raises(VideoError, match="none of the 1 shards"):
        clips_of([str(path)])


def test_a_stream_of_a_bad_shard_alone_reads_others(folder, tmp_path):
    bad = tmp_path / "bad.tar"
    bad.write_bytes(b"")
    shards = [str(folder / "00.tar"), str(bad)]
    whole = clips_of(shards, num_clips=12)
    assert len(whole) == 6
    assert as_bytes(clips_of(shards, num_clips=12, first=4)) == as_bytes(whole[4:])


def test_many_broken_videos_in_a_row_stop_the_run(tmp_path):
    shard = str(write_tar(tmp_path / "0.tar", [(f"{n}.mp4", b"none") for n in range(25)]))
    with pytest.raises(VideoError, match="20 videos in a row cannot be used"):
        clips_of([shard])


def test_no_name_of_a_file_runs_a_command(folder, contents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards_module, "_NUM_TRIES", 1)
    for name in ("pipe:touch made;.tar", "a::pipe:touch made;.tar", "s3:.tar"):
        write_tar(tmp_path / name, [("0.mp4", contents[0])])
    shards = expand_shards(["*.tar"])
    assert len(shards) == 3
    assert expand_shards(["a::pipe:touch made;.tar"]) == ["a::pipe:touch made;.tar"]
    assert survey_shards(shards, num_stated=0)[1] == 3
    assert [len(list(read_shard(shard))) for shard in shards] == [1, 1, 1]
    with pytest.raises(VideoError, match="cannot be read"):
        list(read_shard("s3://none; touch made; .tar"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["../a.mp4", "/a.mp4", "a/../b.mp4", "a\\b.mp4", "\x1b[31m.mp4"])
def test_names_in_a_shard_stay_in_their_folder(contents, tmp_path, name):
    shard = str(write_tar(tmp_path / "0.tar", [(name, contents[0])]))
    for look in (lambda: survey_shards([shard], num_stated=0), lambda: list(read_shard(shard))):
        with pytest.raises(DatasetError, match=r"the shard .*0\.tar holds '.*not the name of one"):
            look()
    assert list(read_shard(str(write_tar(tmp_path / "1.tar", [("./a/b.mp4", contents[0])]))))


@pytest.mark.parametrize("kind", ["video", "images", "long name", "negative"])
def test_members_that_would_fill_the_memory(contents, tmp_path, monkeypatch, kind):
    most = 1 << 16
    monkeypatch.setattr(shards_module, "_MAX_MEMBER", most)
    monkeypatch.setattr(shards_module, "_MAX_HEADER", most)
    with tarfile.open(tmp_path / "0.tar.gz", "w:gz") as archive:

        def add(name: str, content: bytes, **fields: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))

        add("0.mp4", contents[0])
        match kind:
            case "video":
                add("big.mp4", bytes(most + 1))
            case "images":
                for number in range(3):
                    add(f"a/{number}.png", bytes(most // 2))
            case "long name":
                add("long", bytes(most + 1), type=tarfile.GNUTYPE_LONGNAME)
            case "negative":
                add("1.mp4", contents[1], pax_headers={"size": "-1024"})
    videos = read_shard(str(tmp_path / "0.tar.gz"))
    assert next(videos).name.endswith("0.mp4")
    with pytest.raises(ShardCutError, match="breaks off after 1 whole videos"):
        next(videos)


@pytest.mark.parametrize("root", ["{0..9999999999}.tar", "{a.tar", "{0..9}" * 6 + ".tar"])
def test_braces_that_stand_for_too_much(root):
    with pytest.raises(ConfigError, match=r"more than 100000 shards|braces of .* do not match"):
        expand_shards([root])


# Over a network


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; a request for flaky.tar breaks off in the middle, the first two times."""

    num_flaky = 0

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.endswith("flaky.tar"):
            return super().do_GET()
        content = (Path(self.directory) / "00.tar").read_bytes()
        type(self).num_flaky += 1
        is_whole = type(self).num_flaky > 2
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if is_whole else content[: len(content) // 2])
        return None


@pytest.fixture
def server(folder) -> Iterator[str]:
    handler = functools.partial(_Handler, directory=str(folder))
    _Handler.num_flaky = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_shards_over_http_and_pipes_give_the_clips_of_local_ones(server, folder):
    local = as_bytes(clips_of(expand_shards([f"{folder}/{{00..03}}.tar"])))
    over_http = expand_shards([f"{server}/{{00..03}}.tar"])
    assert as_bytes(clips_of(over_http)) == local
    assert as_bytes(clips_of(over_http, num_workers=2, first=3)) == local[3:]
    pipes = expand_shards([f"pipe:cat {folder}/{{00..03}}.tar"])
    assert as_bytes(clips_of(pipes)) == local


def test_a_connection_that_breaks_off_is_tried_again(server, folder):
    found = list(read_shard(f"{server}/flaky.tar"))
    assert [v.files for v in found] == [v.files for v in read_shard(str(folder / "00.tar"))]
    assert _Handler.num_flaky == 3


def test_a_shard_that_is_not_there_stops_the_run(server, monkeypatch):
    monkeypatch.setattr(shards_module, "_NUM_TRIES", 1)
    with pytest.raises(
        VideoError, match=r"none\.tar cannot be read \(what reads it ended with status 22\)"
    ):
        clips_of([f"{server}/none.tar"])


def test_clips_of_shards_avoid_cuts(tmp_path):
    frames = np.stack(moving_frames(12, height=48, width=64)).astype(np.float32)
    frames[:6] *= (1.0, 0.4, 0.3)
    frames[6:] *= (0.3, 0.4, 1.0)
    video = write_video(tmp_path / "a.mp4", frames.astype(np.uint8)).read_bytes()
    shard = write_tar(tmp_path / "a.tar", [("a.mp4", video)])

    def num_crossing(*, avoids_cuts: bool) -> int:
        sampling = ClipSampling(length=3, frame_step=1, avoids_cuts=avoids_cuts)
        data = ShardClips(
            [str(shard)], num_clips=20, batch_size=1, sampling=sampling, seed=0, quarantine=None
        )
        return sum(crosses_cut(clip.numpy()) for (clip,) in data)

    assert num_crossing(avoids_cuts=False) > 2
    assert num_crossing(avoids_cuts=True) == 0
