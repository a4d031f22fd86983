"""How long a person waits at `ino web`, and how much memory the server takes.

    python benchmarks/web_page.py VIDEO
    python benchmarks/web_page.py --frames 10000 --weights color --seconds 30

Starts a server, opens its page in Chromium, uploads the video, drags a box around the middle of the
first frame and follows it with the quality fast. Printed are the seconds from the first request of
the page until it can be used, until the video is shown, until the object is drawn, until the mask
of another frame is shown and until the last one; the median and largest time of an answer to
`progress` and to `frame` meanwhile; and the largest resident memory of the server. Needs playwright
and Chromium.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import sync_playwright

from ino.data.video import VideoWriter


def write_video(path: Path, num_frames: int) -> None:
    """A bright square that moves over noise, 160x120."""
    noise = np.random.default_rng(0).integers(0, 120, (120, 160, 3), dtype=np.uint8)
    with VideoWriter(path, fps=24) as writer:
        for number in range(num_frames):
            frame = noise.copy()
            x = 60 + round(30 * np.sin(number / 40))
            cv2.rectangle(frame, (x, 45), (x + 30, 75), (250, 200, 40), -1)
            writer.write(frame)


def peak_megabytes(process: int) -> float:
    """The largest resident memory of a process so far (Linux)."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def measure(address: str, video: Path, *, seconds: float) -> dict[str, float]:
    """What a person waits for, in seconds from the first request."""
    times: dict[str, float] = {}
    answers: dict[str, list[float]] = {"progress": [], "frame": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1360, "height": 820})
        page.set_default_timeout(120_000)

        def note(request):
            kind = next((one for one in answers if f"/{one}" in request.url), None)
            if kind and (timing := request.timing)["responseEnd"] > 0:
                answers[kind].append(timing["responseEnd"] - timing["requestStart"])

        page.on("requestfinished", note)
        began = time.perf_counter()

        def done(what: str) -> None:
            times[what] = time.perf_counter() - began
            print(what, times[what], flush=True)

        page.goto(address)
        page.locator("#limits:not(:empty)").wait_for()
        done("page")
        page.set_input_files("#file", video)
        page.locator("#hint:not(:empty)").wait_for()
        done("video shown")
        box = page.locator("#view").bounding_box()
        assert box is not None
        page.keyboard.press("x")
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.25 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.75 * box["height"], steps=20)
        page.mouse.up()
        page.locator("#clear:not([hidden])").wait_for()
        done("object drawn")
        page.click("#follow")
        # The newest mask is shown as it comes; that of frame 0 is the drawing itself.
        page.locator("#stage:not([data-frame='0'])").wait_for()
        done("first mask")
        for one in answers.values():
            one.clear()
        limit = time.perf_counter() + seconds
        while page.locator("#running").is_visible() and time.perf_counter() < limit:
            page.wait_for_timeout(200)
        done("last mask" if page.locator("#idle").is_visible() else "stopped waiting")
        print("page says:", page.locator("#progress").inner_text())
        browser.close()
    for kind, found in answers.items():
        if found:
            times[f"answer to {kind}, median"] = statistics.median(found) / 1000
            times[f"answer to {kind}, largest"] = max(found) / 1000
    return times


def main() -> None:
    """Prints the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path, nargs="?")
    parser.add_argument("--frames", type=int, default=100, help="of a video that is generated")
    parser.add_argument("--weights", default="ino_vitt8")
    parser.add_argument("--seconds", type=float, default=600, help="longest wait for all masks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = options.video
        if video is None:
            video = Path(folder) / "generated.mp4"
            write_video(video, options.frames)
        command = [sys.executable, "-m", "ino", "web", "--port", "0", "--out", f"{folder}/out"]
        command += ["--folder", folder, "--weights", options.weights]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[-1]
                for what, value in measure(address, video, seconds=options.seconds).items():
                    print(f"{what:28} {value:8.2f} s")
                print(f"{'memory of the server':28} {peak_megabytes(server.pid):8.0f} MB")
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
