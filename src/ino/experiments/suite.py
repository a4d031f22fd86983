"""A suite: every row is carried video by video and scored, whatever happens to the others.

What is done is read from the folder alone, so a suite that was killed goes on where it stopped:
    DIR/LABEL/                 as `ino evaluate` leaves it; finished.txt names what is done
    DIR/LABEL/done.json        once the row is scored
    DIR/LABEL.error.txt        why it failed, until it succeeds
    DIR/worker_N.log.txt       what a process printed, where several work at once
"""

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ino import __version__
from ino.experiments.rows import failure_text, first_line
from ino.experiments.suite_data import DATA_SETS, Video, make_tracker, read_scores, video_name
from ino.experiments.suite_plan import SuitePlan, SuiteRow
from ino.propagate.tracker import Tracker
from ino.system import available_cores, folder_lock, write_text
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.results import note_finished, open_folder, read_finished

OnTask = Callable[["Task"], None]
_DONE = "done.json"


@dataclass(frozen=True)
class Task:
    """A video to carry through, or, without one, a row to score."""

    row: SuiteRow
    video: Video | None

    @property
    def what(self) -> str:
        return "scores" if self.video is None else video_name(self.video)


@dataclass
class Board:
    """What is left to do. Only one process has it: notes of what is done have one writer."""

    out: Path
    waiting: deque[Task] = field(default_factory=deque)
    unfinished: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def open_row(self, row: SuiteRow) -> None:
        """Adds what is left of a row, and makes its folder ready."""
        folder = self.out / row.label
        error_file(row, out=self.out).unlink(missing_ok=True)
        try:
            open_folder(folder, row.settings, resume=folder.exists(), overwrite=False)
            (folder / "predictions").mkdir(exist_ok=True)
            left = [one for one in row.videos if not _is_carried(row, one, folder)]
        except Exception as error:  # the other rows go on
            self.fail(row, failure_text(error))
            return
        self.unfinished[row.label] = len(left)
        light = light_row(row)
        self.waiting.extend(Task(light, video) for video in left)
        if not left:
            self.waiting.append(Task(light, None))

    def take(self) -> Task | None:
        """The next task of a row that has not failed; None where nothing is waiting."""
        while self.waiting:
            if (task := self.waiting.popleft()).row.label not in self.failed:
                return task
        return None

    def finish(self, task: Task, failure: str | None) -> None:
        """Notes what a task came to: None, or the text of a failure, which ends its row."""
        row = task.row
        if failure is not None:
            self.fail(row, failure if task.video is None else f"{task.what}: {failure}")
            return
        folder = self.out / row.label
        if task.video is None:
            content = {"version": __version__, "scores": read_scores(folder, row.config)}
            write_text(folder / _DONE, json.dumps(content, indent=2) + "\n")
            return
        note_finished(folder, task.what)
        self.unfinished[row.label] -= 1
        if not self.unfinished[row.label]:
            self.waiting.appendleft(Task(row, None))

    def fail(self, row: SuiteRow, failure: str) -> None:
        """Notes why a row failed; the first reason is kept."""
        if row.label not in self.failed:
            self.failed[row.label] = failure
            write_text(error_file(row, out=self.out), failure)


def light_row(row: SuiteRow) -> SuiteRow:
    """The row without its videos, quick to hand to another process."""
    return SuiteRow(row.label, row.config, row.protocol, ())


