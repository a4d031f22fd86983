"""`ino segment` of many videos: which masks are whose, and how processes share the videos.

Each video is a result folder of its own, OUT/NAME (`ino.tasks.segment`). A process takes a video
that is not finished and that no other one has; its claim is the file OUT/.NAME.claim, which its
process touches now and then. That also holds on network disks, so processes on several machines
need nothing but the folder in common. The claim of a process that is gone is taken over: at once on
the same machine, on another one after `LEASE` seconds.

    OUT/NAME/            a result
    OUT/NAME.error.txt   why it has failed, if it has
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from ino.data.annotation_formats import read_drawings
from ino.data.annotations import is_typed
from ino.data.label_maps import describe_objects
from ino.data.video import frame_names, frame_number, read_info, video_name
from ino.data.video_index import find_videos
from ino.errors import InoError, MaskError, StoppedError, VideoError
from ino.progress import progress as bar
from ino.propagate.tracker import Tracker
from ino.system import available_cores, handle_signals, write_text
from ino.tables import shown
from ino.tasks.convert import convert_result
from ino.tasks.masks import read_masks
from ino.tasks.segment import (
    is_finished,
    segment_video,
    start_anew,
    steps_of_work,
)

_LOG = logging.getLogger("ino")
Progress = Callable[..., AbstractContextManager[Callable[..., None]]]
STOPPED_STATUS = 75
"""Exit status that asks a batch system to start the command again."""
LEASE = 60.0
"""Seconds after which a claim that is not touched is that of a process that is gone."""

_SINGLE_PICTURES = frozenset({".png", ".bmp", ".webp", ".gif", ".jpg", ".jpeg"})


@dataclass(frozen=True)
class Job:
    """A video and what marks its objects.

    Attributes:
        name: of the video, without suffix; its folder of results.
        video: its file or folder.
        masks: as for `read_masks`.
    """

    name: str
    video: Path
    masks: tuple[str, ...]


def find_jobs(videos: Sequence[Path], masks: Sequence[str]) -> list[Job]:
    """The videos that have masks; what has no counterpart is named in a warning.

    Args:
        videos: see `find_videos`.
        masks: folders that hold NAME.png (or of another format) or NAME/FRAME.png for each video,
            or files that name the videos in the paths of their frames.

    Raises:
        VideoError: there is no video, or two have one name.
        MaskError: no video has a mask; a mask is none of the above, or a video has two.
    """
    found = find_videos(videos)
    paths = {video_name(Path(path)): Path(path) for path in found}
    if len(paths) < len(found):
        names = Counter(video_name(Path(path)) for path in found)
        twice = next(name for name, count in names.items() if count > 1)
        both = " and ".join(path for path in found if video_name(Path(path)) == twice)
        raise VideoError(
            f"{both} are both called {twice}, so their masks and results cannot be told apart: "
            "rename one of them, or segment them one by one"
        )
    given: dict[str, list[str]] = {}
    for text in masks:
        for name, mask in _named_masks(text):
            given.setdefault(name, []).append(mask)
    for name, several in given.items():
        if name in paths and len(several) > 1:
            raise MaskError(f"{' and '.join(several)} are both for {name}: keep one")
    if lonely := sorted(set(given) - set(paths)):
        _LOG.warning(f"masks without a video, which are left out: {_few(lonely)}")
    if lonely := [name for name in paths if name not in given]:
        _LOG.warning(f"videos without a mask, which are left out: {_few(lonely)}")
    jobs = [
        Job(name, path, (_for_first_frame(path, given[name][0]),))
        for name, path in paths.items()
        if name in given
    ]
    if not jobs:
        raise MaskError(
            f"no mask is named as a video is: name masks as the videos, such as {next(iter(paths))}"
            f".png or {next(iter(paths))}/00000.png in {masks[0]}"
        )
    return jobs


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _named_masks(text: str) -> Iterator[tuple[str, str]]:
    """The name of a video and its mask, for each that a folder or file holds."""
    path = Path(text)
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            if not entry.name.startswith("."):
                yield entry.name if entry.is_dir() else entry.stem, str(entry)
        return
    if is_typed(text) or not path.is_file():
        raise MaskError(
            f"--mask {text!r} cannot be for several videos: give a folder that holds NAME.png or "
            "NAME/FRAME.png for each, or a file of annotations that names the videos"
        )
    folders = {drawing.folder for drawing in read_drawings(path)} - {""}
    if not folders:
        raise MaskError(f"{path} does not say in the paths of its frames which videos they are of")
    yield from ((name, str(path)) for name in sorted(folders))


def _for_first_frame(video: Path, mask: str) -> str:
    """A picture named as the video is for the first frame, also where that name is a number."""
    if Path(mask).suffix.lower() not in _SINGLE_PICTURES:
        return mask
    names = frame_names(video) if video.is_dir() else None
    return f"{names[0] if names else 0}={mask}"


@dataclass(frozen=True)
class Choices:
    """What `ino segment` does with each video, see `segment_video`; `start` and `end` are for
    `frame_number`, and `save` holds formats of `convert_result`."""

    resize: bool = False
    overlay: bool = True
    fps: float | None = None
    value_range: tuple[float, float] | None = None
    start: str | None = None
    end: str | None = None
    region: tuple[int, int, int, int] | None = None
    correct: bool = False
    both_ways: bool = False
    check_every: int = 0
    save: tuple[str, ...] = ()
    resume: bool = True
    overwrite: bool = False


def segment_job(
    job: Job,
    out: Path,
    choices: Choices,
    tracker: Tracker,
    settings: Mapping[str, Any],
    *,
    say: Callable[[str], None],
    progress: Progress,
) -> int:
    """Reads the masks of a video, segments it into the folder `out`, writes the formats, and
    returns the number of frames.

    Args:
        job: a video and its masks.
        out: folder of its results.
        choices: how.
        tracker: propagates the masks.
        settings: of the tracker, to be stored.
        say: is told which objects the masks hold.
        progress: makes a bar, see `ino.progress.progress`.

    Raises:
        InoError: see `read_masks`, `segment_video` and `convert_result`.
    """
    names, info = frame_names(job.video), read_info(job.video)
    masks = read_masks(job.masks, job.video, resize=choices.resize)
    for number, labels in masks.labels.items():
        frame = names[number] if names is not None and number < len(names) else number
        found = describe_objects(labels, masks.names)
        say(f"mask of frame {frame}: {found}, from {masks.sources[number]}")
    first = 0 if choices.start is None else frame_number(choices.start, job.video)
    last = None if choices.end is None else frame_number(choices.end, job.video)
    end = info.num_frames if last is None else last + 1
    inner = {number - first: mask for number, mask in masks.labels.items()}
    with progress("frames", steps_of_work(inner, end - first)) as advance:
        num_frames = segment_video(
            job.video,
            masks.labels,
            objects=masks.names,
            out=out,
            tracker=tracker,
            settings={
                **settings,
                "video": str(job.video),
                "masks": {str(number): source for number, source in masks.sources.items()},
                "resize_mask": choices.resize,
            },
            overlay=choices.overlay,
            fps=choices.fps,
            value_range=choices.value_range,
            first=first,
            last=last,
            region=choices.region,
            correct=choices.correct,
            both_ways=choices.both_ways,
            check_every=choices.check_every,
            resume=choices.resume,
            overwrite=choices.overwrite,
            on_frame=advance,
        )
    if choices.save:
        for path in convert_result(
            out, choices.save, out=out, video=job.video, fps=choices.fps, overwrite=True
        ):
            say(str(path))
    return num_frames


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Context that SIGTERM and SIGUSR1 leave by StoppedError; what is done is kept."""

    def stop(number: int, frame: Any) -> NoReturn:
        name = signal.Signals(number).name
        raise StoppedError(
            f"stopped by {name}; what is done is kept: start the same command again to continue",
            status=STOPPED_STATUS,
        )

    with handle_signals("SIGTERM", "SIGUSR1", handler=stop):
        yield


