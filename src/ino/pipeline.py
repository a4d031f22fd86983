"""Whole jobs: a video with its masks into a folder of results, a data set into scores.

Each puts together what the layers below do alone; the command line and the demo call them.
"""

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ino import __version__
from ino.data.frame_folder import image_size, read_image
from ino.data.label_png import read_labels, write_labels
from ino.data.video import VideoWriter, read_frames, read_info
from ino.data.vos import VideoSequence, read_davis
from ino.errors import MaskError, VideoError
from ino.evaluate.davis import DavisScores, score_davis
from ino.evaluate.overlay import draw_overlay
from ino.evaluate.tables import write_csv, write_json
from ino.files import atomic_path, new_folder
from ino.propagate.tracker import Tracker

OnFrame = Callable[[], None]


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


def propagate_sequences(
    sequences: Sequence[VideoSequence],
    *,
    out: Path,
    tracker: Tracker,
    on_frame: OnFrame = lambda: None,
) -> None:
    """Carries the given masks of each sequence through it, into `out`/SEQUENCE/FRAME.png.

    Only the annotation of a sequence's first annotated frame is given, as in DAVIS.
    """
    for sequence in sequences:
        folder = out / sequence.name
        folder.mkdir(parents=True, exist_ok=True)
        first = min(sequence.annotations)
        masks = {first: read_labels(sequence.annotations[first])}
        size = image_size(sequence.frames[0])
        frames = (read_image(path, size=size) for path in sequence.frames)
        results = tracker.track(frames, masks, num_frames=len(sequence.frames))
        for path, labels in zip(sequence.frames, results, strict=True):
            write_labels(folder / f"{path.stem}.png", labels)
            on_frame()


def evaluate_davis(
    root: Path,
    *,
    out: Path,
    tracker: Tracker,
    year: int = 2017,
    split: str = "val",
    resolution: str = "480p",
    sequences: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> DavisScores:
    """Propagates the first masks of a DAVIS split and scores the result.

    Writes `predictions/SEQUENCE/FRAME.png`, the CSV files of the official evaluation, `scores.json`
    and `settings.json`.

    Args:
        root: the data set.
        out: folder of the results.
        tracker: carries the masks.
        year: 2016 or 2017.
        split: name of the list of sequences.
        resolution: name of the folder between Annotations and the sequences.
        sequences: those of the list to do; all where None.
        settings: stored beside the protocol, such as the name of the weights.
        overwrite: accept a folder that holds something.
        on_frame: called after each frame.

    Raises:
        DatasetError: the data set is not as its layout says.
        OutputError: the folder holds something and `overwrite` is off, or cannot be written.
    """
    found = read_davis(root, year=year, split=split, resolution=resolution, sequences=sequences)
    new_folder(out, overwrite=overwrite)
    write_settings(out / "settings.json", tracker, settings)
    predictions = out / "predictions"
    propagate_sequences(found, out=predictions, tracker=tracker, on_frame=on_frame)
    scores = score_davis(
        predictions, root, year=year, split=split, resolution=resolution, sequences=sequences
    )
    write_csv(scores, out, split=split)
    write_json(scores, out / "scores.json", protocol=dataclasses.asdict(tracker.protocol))
    return scores


def write_settings(path: Path, tracker: Tracker, settings: Mapping[str, Any] | None) -> None:
    """Stores how results were made: protocol, settings and version."""
    content = {
        "version": __version__,
        **(settings or {}),
        "protocol": dataclasses.asdict(tracker.protocol),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
