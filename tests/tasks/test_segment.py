"""Memory of a segmentation does not grow with the length of the video."""

import subprocess
import sys

import numpy as np
import pytest

from ino.data.label_maps import write_labels
from ino.data.video import VideoWriter

PEAK = """
import sys
from ino.cli import main
status = main(sys.argv[1:])
lines = open("/proc/self/status").read().splitlines()
print("peak", next(line.split()[1] for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""


def peak_kib(folder, num_frames: int) -> int:
    """Peak memory of `ino segment` on a video of moving noise, in KiB."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (60, 200, 3), dtype=np.uint8)
    video, mask = folder / f"{num_frames}.mp4", folder / "mask.png"
    with VideoWriter(video, fps=25.0) as writer:
        for frame in range(num_frames):
            left = frame % 90
            writer.write(np.ascontiguousarray(ground[:, left : left + 104]))
    labels = np.zeros((60, 104), dtype=np.uint8)
    labels[15:40, 20:60] = 1
    write_labels(mask, labels)
    arguments = ["segment", str(video), "--mask", str(mask), "--out", str(folder / str(num_frames))]
    options = ["--weights", "color", "--device", "cpu", "--set", "short_side=none"]
    command = [sys.executable, "-c", PEAK, *arguments, *options]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(shown.split("peak ")[1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_10000_frames_need_the_memory_of_100(tmp_path):
    short, long = peak_kib(tmp_path, 100), peak_kib(tmp_path, 10_000)
    assert long < 1.05 * short, f"{short} KiB for 100 frames, {long} KiB for 10,000"
