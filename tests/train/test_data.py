"""`ino index` tells what is there; `ino train` uses it and leaves out what is of no use."""

import json
import logging
import re
import tarfile
from pathlib import Path

import pytest

from data.video_files import FASTSTART, cut, moving_frames, quarantined, write_video
from ino.cli import main
from ino.data.clips import clip_generators
from ino.data.video_index import default_index
from ino.errors import ConfigError
from ino.pretraining import with_steps
from ino.train.config import DataConfig, load_recipe, resolve
from ino.train.data import _sample_masked, find_source
from ino.train.loop import train
from tiny_run import lines_without_times


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Four videos of use, one too short, one cut, one empty."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(4):
        write_video(folder / f"{number}.mp4", moving_frames(12), container=FASTSTART)
    write_video(folder / "short.mp4", moving_frames(2))
    cut(folder / "half.mp4", folder / "0.mp4")
    (folder / "zero.mp4").touch()
    return folder


def test_the_table_tells_number_length_size_and_what_is_broken(mixed, tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    assert main(["index", str(mixed), "--broken", str(broken)]) == 0
    shown, beside = capsys.readouterr()
    assert beside == ""  # no empty line of a bar that nobody sees move
    assert re.search(r"videos +5\b", shown)
    assert re.search(r"median seconds +[\d.]+ +5% to 95%", shown)
    assert re.search(r"broken +2\b", shown)
    assert "96x64" in shown
    assert "half.mp4 breaks off" in shown
    assert "7 headers read" in shown
    lines = [json.loads(line) for line in broken.read_text().splitlines()]
    assert {Path(line["path"]).name for line in lines} == {"half.mp4", "zero.mp4"}
    main(["index", str(mixed)])
    assert "2 headers read" in capsys.readouterr().out  # broken ones are tried again


def test_an_index_of_broken_videos_alone_is_an_error_after_its_table(mixed, capsys):
    assert main(["index", str(mixed / "half.mp4")]) == 2
    shown, beside = capsys.readouterr()
    assert re.search(r"broken +1\b", shown) and "half.mp4 breaks off" in shown
    assert "1 header read" in shown
    assert beside == "ino: none of the videos can be used (1): give others\n"


def test_training_leaves_out_at_once_what_headers_rule_out(mixed, config, tmp_path, capsys):
    config.data.root = [str(mixed)]
    config.run.max_steps = 1
    out = tmp_path / "run"
    train(config, out=out)
    shown = capsys.readouterr().err
    assert "4 videos, 0.0 hours, 3 left out (quarantine.sqlite says why)" in shown
    assert f"on cpu, precision {config.run.precision}\n" in shown
    reasons = quarantined(out / "quarantine.sqlite")
    assert {Path(path).name for path in reasons} == {"half.mp4", "short.mp4", "zero.mp4"}
    assert all(reasons.values())
    assert default_index([mixed]).exists()


def test_a_resumed_run_with_other_videos_is_warned(config, videos, tmp_path, caplog):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{videos / f'{number}.mp4'}\n" for number in range(4)))
    config.data.root = [str(names)]
    config.run.max_steps = 1
    out = tmp_path / "run"
    train(config, out=out)
    config.run.max_steps = 2
    with caplog.at_level(logging.WARNING, logger="ino"):
        train(config, out=out, resume=True)
        assert caplog.messages == []
        names.write_text(names.read_text() + f"{videos / '4.mp4'}\n")
        train(config, out=out, resume=True)
    assert [m for m in caplog.messages if "(4 clips per epoch then, 5 now)" in m]


def test_training_without_an_index_finds_the_same_videos(config, videos, tmp_path, capsys):
    config.run.max_steps = 1
    config.data.index = "off"
    train(config, out=tmp_path / "run")
    assert "5 videos, whose headers were not read" in capsys.readouterr().err
    config.data.index = str(tmp_path / "kept.sqlite")
    train(config, out=tmp_path / "other")
    assert (tmp_path / "kept.sqlite").exists()
    for name in ("videos.json", "log.jsonl"):
        first, second = ((tmp_path / run / name) for run in ("run", "other"))
        assert lines_without_times(first) == lines_without_times(second)


def test_a_cache_that_cannot_be_written_stops_nothing(config, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    config.run.max_steps = 1
    with caplog.at_level(logging.WARNING, logger="ino"):
        train(config, out=tmp_path / "run")
    assert [message for message in caplog.messages if "this time it is not kept" in message]


@pytest.fixture
def shards(videos, tmp_path) -> str:
    """The five videos in three shards, of which one is cut short and so has none."""
    for shard, numbers in enumerate([(0, 1), (2, 3, 4), (0,)]):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for number in numbers:
                archive.add(videos / f"{number}.mp4", f"{number}.mp4")
    path = tmp_path / "2.tar"
    path.write_bytes(path.read_bytes()[:1000])
    return f"{tmp_path}/{{0..2}}.tar"


def test_a_length_is_counted_in_the_videos_that_training_uses(config, mixed, shards):
    """Two steps an epoch in either case: of 7 videos 3 are of no use, of 6 in shards 1 is cut."""
    for root in (str(mixed), shards):
        config.data.root = [root]
        assert with_steps(config, 6).optim.epochs == 3


def test_training_on_shards_resumes_in_the_middle_of_an_epoch(config, shards, tmp_path, capsys):
    config.data.root = [shards]
    config.data.clips_per_video = 2  # 5 steps an epoch
    config.run.save_every = 1
    config.run.max_steps = 7
    train(config, out=tmp_path / "whole")
    assert "5 videos in 2 shards, 1 left out" in capsys.readouterr().err
    (path,) = quarantined(tmp_path / "whole" / "quarantine.sqlite")
    assert path.endswith("2.tar")
    for config.run.max_steps, config.data.num_workers in ((3, 0), (7, 2)):
        train(config, out=tmp_path / "resumed", resume=True)
    whole, resumed = (
        lines_without_times(tmp_path / run / "log.jsonl") for run in ("whole", "resumed")
    )
    assert len(whole) == 7
    assert resumed == whole


def test_training_by_visits_resumes_in_the_middle_of_a_window(config, tmp_path):
    config.data.visits = True
    config.data.clips_per_video = 3  # 2 visits of each of 2 lanes, 6 steps an epoch
    config.run.save_every = 1
    config.run.max_steps = 8
    train(config, out=tmp_path / "whole")
    for config.run.max_steps, config.data.num_workers in ((4, 0), (8, 2)):
        train(config, out=tmp_path / "resumed", resume=True)
    whole, resumed = (
        lines_without_times(tmp_path / run / "log.jsonl") for run in ("whole", "resumed")
    )
    assert len(whole) == 8
    assert resumed == whole


def test_training_by_motion_samples_what_moves_and_resumes(config, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(6):
        frames = moving_frames(12, height=48, width=64)
        write_video(folder / f"{number}.mp4", frames if number < 2 else frames[:1] * 12)
    config.data.root, config.data.index = [str(folder)], str(tmp_path / "index.sqlite")
    config.data.clips_per_video, config.data.sampling = 2, "motion"
    source = find_source(resolve(config).data)
    moving, still = source.weights[:2], source.weights[2:]
    assert moving.min() > 5 * still.max()
    config.run.save_every, config.run.max_steps = 1, 3
    train(config, out=tmp_path / "whole")
    for config.run.max_steps, config.data.num_workers in ((2, 0), (3, 1)):
        train(config, out=tmp_path / "resumed", resume=True)
    whole, resumed = (
        lines_without_times(tmp_path / run / "log.jsonl") for run in ("whole", "resumed")
    )
    assert resumed == whole and len(whole) == 3
    assert "6 videos, 0.0 hours, sampled by motion" in capsys.readouterr().err
    assert main(["index", str(folder), "--index", config.data.index]) == 0
    assert re.search(r"median motion, % per second +[\d.]+", capsys.readouterr().out)


def test_sampling_by_motion_needs_an_index_of_files(shards):
    with pytest.raises(ConfigError, match=r"sampling by motion needs the index"):
        load_recipe("tiny", {"data.sampling": "motion", "data.index": "off"})
    with pytest.raises(ConfigError, match=r"data\.sampling motion needs videos in folders"):
        find_source(DataConfig(root=[str(shards)], sampling="motion"))


def test_a_folder_under_the_home_is_found(videos, monkeypatch):
    monkeypatch.setenv("HOME", str(videos.parent))
    source = find_source(DataConfig(root=[f"~/{videos.name}"], index="off"))
    assert len(source.names) == source.num_videos == 5


@pytest.mark.parametrize("kind", ["blockwise", "random"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_mask_a_clip_or_one_for_all(config, kind, shared):
    masking = {"probability": 1.0, "ratio": [0.5, 0.5], "kind": kind, "shared": shared}
    config = resolve(config.with_values({"masking": masking, "views.global_size": 96}))
    masked = _sample_masked(config, clip_generators([0, 7], num_clips=3), step=7)
    assert masked is not None and masked.shape == (3, 72)
    assert (masked.diff(dim=1) > 0).all() and masked.min() >= 0 and masked.max() < 144
    assert bool((masked == masked[0]).all()) == shared
