"""Every video is found once, whichever way it is named."""

from pathlib import Path

import pytest
from PIL import Image

from ino.data.video_index import find_videos
from ino.errors import VideoError


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
    assert find_videos([tmp_path]) == [tmp_path / name for name in expected]
    roots = [tmp_path / "b", tmp_path / "a.mov", tmp_path / "JPEGImages" / "x", tmp_path / "a.mov"]
    found = find_videos(roots)
    assert found == [tmp_path / name for name in expected if name != "JPEGImages/y"]


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
    assert find_videos([lists]) == [Path("/elsewhere/four.mp4"), *(tmp_path / n for n in names)]


def test_no_videos_is_told_with_what_counts(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VideoError, match=r"no video was found in .*\.mp4.*\.jpg"):
        find_videos([tmp_path])
    with pytest.raises(VideoError, match="does not exist"):
        find_videos([tmp_path / "missing"])
    with pytest.raises(VideoError, match="neither a video"):
        find_videos([tmp_path / "weights.bin"])
