"""The log of a run: JSON lines, progress on the screen, TensorBoard, Weights & Biases.

Every step writes one JSON line, which `ino plot` reads and which survives kills and full disks.
TensorBoard and Weights & Biases get every `run.log_every`-th step through Lightning's loggers (W&B
is an extra; WANDB_MODE=offline keeps everything in the run's folder). Times are measured on the
host: with an asynchronous device, `waiting` is the fraction of time in which the host had no batch
for it.
"""

import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ino.errors import ConfigError
from ino.system import write_text
from ino.tables import shown
from ino.train.config import TrainConfig, global_batch_size

LOG_NAME = "log.jsonl"
WANDB_ID_NAME = "wandb_id.txt"
TERMS = ("loss", "g2g", "l2g", "masked", "affinity")
SCORES = {"eval_jf": "J&F", "eval_j": "J", "eval_f": "F", "judge_jf": "predicted J&F"}

_LOG = logging.getLogger("ino")
Item = TypeVar("Item")


class LogFile:
    """Appends a JSON line for each step.

    When a run is resumed, the lines of steps that will be repeated are removed, so each step occurs
    once. Lines that cannot be written because the disk is full are kept in memory and written when
    there is space again.
    """

    def __init__(self, path: Path, *, first_step: int) -> None:
        if path.exists():
            write_text(path, "".join(_lines_before(first_step, path)))
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        self._has_warned = False

    def write(self, numbers: Mapping[str, int | float]) -> None:
        """Appends numbers by name; those that are not finite are null, as JSON has no NaN."""
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


def _lines_before(step: int, path: Path) -> Iterator[str]:
    """The lines up to that step, or to the first one that a kill tore or that is damaged."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] >= step:
                return
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        yield line


def check_wandb(project: str) -> None:
    """Checks that Weights & Biases is installed, if a project of it is given.

    Raises:
        ConfigError: it is not installed.
    """
    if project and find_spec("wandb") is None:
        raise ConfigError(
            f"run.wandb is {project}, but Weights & Biases is not installed: run "
            "`uv sync --extra wandb` in the checkout of ino, or leave run.wandb out"
        )


def _wandb_logger(project: str, folder: Path) -> Any:
    """Lightning's logger, connected; a run that resumes continues its own run there."""
    from lightning.pytorch.loggers import WandbLogger

    id_file = folder / WANDB_ID_NAME
    if not id_file.is_file() or not id_file.read_text(encoding="utf-8").strip():
        write_text(id_file, secrets.token_hex(8) + "\n")
    logger = WandbLogger(
        name=folder.name,
        save_dir=folder,
        project=project,
        id=id_file.read_text(encoding="utf-8").strip(),
        resume="allow",
    )
    try:
        _ = logger.experiment  # it connects here, not at the first number
    except import_module("wandb.errors").Error as error:
        raise ConfigError(
            f"run.wandb is {project}, but Weights & Biases does not take the run ({error}): "
            "run wandb login, set WANDB_MODE=offline, or leave run.wandb out"
        ) from error
    return logger


class RunLog:
    """Context manager that logs the metrics of each step. A full disk does not stop the run."""

    def __init__(
        self,
        folder: Path,
        *,
        config: TrainConfig,
        first_step: int,
        num_steps: int,
        enabled: bool,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """Args:
        folder: of the run.
        config: resolved.
        first_step: the step that comes first, counted from 0.
        num_steps: of the whole run.
        enabled: False in all processes but the first, which then write nothing.
        on_step: called with the number of steps done, in place of lines on the screen.

        Raises:
            ConfigError: Weights & Biases does not take the run.
        """
        from lightning.fabric.loggers import TensorBoardLogger  # heavy, and plots do not need it

        self._enabled = enabled
        self._on_step = on_step
        self._log_every = config.run.log_every
        self._num_steps = num_steps
        self._clips_per_step = global_batch_size(config)
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
            disable=not enabled or on_step is not None,
        )
        self._task = self._progress.add_task("", total=num_steps, completed=first_step)
        if enabled:
            wandb = config.run.wandb
            self._wandb = _wandb_logger(wandb, folder) if wandb else None
            self._file = LogFile(folder / LOG_NAME, first_step=first_step)
            self._tensorboard: Any = TensorBoardLogger(
                folder, name="tensorboard", version="", purge_step=first_step
            )

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._progress.stop()
        if self._enabled:
            self._on_tensorboard(lambda board: board.finalize("success"))
            self._file.close()
            if self._wandb is not None:
                self._wandb.experiment.finish(exit_code=int(kind is not None))

    def is_due(self, step: int) -> bool:
        """Whether this step is logged to the screen and TensorBoard, with its costly metrics."""
        return step % self._log_every == 0

    def waiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields the batches and measures the time spent waiting for each of them."""
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

        For a step that is due, adds `clips_per_second`, `waiting` (the fraction of time spent
        waiting for data) and `seconds_left`, all measured since the previous due step.
        """
        if not self._enabled:
            return
        now = time.perf_counter()
        numbers = dict(numbers)
        if self.is_due(step):
            numbers |= self._speed(step, now)
        self._file.write({"step": step, **numbers, "seconds": round(now - self._started, 3)})
        terms = " ".join(f"{name} {numbers[name]:.3f}" for name in TERMS)
        self._progress.update(self._task, completed=step + 1, description=terms)
        if self._on_step is not None:
            self._on_step(step + 1)
        if not self.is_due(step):
            return
        self._on_tensorboard(lambda board: board.log_metrics(numbers, step))
        if self._wandb is not None:
            self._wandb.log_metrics(numbers, step=step)
        if self._on_step is None and not self._progress.console.is_terminal:
            speed = f"{numbers['clips_per_second']:.1f} clips/s"
            left = timedelta(seconds=round(numbers["seconds_left"]))
            self._print(f"step {step} {terms} lr {numbers['lr']:.2e} {speed}, {left} left")

    def write_scores(self, scores: Mapping[str, float], *, done: int, is_best: bool) -> None:
        """Shows on the screen what the student scored after so many steps, in percent."""
        if self._enabled and scores:
            found = [f"{SCORES.get(name, name)} {score:.1f}" for name, score in scores.items()]
            kept = ", kept as best.pt" if is_best else ""
            self._print(f"step_{done:08d}: {', '.join(found)}{kept}")

    def write_picture(
        self, step: int, name: str, picture: UInt8[np.ndarray, "rows columns 3"], *, path: Path
    ) -> None:
        """Adds a picture, which is already in the file `path`, to TensorBoard and W&B."""
        if not self._enabled:
            return
        self._on_tensorboard(
            lambda board: board.experiment.add_image(name, picture, step, dataformats="HWC")
        )
        if self._wandb is not None:
            self._wandb.log_image(name, [str(path)], step=step)

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

    def _print(self, line: str) -> None:
        self._progress.console.print(shown(line), highlight=False, markup=False, soft_wrap=True)

    def _on_tensorboard(self, act: Callable[[Any], None]) -> None:
        """Does something with TensorBoard's logger, which is dropped once it has failed."""
        if self._tensorboard is None:
            return
        try:
            act(self._tensorboard)
        except (OSError, ValueError) as error:  # the logger wraps the first into the second
            reason = error.__cause__ or error
            _LOG.warning("TensorBoard's file cannot be written (%s): it ends here", reason)
            self._tensorboard = None
