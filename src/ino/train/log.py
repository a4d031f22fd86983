"""The file of a run's numbers: one JSON line a step, which outlives kills and full disks."""

import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ino.errors import ConfigError
from ino.system import write_text

LOG_NAME = "log.jsonl"
_LOG = logging.getLogger("ino")


class LogFile:
    """Appends a line for each step.

    Opened for a run that resumes, it drops the lines of steps that will be done again, so that the
    file holds each step once. Lines that a full disk refuses are kept in memory and written once
    there is room.
    """

    def __init__(self, path: Path, *, first_step: int) -> None:
        """Args:
        path: of the file.
        first_step: the step that comes first, counted from 0.

        Raises:
            OutputError: the file cannot be written.
        """
        _drop_lines_from(path, first_step)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        self._has_warned = False

    def write(self, numbers: Mapping[str, int | float]) -> None:
        """Appends numbers by name; JSON knows none that are not finite, they are null."""
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._unwritten += json.dumps(finite).encode() + b"\n"
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not self._has_warned:
                _LOG.warning(
                    "cannot write %s (%s): the run goes on and writes its lines when there is room",
                    self._path,
                    error.strerror,
                )
            self._has_warned = True

    def close(self) -> None:
        self._file.close()


def _drop_lines_from(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            is_earlier = json.loads(line)["step"] < step
        except (ValueError, KeyError, TypeError, RecursionError):
            break  # torn by a kill, or damaged
        if not is_earlier:
            break
        kept.append(line)
    write_text(path, "".join(kept))


# Weights & Biases, for those who have it: an extra, through Lightning's logger.
#
# Where the service cannot or shall not be reached, its own setting WANDB_MODE=offline keeps
# everything in the folder of the run.


ID_NAME = "wandb_id.txt"


def check_wandb(project: str) -> None:
    """Checks that a run can tell Weights & Biases, if it is asked to.

    Raises:
        ConfigError: it is not installed.
    """
    if project and find_spec("wandb") is None:
        raise ConfigError(
            f"run.wandb is {project}, but Weights & Biases is not installed; install ino[wandb] or "
            "leave run.wandb out"
        )


class WandbRun:
    """A run in a project of Weights & Biases; a run that resumes goes on in the same one."""

    def __init__(self, project: str, *, folder: Path) -> None:
        """Args:
        project: its name there.
        folder: of the run; it names the run and keeps its id and its files.

        Raises:
            ConfigError: Weights & Biases is not installed, or does not take the run.
        """
        check_wandb(project)
        from lightning.pytorch.loggers import WandbLogger

        known = import_module("wandb.errors").Error

        self._logger = WandbLogger(
            name=folder.name,
            save_dir=folder,
            project=project,
            id=_stored_id(folder / ID_NAME),
            resume="allow",
        )
        try:
            self._run = self._logger.experiment  # it connects here, not at the first number
        except known as error:
            raise ConfigError(
                f"run.wandb is {project}, but Weights & Biases does not take the run ({error}): "
                "run wandb login, set WANDB_MODE=offline, or leave run.wandb out"
            ) from error

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs the numbers of a step."""
        self._logger.log_metrics(dict(numbers), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Logs a picture."""
        self._logger.log_image(name, [str(path)], step=step)

    def close(self, *, failed: bool) -> None:
        """Sends what is left."""
        self._run.finish(exit_code=int(failed))


def _stored_id(path: Path) -> str:
    if path.is_file() and (found := path.read_text(encoding="utf-8").strip()):
        return found
    new = secrets.token_hex(8)
    write_text(path, new + "\n")
    return new


# What a run tells: one JSON line a step; TensorBoard, Weights & Biases and a line on the screen
# now and then.
#
# All times are of the host. On a device that works behind it, `waiting` is the share of time in
# which the host had no batch to hand over.


SHOWN = ("loss", "g2g", "l2g", "masked", "affinity")
SCORES = (("eval_jf", "J&F"), ("eval_j", "J"), ("eval_f", "F"))
Item = TypeVar("Item")


class RunLog:
    """Writes the numbers of each step; a context manager. A full disk does not stop it."""

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int,
        num_steps: int,
        log_every: int,
        clips_per_step: int,
        wandb: str = "",
        enabled: bool = True,
    ) -> None:
        """Args:
        folder: of the run.
        first_step: the step that comes first, counted from 0.
        num_steps: of the whole run.
        log_every: steps between lines on the screen and in TensorBoard.
        clips_per_step: over all processes.
        wandb: project of Weights & Biases; empty for none.
        enabled: False in all processes but the first, which then write nothing.

        Raises:
            ConfigError: `wandb` is given and not installed.
        """
        self._enabled = enabled
        self._log_every = log_every
        self._num_steps = num_steps
        self._clips_per_step = clips_per_step
        self._started = time.perf_counter()
        self._since = (first_step, self._started)
        self._waited = 0.0
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not enabled,
        )
        self._task = self._progress.add_task("", total=num_steps, completed=first_step)
        self._wandb = None
        if enabled:
            self._wandb = WandbRun(wandb, folder=folder) if wandb else None
            self._file = LogFile(folder / LOG_NAME, first_step=first_step)
            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._enabled:
            self._on_tensorboard(SummaryWriter.close)
            self._file.close()
        if self._wandb is not None:
            self._wandb.close(failed=kind is not None)

    def is_due(self, step: int) -> bool:
        """Whether this step's numbers go to the screen, with those that cost to take."""
        return step % self._log_every == 0

    def waiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches; the time until each comes counts as waiting for data."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - started
            yield batch

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs the numbers of a step, counted from 0.

        A step that is due has, besides, clips a second, the share of time that waited for data,
        and the seconds that are left, all since the one before it.
        """
        if not self._enabled:
            return
        now = time.perf_counter()
        numbers = dict(numbers)
        if self.is_due(step):
            numbers |= self._speed(step, now)
        seconds = round(now - self._started, 3)
        self._file.write({"step": step, **numbers, "seconds": seconds})
        shown = " ".join(f"{name} {numbers[name]:.3f}" for name in SHOWN)
        self._progress.update(self._task, completed=step + 1, description=shown)
        if self.is_due(step):
            self._show(step, numbers, shown)

    def scored(self, scores: Mapping[str, float], *, done: int, is_best: bool) -> None:
        """Says on the screen what a state scored.

        Args:
            scores: percent, by name: `eval_jf`, `eval_j`, `eval_f`.
            done: steps, by which the state's folder and checkpoint are named.
            is_best: whether it is kept as best.pt.
        """
        if not self._enabled or not scores:
            return
        found = [f"{words} {scores[name]:.1f}" for name, words in SCORES if name in scores]
        told = f"step_{done:08d}: {', '.join(found)}{', kept as best.pt' if is_best else ''}"
        self._progress.console.print(told, highlight=False, soft_wrap=True)

    def picture(
        self, step: int, name: str, sheet: UInt8[np.ndarray, "rows columns 3"], *, path: Path
    ) -> None:
        """Shows a picture, which is already in the file `path`, in TensorBoard and W&B."""
        if not self._enabled:
            return
        self._on_tensorboard(lambda board: board.add_image(name, sheet, step, dataformats="HWC"))
        if self._wandb is not None:
            self._wandb.picture(step, name, path)

    def _speed(self, step: int, now: float) -> dict[str, float]:
        before, since = self._since
        elapsed = max(now - since, 1e-9)
        steps_per_second = (step + 1 - before) / elapsed
        found = {
            "clips_per_second": steps_per_second * self._clips_per_step,
            "waiting": min(1.0, self._waited / elapsed),
            "seconds_left": (self._num_steps - step - 1) / max(steps_per_second, 1e-9),
        }
        self._since, self._waited = (step + 1, now), 0.0
        return {name: float(f"{value:.4g}") for name, value in found.items()}

    def _show(self, step: int, numbers: Mapping[str, float], shown: str) -> None:
        for name, value in numbers.items():
            self._on_tensorboard(lambda board, n=name, v=value: board.add_scalar(n, v, step))
        if self._wandb is not None:
            self._wandb.write(step, numbers)
        if not self._progress.console.is_terminal:
            speed = f"{numbers['clips_per_second']:.1f} clips/s"
            left = f"{_clock(numbers['seconds_left'])} left"
            self._progress.console.print(
                f"step {step} {shown} lr {numbers['lr']:.2e} {speed}, {left}",
                highlight=False,
                soft_wrap=True,
            )

    def _on_tensorboard(self, act: Callable[[SummaryWriter], None]) -> None:
        """Does something with TensorBoard's writer, which is of no more use once it has failed."""
        if self._tensorboard is None:
            return
        try:
            act(self._tensorboard)
        except OSError as error:
            _LOG.warning("TensorBoard's file cannot be written (%s): it ends here", error.strerror)
            self._tensorboard = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
