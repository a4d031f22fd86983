"""Checkpoints of a run: whole or absent, and enough to continue to the same numbers.

Randomness is a function of seed and step (see train.loop), so no generator's state is kept.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from ino.files import atomic_path
from ino.models.checkpoints import FORMAT, VERSION, list_checkpoints, load_exactly, read_checkpoint
from ino.models.student_teacher import StudentTeacher
from ino.train.config import TrainConfig, to_dict
from ino.train.objective import Objective


class RunState(NamedTuple):
    """What a checkpoint keeps, beside the step and the configuration; `scaler` only for fp16."""

    model: StudentTeacher
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: Any | None


def save_checkpoint(config: TrainConfig, state: RunState, *, out: Path, step: int) -> Path:
    """Writes the state after `step` steps and removes checkpoints beyond `run.keep`.

    Raises:
        OutputError: it cannot be written (a full disk); earlier checkpoints stay.
    """
    path = out / "checkpoints" / f"step_{step:08d}.pt"
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": to_dict(config),
        "step": step,
        "student": state.model.student.state_dict(),
        "teacher": state.model.teacher.state_dict(),
        "objective": state.objective.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
    for old in list_checkpoints(out)[: -config.run.keep]:
        old.unlink(missing_ok=True)
    return path


def restore_checkpoint(path: Path, state: RunState) -> int:
    """Puts the state of a checkpoint back and gives the number of steps that were done.

    Raises:
        CheckpointError: the file is not whole or belongs to another architecture.
    """
    content = read_checkpoint(path)
    load_exactly(state.model.student, content["student"], source=path)
    load_exactly(state.model.teacher, content["teacher"], source=path)
    load_exactly(state.objective, content["objective"], source=path)
    state.optimizer.load_state_dict(content["optimizer"])
    if state.scaler is not None and content["scaler"] is not None:
        state.scaler.load_state_dict(content["scaler"])
    return content["step"]