def run_suite(
    plan: SuitePlan,
    *,
    out: Path,
    jobs: int = 1,
    devices: Sequence[str] = ("auto",),
    on_task: OnTask = lambda task: None,
) -> list[SuiteRow]:
    """Carries and scores every chosen row that is not done, and gives those that failed.

    Args:
        plan: see `plan_suite`; checked against the folder by `check_suite_folder`.
        out: folder of the suite, which exists.
        jobs: processes that share the videos of all rows; with 1 all is done in this process.
        devices: of the processes, in turn.
        on_task: called after a video is carried, and after a row is scored or has failed.

    Raises:
        OutputError: another process has the folder.
    """
    board = Board(out)
    with folder_lock(out, command="ino evaluate suite"):
        for row in _rows_left(plan, out=out):
            board.open_row(row)
        if jobs == 1:
            worker = Worker(out, device=devices[0], scorers=None)
            while (task := board.take()) is not None:
                board.finish(task, worker.perform(task))
                on_task(task)
        else:
            from ino.experiments.suite_processes import share_tasks

            threads = max(1, available_cores() // jobs)
            share_tasks(board, jobs=jobs, devices=devices, threads=threads, on_task=on_task)
    return [row for row in plan.rows if row.label in board.failed]


class Worker:
    """Carries videos and scores rows; keeps the network of the last row."""

    def __init__(self, out: Path, *, device: str, scorers: int | None) -> None:
        """Args:
        out: folder of the suite.
        device: where networks run.
        scorers: processes that score, as for `score_davis`.
        """
        self._out, self._device, self._scorers = out, device, scorers
        self._label = ""
        self._tracker: Tracker | LabelTracker | None = None

    def perform(self, task: Task) -> str | None:
        """Does a task; None, or the text of what went wrong."""
        row, folder = task.row, self._out / task.row.label
        data = DATA_SETS[row.config.data]
        try:
            if task.video is None:
                data.score(row.config, row.protocol, folder, self._scorers)
            else:
                data.carry(row.config, task.video, self._tracker_of(row), folder)
        except Exception as error:  # the other rows go on, and the whole story is kept
            return failure_text(error)
        return None

    def _tracker_of(self, row: SuiteRow) -> Tracker | LabelTracker:
        if self._tracker is None or self._label != row.label:
            self._tracker = None  # frees the memory of the last one first
            self._tracker = make_tracker(row.config, row.protocol, device=self._device)
            self._label = row.label
        return self._tracker


def num_left(plan: SuitePlan, *, out: Path) -> int:
    """Videos that are still to be carried."""
    rows = _rows_left(plan, out=out)
    return sum(max(0, len(row.videos) - len(read_finished(out / row.label))) for row in rows)


def _rows_left(plan: SuitePlan, *, out: Path) -> list[SuiteRow]:
    """Those that are asked for, can run and are not done."""
    return [row for row in plan.chosen if not row.absent and not is_done(row, out=out)]


def is_done(row: SuiteRow, *, out: Path) -> bool:
    """Whether the row is scored, or its submission packed."""
    return _done_scores(row, out=out) is not None


def state_of(row: SuiteRow, *, out: Path) -> str:
    """How far a row is, in a few words."""
    if is_done(row, out=out):
        scores = scores_of(row, out=out)
        main = next(iter(DATA_SETS[row.config.data].scores))
        if main in scores:
            return f"done, {main} {scores[main]:.1f}"
        if scores:
            return "done, " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
        return f"done; its server scores {out / row.label / 'submission.zip'}"
    if row.absent:
        return row.absent
    failure = error_file(row, out=out)
    if failure.is_file():
        return f"failed: {first_line(failure)}"
    finished = len(read_finished(out / row.label))
    if finished:
        return f"{finished} of {len(row.videos) or '?'} videos carried"
    return f"not started ({row.config.weights})"


def scores_of(row: SuiteRow, *, out: Path) -> dict[str, float]:
    """The scores of a row in percent; none where it is not done."""
    return _done_scores(row, out=out) or {}


def error_file(row: SuiteRow, *, out: Path) -> Path:
    """Where it is written why a row failed."""
    return out / f"{row.label}.error.txt"


def _done_scores(row: SuiteRow, *, out: Path) -> dict[str, float] | None:
    """What the row's last file holds; None where it is missing or damaged."""
    try:
        return json.loads((out / row.label / _DONE).read_text(encoding="utf-8"))["scores"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _is_carried(row: SuiteRow, video: Video, folder: Path) -> bool:
    noted = video_name(video) in read_finished(folder)
    return noted and DATA_SETS[row.config.data].is_whole(video, folder)
