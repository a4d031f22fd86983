"""`ino segment` is stopped at any moment and goes on; masks are those of a run that was not."""

import os
import random
import signal
import time
from contextlib import suppress

import numpy as np
import pytest

from command import refused, run
from ino.data.label_maps import read_labels, write_labels
from ino.data.video import VideoWriter, count_frames, read_frames
from ino.models.load import load_backbone
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Session, Tracker
from ino.tasks import segment
from ino.tasks.segment import is_finished, segment_video
from processes import DEADLINE, start_segmenting, wait
from propagate.moving_squares import moving_squares

NUM_FRAMES = 8


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A video and the masks of some of its frames."""
    folder = tmp_path_factory.mktemp("given")
    with VideoWriter(folder / "video.mp4", fps=10.0) as writer:
        for number, (frame, labels) in enumerate(moving_squares(NUM_FRAMES, height=64, width=80)):
            writer.write(frame)
            write_labels(folder / f"{number}.png", labels)
    return folder


def start(given, out, numbers):
    masks = {number: given / f"{number}.png" for number in numbers}
    return start_segmenting(given / "video.mp4", out, masks)


def files(out):
    return {path.name: path.read_bytes() for path in sorted((out / "masks").iterdir())} | {
        name: (out / name).read_bytes() for name in ("frames.csv", "next.json", "settings.json")
    }


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("ino_vitt8")


def time_of_state(out):
    """When progress was stored last; None where none is."""
    with suppress(FileNotFoundError):  # it may go away at any moment
        return (out / ".unfinished" / "state.pt").stat().st_mtime_ns


class Killed(BaseException):
    """As Ctrl-C is no Exception."""


@pytest.mark.parametrize(
    ("protocol", "numbers"),
    [
        ("ino-near", (0,)),
        ("ino-near", (2, 6)),
        *(
            pytest.param(protocol, numbers, marks=pytest.mark.slow)
            for protocol in ("ino-fast", "ino-best", "mast", "dino")
            for numbers in ((0,), (2, 6))
        ),
    ],
)
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
    for stop in (1, 3, 2):
        with pytest.raises(Killed):
            go("stopped", stop)
        assert not is_finished(tmp_path / "stopped")
    assert go("stopped") == NUM_FRAMES
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert is_finished(tmp_path / "stopped")
    assert count_frames(tmp_path / "stopped" / "overlay.mp4") == NUM_FRAMES


@pytest.mark.parametrize(
    ("num_kills", "numbers"),
    [
        (2, (2, 6)),
        pytest.param(20, (0,), marks=pytest.mark.slow),
        pytest.param(20, (2, 6), marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_moments_change_nothing(given, tmp_path, num_kills, numbers):
    assert wait([start(given, tmp_path / "whole", numbers)]) == [0]
    moments, out = random.Random(0), tmp_path / "killed"
    for kill in range(num_kills):
        process = start(given, out, numbers)
        before, deadline = time_of_state(out), time.monotonic() + DEADLINE
        # Half of them soon after progress was stored, half at any time.
        while kill % 2 == 0 and process.is_alive() and time.monotonic() < deadline:
            if time_of_state(out) not in (None, before):
                break
        time.sleep(moments.uniform(0.0, 2.0 if kill % 2 else 0.2))
        process.kill()
        process.join()
        for path in out.glob("masks/[0-9]*.png"):
            read_labels(path)
    assert wait([start(given, out, numbers)]) == [0]
    assert files(out) == files(tmp_path / "whole")
    assert is_finished(out)
    assert count_frames(out / "overlay.mp4") == NUM_FRAMES


def test_sigterm_keeps_each_frame_and_the_overlay_plays(given, tmp_path, monkeypatch, capsys):
    """Although no progress was due to be stored."""
    original, steps = segment.draw_overlay, []

    def stopped(*arguments, **options):
        steps.append(1)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    out = tmp_path / "out"
    options = ["--out", out, "--set", "short_side=64"]
    command = ["segment", given / "video.mp4", "--mask", given / "0.png", *options]
    monkeypatch.setattr(segment, "draw_overlay", stopped)
    assert run(*command) == 75
    assert "start the same command again" in capsys.readouterr().err
    assert len(list(read_frames(out / "overlay.mp4"))) == 5
    monkeypatch.setattr(segment, "draw_overlay", original)
    computed = []
    step = Session.step
    monkeypatch.setattr(Session, "step", lambda *a, **k: (computed.append(1), step(*a, **k))[1])
    assert run(*command) == 0
    assert len(computed) == NUM_FRAMES - 6
    assert run(*command) == 0
    assert len(computed) == NUM_FRAMES - 6
    assert "finished before" in capsys.readouterr().out
    other = [*command[:3], given / "1.png", *options]
    assert "annotated was [0], but now it is [1]" in refused(capsys, *other)
    assert run(*other, "--overwrite") == 0


def test_a_part_of_a_video(given, tmp_path, capsys):
    frames = [frame[:40, 4:] for frame in read_frames(given / "video.mp4")][2:7]
    mask = read_labels(given / "2.png")
    tracker = Tracker("color", protocol=get_protocol("ino-near", short_side=None))
    expected = list(
        tracker.track([np.ascontiguousarray(one) for one in frames], {0: mask[:40, 4:]})
    )
    small = ["--weights", "color", "--protocol", "ino-near", "--set", "short_side=none"]
    given_mask = ["--mask", f"2={given / '2.png'}", *small, "--out", tmp_path / "out"]
    command = ["segment", given / "video.mp4", *given_mask, "--region", "4,0,80,40"]
    assert run(*command, "--from", "0:00.2", "--to", "6") == 0
    written = sorted((tmp_path / "out" / "masks").iterdir())
    assert [path.name for path in written] == [f"{number:05d}.png" for number in range(2, 7)]
    for path, labels in zip(written, expected, strict=True):
        whole = np.zeros((64, 80), np.uint8)
        whole[:40, 4:] = labels
        np.testing.assert_array_equal(read_labels(path), whole)
    capsys.readouterr()
    assert "none of the frames 3 to" in refused(capsys, *command, "--from", "3", "--overwrite")
    assert "has 8 frames" in refused(capsys, *command, "--to", "8", "--overwrite")
    assert "no frame of" in refused(capsys, *command, "--to", "end", "--overwrite")
    outside = [*command[:-1], "0,0,81,40", "--overwrite"]
    assert "does not lie inside" in refused(capsys, *outside)
