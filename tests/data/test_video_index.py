"""An index reads what is new, keeps what it read, and is the same however it came about."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import FASTSTART, cut, moving_frames, write_sound, write_video

from ino.data import video_index
from ino.data.clips import ClipSampling, choose_usable
from ino.data.video_index import (
    Journal,
    VideoIndex,
    default_index,
    find_videos,
    index_videos,
    read_index,
)
from ino.errors import OutputError, VideoError

GOOD = ["a.mp4", "b.mkv", "c/d.mp4", "e.avi"]


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    (folder / "c").mkdir(parents=True)
    (folder / "images").mkdir()
    for number, name in enumerate(GOOD):
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        frames = moving_frames(10 + number, height=32 + 2 * number, width=48)
        write_video(folder / name, frames, codec=codec, options={})
    for number in range(6):
        Image.new("RGB", (20, 10)).save(folder / "images" / f"{number}.png")
    return folder


def assert_equal(index: VideoIndex, other: VideoIndex) -> None:
    assert index.names == other.names
    assert index.faults == other.faults
    for column in ("num_frames", "fps", "sizes", "seconds"):
        np.testing.assert_array_equal(getattr(index, column), getattr(other, column))


def count_headers(monkeypatch, *, stop_after: int | None = None) -> list[str]:
    """The names of the videos that are looked at from now on; an interruption after some."""
    looked_at: list[str] = []
    read = video_index.header_or_fault

    def recording(path):
        if len(looked_at) == stop_after:
            raise KeyboardInterrupt
        looked_at.append(path.name)
        return read(path)

    monkeypatch.setattr(video_index, "header_or_fault", recording)
    return looked_at


def test_headers_tell_length_size_and_rate(videos):
    index = index_videos([videos], file=None)
    assert [Path(name) for name in index.names] == find_videos([videos])
    by_name = {Path(name).name: place for place, name in enumerate(index.names)}
    assert index.faults == {}
    place = by_name["d.mp4"]
    assert index.num_frames[place] == 12
    assert index.sizes[place].tolist() == [36, 48]
    assert index.fps[place] == 25
    assert index.seconds[place] == pytest.approx(12 / 25)
    assert index.num_frames[by_name["b.mkv"]] == 0  # only reading it tells
    assert index.seconds[by_name["b.mkv"]] == pytest.approx(11 / 25, abs=0.05)
    place = by_name["images"]
    assert (index.num_frames[place], index.sizes[place].tolist()) == (6, [10, 20])


def test_an_index_is_kept_and_only_what_changed_is_read(videos, tmp_path, monkeypatch):
    file = tmp_path / "cache" / "index.jsonl"
    first = index_videos([videos], file=file)
    assert first.num_read == len(first)
    looked_at = count_headers(monkeypatch)
    assert_equal(index_videos([videos], file=file), first)
    assert looked_at == []
    write_video(videos / "a.mp4", moving_frames(33))  # replaced
    write_video(videos / "new.mp4", moving_frames(3))
    (videos / "b.mkv").unlink()
    Image.new("RGB", (20, 10)).save(videos / "images" / "6.png")
    second = index_videos([videos], file=file)
    assert sorted(looked_at) == ["a.mp4", "images", "new.mp4"]
    assert_equal(second, index_videos([videos], file=None))
    assert set(read_index(file)) == set(second.names)


def test_a_replaced_video_of_equal_length_is_seen_by_its_time(videos, tmp_path, monkeypatch):
    file = tmp_path / "index.jsonl"
    index_videos([videos], file=file)
    os.utime(videos / "a.mp4", ns=(1, 1))
    looked_at = count_headers(monkeypatch)
    index_videos([videos], file=file)
    assert looked_at == ["a.mp4"]


def test_broken_videos_are_told_and_tried_again(videos, tmp_path, monkeypatch):
    whole = write_video(tmp_path / "whole.mp4", moving_frames(20), container=FASTSTART)
    cut(videos / "half.mp4", whole)
    cut(videos / "half.mkv", videos / "b.mkv")
    (videos / "zero.mp4").touch()
    (videos / "text.mp4").write_text("no video\n" * 50)
    write_sound(videos / "sound.mp4")
    (videos / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    file = tmp_path / "index.jsonl"
    index = index_videos([videos], file=file)
    faults = {Path(index.names[place]).name: fault for place, fault in index.faults.items()}
    expected = {
        "half.mp4": "breaks off",
        "half.mkv": "breaks off",
        "zero.mp4": "empty",
        "text.mp4": "cannot be read",
        "sound.mp4": "no pictures",
        "link.mp4": "does not exist",
    }
    assert faults.keys() == expected.keys()
    assert all(expected[name] in fault for name, fault in faults.items())
    looked_at = count_headers(monkeypatch)
    assert_equal(index_videos([videos], file=file), index)
    assert sorted(looked_at) == sorted(expected)


def test_what_was_read_outlives_an_interruption(videos, tmp_path, monkeypatch):
    expected = index_videos([videos], file=None)
    monkeypatch.setattr(video_index, "_CHUNK", 1)
    monkeypatch.setattr(video_index, "_MOST_THREADS", 1)
    file = tmp_path / "index.jsonl"
    with monkeypatch.context() as patch:
        count_headers(patch, stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            index_videos([videos], file=file)
    with file.open("a") as stream:
        stream.write('["/torn')
    assert len(read_index(file)) >= 1
    looked_at = count_headers(monkeypatch)
    assert_equal(index_videos([videos], file=file), expected)
    assert 0 < len(looked_at) < len(expected)


@pytest.mark.parametrize(
    "damage", ["[1, 2]\n", "{}\n", "\x00\x00\n", "[null,0,0,0,0,0,0,0,null]\n"]
)
@pytest.mark.parametrize("at_start", [True, False])
def test_a_damaged_index_is_made_anew_with_a_warning(damage, at_start, videos, tmp_path, caplog):
    file = tmp_path / "index.jsonl"
    expected = index_videos([videos], file=file)
    content = file.read_text()
    file.write_text(damage + content if at_start else content + damage)
    with caplog.at_level(logging.WARNING, logger="ino"):
        again = index_videos([videos], file=file)
    assert [message for message in caplog.messages if "damaged" in message]
    assert_equal(again, expected)
    assert again.num_read == len(expected)
    assert file.read_text() == content


@pytest.mark.parametrize("content", [b"\xff\xfe\x00" * 99 + b"\n", b"my notes\n", b"[1]"])
def test_a_file_that_is_no_index_is_never_replaced(content, videos, tmp_path):
    """As when --data.index is given a video or a list of videos by mistake."""
    file = tmp_path / "mine"
    file.write_bytes(content)
    with pytest.raises(OutputError, match="mine is no index of videos but another file"):
        index_videos([videos], file=file)
    assert file.read_bytes() == content


def test_two_that_index_at_once_do_not_mix_their_lines(videos, tmp_path):
    file = tmp_path / "index.jsonl"
    with Journal(file):
        expected = index_videos([videos], file=file)
    assert_equal(index_videos([videos], file=file), expected)


def test_an_index_that_cannot_be_written_is_told(videos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"the index .* \(Not a directory\)"):
        index_videos([videos], file=tmp_path / "file" / "index.jsonl")


def test_a_folder_that_cannot_be_read_is_told(videos, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(VideoError, match=r"the folder .*c cannot be read \(Permission denied\)"):
        index_videos([videos], file=None)


def test_indices_of_different_folders_have_different_places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = default_index([Path("a"), Path("b")])
    assert one.parent == tmp_path / "ino"
    assert one == default_index([Path("b"), Path("a")])
    monkeypatch.chdir(tmp_path)
    assert default_index([Path("a"), Path("b")]) != one


def test_what_is_too_short_or_broken_is_left_out_with_the_reason(videos):
    (videos / "zero.mp4").touch()
    index = index_videos([videos], file=None)
    usable, seconds, left_out = choose_usable(index, ClipSampling(length=2, frame_step=10))
    # 10 frames are too few for a step of 10; the length of the .mkv and .avi is not known.
    assert [Path(name).name for name in usable] == ["b.mkv", "d.mp4", "e.avi"]
    assert seconds == pytest.approx((11 + 12 + 13) / 25, abs=0.1)
    reasons = {Path(name).name: reason for name, reason in left_out.items()}
    assert reasons.keys() == {"a.mp4", "images", "zero.mp4"}
    assert "a clip needs 11 frames and the video has 10" in reasons["a.mp4"]


def test_a_folder_of_nothing_usable_is_told(videos):
    index = index_videos([videos / "a.mp4"], file=None)
    with pytest.raises(VideoError, match=r"1 of the 1 videos cannot be used .*has 10"):
        choose_usable(index, ClipSampling(length=2, frame_step=100))


def test_names_that_are_no_text_are_kept(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        write_video(folder / "x.mp4", moving_frames(4)).rename(folder / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    file = tmp_path / "index.jsonl"
    index_videos([folder], file=file)
    assert index_videos([folder], file=file).num_read == 0
    assert json.loads(file.read_text().splitlines()[1])[0] == str(folder / name)
