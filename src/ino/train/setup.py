"""What a run stands on before its first step: devices, folder, videos, networks."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from ino.data.clip_sampler import ClipSampler
from ino.data.shard_clips import ShardSchedule
from ino.data.visits import VisitSampler
from ino.errors import ConfigError
from ino.files import check_new_folder, new_folder, remove_leftovers, write_text
from ino.models.checkpoints import list_checkpoints
from ino.models.student_teacher import StudentTeacher
from ino.train.checkpoint import RunState, remove_half_written, restore_checkpoint
from ino.train.config import TrainConfig
from ino.train.config_dict import to_dict
from ino.train.data import build_data, record_videos
from ino.train.devices import (
    build_fabric,
    is_restart,
    launch,
    launch_name,
    of_first,
    with_processes,
)
from ino.train.earlier import CONFIG_NAME, newest_whole, read_config
from ino.train.folder_lock import folder_lock
from ino.train.networks import Origin, build_networks, compile_blocks
from ino.train.objective import Objective
from ino.train.optim import build_optimizer
from ino.train.resolve import check_same_batch, count_clips, differences
from ino.train.schedules import Schedules

LAUNCH_NAME = ".launch"  # hidden: a folder that holds nothing else is empty

_LOG = logging.getLogger("ino")


@dataclass
class Run:
    """All that the loop works with; `state` is what a checkpoint keeps."""

    config: TrainConfig
    fabric: Fabric
    loader: DataLoader
    sampler: ClipSampler | VisitSampler | ShardSchedule
    network: _FabricModule
    state: RunState
    schedules: Schedules
    first_step: int
    num_steps: int
    steps_per_epoch: int


def start(config: TrainConfig, *, out: Path, resume: bool, held: ExitStack) -> Run:
    """Devices, folder, videos, networks and schedules of a run, restored where it resumes.

    Args:
        config: resolved.
        out: folder of the run.
        resume: see `ino.train.loop.train`.
        held: keeps the folder from other runs until it closes.

    Raises:
        InoError: see `ino.train.loop.train`.
    """
    fabric = build_fabric(config.run)
    launch(fabric)
    config = with_processes(config, fabric)
    resume = resume or is_own_restart(out)
    is_locked = out.is_dir()

    def find() -> Path | None:
        if is_locked:
            held.enter_context(folder_lock(out))
        check_folder(config, out=out, resume=resume)
        return newest_whole(out) if resume else None

    saved = of_first(fabric, find)

    torch.manual_seed(config.run.seed)
    model, origin = build_networks(config, saved=saved)
    clips = build_data(config, fabric, out=out)
    network, state = _set_up(config, fabric, model, origin)

    def begin() -> None:
        if not is_locked:
            held.enter_context(folder_lock(out))
        prepare_folder(config, out=out, resume=resume, origin=origin)
        record_videos(clips, out)

    of_first(fabric, begin)  # after the networks: what cannot be built leaves no folder behind
    if fabric.is_global_zero:
        told = f"on {fabric.device}, precision {fabric.strategy.precision.precision}"
        Console(stderr=True).print(told, highlight=False)
    for note in origin.notes if fabric.is_global_zero and not saved else ():
        _LOG.warning("%s", note)
    first_step = restore_checkpoint(saved, state) if saved else 0

    steps_per_epoch = clips.sampler.num_batches
    schedules = Schedules(
        config.optim,
        steps_per_epoch=steps_per_epoch,
        frames_per_step=count_clips(config) * config.data.clip_length,
    )
    num_steps = config.optim.epochs * steps_per_epoch
    return Run(
        config,
        fabric,
        clips.loader,
        clips.sampler,
        network,
        state,
        schedules,
        first_step,
        min(num_steps, config.run.max_steps or num_steps),
        steps_per_epoch,
    )


def _set_up(
    config: TrainConfig, fabric: Fabric, model: StudentTeacher, origin: Origin
) -> tuple[_FabricModule, RunState]:
    """The networks where they run, and with them what else a checkpoint keeps."""
    model.student.backbone.set_grad_checkpointing(config.run.activation_checkpointing)
    if config.run.compile:
        compile_blocks(model, fabric.device)
    network = fabric.setup_module(model)
    objective = Objective(
        config.loss,
        num_classes=config.model.out_dim,
        num_local=config.views.num_local,
        reduce_mean=lambda mean: cast(Tensor, fabric.all_reduce(mean, reduce_op="mean")),
    ).to(fabric.device)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    # Fabric does not wrap the optimiser: a step is taken or not as the device decides.
    return network, RunState(model, objective, build_optimizer(model.student), scaler, origin)


def check_folder(config: TrainConfig, *, out: Path, resume: bool) -> None:
    """Checks that a run can begin or continue in its folder; creates nothing.

    Raises:
        OutputError: the folder holds something and `resume` is off, or there is a file.
        ConfigError: the run in the folder was configured otherwise; the message names the field.
    """
    if resume and _holds_run(out):
        _check_same_run(config, out)
    else:
        check_new_folder(out, advice=_advice(out))


def prepare_folder(config: TrainConfig, *, out: Path, resume: bool, origin: Origin) -> None:
    """Creates the folder of a run, which was checked, with its configuration.

    Raises:
        OutputError: it cannot be written, or holds something by now.
    """
    if resume and _holds_run(out):
        remove_leftovers(out)
        remove_half_written(out)
    else:
        new_folder(out, advice=_advice(out))
    # A kill between any two of these leaves a folder that resumes or that counts as empty.
    if name := launch_name():
        write_text(out / LAUNCH_NAME, name)
    write_config(config, out=out, origin=origin)
    (out / "checkpoints").mkdir(exist_ok=True)


def write_config(config: TrainConfig, *, out: Path, origin: Origin) -> None:
    """Writes config.yaml, a recipe by itself; a comment names the weights that a run began with."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    if origin.path:
        text = f"# started from {origin.path}, sha256 {origin.sha256}\n{text}"
    write_text(out / CONFIG_NAME, text)


def is_own_restart(out: Path) -> bool:
    """Whether torchrun or SLURM restarts the run that it started in this folder.

    A command that was refused since the folder holds a run, and that is started anew because it
    failed, is no restart of that run.
    """
    path = out / LAUNCH_NAME
    return is_restart() and path.is_file() and path.read_text(encoding="utf-8") == launch_name()


def _holds_run(out: Path) -> bool:
    return (out / CONFIG_NAME).exists() or bool(list_checkpoints(out))


def _advice(out: Path) -> str:
    """What to do with a folder that holds something."""
    other = "choose another --out"
    if list_checkpoints(out):
        return f"it holds a run; pass --resume to continue it or {other}"
    return other


def _check_same_run(config: TrainConfig, out: Path) -> None:
    earlier = read_config(out)
    changed = differences(earlier, config)
    if changed:
        name, old, new = changed[0]
        raise ConfigError(
            f"the run in {out} has {name} {old}, now it is {new}; resume with the same "
            "configuration or choose another --out"
        )
    check_same_batch(earlier, config, run=out)
