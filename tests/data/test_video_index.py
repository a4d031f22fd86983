"""Videos are found once, headers read when new; index and quarantine are whole after any kill."""

import errno
import json
import logging
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from video_files import FASTSTART, cut, moving_frames, write_sound, write_video

from ino.data import video_index
from ino.data.clips import ClipDataset, ClipSampling, choose_usable
from ino.data.decode import VideoFile
from ino.data.video import read_info
from ino.data.video_index import (
    VideoIndex,
    default_index,
    find_videos,
    index_videos,
    leave_out,
    measure_motion,
    quarantine_all,
    read_header,
    video_motion,
    wide_video_remark,
)
from ino.errors import OutputError, VideoError
from processes import APART

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


def rows_of(file: Path, columns: str = "path") -> list[tuple]:
    with closing(sqlite3.connect(file)) as records:
        return records.execute(f"SELECT {columns} FROM videos ORDER BY path").fetchall()


def count_headers(monkeypatch, *, stop_after: int | None = None) -> list[str]:
    """The names of the videos that are looked at from now on; an interruption after some."""
    looked_at: list[str] = []
    read = video_index.read_header

    def recording(path):
        if len(looked_at) == stop_after:
            raise KeyboardInterrupt
        looked_at.append(path.name)
        return read(path)

    monkeypatch.setattr(video_index, "read_header", recording)
    return looked_at


def test_headers_tell_length_size_and_rate(videos):
    index = index_videos([videos], file=None)
    assert index.names == find_videos([videos])
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
    file = tmp_path / "cache" / "index.sqlite"
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
    assert {os.fsdecode(path) for (path,) in rows_of(file)} == set(second.names)


def test_a_replaced_video_of_equal_length_is_seen_by_its_time(videos, tmp_path, monkeypatch):
    file = tmp_path / "index.sqlite"
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
    file = tmp_path / "index.sqlite"
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


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("user", ["index", "training"])
def test_a_fault_of_the_machine_is_none_of_the_videos(user, number, videos, tmp_path, monkeypatch):
    """Neither the index nor a run leaves out videos because too many files are open, or a disk
    fails."""
    sampling = ClipSampling(length=2, frame_step=1)
    clips = ClipDataset(sorted(videos.iterdir()), sampling=sampling, seed=0, quarantine=None)

    opened = Path.open

    def fail(path, *arguments, **options):
        if Path(path).parent == videos:
            raise OSError(number, os.strerror(number))
        return opened(path, *arguments, **options)

    monkeypatch.setattr("av.open", fail)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(VideoError, match="which is no fault of the video"):
        if user == "index":
            index_videos([videos], file=tmp_path / "new")
        else:
            clips[0, 0]


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGKILL"])
def test_what_was_read_outlives_an_interruption(how, videos, tmp_path, monkeypatch):
    expected = index_videos([videos], file=None)
    monkeypatch.setattr(video_index, "_CHUNK", 1)
    monkeypatch.setattr(video_index, "_MAX_THREADS", 1)
    file = tmp_path / "index.sqlite"
    if how == "Ctrl-C":
        with monkeypatch.context() as patch:
            count_headers(patch, stop_after=3)
            with pytest.raises(KeyboardInterrupt):
                index_videos([videos], file=file)
    else:
        process = APART.Process(target=index_and_die, args=(videos, file))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 0 < len(rows_of(file)) < len(expected)
    looked_at = count_headers(monkeypatch)
    assert_equal(index_videos([videos], file=file), expected)
    assert 0 < len(looked_at) < len(expected)


def index_and_die(videos: Path, file: Path) -> None:
    """Every header is written at once; SIGKILL comes with the third."""
    video_index._CHUNK = video_index._MAX_THREADS = 1
    video_index._SECONDS_BETWEEN_WRITES = -1.0
    numbers = iter(range(5))

    def dying(num_more: int, num_videos: int) -> None:
        if next(numbers) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    index_videos([videos], file=file, on_progress=dying)


def test_processes_that_index_at_once_all_find_everything(videos, tmp_path):
    file = tmp_path / "index.sqlite"
    jobs = [(videos, file)] * 3
    with APART.Pool(3) as pool:
        lengths = pool.starmap(num_indexed, jobs, chunksize=1)
    assert set(lengths) == {5}
    assert index_videos([videos], file=file).num_read == 0


