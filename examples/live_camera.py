"""Follows what is in a box through the pictures of a camera, as they come.

    python examples/live_camera.py /dev/video0 120,60,310,400 overlay.mp4

The source is what FFmpeg opens: a device, rtsp://..., a file. The box is x0,y0,x1,y1 in pixels of
the first picture. Pictures that come while one is worked on are skipped, so what is shown is never
older than one step. Ctrl-C ends it; the video has what was seen until then.
"""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import av
import numpy as np

from ino import Tracker, VideoWriter, load_backbone, mask_from_prompt
from ino.overlay import draw_overlay


def newest_pictures(source: str) -> Iterator[np.ndarray]:
    """The newest picture each time one is asked for, uint8 RGB."""
    waiting: queue.Queue = queue.Queue(1)

    def read() -> None:
        try:
            with av.open(source) as container:
                for picture in container.decode(video=0):
                    with suppress(queue.Empty):
                        waiting.get_nowait()
                    waiting.put(picture)
        finally:
            waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (picture := waiting.get()) is not None:
        yield picture.to_ndarray(format="rgb24")


def main(source: str, box: str, out: str) -> None:
    """Writes what is seen, and prints the size of the object and the pictures per second."""
    backbone, pictures = load_backbone("ino_vitt8"), newest_pictures(source)
    tracker, first = Tracker(backbone, quality="fast"), next(pictures)
    mask = mask_from_prompt(first, box=[float(side) for side in box.split(",")], backbone=backbone)
    labels, began = tracker.start(first, mask), time.monotonic()
    with VideoWriter(out, fps=5.0) as writer, suppress(KeyboardInterrupt):
        writer.write(draw_overlay(first, labels))
        for number, picture in enumerate(pictures, start=1):
            labels = tracker.step(picture)
            writer.write(draw_overlay(picture, labels))
            rate = number / (time.monotonic() - began)
            print(f"picture {number}: {(labels == 1).sum()} pixels, {rate:.1f} per second")


if __name__ == "__main__":
    main(*sys.argv[1:])
