"""`ino segment`: propagates masks through one video and writes label maps and an overlay video."""

import json
import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ino.data.images import open_sequence
from ino.data.label_maps import as_labels, object_areas, read_labels, write_labels
from ino.data.video import (
    VideoInfo,
    VideoWriter,
    count_frames,
    frame_names,
    in_background,
    read_clip,
    read_frames,
    read_info,
)
from ino.errors import ConfigError, MaskError, VideoError
from ino.overlay import draw_overlay
from ino.propagate.references import (
    complete_frames,
    mean_confidence,
    num_steps,
    rank_frames,
)
from ino.propagate.tracker import Tracker
from ino.schema import read_json
from ino.system import check_new_folder, folder_lock, new_folder, write_text
from ino.tasks.results import OnFrame, settings_text

_LOG = logging.getLogger("ino")

LOST = 0.5
"""A warning names each object whose `Tracker.survival` is below this."""


def segment_video(
    video: Path | str,
    masks: Mapping[int, Any],
    *,
    out: Path | str,
    tracker: Tracker,
    settings: Mapping[str, Any] | None = None,
    overlay: bool = True,
    fps: float | None = None,
    value_range: tuple[float, float] | None = None,
    correct: bool = False,
    both_ways: bool = False,
    check_every: int = 0,
    objects: Mapping[int, str] | None = None,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> int:
    """Propagates masks through a video, writes them to a folder, and returns the number of frames.

    Writes `masks/00000.png` and so on (indexed, DAVIS palette), under the names of the frames where
    the video consists of images, `annotations/` (the given masks, in the same way), `overlay.mp4`,
    `frames.csv` (area, confidence and survival of each object in each frame), `next.json` (which
    frames to annotate next, see `rank_frames`) and `settings.json`. Nothing is written before the
    first mask is known to fit.

    One mask, of frame 0, is propagated by `Tracker.track`, together with those that only introduce
    objects; otherwise all masks are references, see `Tracker.track_references`.

    Args:
        video: a video file or a folder of images.
        masks: position of the frame, from 0, to label map (see `Tracker.track_references`).
        out: folder of the results.
        tracker: propagates the masks.
        settings: stored beside the protocol and the choices below, such as the name of the weights;
            unless they name `masks`, the numbers of the masks' frames are stored.
        overlay: write the video with masks drawn over it.
        fps: frames per second of the overlay; None for those of the video.
        value_range: in images of more than 8 bits, the values that become 0 and 255; see
            `read_frames`.
        correct: stored only: several masks always correct one another.
        both_ways: stored only: several masks are always propagated both ways.
        check_every: frames between two checks of `Tracker.survival`, which are stored as
            `survival.json` and warn of objects that were lost; 0: never. Between two annotated
            frames survival is always known.
        objects: names of objects by their number, stored in `settings.json`.
        overwrite: accept a folder that holds something.
        on_frame: called `steps_of_work(masks, num_frames)` times.

    Raises:
        ConfigError: `check_every` is below 0, or `value_range` is no range.
        VideoError: the video cannot be read, or breaks off; the masks up to there are kept.
        MaskError: see `Tracker.track`.
        OutputError: the folder holds something and `overwrite` is off, it cannot be written, or
            another process writes into it.
    """
    if check_every < 0:
        raise ConfigError(f"check_every is 0 (never) or more frames, but it is {check_every}")
    video, out = Path(video), Path(out)
    masks = {index: as_labels(mask, f"the mask of frame {index}") for index, mask in masks.items()}
    info, names = read_info(video), frame_names(video)
    fps = info.fps if fps is None else fps
    if overlay and not 0 < fps < math.inf:
        raise ConfigError(f"fps is {fps}; give more than 0 frames per second")
    _check_sizes(masks, info)
    if value_range is not None:
        value_range = _check_range(video, value_range)
    in_order = complete_frames(masks) == [0]
    if in_order:
        frames = _propagate_forward(
            video, info, masks, tracker, value_range, check_every=check_every
        )
    else:
        frames = _propagate_references(
            _Frames(video, value_range),
            masks,
            tracker,
            out=out,
            check_every=check_every,
            on_frame=on_frame,
        )
    with ExitStack() as stack:
        results = stack.enter_context(closing(in_background(frames)))
        first = next(results)  # raises what is wrong with masks before anything is written
        check_new_folder(out, overwrite=overwrite)  # before a lock is left in it
        stack.enter_context(folder_lock(out, command="ino segment"))
        folder = new_folder(out, overwrite=overwrite) / "masks"
        folder.mkdir(exist_ok=True)
        choices: dict[str, Any] = {
            "correct": correct,
            "both_ways": both_ways,
            "check_every": check_every,
        }
        if value_range is not None:
            choices["value_range"] = value_range
        annotated = [int(number) for number in sorted(masks)]
        named = object_names(masks, objects or {})
        stored = {"masks": annotated, "objects": named, "annotated": annotated, **choices}
        stored |= settings or {}
        write_text(out / "settings.json", settings_text(tracker.protocol, stored))
        movie = out / "overlay.mp4"
        _write_annotations(masks, out / "annotations", names)
        drawn_at_once = overlay and in_order
        with VideoWriter(movie, fps=fps) if drawn_at_once else nullcontext() as writer:
            # References count the frames of each pass.
            on_written = on_frame if in_order else lambda: None
            done, broken = _write(chain([first], results), folder, names, writer, on_written)
        written = {_mask_name(number, names) for number in done}
        for path in folder.glob("*.png"):  # of an earlier, longer result that this one overwrites
            if path.name not in written:
                path.unlink()
        _write_table(done, object_numbers(masks), out / "frames.csv")
        _write_next(done, masks, names, out / "next.json")
        if check_every:
            survival = {number: found.survival for number, found in done.items() if found.survival}
            _report_survival(survival, out / "survival.json")
        if broken is not None:
            raise VideoError(f"{broken}; the masks of {len(done)} frames are in {folder}")
        if overlay and not in_order:  # masks came in another order than frames
            with VideoWriter(movie, fps=fps) as writer:
                for index, frame in enumerate(read_frames(video, value_range=value_range)):
                    path = folder / _mask_name(index, names)
                    writer.write(draw_overlay(frame, read_labels(path), caption=path.stem))
        return len(done)


def object_names(masks: Mapping[int, np.ndarray], names: Mapping[int, str]) -> dict[int, str]:
    """A name for each object of the masks: the given one, else "object 1" and so on."""
    return {label: names.get(label) or f"object {label}" for label in object_numbers(masks)}


def steps_of_work(masks: Mapping[int, np.ndarray], num_frames: int) -> int:
    """How often `segment_video` calls `on_frame`: frames between two annotated ones count twice."""
    if not masks or max(masks) >= num_frames:
        return num_frames
    return num_steps(masks, num_frames)


def suggestions(out: Path | str) -> list[str]:
    """In words, which frames of a result to annotate next, and the most doubtful object in each."""
    objects = read_json(Path(out) / "settings.json")["objects"]
    return [
        f"frame {found['name']} ({objects[str(found['object'])]})"
        for found in read_json(Path(out) / "next.json")
    ]


class _Labeled(NamedTuple):
    """A frame, its label map, and each object's confidence, and survival where it is known."""

    number: int
    frame: np.ndarray | None
    labels: np.ndarray
    confidence: dict[int, float]
    survival: dict[int, float]


class _Measured(NamedTuple):
    """What is kept of a frame for `frames.csv`."""

    areas: dict[int, int]
    confidence: dict[int, float]
    survival: dict[int, float]


def _check_sizes(masks: Mapping[int, np.ndarray], info: VideoInfo) -> None:
    for index, mask in masks.items():
        if mask.shape != (info.height, info.width):
            raise MaskError(
                f"the mask of frame {index} is {mask.shape[0]}x{mask.shape[1]} but the frames are "
                f"{info.height}x{info.width} (height x width); give a mask of the video's size or "
                "pass --resize-mask"
            )


def _check_range(video: Path, value_range: tuple[float, float]) -> tuple[float, float] | None:
    """The range, or None with a warning where the video has no use for one."""
    low, high = value_range
    if not -math.inf < low < high < math.inf:
        raise ConfigError(
            f"the range of values is {low:g} to {high:g}, but the first must be below the second"
        )
    images = open_sequence(video)
    if images is None or not images.is_deep:
        _LOG.warning(f"{video} has 8 bits, of which all are used: the range of values is skipped")
        return None
    return value_range


def _propagate_forward(
    video: Path,
    info: VideoInfo,
    masks: Mapping[int, np.ndarray],
    tracker: Tracker,
    value_range: tuple[float, float] | None,
    *,
    check_every: int,
) -> Iterator[_Labeled]:
    """All frames in order, decoded ahead."""
    pending: deque[np.ndarray] = deque()

    def frames() -> Iterator[np.ndarray]:
        for frame in read_frames(video, value_range=value_range):
            pending.append(frame)
            yield frame

    num_frames = info.num_frames or None
    if num_frames is not None and max(masks, default=0) >= num_frames:
        num_frames = count_frames(video)  # what a header states may be wrong
    with closing(in_background(frames())) as decoded:
        results = tracker.track(decoded, masks, num_frames=num_frames)
        for index, labels in enumerate(results):
            checks = check_every and index % check_every == 0 and index > min(masks)
            survival = tracker.survival() if checks else {}
            confidence = mean_confidence(labels, tracker.confidence())
            if index in masks:
                confidence |= dict.fromkeys(object_areas(masks[index]), 1.0)
            yield _Labeled(index, pending.popleft(), labels, confidence, survival)


def _propagate_references(
    frames: "_Frames",
    masks: Mapping[int, np.ndarray],
    tracker: Tracker,
    *,
    out: Path,
    check_every: int,
    on_frame: OnFrame,
) -> Iterator[_Labeled]:
    """All frames, as they are finished."""
    folder = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    results = tracker.track_references(
        frames, masks, folder=folder, check_every=check_every, on_step=on_frame
    )
    for number, labels, confidence, survival in results:
        yield _Labeled(number, None, labels, confidence, survival)


class _Frames(Sequence[np.ndarray]):
    """The frames of a video by number; a few neighbors are decoded together and kept."""

    _AT_ONCE = 16

    def __init__(self, video: Path, value_range: tuple[float, float] | None) -> None:
        self._video, self._range = video, value_range
        # Read once, so that a video that breaks off is refused before anything is written.
        self._num_frames = sum(1 for _ in read_frames(video, value_range=value_range))
        if self._num_frames != (num_stored := count_frames(video)):
            raise VideoError(
                f"{video} holds {num_stored} frames, of which {self._num_frames} can be decoded: "
                "repair it, or give a mask of frame 0 only"
            )
        self._first = -1
        self._kept = np.empty(0)

    def __len__(self) -> int:
        return self._num_frames

    def __getitem__(self, index: Any) -> Any:
        first = index // self._AT_ONCE * self._AT_ONCE
        if first != self._first:
            end = min(first + self._AT_ONCE, self._num_frames)
            chosen = range(first, end)
            self._kept = read_clip(self._video, chosen, value_range=self._range)
            self._first = first
        return self._kept[index - first]


def _write(
    results: Iterable[_Labeled],
    folder: Path,
    names: Sequence[str] | None,
    writer: VideoWriter | None,
    on_frame: OnFrame,
) -> tuple[dict[int, _Measured], VideoError | None]:
    """Writes masks and gives, by frame number, what was measured; and why they end, if the video
    broke off."""
    done: dict[int, _Measured] = {}
    try:
        for number, frame, labels, confidence, survival in results:
            path = folder / _mask_name(number, names)
            write_labels(path, labels)
            if writer is not None and frame is not None:
                writer.write(draw_overlay(frame, labels, caption=path.stem))
            done[number] = _Measured(object_areas(labels), confidence, survival)
            on_frame()
    except VideoError as error:
        return done, error
    return done, None


def _mask_name(number: int, names: Sequence[str] | None) -> str:
    return f"{number:05d}.png" if names is None else f"{names[number]}.png"


def object_numbers(masks: Mapping[int, np.ndarray]) -> list[int]:
    """The objects of all masks, ascending."""
    return sorted({label for mask in masks.values() for label in object_areas(mask)})


def _write_annotations(
    masks: Mapping[int, np.ndarray], folder: Path, names: Sequence[str] | None
) -> None:
    """Stores the masks as they were given, and removes those of an earlier result."""
    folder.mkdir(exist_ok=True)
    given = {
        _mask_name(number, names): mask
        for number, mask in masks.items()
        if names is None or number < len(names)
    }
    for path in folder.glob("*.png"):
        if path.name not in given:
            path.unlink()
    for name, mask in given.items():
        write_labels(folder / name, mask)


def _write_table(done: Mapping[int, _Measured], labels: Sequence[int], path: Path) -> None:
    """One row for each object in each frame; cells of what is not known are empty."""
    lines = ["frame,object,area,confidence,survival"]
    for number in sorted(done):
        areas, confidence, survival = done[number]
        for label in labels:
            values = [confidence.get(label), survival.get(label)]
            cells = ["" if value is None else f"{value:.4f}" for value in values]
            lines.append(",".join([f"{number},{label},{areas.get(label, 0)}", *cells]))
    write_text(path, "\n".join(lines) + "\n")


def _write_next(
    done: Mapping[int, _Measured],
    masks: Mapping[int, np.ndarray],
    names: Sequence[str] | None,
    path: Path,
) -> None:
    """Which frames to annotate next."""
    ranked = rank_frames(
        {number: found.confidence for number, found in done.items()},
        {number: found.survival for number, found in done.items()},
        set(masks),
    )
    rows = [
        {
            "frame": one.number,
            "name": str(one.number) if names is None else names[one.number],
            "object": one.label,
            "doubt": round(one.doubt, 4),
            "gain": one.gain,
        }
        for one in ranked
    ]
    write_text(path, json.dumps(rows, indent=2) + "\n")


def _report_survival(survival: Mapping[int, Mapping[int, float]], path: Path) -> None:
    """Stores it and warns of objects that were lost."""
    write_text(path, json.dumps(survival, indent=2) + "\n")
    for label in sorted({label for found in survival.values() for label in found}):
        lost = [index for index, found in survival.items() if found.get(label, 1.0) < LOST]
        if lost:
            _LOG.warning(
                f"propagating object {label} back does not recover its reference mask from "
                f"{len(lost)} of {len(survival)} frames, the first of them {lost[0]}: look at its "
                "masks there, and give another mask if they are wrong"
            )