def num_indexed(videos: Path, file: Path) -> int:
    return len(index_videos([videos], file=file))


@pytest.mark.parametrize("damage", ["header", "inside", "cut"])
def test_a_damaged_index_is_made_anew_with_a_warning(damage, videos, tmp_path, caplog):
    file = tmp_path / "index.sqlite"
    expected = index_videos([videos], file=file)
    content = bytearray(file.read_bytes())
    if damage == "header":
        content[16:100] = bytes(84)
    elif damage == "inside":
        content[4096:] = b"\xff" * (len(content) - 4096)
    else:
        del content[-6000:]
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="ino"):
        again = index_videos([videos], file=file)
    assert [message for message in caplog.messages if "damaged" in message]
    assert_equal(again, expected)
    assert again.num_read == len(expected)
    assert index_videos([videos], file=file).num_read == 0


@pytest.mark.parametrize("place", ["the same file", "beside"])
def test_an_index_of_an_earlier_version_is_read_once_and_replaced(place, videos, tmp_path):
    """Lines of text: a format, then name, size, time and header of each video; the last is torn."""
    index = index_videos([videos], file=None)
    lines = ['{"ino_index":1}']
    for i, name in enumerate(index.names):
        stat = Path(name).stat()
        header = [int(index.num_frames[i]), float(index.fps[i]), *map(int, index.sizes[i])]
        header += [float(index.seconds[i]), ""]
        lines.append(json.dumps([name, stat.st_size, stat.st_mtime_ns, *header]))
    old = tmp_path / "index.jsonl"
    lines.insert(1, "[null,0,0,0,0,0,0,0,null]")  # damaged
    old.write_text("\n".join(lines)[:-9])
    file = old if place == "the same file" else tmp_path / "index.sqlite"
    again = index_videos([videos], file=file)
    assert_equal(again, index)
    assert again.num_read == 1
    assert [path.name for path in tmp_path.glob("index*")] == [file.name]
    assert len(rows_of(file)) == len(index)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00" * 99 + b"\n", b"my notes\n", b"[1]", None])
def test_a_file_that_is_no_index_is_never_replaced(content, videos, tmp_path):
    """As when --data.index is given a video or a list of videos by mistake."""
    file = tmp_path / "mine"
    if content is None:
        with closing(sqlite3.connect(file)) as other:
            other.execute("CREATE TABLE mine (x)")
        content = file.read_bytes()
    else:
        file.write_bytes(content)
    with pytest.raises(OutputError, match="mine is no index of videos but another file"):
        index_videos([videos], file=file)
    assert file.read_bytes() == content


def test_an_index_that_cannot_be_written_is_told(videos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"the index .* \(Not a directory\)"):
        index_videos([videos], file=tmp_path / "file" / "index.sqlite")


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


def test_without_a_home_folder_a_sentence_says_what_to_set(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["uid not found"])
    with pytest.raises(OutputError, match="set HOME or XDG_CACHE_HOME"):
        default_index([Path("a")])


@pytest.mark.parametrize("name", ["/dev/zero", "pipe"])
def test_a_list_is_no_device(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VideoError, match="neither a video"):
        find_videos([tmp_path / name])


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
    file = tmp_path / "index.sqlite"
    index_videos([folder], file=file)
    assert index_videos([folder], file=file).num_read == 0
    assert rows_of(file) == [(os.fsencode(folder / name),)]


# Finding


