"""Result folders: their settings, which videos are finished, and how an evaluation is resumed.

All results in a folder have the settings in its `settings.json`; results with other settings are
refused. `predictions` holds a file or a folder per video, `finished.txt` the names of the finished
videos, and `scores.json` the scores. Each task defines its own predictions and scores.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np

from ino import __version__
from ino.data.davis import VideoSequence
from ino.data.images import image_size, read_image
from ino.data.jhmdb import PoseVideo
from ino.data.label_maps import is_whole_png, read_labels, write_labels
from ino.data.video import in_background, in_order
from ino.data.ytvos import YtvosVideo
from ino.errors import ConfigError, DatasetError, OutputError
from ino.models.backbone import split_weights
from ino.models.load import bundled_folder
from ino.models.weights import exported_weights, find_checkpoint, is_exported
from ino.propagate.features import prepare_frame
from ino.propagate.labels import resize_mask
from ino.propagate.protocols import Protocol, Size, get_protocol
from ino.propagate.tracker import Tracker
from ino.schema import read_json
from ino.system import available_cores, folder_lock, new_folder, remove_leftovers, write_text

OnFrame = Callable[[], None]
"""Called after each frame."""

NUM_AHEAD = 4
"""Masks that are written while others are computed."""
MOST_HELPERS = 8
"""Processes that read frames and write masks beside a GPU."""
IDLE_SECONDS = 10
"""After which one of them ends."""

_LOG = logging.getLogger("ino")
_FINISHED = "finished.txt"
_MISSING = object()


Video = TypeVar("Video", VideoSequence, YtvosVideo, PoseVideo)


def sized_protocol(
    name: str,
    /,
    *,
    short_side: int | None,
    layer: int | None = None,
    radius: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Protocol:
    """A named protocol for another input size; its radius is scaled with the short side, see
    `get_protocol`.

    Args:
        name: one of `ino.propagate.protocols`.
        short_side: pixels; None for the protocol's own size.
        layer: block whose features are read; None for the protocol's own.
        radius: feature positions, taken as it is; None: scaled with `short_side`.
        overrides: other fields. None is a value here.

    Raises:
        ConfigError: the name or a field is unknown, one is given twice, or a value is out of range.
    """
    chosen = dict(overrides or {})
    given = {"short_side": short_side, "layer": layer, "radius": radius}
    given = {field: value for field, value in given.items() if value is not None}
    if twice := [field for field in given if field in chosen]:
        raise ConfigError(f"{twice[0]} is given twice, by itself and under set; keep one")
    return get_protocol(name, **chosen, **given)


def settings_text(protocol: Protocol, settings: Mapping[str, Any] | None) -> str:
    """The text of settings.json. Results are compatible if and only if these texts are equal."""
    content = {"version": __version__, **(settings or {}), "protocol": protocol.as_dict()}
    return json.dumps(content, indent=2, default=str) + "\n"


def fingerprint(weights: str) -> dict[str, str]:
    """Path and SHA-256 of a file of weights, so that a resumed run notices another one."""
    if weights == "color":  # also where a folder of that name is at hand
        return {}
    _, path = split_weights(weights)
    if path is None and (given := bundled_folder(weights) or Path(weights)).exists():
        path = exported_weights(given) if is_exported(given) else find_checkpoint(given)
    if path is None or not path.is_file():
        return {}  # random weights
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"checkpoint": str(path), "sha256": digest}


class RunOptions(TypedDict, total=False):
    """How the results of an evaluation are kept and its progress is shown.

    Attributes:
        settings: stored beside the protocol and the data set, such as the name of the weights.
        resume: keep what is in the folder, if it was made with the same settings.
        overwrite: accept a folder that is not empty, and start over.
        on_start: called with the number of frames once the folder is ready.
        on_frame: called after each frame, those of skipped videos too.
    """

    settings: Mapping[str, Any]
    resume: bool
    overwrite: bool
    on_start: Callable[[int], None]
    on_frame: OnFrame


@contextmanager
def propagated(
    videos: Sequence[Video],
    *,
    out: Path,
    task: str,
    protocol: Protocol,
    choices: Mapping[str, Any],
    propagate: Callable[..., None],
    is_whole: Callable[[Video, Path], bool],
    warning: str = "",
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_start: Callable[[int], None] = lambda num_frames: None,
    on_frame: OnFrame = lambda: None,
) -> Iterator[tuple[Path, int]]:
    """Context with the folder `out`/predictions, in which all videos are propagated, and the number
    of videos that were finished before. While it is open, no other command of ino can use `out`.

    A run that was killed can be resumed. See `RunOptions` for the options that are not listed.

    Args:
        videos: of a data set.
        out: folder of the results.
        task: the command of `ino evaluate`.
        protocol: of the propagation.
        choices: what else decides the results.
        propagate: writes the files of one video: called with it, the folder and `on_frame`.
        is_whole: whether all these files exist and are intact.
        warning: logged before the first video.

    Raises:
        ConfigError: `resume` and `overwrite` are both given.
        OutputError: see `open_folder`; or another process has locked the folder.
    """
    if resume and overwrite:
        raise ConfigError("--resume keeps what is in the folder and --overwrite does not: give one")
    text = settings_text(protocol, {**(settings or {}), **choices})
    with folder_lock(out, command=f"ino evaluate {task}"):
        open_folder(out, text, resume=resume, overwrite=overwrite)
        predictions = out / "predictions"
        predictions.mkdir(exist_ok=True)
        if warning:
            _LOG.warning("%s", warning)
        on_start(sum(len(video.frames) for video in videos))
        num_skipped = propagate_unfinished(
            videos,
            predictions,
            propagate=partial(propagate, on_frame=on_frame),
            is_whole=is_whole,
            on_frame=on_frame,
        )
        yield predictions, num_skipped


def open_folder(out: Path, settings: str, *, resume: bool, overwrite: bool) -> None:
    """Prepares a result folder for these settings.

    Args:
        out: the folder; created if missing.
        settings: the text of settings.json.
        resume: keep results that have the same settings.
        overwrite: without `resume`, accept a folder that is not empty; all its results count as
            unfinished.

    Raises:
        OutputError: the folder is not empty and neither option is set, it has other settings, or it
            cannot be written to.
    """
    stored = out / "settings.json"
    if resume and stored.is_file():
        check_settings(stored, json.loads(settings))
        remove_leftovers(out)
        return
    if resume:
        advice = "it has no settings.json that tells how it was made; choose another --out"
    else:
        advice = "choose another --out, or pass --resume to continue or --overwrite to start anew"
    new_folder(out, overwrite=overwrite, advice=advice)
    # An older list goes first: a kill between the two must not leave masks of other settings as
    # done, and where there is none, nothing may be in the folder before its settings are.
    if (out / _FINISHED).exists():
        write_text(out / _FINISHED, "")
    write_text(stored, settings)


def check_settings(
    path: Path, settings: Mapping[str, Any], *, leave_out: Collection[str] = ()
) -> None:
    """Compares settings with those that were stored.

    Args:
        path: of settings.json.
        settings: that it should hold.
        leave_out: names that are not compared.

    Raises:
        OutputError: they are others, or the file is broken; the message names the first.
    """
    try:
        stored = _flat(read_json(path))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{path} is broken, so what made the results beside it cannot be told: choose another "
            "--out or pass --overwrite in place of --resume"
        ) from error
    ours = _flat(settings)
    for name in sorted({*ours, *stored} - {*leave_out}):
        if ours.get(name, _MISSING) != stored.get(name, _MISSING):
            before, now = (one.get(name, "not set") for one in (stored, ours))
            raise OutputError(
                f"{path} says that {name} was {before}, but now it is {now}: resume with the same "
                "settings, or choose another --out"
            )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the fields of the protocol among them."""
    fields = settings.get("protocol", {}).items()
    return {name: value for name, value in settings.items() if name != "protocol"} | {
        f"protocol field {name}": value for name, value in fields
    }


