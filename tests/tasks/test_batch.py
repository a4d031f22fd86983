"""Many videos per call of `ino segment`: whose masks are whose, and several processes at once."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import MagicMock, Mock

import av
import numpy as np
import pytest

from command import refused, run
from ino.data.label_maps import read_labels, write_labels
from ino.data.video import VideoWriter, read_frames
from ino.errors import MaskError, VideoError
from ino.tasks import batch
from ino.tasks.batch import Job, find_jobs, share
from ino.tasks.live import Receiver
from propagate.moving_squares import moving_squares

SMALL = ["--weights", "color", "--protocol", "ino-near", "--set", "short_side=none"]


@pytest.fixture
def folder(tmp_path):
    """Videos a, b, 0003 and lonely, and masks of the first three."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "masks" / "b").mkdir(parents=True)
    for name in ("a", "b", "0003", "lonely"):
        with VideoWriter(tmp_path / "videos" / f"{name}.mp4", fps=10.0) as writer:
            for frame, _ in moving_squares(4, height=64, width=80):
                writer.write(frame)
    labels = [one for _, one in moving_squares(4, height=64, width=80)]
    write_labels(tmp_path / "masks" / "a.png", labels[0])
    write_labels(tmp_path / "masks" / "b" / "00002.png", labels[2])
    write_labels(tmp_path / "masks" / "0003.png", labels[0])  # of the first frame, not of frame 3
    return tmp_path


def test_masks_are_found_by_the_names_of_videos(folder, caplog):
    write_labels(folder / "masks" / "other.png", np.ones((64, 80), np.uint8))
    masks = folder / "masks"
    assert [(job.name, job.masks) for job in find_jobs([folder / "videos"], [str(masks)])] == [
        ("0003", (f"0={masks / '0003.png'}",)),
        ("a", (f"0={masks / 'a.png'}",)),
        ("b", (str(masks / "b"),)),
    ]
    assert "masks without a video, which are left out: other" in caplog.text
    assert "videos without a mask, which are left out: lonely" in caplog.text
    with pytest.raises(MaskError, match="cannot be for several videos"):
        find_jobs([folder / "videos"], ["box=1,2,3,4"])
    with pytest.raises(MaskError, match="are both for 0003"):
        find_jobs([folder / "videos"], [str(masks), str(masks)])
    with pytest.raises(MaskError, match="no mask is named as a video is"):
        find_jobs([folder / "videos" / "lonely.mp4"], [str(masks)])
    (folder / "more").mkdir()
    os.link(folder / "videos" / "a.mp4", folder / "more" / "a.avi")
    with pytest.raises(VideoError, match="are both called a"):
        find_jobs([folder / "videos", folder / "more"], [str(masks)])


