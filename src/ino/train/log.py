"""What a run tells: one JSON line a step, TensorBoard, and a line on the screen now and then."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ino.files import atomic_path

LOG_NAME = "log.jsonl"
SHOWN = ("loss", "g2g", "l2g", "masked", "affinity")


class RunLog:
    """Writes the numbers of each step; a context manager.

    Opened for a run that resumes at `first_step`, it drops the lines of steps that will be done
    again, so that the log holds each step once.
    """

    def __init__(
        self, folder: Path, *, first_step: int, num_steps: int, log_every: int, enabled: bool = True
    ) -> None:
        """Args:
        folder: of the run.
        first_step: the step that comes first, counted from 0.
        num_steps: of the whole run.
        log_every: steps between lines on the screen and in TensorBoard.
        enabled: False in all processes but the first, which then write nothing.
        """
        self._enabled = enabled
        self._log_every = log_every
        self._started = time.perf_counter()
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
        if enabled:
            _drop_lines_from(folder / LOG_NAME, first_step)
            self._file = (folder / LOG_NAME).open("a", encoding="utf-8")
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
            self._tensorboard.close()
            self._file.close()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs the numbers of a step, counted from 0."""
        if not self._enabled:
            return
        seconds = round(time.perf_counter() - self._started, 3)
        self._file.write(json.dumps({"step": step, **numbers, "seconds": seconds}) + "\n")
        self._file.flush()
        shown = " ".join(f"{name} {numbers[name]:.3f}" for name in SHOWN)
        self._progress.update(self._task, completed=step + 1, description=shown)
        if step % self._log_every == 0:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
            if not self._progress.console.is_terminal:
                self._progress.console.print(f"step {step} {shown} lr {numbers['lr']:.2e}")


def _drop_lines_from(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            is_earlier = json.loads(line)["step"] < step
        except (json.JSONDecodeError, KeyError, TypeError):
            break  # torn by a kill
        if not is_earlier:
            break
        kept.append(line)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
