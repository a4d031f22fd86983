"""`ino segment`: propagates masks through one video and writes label maps and an overlay video."""

import hashlib
import json
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ino.data.images import open_sequence
from ino.data.label_maps import as_labels, is_whole_png, object_areas, read_labels, write_labels
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
from ino.errors import ConfigError, MaskError, OutputError, VideoError
from ino.overlay import draw_overlay
from ino.propagate.references import (
    complete_frames,
    mean_confidence,
    num_steps,
    rank_frames,
)
from ino.propagate.tracker import Tracker
from ino.schema import read_json
from ino.system import (
    atomic_path,
    check_new_folder,
    folder_lock,
    new_folder,
    remove_leftovers,
    write_text,
)
from ino.tasks.results import OnFrame, check_settings, settings_text

_LOG = logging.getLogger("ino")

LOST = 0.5
"""A warning names each object whose `Tracker.survival` is below this."""
SAVE_EVERY = 60.0
"""Seconds of work between two times that progress is stored."""
UNFINISHED = ".unfinished"
"""The folder of the progress in that of the result."""


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
    first: int = 0,
    last: int | None = None,
    region: tuple[int, int, int, int] | None = None,
    correct: bool = False,
    both_ways: bool = False,
    check_every: int = 0,
    objects: Mapping[int, str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_frame: OnFrame = lambda: None,
) -> int:
    """Propagates masks through a video, writes them to a folder, and returns the number of frames.

    Writes `masks/00000.png` and so on (indexed, DAVIS palette), under the names of the frames where
    the video consists of images, `annotations/` (the given masks, in the same way), `overlay.mp4`,
    `frames.csv` (area, confidence and survival of each object in each frame), `next.json` (which
    frames to annotate next, see `rank_frames`) and `settings.json`. Nothing is written before the
    first mask is known to fit.

    One mask, of the first frame, is propagated by `Tracker.track`, together with those that only
    introduce objects; otherwise all masks are references, see `Tracker.track_references`.

    Masks appear as they are computed. In the order of the frames the overlay grows with them and
    can be played at any time; references compute frames in another order and draw it at the end.
    While a result is not finished, its folder has `.unfinished/`, from which `resume` goes on: at
    most `SAVE_EVERY` seconds of work are done again after a kill, and none after a signal.

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
        first, last: only these frames and those between them, by number from 0; None: to the end.
        region: only this part of each frame is computed, left, top, right and bottom in pixels,
            right and bottom exclusive; all else is background.
        correct: stored only: several masks always correct one another.
        both_ways: stored only: several masks are always propagated both ways.
        check_every: frames between two checks of `Tracker.survival`, which are stored as
            `survival.json` and warn of objects that were lost; 0: never. Between two annotated
            frames survival is always known.
        objects: names of objects by their number, stored in `settings.json`.
        resume: leave a result of the same settings and masks as it is, or go on where it was
            stopped; masks are those of a call that was not stopped.
        overwrite: accept a folder that holds something; with `resume`, only what is no result.
        on_frame: called `steps_of_work(masks, num_frames)` times, by numbers from `first` on; less
            often where a result goes on.

    Raises:
        ConfigError: `check_every` is below 0, `value_range` is no range, or frames or region lie
            outside of the video.
        VideoError: the video cannot be read, or breaks off; the masks up to there are kept.
        MaskError: see `Tracker.track`; or a mask is for none of the frames.
        OutputError: the folder holds something and neither `overwrite` nor `resume` is given, holds
            a result of other settings, cannot be written, or another process writes into it.
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
    part = _checked_part(video, info, value_range, first, last, region)
    inner = part.inner_masks(masks)
    stored = _stored_settings(
        masks,
        objects or {},
        settings or {},
        part,
        info,
        {"correct": correct, "both_ways": both_ways, "check_every": check_every},
    )
    text = settings_text(tracker.protocol, stored)
    named = {label: (objects or {}).get(label) or str(label) for label in object_numbers(masks)}
    in_order = complete_frames(inner) == [0]
    with ExitStack() as stack:
        progress = _Progress(out / UNFINISHED)
        if resume and (out / "settings.json").is_file():
            stack.enter_context(folder_lock(out, command="ino segment"))
            check_settings(
                out / "settings.json", json.loads(text), leave_out=("device", "checkpoint")
            )
            if is_finished(out):
                return sum(1 for _ in (out / "masks").glob("*.png"))
            overwrite = True
            progress.load(out / "masks", names, size=(info.height, info.width))
        if in_order:
            frames = _propagate_forward(
                part,
                inner,
                tracker,
                progress,
                out,
                names,
                check_every=check_every,
                overlay=overlay,
                num_frames=info.num_frames,
            )
        else:
            frames = _propagate_references(
                part, inner, tracker, progress, out, check_every=check_every
            )
        stack.enter_context(closing(frames))
        begun = [*islice(frames, 1)]  # raises what is wrong with masks before anything is written
        check_new_folder(out, overwrite=overwrite)  # before a lock is left in it
        stack.enter_context(folder_lock(out, command="ino segment"))
        folder = new_folder(out, overwrite=overwrite) / "masks"
        progress.begin()
        folder.mkdir(exist_ok=True)
        write_text(out / "settings.json", text)
        movie = out / "overlay.mp4"
        _write_annotations(masks, out / "annotations", names)
        results = stack.enter_context(closing(in_background(chain(begun, frames))))
        drawn_at_once = overlay and in_order
        with VideoWriter(movie, fps=fps, live=True) if drawn_at_once else nullcontext() as writer:
            # References count the frames of each pass.
            broken = _write(
                results, part, folder, names, writer, named, progress, on_frame, in_order=in_order
            )
        done = progress.done
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
            inputs = _Frames(part)
            with VideoWriter(movie, fps=fps) as writer:
                for index in range(len(inputs)):
                    path = folder / _mask_name(part.first + index, names)
                    labels = read_labels(path)
                    drawn = draw_overlay(
                        inputs.whole(index), labels, caption=path.stem, names=named
                    )
                    writer.write(drawn)
        progress.end()
        return len(done)


def is_finished(out: Path) -> bool:
    """Whether a folder holds a result that is finished."""
    return (out / "settings.json").is_file() and not (out / UNFINISHED).exists()


def start_anew(out: Path) -> None:
    """Lets `resume` do a result again from its beginning."""
    if (out / "settings.json").is_file():
        (out / UNFINISHED).mkdir(exist_ok=True)
        (out / "settings.json").unlink()


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
    """A frame, its label map, and each object's confidence, and survival where it is known.

    `state` is what propagation goes on from after it; None where the frame was finished before.
    """

    number: int
    frame: np.ndarray | None
    labels: np.ndarray
    confidence: dict[int, float]
    survival: dict[int, float]
    state: dict[str, Any] | None = None
    is_old: bool = False


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


@dataclass(frozen=True)
class _Part:
    """What of a video is computed: frames from `first` up to before `end`, and a region of each.

    Attributes:
        video: the whole one.
        value_range: see `read_frames`.
        first, end: numbers of frames; `end` is None where all to the end are computed.
        region: left, top, right and bottom in pixels; None for all.
    """

    video: Path
    value_range: tuple[float, float] | None
    first: int
    end: int | None
    region: tuple[int, int, int, int] | None

    def frames(self, skipped: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Number and whole frame, without as many as are skipped."""
        begin = self.first + skipped
        frames = read_frames(self.video, value_range=self.value_range, first=begin)
        with closing(frames):  # type: ignore[type-var]
            for number, frame in enumerate(frames, start=begin):
                if self.end is not None and number >= self.end:
                    return
                yield number, frame

    def cut(self, image: np.ndarray) -> np.ndarray:
        """What of a frame or mask is computed."""
        if self.region is None:
            return image
        left, top, right, bottom = self.region
        return np.ascontiguousarray(image[top:bottom, left:right])

    def whole(self, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A label map of the region as one of the whole frame."""
        if self.region is None:
            return labels
        left, top, right, bottom = self.region
        whole = np.zeros(size, dtype=np.uint8)
        whole[top:bottom, left:right] = labels
        return whole

    def inner_masks(self, masks: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """The masks of what is computed, by number from its first frame on."""
        inner = {}
        for number, mask in masks.items():
            if number < self.first or (self.end is not None and number >= self.end):
                if number < 0:
                    continue  # the tracker refuses it
                last = "the end" if self.end is None else self.end - 1
                raise MaskError(
                    f"the mask of frame {number} is for none of the frames {self.first} to {last} "
                    "that are computed: give masks of these"
                )
            inner[number - self.first] = self.cut(mask)
            before, after = object_areas(mask), object_areas(inner[number - self.first])
            if before and not after:
                raise MaskError(
                    f"the mask of frame {number} has no object inside of the region "
                    f"{','.join(map(str, self.region or ()))}"
                )
            if cut := [label for label in before if before[label] != after.get(label, 0)]:
                _LOG.warning(
                    f"object {', '.join(map(str, cut))} in the mask of frame {number} is partly "
                    "outside of the region, where it is cut off"
                )
        return inner if all(number >= 0 for number in masks) else dict(masks)


def _checked_part(
    video: Path,
    info: VideoInfo,
    value_range: tuple[float, float] | None,
    first: int,
    last: int | None,
    region: tuple[int, int, int, int] | None,
) -> _Part:
    """What is computed, if the video holds it."""
    if first < 0 or (last is not None and last < first):
        raise ConfigError(
            f"frames {first} to {last} were asked for, but frames are counted from 0 and the last "
            "is not before the first"
        )
    furthest = max(first, last or 0)
    may_be_missing = furthest > 0 and furthest >= info.num_frames  # headers may not know
    if may_be_missing and furthest >= (num_frames := count_frames(video)):
        raise ConfigError(
            f"frame {furthest} was asked for, but {video} has {num_frames} frames, counted from 0"
        )
    if region is not None:
        left, top, right, bottom = region
        if not (0 <= left < right <= info.width and 0 <= top < bottom <= info.height):
            raise ConfigError(
                f"the region {','.join(map(str, region))} does not lie inside of the frames of "
                f"{info.width}x{info.height} (width x height): give left,top,right,bottom in pixels"
            )
    return _Part(video, value_range, first, None if last is None else last + 1, region)


def _stored_settings(
    masks: Mapping[int, np.ndarray],
    objects: Mapping[int, str],
    settings: Mapping[str, Any],
    part: _Part,
    info: VideoInfo,
    choices: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides the result, in the form of settings.json."""
    annotated = [int(number) for number in sorted(masks)]
    digest = hashlib.sha256()
    for number in annotated:
        digest.update(f"{number} {masks[number].shape} ".encode())
        digest.update(np.ascontiguousarray(masks[number]).tobytes())
    stored = {
        "masks": annotated,
        "objects": {str(k): name for k, name in object_names(masks, objects).items()},
        "annotated": annotated,
        "digest": digest.hexdigest(),
        **choices,
    }
    if part.value_range is not None:
        stored["value_range"] = part.value_range
    if part.first or part.end is not None:
        stored["frames"] = [part.first, None if part.end is None else part.end - 1]
    if part.region is not None:
        stored["region"] = part.region
    return stored | dict(settings)


class _Progress:
    """What is done of a result, stored now and then in its folder until it is finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[int, _Measured] = {}
        self.state: dict[str, Any] | None = None
        self._saved = time.monotonic()

    @property
    def soft_labels(self) -> Path:
        """The file that references keep soft labels in."""
        return self.folder / "soft_labels"

    def load(self, masks: Path, names: Sequence[str] | None, *, size: tuple[int, int]) -> None:
        """Goes on from what was stored, if it is whole; otherwise from the beginning."""
        try:
            stored = torch.load(self.folder / "state.pt", map_location="cpu", weights_only=True)
            done = {number: _Measured(*found) for number, found in stored["done"].items()}
        except FileNotFoundError:
            return
        except Exception as error:  # whatever a damaged file leads torch to
            _LOG.warning(f"{self.folder / 'state.pt'} is damaged ({error}): starting anew")
            return
        lost = [n for n in done if not is_whole_png(masks / _mask_name(n, names), size=size)]
        if lost:
            _LOG.warning(f"{len(lost)} masks in {masks} are missing or damaged: starting anew")
            return
        self.done, self.state = done, stored["state"]
        _LOG.info(f"{len(done)} frames were done before")

    def begin(self) -> None:
        """Marks the result as not finished."""
        self.folder.mkdir(exist_ok=True)
        if self.state is None:
            for path in self.folder.iterdir():
                path.unlink()
        remove_leftovers(self.folder)

    def note(self, state: dict[str, Any] | None) -> None:
        """All that led to a state is written; it is stored if it is time."""
        if state is None:
            return
        self.state = state
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Stores what is done."""
        if self.state is None:
            return
        done = {number: tuple(found) for number, found in self.done.items()}
        with atomic_path(self.folder / "state.pt") as temporary:
            torch.save({"done": done, "state": self.state}, temporary)
        self._saved = time.monotonic()

    def end(self) -> None:
        """Marks the result as finished."""
        shutil.rmtree(self.folder)


def _propagate_forward(
    part: _Part,
    masks: Mapping[int, np.ndarray],
    tracker: Tracker,
    progress: _Progress,
    out: Path,
    names: Sequence[str] | None,
    *,
    check_every: int,
    overlay: bool,
    num_frames: int,
) -> Generator[_Labeled]:
    """All frames in order, decoded ahead; those that were done before are given for the overlay."""
    num_done = len(progress.done)
    pending: deque[np.ndarray] = deque()
    skipped = 0 if overlay else num_done

    end = num_frames or None
    if end is not None and max(masks, default=0) + part.first >= end:
        end = count_frames(part.video)  # what a header states may be wrong
    if part.end is not None:
        end = part.end
    with closing(in_background(part.frames(skipped))) as decoded:
        for number, frame in islice(decoded, num_done - skipped):
            labels = read_labels(out / "masks" / _mask_name(number, names))
            yield _Labeled(number, frame, labels, {}, {}, is_old=True)

        def frames() -> Iterator[np.ndarray]:
            for _, frame in decoded:
                pending.append(frame)
                yield part.cut(frame)

        results = tracker.track(
            frames(),
            masks,
            num_frames=None if end is None else end - part.first,
            state=progress.state,
            ahead=True,
        )
        for index, labels in enumerate(results, start=num_done):
            checks = check_every and index % check_every == 0 and index > min(masks)
            survival = tracker.survival() if checks else {}
            confidence = mean_confidence(labels, tracker.confidence())
            if index in masks:
                confidence |= dict.fromkeys(object_areas(masks[index]), 1.0)
            frame = pending.popleft()
            whole = part.whole(labels, frame.shape[:2])
            state = tracker.state()
            yield _Labeled(part.first + index, frame, whole, confidence, survival, state)


def _propagate_references(
    part: _Part,
    masks: Mapping[int, np.ndarray],
    tracker: Tracker,
    progress: _Progress,
    out: Path,
    *,
    check_every: int,
) -> Generator[_Labeled | dict[str, Any]]:
    """All frames, as they are finished, and the states between them."""
    steps = tracker.reference_steps(
        frames := _Frames(part),
        masks,
        check_every=check_every,
        kept=progress.soft_labels,
        state=progress.state,
    )
    for found in steps:
        if isinstance(found, dict):
            yield found
            continue
        labels = part.whole(found.labels, frames.size)
        number = part.first + found.number
        yield _Labeled(number, None, labels, found.confidence, found.survival)


class _Frames(Sequence[np.ndarray]):
    """The frames of a part of a video by number; a few neighbors are decoded together and kept."""

    _AT_ONCE = 16

    def __init__(self, part: _Part) -> None:
        self._part = part
        end = count_frames(part.video) if part.end is None else part.end
        # A video that breaks off is refused before anything is written.
        (last,) = read_clip(part.video, [end - 1], value_range=part.value_range, fill=True)
        self.size = last.shape[:2]
        self._num_frames = end - part.first
        self._first = -1
        self._kept = np.empty(0)

    def __len__(self) -> int:
        return self._num_frames

    def __getitem__(self, index: Any) -> Any:
        return self._part.cut(self.whole(index))

    def whole(self, index: int) -> np.ndarray:
        """A frame with what is outside of the region."""
        first = index // self._AT_ONCE * self._AT_ONCE
        if first != self._first:
            end = min(first + self._AT_ONCE, self._num_frames)
            chosen = range(self._part.first + first, self._part.first + end)
            self._kept = read_clip(
                self._part.video, chosen, value_range=self._part.value_range, fill=True
            )
            self._first = first
        return self._kept[index - first]


def _write(
    results: Iterable[_Labeled | dict[str, Any]],
    part: _Part,
    folder: Path,
    names: Sequence[str] | None,
    writer: VideoWriter | None,
    objects: Mapping[int, str],
    progress: _Progress,
    on_frame: OnFrame,
    *,
    in_order: bool,
) -> VideoError | None:
    """Writes masks and notes, by frame number, what was measured; gives why they end, if the video
    broke off. Whatever else ends it, the progress is stored."""
    try:
        for found in results:
            if isinstance(found, dict):
                progress.note(found)
                if found["is_step"]:
                    on_frame()
                continue
            number, frame, labels, confidence, survival, state, is_old = found
            path = folder / _mask_name(number, names)
            if not is_old:
                write_labels(path, labels)
                progress.done[number] = _Measured(object_areas(labels), confidence, survival)
                progress.note(state)
            if writer is not None and frame is not None:
                writer.write(draw_overlay(frame, labels, caption=path.stem, names=objects))
            if in_order and not is_old:
                on_frame()
    except VideoError as error:
        progress.save()
        return error
    except BaseException:
        with suppress(OutputError):  # the disk may be what ends it
            progress.save()
        raise
    return None


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
