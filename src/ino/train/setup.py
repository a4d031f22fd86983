"""What a run stands on before its first step: devices, folder, videos, networks."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from torch import Tensor
from torch.utils.data import DataLoader

from ino.data.clips import ClipSampler
from ino.data.shard_clips import ShardSchedule
from ino.data.visits import VisitSampler
from ino.errors import ConfigError
from ino.files import atomic_path, new_folder, remove_leftovers
from ino.models.checkpoints import list_checkpoints
from ino.train.checkpoint import RunState, remove_half_written, restore_checkpoint
from ino.train.config import TrainConfig, from_dict, to_dict
from ino.train.data import build_data, record_videos
from ino.train.devices import build_fabric, is_restart, launch, launch_name, with_processes
from ino.train.networks import Origin, build_networks, compile_blocks
from ino.train.objective import Objective
from ino.train.optim import build_optimizer
from ino.train.resolve import check_same_batch, differences
from ino.train.schedules import Schedules

CONFIG_NAME = "config.yaml"
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

    def reduce_mean(self, mean: Tensor) -> Tensor:
        """A tensor averaged over all processes."""
        return cast(Tensor, self.fabric.all_reduce(mean, reduce_op="mean"))


def start(config: TrainConfig, *, out: Path, resume: bool) -> Run:
    """Devices, folder, videos, networks and schedules of a run, restored where it resumes.

    Raises:
        InoError: see `ino.train.loop.train`.
    """
    fabric = build_fabric(config.run)
    launch(fabric)
    config = with_processes(config, fabric)
    clips = build_data(config, fabric, out=out)
    loader, sampler = clips.loader, clips.sampler
    resume = resume or is_own_restart(out)
    if fabric.is_global_zero:
        prepare_folder(config, out=out, resume=resume)
        record_videos(clips, out)
    fabric.barrier()
    saved = fabric.broadcast(newest_checkpoint(out))

    torch.manual_seed(config.run.seed)
    model, origin = build_networks(config, saved=saved)
    if fabric.is_global_zero and origin.path:
        write_config(config, out=out, origin=origin)
        for note in () if saved else origin.notes:
            _LOG.warning("%s", note)
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
    state = RunState(model, objective, build_optimizer(model.student), scaler, origin)
    first_step = restore_checkpoint(saved, state) if saved else 0

    steps_per_epoch = sampler.num_batches
    frames_per_step = config.data.batch_size * config.data.clip_length * fabric.world_size
    schedules = Schedules(
        config.optim, steps_per_epoch=steps_per_epoch, frames_per_step=frames_per_step
    )
    num_steps = config.optim.epochs * steps_per_epoch
    num_steps = min(num_steps, config.run.max_steps or num_steps)
    return Run(
        config,
        fabric,
        loader,
        sampler,
        network,
        state,
        schedules,
        first_step,
        num_steps,
        steps_per_epoch,
    )


def newest_checkpoint(out: Path) -> Path | None:
    """The checkpoint that the run in a folder continues from, if there is one."""
    return next(reversed(list_checkpoints(out)), None)


def prepare_folder(config: TrainConfig, *, out: Path, resume: bool) -> None:
    """Creates the folder of a run with its configuration, or checks that a run can continue there.

    Raises:
        OutputError: the folder holds something and `resume` is off, or it cannot be written.
        ConfigError: the run in the folder was configured otherwise; the message names the field.
    """
    path = out / CONFIG_NAME
    if resume and path.exists():
        _check_same_run(config, path)
        remove_leftovers(out)
        remove_half_written(out)
    else:
        other = "choose another --out"
        continue_run = f"it holds a run; pass --resume to continue it or {other}"
        new_folder(out, advice=continue_run if list_checkpoints(out) else other)
    (out / "checkpoints").mkdir(exist_ok=True)
    write_config(config, out=out)
    if name := launch_name():
        with atomic_path(out / LAUNCH_NAME) as temporary:
            temporary.write_text(name, encoding="utf-8")


def write_config(config: TrainConfig, *, out: Path, origin: Origin | None = None) -> None:
    """Writes config.yaml, a recipe by itself; a comment names the weights that it started from."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    if origin is not None:
        text = f"# started from {origin.path}, sha256 {origin.sha256}\n{text}"
    with atomic_path(out / CONFIG_NAME) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_own_restart(out: Path) -> bool:
    """Whether torchrun or SLURM restarts the run that it started in this folder.

    A command that was refused since the folder holds a run, and that is started anew because it
    failed, is no restart of that run.
    """
    path = out / LAUNCH_NAME
    return is_restart() and path.is_file() and path.read_text(encoding="utf-8") == launch_name()


def _check_same_run(config: TrainConfig, path: Path) -> None:
    earlier = from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    changed = differences(earlier, config)
    if changed:
        name, old, new = changed[0]
        raise ConfigError(
            f"the run in {path.parent} has {name} {old}, now it is {new}; resume with the same "
            "configuration or choose another --out"
        )
    check_same_batch(earlier, config, run=path.parent)
