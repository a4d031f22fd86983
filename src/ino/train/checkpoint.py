"""Checkpoints of a run: whole or absent, and enough to continue to the same numbers.

Randomness is a function of seed, step and process (train.drawing), and so is the position in the
data, so no generator's state is kept. Tensors are stored whole however they are spread over
devices: a run may continue with another number of processes or another strategy.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ino.errors import CheckpointError, OutputError
from ino.files import atomic_path
from ino.models.checkpoints import (
    FORMAT,
    VERSION,
    check_exact,
    list_checkpoints,
    read_checkpoint,
)
from ino.models.student_teacher import StudentTeacher
from ino.train.config import TrainConfig
from ino.train.config_dict import to_dict
from ino.train.networks import Origin
from ino.train.objective import Objective
from ino.train.sharding import gather, load_module, load_optimizer

BEST_NAME = "best.pt"


class RunState(NamedTuple):
    """What a checkpoint keeps, beside the step and the configuration; `scaler` only for fp16.

    `origin` tells from which weights the run started.
    """

    model: StudentTeacher
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: Any | None
    origin: Origin


def save_checkpoint(
    config: TrainConfig, state: RunState, *, out: Path, step: int, writes: bool = True
) -> Path:
    """Writes the state after `step` steps and removes checkpoints beyond `run.keep`.

    All processes must call it: what is spread over them is gathered.

    Args:
        config: of the run.
        state: of the run.
        out: folder of the run.
        step: steps that were done.
        writes: whether this process writes; one does.

    Raises:
        OutputError: it cannot be written (a full disk); earlier checkpoints stay.
    """
    path = out / "checkpoints" / f"step_{step:08d}.pt"
    content = _collect(config, state, step=step)
    if not writes:
        return path
    _write(content, path)
    for old in list_checkpoints(out)[: -config.run.keep]:
        old.unlink(missing_ok=True)
    return path


def save_best(
    config: TrainConfig,
    state: RunState,
    *,
    out: Path,
    step: int,
    score: float,
    writes: bool = True,
) -> bool:
    """Writes the state to checkpoints/best.pt if no earlier one of the run scored as high.

    All processes must call it; the score of the one that writes decides. `run.keep` does not count
    it, and a run does not resume from it.

    Returns:
        Whether it was written.

    Raises:
        OutputError: see `save_checkpoint`.
    """
    content = _collect(config, state, step=step)
    path = out / "checkpoints" / BEST_NAME
    if not writes or not score > best_score(path):  # also where it is no number
        return False
    _write(content | {"score": score}, path)
    return True


def best_score(path: Path) -> float:
    """The score that `save_best` stored, or minus infinity where there is none."""
    if not path.exists():
        return float("-inf")
    try:
        return float(read_checkpoint(path)["score"])
    except (CheckpointError, KeyError):  # damaged since: the next one replaces it
        return float("-inf")


def restore_checkpoint(path: Path, state: RunState) -> int:
    """Puts the state of a checkpoint back and gives the number of steps that were done.

    Raises:
        CheckpointError: the file is not whole, lacks a part, or is of another architecture.
    """
    content = read_checkpoint(path)
    if missing := {"student", "teacher", "objective", "optimizer", "step"} - content.keys():
        raise CheckpointError(
            f"{path} cannot be continued from: it has no {' and no '.join(sorted(missing))}, which "
            "every checkpoint of ino train has"
        )
    modules = {
        "student": state.model.student,
        "teacher": state.model.teacher,
        "objective": state.objective,
    }
    for name, module in modules.items():
        check_exact(module, content[name], source=path)
    for name, module in modules.items():
        load_module(module, content[name])
    load_optimizer(state.optimizer, content["optimizer"])
    if state.scaler is not None and content.get("scaler") is not None:
        state.scaler.load_state_dict(content["scaler"])
    return content["step"]


def remove_half_written(out: Path) -> None:
    """Removes checkpoints that a killed process left half written, also on another machine.

    For the one process that writes the run's checkpoints, before it writes any.
    """
    for path in (out / "checkpoints").glob(".*.pt"):
        path.unlink(missing_ok=True)


def _collect(config: TrainConfig, state: RunState, *, step: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": to_dict(config),
        "init": state.origin._asdict(),
        "step": step,
        "student": gather(state.model.student.state_dict()),
        "teacher": gather(state.model.teacher.state_dict()),
        "objective": state.objective.state_dict(),
        "optimizer": gather(state.optimizer.state_dict()),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
    }


def _write(content: dict[str, Any], path: Path) -> None:
    try:
        path.parent.mkdir(exist_ok=True)  # somebody may have moved it away
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    with _torch_errors(path), atomic_path(path) as temporary:
        torch.save(content, temporary)


@contextlib.contextmanager
def _torch_errors(path: Path) -> Iterator[None]:
    """torch tells a failed write by a RuntimeError of its own."""
    try:
        yield
    except RuntimeError as error:
        if "write" not in str(error) and "inline_container" not in str(error):
            raise
        raise OutputError(
            f"cannot write {path}: the disk is full or failing (free space on it)"
        ) from error
