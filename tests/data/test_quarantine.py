"""Several processes name each video once, on lines of its own."""

import json
import multiprocessing
from pathlib import Path

import pytest

from ino.data.video_index import leave_out, quarantine_all
from ino.errors import OutputError

VIDEOS = [Path(f"folder é/video {index}.mp4") for index in range(30)]


def add_all(file: Path) -> int:
    return sum(leave_out(file, str(video), reason="broken\nin two") for video in VIDEOS)


def test_processes_name_each_video_once(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        added = pool.map(add_all, [file] * 4, chunksize=1)
    assert sum(added) == len(VIDEOS)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert sorted(line["path"] for line in lines) == sorted(map(str, VIDEOS))
    assert {line["reason"] for line in lines} == {"broken\nin two"}


def test_a_line_that_a_killed_run_left_torn_spoils_no_other(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    assert leave_out(file, str(VIDEOS[0]), reason="broken")
    with file.open("a") as stream:
        stream.write('{"path": "/torn')
    assert leave_out(file, str(VIDEOS[1]), reason="broken")
    assert not leave_out(file, str(VIDEOS[0]), reason="broken")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(lines[0])["path"], json.loads(lines[2])["path"]] == [
        str(video) for video in VIDEOS[:2]
    ]


def test_a_file_that_cannot_be_written_is_told_and_stops_nothing(tmp_path, caplog):
    file = tmp_path / "missing" / "quarantine.jsonl"
    with pytest.raises(OutputError, match="cannot write the quarantine file"):
        quarantine_all(file, {"video": "broken"})
    assert leave_out(file, "video", reason="broken")
    assert len(caplog.messages) == 2
    assert "cannot write the quarantine file" in caplog.messages[0]
    assert caplog.messages[1] == "left out of training: video: broken"