def propagate_unfinished(
    videos: Iterable[Video],
    predictions: Path,
    *,
    propagate: Callable[[Video, Path], None],
    is_whole: Callable[[Video, Path], bool],
    on_frame: OnFrame = lambda: None,
) -> int:
    """Propagates the videos that are not finished, and returns the number of skipped ones.

    Args:
        videos: of a data set.
        predictions: folder of the predictions, beside `finished.txt`.
        propagate: writes the files of one video, and calls `on_frame`.
        is_whole: whether all these files exist and are intact.
        on_frame: called for each frame of a skipped video.
    """
    out, num_skipped = predictions.parent, 0
    for video in videos:
        if video.name in read_finished(out) and is_whole(video, predictions):
            num_skipped += 1
            for _ in video.frames:
                on_frame()
        else:
            propagate(video, predictions)
            note_finished(out, video.name)
    return num_skipped


def read_finished(out: Path) -> list[str]:
    """The names that were noted as done, in that order."""
    path = out / _FINISHED
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()


def note_finished(out: Path, name: str) -> None:
    """Notes a name as done; call it once its results are on disk.

    Raises:
        OutputError: the note cannot be written.
    """
    names = dict.fromkeys([*read_finished(out), name])
    write_text(out / _FINISHED, "".join(f"{one}\n" for one in names))