def test_a_broken_video_costs_its_own_result(folder, capsys):
    (folder / "videos" / "a.mp4").write_bytes(b"no video")
    command = ["segment", folder / "videos", "--mask", folder / "masks", *SMALL]
    out = folder / "out"
    assert run(*command, "--out", out) == 1
    shown = capsys.readouterr().out
    assert "a: failed: " in shown and "b: 4 masks in" in shown
    assert "cannot be read as a video" in (out / "a.error.txt").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["0003", "a.error.txt", "b"]
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/masks/*")}
    (folder / "videos" / "lonely.mp4").replace(folder / "videos" / "a.mp4")
    assert run(*command, "--out", out) == 0
    assert "2 of 3 videos were done before" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    assert len(list(out.glob("a/masks/*"))) == 4 and not (out / "a.error.txt").exists()


@pytest.mark.slow
def test_processes_share_the_videos(folder, capfd):
    command = ["segment", folder / "videos", "--mask", folder / "masks", *SMALL]
    assert run(*command, "--out", folder / "out", "--jobs", "2") == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "4 masks in" in line]
    assert sorted(line.partition(":")[0] for line in lines) == ["0003", "a", "b"]


def test_a_video_of_another_process_is_left_to_it_until_that_is_gone(tmp_path, monkeypatch):
    jobs = [Job(name, tmp_path / name, ()) for name in ("a", "b")]
    claim = f"""
import time
from filelock import SoftFileLease
with SoftFileLease({str(tmp_path / ".a.claim")!r}, lease_duration=1.5):
    print(True, flush=True)
    time.sleep(60)
"""
    monkeypatch.setattr(batch, "LEASE", 1.5)
    with subprocess.Popen([sys.executable, "-c", claim], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"True\n"
        done = []
        share(jobs, tmp_path, segment=lambda job: done.append(job.name))
        assert done == ["b"]
        other.send_signal(
            signal.SIGSTOP
        )  # as a machine that is gone: its process is not known here
        share(jobs[:1], tmp_path, segment=lambda job: done.append(job.name))
        assert done == ["b", "a"]
        other.kill()


STREAM = """
import sys, time, av
sys.path.insert(0, "tests")
from propagate.moving_squares import moving_squares
with av.open(sys.argv[1], "w", format="mpegts") as container:
    stream = container.add_stream("libx264", rate=25, options={"tune": "zerolatency", "g": "5"})
    stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
    for index, (frame, _) in enumerate(moving_squares(20, height=64, width=80)):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        time.sleep(0.02)
    container.mux(stream.encode(None))
"""


def test_a_stream_is_followed(tmp_path, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    with subprocess.Popen([sys.executable, "-c", STREAM, f"{address}?listen=1"]) as server:
        out = tmp_path / "out"
        command = ["segment", address, "--mask", "dog:box=2,4,16,18", *SMALL, "--out", out]
        for _ in range(100):  # until the server listens
            if (status := run(*command)) == 0:
                break
            assert "cannot be opened" in capsys.readouterr().err
            time.sleep(0.2)
        server.wait(30)
    assert status == 0
    shown = capsys.readouterr().out
    rows = [line.split(",") for line in (out / "times.csv").read_text().splitlines()[1:]]
    skipped = sum(int(row[2]) for row in rows)
    assert len(rows) == len(list((out / "masks").iterdir())) <= 20 - skipped
    assert f"{skipped} frames were skipped" in shown
    assert len(list(read_frames(out / "overlay.mp4"))) == len(rows)
    assert read_labels(out / "masks" / "00000.png").any()


def test_a_stream_that_is_not_there(tmp_path, capsys):
    command = ["segment", "tcp://127.0.0.1:9", "--mask", "box=1,1,9,9", *SMALL]
    assert "cannot be opened" in refused(capsys, *command, "--out", tmp_path / "out")
    assert "segmented alone" in refused(capsys, *command, "--jobs", "2", "--check-every", "3")
    assert not (tmp_path / "out").exists()


def test_frames_that_come_while_one_is_computed_are_skipped(monkeypatch):
    taken, container = threading.Event(), MagicMock()

    def packets(stream):
        for number in range(6):
            frame = Mock(**{"to_ndarray.return_value": np.full((4, 4, 3), number, np.uint8)})
            yield Mock(**{"decode.return_value": [frame]})
            taken.wait(30)

    container.demux = packets
    monkeypatch.setattr(av, "open", lambda *_, **__: container)
    with Receiver("tcp://camera") as receiver:
        frames = iter(receiver)
        assert next(frames)[1] == 0
        taken.set()
        receiver._thread.join()
        _, number, frame = next(frames)
        assert number == frame.max() == 5
        assert next(frames, None) is None


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOENT, "there is no camera /dev/video7; there is /dev/video0 and /dev/video1"),
        (errno.EBUSY, "another program uses the camera /dev/video7: close it"),
        (errno.EACCES, "/dev/video7 may not be read by this user"),
        (errno.EINVAL, r"/dev/video7 gives no pictures \(Invalid argument\)"),
        (errno.ENOTTY, r"/dev/video7 gives no pictures \(Inappropriate ioctl for device\)"),
    ],
)
def test_a_camera_that_cannot_be_opened(number, message, monkeypatch):
    found = [Path("/dev/video0"), Path("/dev/video1")]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: found)
    monkeypatch.setattr(av, "open", lambda *_, **__: av.error.err_check(-number, "/dev/video7"))
    with pytest.raises(VideoError, match=message), Receiver("/dev/video7"):
        pass


@pytest.mark.parametrize(
    ("decoder", "fault", "message"),
    [
        (None, None, "in a format that cannot be decoded here"),
        ("mjpeg", av.InvalidDataError(1, "Invalid data found"), "no frame came .*: Invalid data"),
        ("raw", ValueError("Conversion to numpy array is not supported"), "no frame came .*: Conv"),
        ("raw", None, "no frame came from /dev/video0: it ended"),
    ],
)
def test_a_camera_of_a_strange_format(decoder, fault, message, monkeypatch):
    packet, container = Mock(), Mock()
    packet.decode.configure_mock(side_effect=fault, return_value=[])
    container.streams.video = [Mock(codec_context=decoder)]
    container.demux.return_value = [packet, packet]
    monkeypatch.setattr(av, "open", lambda *_, **__: container)
    with pytest.raises(VideoError, match=message), Receiver("/dev/video0") as receiver:
        list(receiver)
    container.close.assert_called_once()
