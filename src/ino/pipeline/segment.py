"""A video with its masks into a folder of results."""

import dataclasses
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ino.data.background import in_background
from ino.data.label_png import read_labels, write_labels
from ino.data.video import VideoInfo, VideoWriter, read_clip, read_frames, read_info
from ino.errors import ConfigError, MaskError, VideoError
from ino.evaluate.overlay import draw_overlay
from ino.files import atomic_path, new_folder
from ino.pipeline.settings import OnFrame, write_settings
from ino.propagate.tracker import Tracker

log = logging.getLogger(__name__)

LOST = 0.3
"""An object of which less finds back to its reference gets a warning."""


def segment_video(
    video: Path,
    masks: Mapping[int, np.ndarray],
    *,
    out: Path,
    tracker: Tracker,
    settings: Mapping[str, Any] | None = None,
    overlay: bool = True,
    correct: bool = False,
    both_ways: bool = False,
    check_every: int = 0,
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
        correct: later masks also correct the objects of earlier ones.
        both_ways: each frame gets its labels from the nearest mask, before or after it; each mask
            holds all visible objects.
        check_every: frames between two looks at what finds back to its reference, which are stored
            as `survival.json` and warn of objects that were lost; 0: never. Not with `both_ways`.
        overwrite: accept a folder that holds something.
        on_frame: called after each frame.

    Raises:
        ConfigError: `check_every` is negative.
        VideoError: the video cannot be read, or breaks off; the masks up to there are kept, but
            none are made of it with `both_ways`.
        MaskError: see `Tracker.track`.
        OutputError: the folder holds something and `overwrite` is off, or cannot be written.
    """
    if check_every < 0:
        raise ConfigError(f"check_every is 0 (never) or more frames, but it is {check_every}")
    info = read_info(video)
    if both_ways or max(masks, default=0) >= info.num_frames:  # a header may be wrong
        info = dataclasses.replace(info, num_frames=sum(1 for _ in read_frames(video)))
    for index, mask in masks.items():
        if mask.shape != (info.height, info.width):
            raise MaskError(
                f"the mask of frame {index} is {mask.shape[0]}x{mask.shape[1]} but the frames are "
                f"{info.height}x{info.width} (height x width); give a mask of the video's size or "
                "pass --resize-mask"
            )
    if both_ways:
        if check_every or correct:
            log.warning("with both ways, masks correct anyway and what finds back is not looked at")
        return _segment_both_ways(
            video,
            masks,
            info,
            out=out,
            tracker=tracker,
            settings=settings,
            overlay=overlay,
            overwrite=overwrite,
            on_frame=on_frame,
        )
    pending: deque[np.ndarray] = deque()
    survival: dict[int, dict[int, float]] = {}

    def frames() -> Iterator[np.ndarray]:
        for frame in read_frames(video):
            pending.append(frame)
            yield frame

    def tracked() -> Iterator[np.ndarray]:
        length = info.num_frames or None
        with closing(in_background(frames())) as decoded:
            given = tracker.track(decoded, masks, num_frames=length, correct=correct)
            for index, labels in enumerate(given):
                if check_every and index % check_every == 0 and index > min(masks):
                    survival[index] = tracker.survival()
                yield labels

    results = in_background(tracked())
    labels = next(results, None)
    folder = new_folder(out, overwrite=overwrite) / "masks"
    folder.mkdir(exist_ok=True)
    write_settings(out / "settings.json", tracker.protocol, settings)
    count, broken = 0, None
    writing = VideoWriter(out / "overlay.mp4", fps=info.fps) if overlay else nullcontext()
    with closing(results), writing as writer:
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
    _remove_stale(folder, count)
    if check_every:
        _report_survival(survival, out / "survival.json")
    if broken is not None:
        raise VideoError(f"{broken}; the masks of the {count} frames before it are in {folder}")
    return count


class _Frames(Sequence[np.ndarray]):
    """The frames of a video by number; a few neighbours are decoded together and kept."""

    _AT_ONCE = 16

    def __init__(self, video: Path, num_frames: int) -> None:
        self._video = video
        self._num_frames = num_frames
        self._first = -1
        self._kept = np.empty(0)

    def __len__(self) -> int:
        return self._num_frames

    def __getitem__(self, index: Any) -> Any:
        first = index // self._AT_ONCE * self._AT_ONCE
        if first != self._first:
            end = min(first + self._AT_ONCE, self._num_frames)
            self._kept, self._first = read_clip(self._video, range(first, end)), first
        return self._kept[index - first]


def _segment_both_ways(
    video: Path,
    masks: Mapping[int, np.ndarray],
    info: VideoInfo,
    *,
    out: Path,
    tracker: Tracker,
    settings: Mapping[str, Any] | None,
    overlay: bool,
    overwrite: bool,
    on_frame: OnFrame,
) -> int:
    """As `segment_video`; masks come in any order, so the overlay is drawn when all are there."""
    count = info.num_frames
    results = in_background(tracker.track_both_ways(_Frames(video, count), masks))
    found = next(results, None)
    folder = new_folder(out, overwrite=overwrite) / "masks"
    folder.mkdir(exist_ok=True)
    write_settings(out / "settings.json", tracker.protocol, settings)
    with closing(results):
        while found is not None:
            write_labels(folder / f"{found[0]:05d}.png", found[1])
            on_frame()
            found = next(results, None)
    _remove_stale(folder, count)
    if overlay:
        with VideoWriter(out / "overlay.mp4", fps=info.fps) as writer:
            for index, frame in enumerate(read_frames(video)):
                writer.write(draw_overlay(frame, read_labels(folder / f"{index:05d}.png")))
    return count


def _remove_stale(folder: Path, count: int) -> None:
    """Removes the masks of an earlier, longer result that this one overwrites."""
    for stale in folder.glob("*.png"):
        if stale.stem.isdecimal() and int(stale.stem) >= count:
            stale.unlink()


def _report_survival(survival: Mapping[int, Mapping[int, float]], path: Path) -> None:
    """Stores it and warns of objects that did not find back."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(survival, indent=2) + "\n", encoding="utf-8")
    for label in sorted({label for found in survival.values() for label in found}):
        lost = [index for index, found in survival.items() if found.get(label, 1.0) < LOST]
        if lost:
            log.warning(
                f"object {label} does not find back to its reference from {len(lost)} of "
                f"{len(survival)} frames, the first of them {lost[0]}: look at its masks there, "
                "and give another mask if they are wrong"
            )


def resize_masks(
    masks: Mapping[int, np.ndarray], *, size: tuple[int, int]
) -> dict[int, np.ndarray]:
    """Masks of height x width `size`, by nearest neighbour."""
    height, width = size
    return {
        index: cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        for index, mask in masks.items()
    }
