"""A video with its masks into a folder of results."""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ino.data.label_png import write_labels
from ino.data.video import VideoWriter, read_frames, read_info
from ino.errors import MaskError, VideoError
from ino.evaluate.overlay import draw_overlay
from ino.files import new_folder
from ino.pipeline.settings import OnFrame, write_settings
from ino.propagate.tracker import Tracker


def segment_video(
    video: Path,
    masks: Mapping[int, np.ndarray],
    *,
    out: Path,
    tracker: Tracker,
    settings: Mapping[str, Any] | None = None,
    overlay: bool = True,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> int:
    """Carries masks through a video into a folder and gives the number of frames done.

    Writes `masks/00000.png` and so on (indexed, DAVIS palette), `overlay.mp4` and `settings.json`.
    Nothing is written before the first mask is known to fit.

    Args:
        video: a video file or a folder of images.
        masks: frame number, from 0, to label map (see `Tracker.track`).
        out: folder of the results.
        tracker: carries the masks.
        settings: stored beside the protocol, such as the name of the weights.
        overlay: write the video with masks drawn over it.
        overwrite: accept a folder that holds something.
        on_frame: called after each frame.

    Raises:
        VideoError: the video cannot be read, or breaks off; the masks up to there are kept.
        MaskError: see `Tracker.track`.
        OutputError: the folder holds something and `overwrite` is off, or cannot be written.
    """
    info = read_info(video)
    for index, mask in masks.items():
        if mask.shape != (info.height, info.width):
            raise MaskError(
                f"the mask of frame {index} is {mask.shape[0]}x{mask.shape[1]} but the frames are "
                f"{info.height}x{info.width} (height x width); give a mask of the video's size or "
                "pass --resize-mask"
            )
    pending: deque[np.ndarray] = deque()

    def frames() -> Iterator[np.ndarray]:
        for frame in read_frames(video):
            pending.append(frame)
            yield frame

    results = tracker.track(frames(), masks, num_frames=info.num_frames or None)
    labels = next(results, None)
    folder = new_folder(out, overwrite=overwrite) / "masks"
    folder.mkdir(exist_ok=True)
    write_settings(out / "settings.json", tracker, settings)
    count, broken = 0, None
    with VideoWriter(out / "overlay.mp4", fps=info.fps) if overlay else nullcontext() as writer:
        while labels is not None:
            write_labels(folder / f"{count:05d}.png", labels)
            frame = pending.popleft()
            if writer is not None:
                writer.write(draw_overlay(frame, labels))
            count += 1
            on_frame()
            try:
                labels = next(results, None)
            except VideoError as error:
                broken, labels = error, None
    for stale in folder.glob("*.png"):
        if stale.stem.isdecimal() and int(stale.stem) >= count:
            stale.unlink()  # of an earlier, longer result that this one overwrites
    if broken is not None:
        raise VideoError(f"{broken}; the masks of the {count} frames before it are in {folder}")
    return count


def resize_masks(
    masks: Mapping[int, np.ndarray], *, size: tuple[int, int]
) -> dict[int, np.ndarray]:
    """Masks of height x width `size`, by nearest neighbour."""
    height, width = size
    return {
        index: cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        for index, mask in masks.items()
    }
