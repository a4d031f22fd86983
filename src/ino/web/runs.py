"""Propagation in the background: one video at a time, the others wait for their turn.

A run is `segment_video` with the workspace as its folder of results, so the masks are those of
`ino segment` for the same drawings, and they are on disk as they come.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ino.errors import InoError, MaskError, OutputError, VideoError
from ino.web.workspace import Workspace

if TYPE_CHECKING:  # it loads torch, which takes seconds: the page is there before
    from ino.propagate.tracker import Tracker

MakeTracker = Callable[[str], "tuple[Tracker, dict[str, Any]]"]
"""From the name of a quality to a tracker and what settings.json records about it."""

OnProgress = Callable[[str, int], None]
"""Called after each part of a work, with the work's name and the number of its parts."""

MakeAdapted = Callable[[str, Path, str, Path, OnProgress], "tuple[Tracker, dict[str, Any], str]"]
"""The same with weights that suit a video, and a sentence about them: from the name of a quality, a
video, a mask as of `ino segment --mask`, the folder where the weights are kept, and what is called
on the way."""

ADAPTED = ".adapted"
"""The folder of such weights in that of the video."""

PATIENCE = 60.0
"""Seconds after which a paused run ends if others wait for their turn."""

_LOG = logging.getLogger("ino")


class _StopRun(Exception):  # noqa: N818 - it is no error
    """Leaves `segment_video` from within."""


@dataclass
class Run:
    """How far a run is. `status` is waiting, running, paused, done, stopped or failed."""

    workspace: Workspace
    quality: str
    first: int
    last: int
    adapts: bool = False
    status: Literal["waiting", "running", "paused", "done", "stopped", "failed"] = "waiting"
    num_done: int = 0
    num_steps: int = 1  # calls of `on_frame`
    reason: str = ""
    note: str = ""  # about the weights
    adapting: str = ""  # how far that is
    began: float = 0.0  # time of the system, by which new masks are told from old ones
    seconds_paused: float = 0.0
    first_mask: float = 0.0
    go_on: threading.Event = field(default_factory=threading.Event)
    is_stopped: bool = False

    @property
    def is_live(self) -> bool:
        """Whether it is not over."""
        return self.status in ("waiting", "running", "paused")

    def new_masks(self) -> list[int]:
        """The numbers of the frames whose masks this run wrote, ascending."""
        folder, found = self.workspace.folder / "masks", []
        for number in self.workspace.followed() if self.began else ():
            with suppress(OSError):
                if os.stat(folder / self.workspace.file_name(number)).st_mtime >= self.began:  # noqa: PTH116
                    found.append(number)
        return found

    def seconds_left(self) -> float | None:
        """By the rate so far; None before the second frame."""
        if self.num_done < 2:
            return None
        spent = time.time() - self.first_mask - self.seconds_paused
        return spent / (self.num_done - 1) * max(0, self.num_steps - self.num_done)