def read_means(path: Path) -> dict[str, float] | None:
    """The mean scores in a scores.json of any data set, by column name, as fractions 0..1.

    Scores that are null are left out. None if the file is missing or damaged.
    """
    try:
        means = read_json(path)["global"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(means, dict):
        return None
    return {name: value for name, value in means.items() if value is not None}


def propagate_masks(
    frames: Sequence[Path],
    annotations: Mapping[int, Path],
    folder: Path,
    *,
    tracker: Tracker,
    wanted: Collection[str],
    on_frame: OnFrame,
    size: Size | None = None,
) -> None:
    """Propagates annotations through a video, into `folder`/FRAME.png for the frames `wanted`.

    Frames are read, propagated and written side by side, at most a few of them ahead. Warnings
    about objects name the video as `folder` does.

    Args:
        frames: images of one size.
        annotations: label maps by the number of their frame, see `Tracker.track`.
        folder: created if missing.
        tracker: propagates the masks.
        wanted: names of the frames whose masks are written.
        on_frame: called after each frame.
        size: height and width to which frames and masks are brought by nearest neighbor first,
            and which the results have; None: they keep theirs.

    Raises:
        VideoError: a frame is broken or of another size than the first.
        MaskError: an annotation is broken, or see `Tracker.track`.
    """
    masks = {number: read_labels(path) for number, path in annotations.items()}
    if size is not None:
        masks = {number: resize_mask(mask, whole=size, size=size) for number, mask in masks.items()}
    folder.mkdir(parents=True, exist_ok=True)
    read = partial(_read, size=image_size(frames[0]), prepared=size)
    with _helpers(tracker) as helpers:

        def tracked() -> Generator[np.ndarray]:
            images = in_order(helpers, read, frames, ahead=1 + 2 * tracker.best_batch)
            with closing(images):
                yield from tracker.track(
                    images,
                    masks,
                    num_frames=len(frames),
                    name=folder.name,
                    batch=tracker.best_batch,
                )

        def write(item: tuple[Path, np.ndarray]) -> Future[None] | None:
            path, labels = item
            if path.stem not in wanted:
                return None
            return helpers.submit(write_labels, folder / f"{path.stem}.png", labels)

        writing: deque[Future[None] | None] = deque()

        def end_one() -> None:
            if (written := writing.popleft()) is not None:
                written.result()
            on_frame()

        with closing(in_background(tracked())) as results:
            for item in zip(frames, results, strict=True):
                writing.append(write(item))
                if len(writing) > NUM_AHEAD:
                    end_one()
            while writing:
                end_one()


def _read(path: Path, *, size: Size, prepared: Size | None) -> np.ndarray:
    """A frame of a video of that size, at the size of the prepared data set."""
    return prepare_frame(read_image(path, size=size), size=prepared)


@contextmanager
def _helpers(tracker: Tracker) -> Iterator[Executor]:
    """What reads frames and writes masks: threads, or processes beside a GPU, which takes frames
    faster than Pillow decodes them under Python's lock."""
    if tracker.best_batch == 1:
        with ThreadPoolExecutor(2) as threads:
            yield threads
        return
    from loky import get_reusable_executor
    from loky.process_executor import TerminatedWorkerError

    count = max(1, min(MOST_HELPERS, available_cores() - 1))
    try:
        yield get_reusable_executor(max_workers=count, timeout=IDLE_SECONDS)
    except TerminatedWorkerError as error:
        raise OutputError(
            "a process that reads frames or writes masks died, maybe for want of memory: resume"
        ) from error


def masks_are_whole(folder: Path, frames: Iterable[str], *, size: tuple[int, int]) -> bool:
    """Whether the masks of the named frames exist and are intact PNG files of that size."""
    return all(is_whole_png(folder / f"{frame}.png", size=size) for frame in frames)


def check_annotation_size(annotation: Path, frame: Path) -> None:
    """Raises DatasetError where an annotation is of another size than its frame; only the headers
    of the files are read."""
    found, expected = image_size(annotation), image_size(frame)
    if found != expected:
        raise DatasetError(
            f"{annotation} is {found[0]}x{found[1]} (height x width), but its frame is "
            f"{expected[0]}x{expected[1]}: give annotations in the size of the frames"
        )
