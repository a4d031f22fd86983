"""`ino segment` is stopped at any moment and goes on; masks are those of a run that was not."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ino.data.label_maps import read_labels, write_labels
from ino.data.video import VideoWriter, count_frames, read_frames
from ino.errors import OutputError
from ino.models.load import load_backbone
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker
from ino.tasks import segment
from ino.tasks.segment import is_finished, segment_video

from propagate.moving_squares import moving_squares

NUM_FRAMES = 12

CHILD = """
import sys
import torch
from pathlib import Path
from ino.data.label_maps import read_labels
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker
from ino.tasks import segment
video, out, save_every, *masks = sys.argv[1:]
torch.set_num_threads(1)
segment.SAVE_EVERY = float(save_every)
masks = {int(path.split("=")[0]): read_labels(Path(path.split("=")[1])) for path in masks}
tracker = Tracker("ino_vitt8", protocol=get_protocol("ino-near", short_side=64))
segment.segment_video(
    video, masks, out=out, tracker=tracker, resume=True, on_frame=lambda: print("frame", flush=True)
)
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A video and the masks of some of its frames."""
    folder = tmp_path_factory.mktemp("given")
    with VideoWriter(folder / "video.mp4", fps=10.0) as writer:
        for number, (frame, labels) in enumerate(moving_squares(NUM_FRAMES, height=64, width=80)):
            writer.write(frame)
            write_labels(folder / f"{number}.png", labels)
    return folder


def start(given, out, numbers, *, save_every=0.0):
    masks = [f"{number}={given / f'{number}.png'}" for number in numbers]
    words = [given / "video.mp4", out, save_every, *masks]
    command = [sys.executable, "-c", CHILD, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_after(process, num_steps):
    """Kills a process when it has done so many steps."""
    assert process.stdout is not None
    for _ in range(num_steps):
        if not process.stdout.readline():
            break
    process.kill()
    process.communicate()


def files(out):
    return {path.name: path.read_bytes() for path in sorted((out / "masks").iterdir())} | {
        name: (out / name).read_bytes() for name in ("frames.csv", "next.json", "settings.json")
    }


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("ino_vitt8")


class Killed(BaseException):
    """As Ctrl-C is no Exception."""


@pytest.mark.parametrize("numbers", [(0,), (3, 9)])
@pytest.mark.parametrize("protocol", ["ino-near", "ino-fast", "ino-best", "mast"])
def test_every_stop_changes_nothing(given, tmp_path, monkeypatch, backbone, protocol, numbers):
    """Stopped after each step of work in turn, with the state stored then or earlier."""
    monkeypatch.setattr(segment, "SAVE_EVERY", 0.0)
    masks = {number: read_labels(given / f"{number}.png") for number in numbers}
    tracker = Tracker(backbone, protocol=get_protocol(protocol, short_side=64))

    def go(out, stop=0):
        left = [stop]

        def count():
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        video = given / "video.mp4"
        options = {"tracker": tracker, "resume": True, "on_frame": count}
        return segment_video(video, masks, out=tmp_path / out, **options)

    assert go("whole") == NUM_FRAMES
    for stop in (1, 3, 2, 4):
        with pytest.raises(Killed):
            go("stopped", stop)
        assert not is_finished(tmp_path / "stopped")
    assert go("stopped") == NUM_FRAMES
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert is_finished(tmp_path / "stopped")
    assert count_frames(tmp_path / "stopped" / "overlay.mp4") == NUM_FRAMES