class Runner:
    """Runs one after the other in one thread.

    Args:
        make_tracker: see `MakeTracker`; what it gives is kept by quality.
        make_adapted: see `MakeAdapted`; None: weights are never adapted.
    """

    def __init__(
        self, make_tracker: MakeTracker, *, make_adapted: MakeAdapted | None = None
    ) -> None:
        self._make_tracker = make_tracker
        self._make_adapted = make_adapted
        self._trackers: dict[str, tuple[Tracker, dict[str, Any]]] = {}
        self._runs: dict[str, Run] = {}
        self._queue: list[Run] = []
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ino-web")

    def warm_up(self, quality: str) -> None:
        """Loads what a first run needs, in the background."""

        def load() -> None:
            with suppress(InoError):  # which the first run reports
                self._tracker(quality)

        self._thread.submit(load)

    @property
    def can_adapt(self) -> bool:
        """Whether runs can adapt the weights to their video first."""
        return self._make_adapted is not None

    def start(
        self,
        workspace: Workspace,
        quality: str,
        *,
        first: int = 0,
        last: int | None = None,
        adapts: bool = False,
    ) -> None:
        """Puts a run of the frames `first` to `last`, or to the end, at the end of the queue;
        `adapts`: it adapts the weights first.

        Raises:
            MaskError: nothing is drawn in these frames.
            VideoError: the video has no such frames.
            InoError: the workspace has a run already.
        """
        last = workspace.state.num_frames - 1 if last is None else last
        workspace.check_number(last)
        if first > last:
            raise VideoError(f"there are no frames from {first} to {last}")
        if not (drawn := workspace.annotated()):
            raise MaskError("nothing is drawn yet: draw the object on at least one frame")
        if not any(first <= number <= last for number in drawn):
            raise MaskError(f"nothing is drawn in the frames {first} to {last}: draw there as well")
        with self._lock:
            if (run := self.of(workspace)) is not None and run.is_live:
                raise InoError("this video is being worked on: wait for the end, or stop it")
            run = self._runs[str(workspace.folder)] = Run(workspace, quality, first, last, adapts)
            run.go_on.set()
            self._queue.append(run)
        workspace.change(run="running", is_changed=False)
        self._thread.submit(self._work, run)

    def of(self, workspace: Workspace) -> Run | None:
        """The last run of a workspace since the server started."""
        return self._runs.get(str(workspace.folder))

    def num_before(self, run: Run) -> int:
        """How many runs come before this one."""
        with self._lock:
            return self._queue.index(run) if run in self._queue else 0

    def stop(self, workspace: Workspace) -> None:
        """Ends a run after its frame; its masks stay."""
        if (run := self.of(workspace)) is not None and run.is_live:
            run.is_stopped = True
            run.go_on.set()

    def pause(self, workspace: Workspace, *, pauses: bool) -> None:
        """Holds a run after its frame, or lets it go on."""
        if (run := self.of(workspace)) is not None and run.is_live:
            (run.go_on.clear if pauses else run.go_on.set)()

    def forget(self, workspace: Workspace) -> None:
        """Drops what is known of the runs of a workspace."""
        self._runs.pop(str(workspace.folder), None)

    def close(self) -> None:
        """Stops everything and waits for the end of the frame at work."""
        for run in list(self._runs.values()):
            self.stop(run.workspace)
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _work(self, run: Run) -> None:
        status: Literal["done", "stopped", "failed"] = "failed"
        try:
            if run.is_stopped:
                raise _StopRun
            self._segment(run)
            status = "done"
        except _StopRun:
            status = "stopped"
        except InoError as error:
            run.reason = str(error)
        except Exception as error:
            _LOG.exception("a run of ino web failed")
            memory = "memory" in str(error).lower() or isinstance(error, MemoryError)
            run.reason = (
                "the memory of this machine does not hold this work: choose the quality fast"
                if memory
                else f"a fault of the program ({type(error).__name__}); the terminal shows more"
            )
        finally:
            with suppress(InoError):  # the folder may be gone
                run.workspace.change(run=status)
            with self._lock:
                self._queue.remove(run)
                run.status = status  # last: whoever sees it finds all else as it will stay

    def _segment(self, run: Run) -> None:
        from ino.tasks.segment import segment_video, steps_of_work

        workspace = run.workspace
        masks = {
            number: labels
            for number, labels in workspace.drawings().items()
            if run.first <= number <= run.last
        }
        if run.adapts and self._make_adapted is not None:
            drawn = workspace.folder / "drawings" / workspace.file_name(min(masks))
            num_done: Counter[str] = Counter()

            def on_progress(what: str, total: int) -> None:
                num_done[what] += 1
                run.adapting = f"{what}, {100 * num_done[what] // total} %"
                if run.is_stopped:
                    raise _StopRun

            tracker, settings, run.note = self._make_adapted(
                run.quality,
                workspace.video,
                f"{min(masks)}={drawn}",
                workspace.folder / ADAPTED,
                on_progress,
            )
        else:
            tracker, settings = self._tracker(run.quality)
        inner = {number - run.first: labels for number, labels in masks.items()}
        run.num_steps = steps_of_work(inner, run.last - run.first + 1)
        run.status, run.began = "running", time.time()

        def on_frame() -> None:
            run.num_done += 1
            if run.num_done == 1:
                run.first_mask = time.time()
            self._hold(run)
            if run.is_stopped:
                raise _StopRun

        settings = {
            **settings,
            "video": str(workspace.video),
            "quality": run.quality,
            "objects": workspace.names(),
            "annotated": sorted(masks),
        }
        follow = partial(
            segment_video,
            workspace.video,
            masks,
            out=workspace.folder,
            tracker=tracker,
            settings=settings,
            first=run.first,
            last=None if run.last == workspace.state.num_frames - 1 else run.last,
            overlay=False,
            on_frame=on_frame,
        )
        try:
            follow(resume=True)
        except OutputError:  # what is there belongs to other drawings, or nothing is there
            if run.num_done:
                raise
            follow(overwrite=True)

    def _tracker(self, quality: str) -> "tuple[Tracker, dict[str, Any]]":
        if quality not in self._trackers:
            self._trackers[quality] = self._make_tracker(quality)
        return self._trackers[quality]

    def _hold(self, run: Run) -> None:
        """Waits while a run is paused, but not for ever where others wait."""
        if run.go_on.is_set():
            return
        run.status, began = "paused", time.time()
        while not run.go_on.wait(0.2):
            if time.time() - began > PATIENCE and len(self._queue) > 1:
                run.is_stopped = True
                run.reason = "it was paused for a minute, and others waited for their turn"
                break
        run.seconds_paused += time.time() - began
        run.status = "running"
