"""Which frame a mask belongs to, the names of results, the rate of the overlay, and memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from command import run
from data.video_files import H264, damage, write_video
from ino.cli import main
from ino.data.label_maps import read_labels, write_labels
from ino.data.video import VideoWriter, read_frames, read_info
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker
from propagate.moving_squares import moving_squares

PEAK = """
import sys
from ino.cli import main
status = main(sys.argv[1:])
lines = open("/proc/self/status").read().splitlines()
print("peak", next(line.split()[1] for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""


def peak_kib(folder, num_frames: int, num_masks: int) -> int:
    """Peak memory of `ino segment` on a video of moving noise, in KiB."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (60, 200, 3), dtype=np.uint8)
    video, mask = folder / f"{num_frames}.mp4", folder / "mask.png"
    out = folder / f"{num_frames}-{num_masks}"
    with VideoWriter(video, fps=25.0) as writer:
        for frame in range(num_frames):
            left = frame % 90
            writer.write(np.ascontiguousarray(ground[:, left : left + 104]))
    labels = np.zeros((60, 104), dtype=np.uint8)
    labels[15:40, 20:60] = 1
    write_labels(mask, labels)
    arguments = ["segment", str(video), "--out", str(out)]
    for frame in np.linspace(0, num_frames - 1, num_masks).astype(int):
        arguments += ["--mask", f"{frame}={mask}"]
    options = ["--weights", "color", "--device", "cpu", "--set", "short_side=none"]
    command = [sys.executable, "-c", PEAK, *arguments, *options]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(shown.split("peak ")[1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("num_masks", [1, 3])
def test_10000_frames_need_the_memory_of_100(tmp_path, num_masks):
    short, long = peak_kib(tmp_path, 100, num_masks), peak_kib(tmp_path, 10_000, num_masks)
    assert long < 1.05 * short, f"{short} KiB for 100 frames, {long} KiB for 10,000"


def test_masks_bear_the_names_of_the_frames(tmp_path, capsys):
    frames, out = tmp_path / "frames", tmp_path / "out"
    frames.mkdir()
    rng = np.random.default_rng(0)
    for number in (1, 6, 11):
        image = rng.integers(0, 255, (64, 96, 3), np.uint8)
        Image.fromarray(image).save(frames / f"shot_{number:04d}.bmp")
    labels = np.zeros((64, 96), np.uint8)
    labels[20:40, 30:60] = 1
    write_labels(tmp_path / "shot_0006.png", labels)
    (out / "masks").mkdir(parents=True)
    (out / "masks" / "00000.png").touch()  # of an earlier result
    arguments = ["segment", str(frames), "--mask", str(tmp_path / "shot_0006.png"), "--fps", "5"]
    options = ["--weights", "color", "--set", "short_side=none", "--overwrite"]
    assert main([*arguments, *options, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "mask of frame shot_0006: object 1 (600 pixels, 9.8%)" in shown
    names = [f"shot_{number:04d}.png" for number in (1, 6, 11)]
    assert sorted(path.name for path in (out / "masks").iterdir()) == names
    np.testing.assert_array_equal(read_labels(out / "masks" / names[1]), labels)
    assert read_info(out / "overlay.mp4").fps == pytest.approx(5)


def test_a_range_of_values_is_used_stored_or_said_to_be_of_no_use(tmp_path, capsys):
    for depth, dtype in (("deep", np.uint16), ("flat", np.uint8)):
        (tmp_path / depth).mkdir()
        for number in range(2):
            values = np.linspace(0, 200, 64 * 96).reshape(64, 96).astype(dtype)
            Image.fromarray(values).save(tmp_path / depth / f"{number}.png")
    labels = np.zeros((64, 96), np.uint8)
    labels[20:40, 30:60] = 1
    write_labels(tmp_path / "mask.png", labels)
    given = ["--mask", str(tmp_path / "mask.png"), "--weights", "color"]
    given += ["--set", "short_side=none", "--value-range", "50", "150"]
    for depth, stored in (("deep", [50, 150]), ("flat", None)):
        out = tmp_path / f"out_{depth}"
        assert main(["segment", str(tmp_path / depth), *given, "--out", str(out)]) == 0
        assert json.loads((out / "settings.json").read_text()).get("value_range") == stored
        assert ("the range of values is skipped" in capsys.readouterr().err) == (stored is None)
    assert main(["segment", str(tmp_path / "deep"), *given, "--value-range", "9", "9"]) == 2
    assert "the first must be below the second" in capsys.readouterr().err


def test_a_mask_in_the_middle_of_a_part(tmp_path, capsys):
    """Damage costs no frame, and does not move those after it."""
    frames, labels = zip(*moving_squares(25, height=48, width=72), strict=True)
    video, mask, out = tmp_path / "video.mp4", tmp_path / "mask.png", tmp_path / "out"
    write_video(video, frames, options=H264 | {"g": "3", "bf": "0"})
    write_labels(mask, labels[13])
    tracker = Tracker("color", protocol=get_protocol("ino-near", short_side=None))
    results = tracker.track_references([*read_frames(video)][3:23], {10: labels[13]})
    expected = {f"{3 + found.number:05d}.png": found.labels for found in results}
    small = ["--weights", "color", "--protocol", "ino-near", "--set", "short_side=none"]
    options = ["--mask", f"13={mask}", *small, "--from", "3", "--to", "22", "--out", out]

    def check_masks():
        assert sorted(path.name for path in (out / "masks").iterdir()) == sorted(expected)
        for name, labels in expected.items():
            np.testing.assert_array_equal(read_labels(out / "masks" / name), labels)

    assert run("segment", video, *options) == 0
    check_masks()
    overlay = np.stack([*read_frames(out / "overlay.mp4")])
    path = damage(tmp_path / "inside.mp4", video, 20)
    assert run("segment", path, *options, "--overwrite") == 0
    assert f"{path} is damaged: the frame before stands in" in capsys.readouterr().err
    assert len([*(out / "masks").iterdir()]) == len([*read_frames(out / "overlay.mp4")]) == 20
    path = damage(tmp_path / "before.mp4", video, 1)  # of a frame that is not computed
    assert run("segment", path, *options, "--overwrite") == 0
    check_masks()
    np.testing.assert_array_equal(np.stack([*read_frames(out / "overlay.mp4")]), overlay)