@dataclass(frozen=True)
class Outcome:
    """What there is of a video.

    Attributes:
        name: of the video.
        status: done, failed, or not done, as another process has it or was killed.
        num_frames: with masks.
        reason: why it failed.
    """

    name: str
    status: Literal["done", "failed", "not done"]
    num_frames: int
    reason: str = ""


def segment_many(
    jobs: Sequence[Job],
    out: Path,
    choices: Choices,
    make_tracker: Callable[[], tuple[Tracker, dict[str, Any]]],
    *,
    num_processes: int = 1,
) -> list[Outcome]:
    """Segments the videos into OUT/NAME that nobody else segments, prints a line for each, and
    returns what is there in the end.

    Args:
        jobs: see `find_jobs`.
        out: folder of the results.
        choices: how.
        make_tracker: gives a tracker and its settings; called in each process.
        num_processes: that share the videos and the cores.
    """
    out.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        (out / f"{job.name}.error.txt").unlink(missing_ok=True)  # it is tried again
        if choices.overwrite:
            start_anew(out / job.name)
    if num_done := sum(is_finished(out / job.name) for job in jobs):
        tell(f"{num_done} of {len(jobs)} videos were done before")
    if num_processes == 1:
        _work(jobs, out, choices, make_tracker)
    else:
        context = multiprocessing.get_context("spawn")
        threads = max(1, available_cores() // num_processes)
        given = (jobs, out, choices, make_tracker, threads)
        children = [
            context.Process(target=_work_as_child, args=given) for _ in range(num_processes)
        ]
        try:
            for child in children:
                child.start()
            for child in children:
                child.join()
        finally:
            started = [child for child in children if child.pid is not None]
            for child in started:
                child.terminate()
            for child in started:
                child.join()
    return [_outcome(job, out) for job in jobs]


def _work_as_child(
    jobs: Sequence[Job],
    out: Path,
    choices: Choices,
    make_tracker: Callable[[], tuple[Tracker, dict[str, Any]]],
    threads: int,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    logging.basicConfig(format="ino: %(message)s", level=logging.WARNING)
    try:
        with stop_on_signal():
            _work(jobs, out, choices, make_tracker)
    except StoppedError as stopped:
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except InoError as error:
        _LOG.error(str(error))
        sys.exit(2)


def _end_with_parent() -> None:
    """Stops this process once the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _work(
    jobs: Sequence[Job],
    out: Path,
    choices: Choices,
    make_tracker: Callable[[], tuple[Tracker, dict[str, Any]]],
) -> None:
    tracker, settings = make_tracker()
    is_alone = multiprocessing.parent_process() is None

    def segment(job: Job) -> None:
        was_finished, began = is_finished(out / job.name), time.monotonic()
        found = segment_job(
            job,
            out / job.name,
            choices,
            tracker,
            settings,
            say=lambda text: None,
            progress=partial(_named_bar, job.name) if is_alone else _no_bar,
        )
        if not was_finished:
            seconds = time.monotonic() - began
            tell(f"{job.name}: {found} masks in {out / job.name / 'masks'} ({seconds:.1f} s)")

    share(jobs, out, segment=segment)


def _named_bar(name: str, what: str, total: int) -> AbstractContextManager[Callable[..., None]]:
    return bar(f"{name}, {what}", total, is_kept=False)


def _no_bar(what: str, total: int) -> AbstractContextManager[Callable[..., None]]:
    """Several bars would overwrite one another."""
    return nullcontext(lambda: None)


def tell(text: str) -> None:
    """Prints a line, whole, also where several processes print."""
    sys.stdout.write(f"{shown(text)}\n")
    sys.stdout.flush()


def _outcome(job: Job, out: Path) -> Outcome:
    num_frames = sum(1 for _ in (out / job.name / "masks").glob("*.png"))
    error_file = out / f"{job.name}.error.txt"
    if error_file.is_file():
        reason = error_file.read_text(encoding="utf-8").strip()
        return Outcome(job.name, "failed", num_frames, reason)
    is_done = is_finished(out / job.name)
    return Outcome(job.name, "done" if is_done else "not done", num_frames)


def share(jobs: Sequence[Job], out: Path, *, segment: Callable[[Job], None]) -> None:
    """Segments the videos that nobody else segments.

    Several processes may do so at once, on several machines. What has failed in another process
    meanwhile is left as it is. It waits for videos of other processes only until these show that
    they are alive.

    Args:
        jobs: see `find_jobs`.
        out: folder of the results, which exists.
        segment: segments one video, continues what was stopped, and returns at once where a video
            is finished.
    """
    claims = {job.name: Claim(out / f".{job.name}.claim") for job in jobs}
    waiting = list(jobs)
    while waiting:
        held = []
        for job in waiting:
            with claims[job.name].hold() as is_mine:
                if is_mine:
                    _try(job, out, segment)
                else:
                    held.append(job)
        waiting = [job for job in held if not claims[job.name].is_alive()]
        if waiting:
            time.sleep(min(1.0, LEASE / 10))


def _try(job: Job, out: Path, segment: Callable[[Job], None]) -> None:
    """Segments a video unless it has failed; why it fails is told and stored."""
    error_file = out / f"{job.name}.error.txt"
    if error_file.is_file():
        return
    try:
        segment(job)
    except StoppedError:
        raise
    except Exception as error:  # the others go on
        kind = "" if isinstance(error, InoError) else f"{type(error).__name__}: "
        reason = f"{kind}{' '.join(str(error).split())}"
        tell(f"{job.name}: failed: {reason}")
        write_text(error_file, f"{reason}\n")


class Claim:
    """The claim of a process to a video: a file that it touches, see the head of this module."""

    def __init__(self, path: Path) -> None:
        from filelock import SoftFileLease  # slow to import for `ino --help`

        self._path = path
        self._lease = SoftFileLease(path, lease_duration=LEASE)
        self._seen: int | None = None

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Whether the claim is ours while the block runs."""
        from filelock import Timeout

        try:
            self._lease.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            self._lease.release()

    def is_alive(self) -> bool:
        """Whether the process that holds it has touched it between two of these calls."""
        try:
            touched = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        before, self._seen = self._seen, touched
        return before is not None and before != touched