def test_videos_are_found_in_folders_files_and_lists(tmp_path):
    names = ["b/2.mp4", "b/deep/1.WEBM", "a.mov", ".hidden/3.mp4", "b/.4.mp4", "b/notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("JPEGImages/x", "JPEGImages/y", "b"):  # b has a thumbnail beside its videos
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for index in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{index}.jpg")
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    expected = ["JPEGImages/x", "JPEGImages/y", "a.mov", "b/2.mp4", "b/deep/1.WEBM"]
    assert find_videos([tmp_path]) == [str(tmp_path / name) for name in expected]
    roots = [tmp_path / "b", tmp_path / "a.mov", tmp_path / "JPEGImages" / "x", tmp_path / "a.mov"]
    found = find_videos(roots)
    assert found == [str(tmp_path / name) for name in expected if name != "JPEGImages/y"]


def test_a_list_names_a_video_a_line_whatever_follows(tmp_path):
    lists = tmp_path / "train.csv"
    lists.write_text(
        "# path label\n"
        "clips/one.mp4 17\n"
        "clips/two words.mp4 3\n"
        "\n"
        "clips/three.mkv,playing, slowly\n"
        "/elsewhere/four.mp4\n"
        "frames/five 12\n"
        "clips/one.mp4 18\n"
    )
    names = ["clips/one.mp4", "clips/three.mkv", "clips/two words.mp4", "frames/five"]
    expected = ["/elsewhere/four.mp4", *(str(tmp_path / name) for name in names)]
    assert find_videos([lists]) == expected


def test_no_videos_is_told_with_what_counts(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VideoError, match=r"no video was found in .*\.mp4.*\.jpg"):
        find_videos([tmp_path])
    with pytest.raises(VideoError, match="does not exist"):
        find_videos([tmp_path / "missing"])
    with pytest.raises(VideoError, match="neither a video"):
        find_videos([tmp_path / "weights.bin"])


# Headers


FRAMES = moving_frames(12)
HEVC = {"x265-params": "keyint=6:log-level=none"}
KINDS = {
    "h264.mp4": {},
    "index-first.mov": {"container": FASTSTART},
    "uneven.mp4": {"times": [0, 40, 90, 100, 200, 220, 300, 500, 520, 560, 700, 740]},
    "turned.mp4": {"rotation": 90},
    "hevc.mp4": {"codec": "libx265", "options": HEVC},
    "vp9.mp4": {"codec": "libvpx-vp9", "options": {}},
}


@pytest.fixture
def opened(monkeypatch) -> list[bool]:
    """Whether a decoder was asked for, for each file that is opened from now on."""
    found = []
    begin = VideoFile.__init__

    def recording(self, *args, decodes=True, **words):
        found.append(decodes)
        begin(self, *args, decodes=decodes, **words)

    monkeypatch.setattr(VideoFile, "__init__", recording)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_no_decoder_is_needed_for_mp4(name, tmp_path, opened):
    path = write_video(tmp_path / name, FRAMES, **KINDS[name])
    header = read_header(path)
    assert opened == [False]
    with VideoFile(path, num_threads=1) as file:
        assert header == video_index._header_of(file)
    assert header.num_frames == len(FRAMES)
    assert header.fps == read_info(path).fps
    assert (header.height, header.width) == FRAMES[0].shape[:2]


@pytest.mark.parametrize("name", ["video.mkv", "video.ts", "fragments.mp4"])
def test_others_are_opened_in_full(name, tmp_path, opened):
    fragments = {"movflags": "+frag_keyframe+empty_moov"}
    container = fragments if name == "fragments.mp4" else None
    path = write_video(tmp_path / name, FRAMES, container=container)
    header = read_header(path)
    assert opened[-1]
    assert header.num_frames == 0
    assert header.seconds == pytest.approx(len(FRAMES) / 25, abs=0.1)
    assert (header.height, header.width) == FRAMES[0].shape[:2]


# Motion


def write_shifted(path, *, step: int, scale: int = 1, num_frames: int = 20) -> Path:
    """A texture of smooth spots that moves by `step` pixels of 64 per frame, at 25 per second."""
    spots = np.random.default_rng(0).random((10, 24, 3))
    ground = cv2.resize(spots, (192 * scale, 64 * scale), interpolation=cv2.INTER_CUBIC)
    ground = (255 * ground.clip(0, 1)).astype(np.uint8)
    frames = [
        np.ascontiguousarray(ground[:, place * step * scale :][:, : 96 * scale])
        for place in range(num_frames)
    ]
    return write_video(path, frames)


def test_motion_is_a_speed_in_percent_of_the_short_side(tmp_path):
    still = video_motion(write_shifted(tmp_path / "still.mp4", step=0))
    moved = video_motion(write_shifted(tmp_path / "moved.mp4", step=1))
    larger = video_motion(write_shifted(tmp_path / "larger.mp4", step=1, scale=3))
    assert still < 1
    assert moved == pytest.approx(100 * 25 / 64, rel=0.15)  # 25 pixels of 64 per second
    assert larger == pytest.approx(moved, rel=0.1)
    assert video_motion(write_shifted(tmp_path / "one.mp4", step=1, num_frames=1)) == 0.0


def test_motion_is_kept_and_measured_again_where_a_video_changed(videos, tmp_path, monkeypatch):
    file = tmp_path / "index.sqlite"
    cut(videos / "cut.mkv", videos / "b.mkv", fraction=0.1)
    index = index_videos([videos], file=file)
    assert np.isnan(index.motion).all()
    known = measure_motion(index, file=file)
    assert [Path(index.names[i]).name for i in np.flatnonzero(np.isnan(known.motion))] == [
        "cut.mkv"
    ]
    np.testing.assert_array_equal(index_videos([videos], file=file).motion, known.motion)
    np.testing.assert_array_equal(measure_motion(index, file=None).motion, known.motion)
    write_shifted(videos / "a.mp4", step=2)
    (videos / "b.mkv").unlink()
    index, measured = index_videos([videos], file=file), []
    monkeypatch.setattr(video_index, "video_motion", lambda path: measured.append(path.name) or 7.0)
    again = measure_motion(index, file=file)
    assert set(measured) - {"cut.mkv"} == {"a.mp4"}
    assert again.motion[index.names.index(str(videos / "a.mp4"))] == 7.0
    with closing(sqlite3.connect(file)) as records:
        paths = {row[0] for row in records.execute("SELECT path FROM motion")}
    assert os.fsencode(videos / "b.mkv") not in paths and os.fsencode(videos / "a.mp4") in paths


# Wide video


def index_of_sizes(*sizes: tuple[int, int]) -> VideoIndex:
    ones = np.ones(len(sizes))
    names = [str(number) for number in range(len(sizes))]
    return VideoIndex(names, ones, ones, np.array(sizes), ones, ones, {}, num_read=0)


def test_mostly_wide_video_is_remarked():
    """At 16:9 no crop of 80% or more has a ratio of at most 4:3; all are the center 75%."""
    wide, square = (1080, 1920), (480, 640)
    remark = wide_video_remark(index_of_sizes(wide, wide, square))
    assert "67% of the videos are wider than 1.67:1" in remark
    assert "at 1.78:1 75% of the frame" in remark
    assert "at 0.56:1 75% of the frame" in wide_video_remark(index_of_sizes((1920, 1080)))
    assert wide_video_remark(index_of_sizes(wide, square)) == ""
    assert wide_video_remark(index_of_sizes((300, 499))) == ""  # up to 5:3
    assert wide_video_remark(index_of_sizes(wide), ratio=(3 / 4, 16 / 9)) == ""


# Quarantine


VIDEOS = [Path(f"folder é/video {index}.mp4") for index in range(30)]


def add_all(file: Path) -> int:
    return sum(leave_out(file, str(video), reason="broken\nin two") for video in VIDEOS)


def test_processes_name_each_video_once(tmp_path):
    file = tmp_path / "quarantine.sqlite"
    with APART.Pool(4) as pool:
        added = pool.map(add_all, [file] * 4, chunksize=1)
    assert sum(added) == len(VIDEOS)
    rows = rows_of(file, "path, fault")
    assert sorted(path.decode() for path, _ in rows) == sorted(map(str, VIDEOS))
    assert {reason for _, reason in rows} == {"broken\nin two"}


def test_a_list_of_an_earlier_version_is_read_once_and_replaced(tmp_path):
    """Lines of JSON, of which a killed run left the last one torn."""
    old = tmp_path / "quarantine.jsonl"
    old.write_text(json.dumps({"path": "a.mp4", "reason": "broken"}) + '\n{"path": "/torn')
    file = tmp_path / "quarantine.sqlite"
    assert leave_out(file, "b.mp4", reason="broken")
    assert not leave_out(file, "a.mp4", reason="broken")
    assert rows_of(file, "path, fault") == [(b"a.mp4", "broken"), (b"b.mp4", "broken")]
    assert not old.exists()


def test_a_file_that_cannot_be_written_is_told_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").touch()
    file = tmp_path / "file" / "quarantine.sqlite"
    with pytest.raises(OutputError, match="cannot write the quarantine "):
        quarantine_all(file, {"video": "broken"})
    assert leave_out(file, "video", reason="broken")
    assert len(caplog.messages) == 2
    assert "cannot write the quarantine " in caplog.messages[0]
    assert caplog.messages[1] == "left out of training: video: broken"
