"""What a run stands on before its first step: devices, folder, videos, networks."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from torch import Tensor
from torch.utils.data import DataLoader

from ino.data.clips import ClipDataset, ClipSampler, ClipSampling, find_videos
from ino.errors import ConfigError
from ino.files import atomic_path, new_folder, remove_leftovers
from ino.models.checkpoints import list_checkpoints
from ino.models.devices import computes_in_bf16
from ino.models.head import ProjectionHead
from ino.models.student_teacher import StudentTeacher
from ino.models.vit import build_vit
from ino.train.checkpoint import RunState, restore_checkpoint
from ino.train.config import ModelConfig, RunConfig, TrainConfig, from_dict, to_dict
from ino.train.objective import Objective
from ino.train.optim import build_optimizer
from ino.train.resolve import differences
from ino.train.schedules import Schedules

CONFIG_NAME = "config.yaml"
QUARANTINE_NAME = "quarantine.jsonl"


@dataclass
class Run:
    """All that the loop works with; `state` is what a checkpoint keeps."""

    fabric: Fabric
    loader: DataLoader
    sampler: ClipSampler
    network: _FabricModule
    optimizer: Any
    state: RunState
    schedules: Schedules
    first_step: int
    num_steps: int
    steps_per_epoch: int


def start(config: TrainConfig, *, out: Path, resume: bool) -> Run:
    """Devices, folder, videos, networks and schedules of a run, restored where it resumes.

    Raises:
        InoError: see `ino.train.loop.train`.
    """
    fabric = build_fabric(config.run)
    fabric.launch()
    loader, sampler = build_data(config, fabric, quarantine=out / QUARANTINE_NAME)
    if fabric.is_global_zero:
        prepare_folder(config, out=out, resume=resume)
    fabric.barrier()

    torch.manual_seed(config.run.seed)
    model = build_model(config.model)
    model.student.backbone.set_grad_checkpointing(config.run.activation_checkpointing)
    if config.run.compile:
        compile_blocks(model, fabric.device)
    inner_optimizer = build_optimizer(model.student)
    network, optimizer = fabric.setup(model, inner_optimizer)
    objective = Objective(
        config.loss,
        num_classes=config.model.out_dim,
        num_local=config.views.num_local,
        reduce_mean=lambda mean: cast(Tensor, fabric.all_reduce(mean, reduce_op="mean")),
    ).to(fabric.device)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    state = RunState(model, objective, inner_optimizer, scaler)
    saved = list_checkpoints(out) if resume else []
    first_step = restore_checkpoint(saved[-1], state) if saved else 0

    steps_per_epoch = len(sampler) // config.data.batch_size
    frames_per_step = config.data.batch_size * config.data.clip_length * fabric.world_size
    schedules = Schedules(
        config.optim, steps_per_epoch=steps_per_epoch, frames_per_step=frames_per_step
    )
    num_steps = config.optim.epochs * steps_per_epoch
    num_steps = min(num_steps, config.run.max_steps or num_steps)
    return Run(
        fabric,
        loader,
        sampler,
        network,
        optimizer,
        state,
        schedules,
        first_step,
        num_steps,
        steps_per_epoch,
    )


def build_fabric(config: RunConfig) -> Fabric:
    """Lightning Fabric on the devices asked for; `auto` precision is resolved here.

    Raises:
        ConfigError: the device is not there or does not know the precision.
    """
    try:
        fabric = Fabric(
            accelerator=config.accelerator, devices=config.devices, num_nodes=config.num_nodes
        )
        precision = config.precision
        if precision == "auto":
            precision = "bf16-mixed" if computes_in_bf16(fabric.device) else "32-true"
        return Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=precision,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot run on accelerator {config.accelerator} with {config.devices} device(s) and "
            f"precision {config.precision}: {error}"
        ) from error


def build_model(config: ModelConfig) -> StudentTeacher:
    """Student and teacher with equal random weights."""
    backbone = build_vit(config.arch, patch_size=config.patch_size, drop_path=config.drop_path)
    head = ProjectionHead(
        backbone.embed_dim,
        out_dim=config.out_dim,
        hidden_dim=config.hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
    )
    return StudentTeacher(backbone, head)


def compile_blocks(model: StudentTeacher, device: torch.device) -> None:
    """Has torch compile the blocks of both networks where they stand; their names stay.

    Not the last of each, whose shapes follow the number of masked positions of a step.

    Raises:
        ConfigError: there is no C++ compiler, which compiling for a CPU needs.
    """
    compilers = [os.environ.get("CXX") or "g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ConfigError(
            "run.compile needs a C++ compiler on a CPU and none was found: install g++ or clang, "
            "or leave run.compile off"
        )
    for network in (model.student, model.teacher):
        for block in list(network.backbone.blocks)[:-1]:
            block.compile()


def build_data(
    config: TrainConfig, fabric: Fabric, *, quarantine: Path
) -> tuple[DataLoader, ClipSampler]:
    """The clips of this process, in batches, and the sampler that says where in an epoch they are.

    Raises:
        VideoError: there are no videos.
        ConfigError: an epoch has fewer clips than a step.
    """
    data = config.data
    if not data.root:
        raise ConfigError("no videos were given; pass --data.root FOLDER")
    sampling = ClipSampling(
        length=data.clip_length,
        frame_step=data.frame_step or None,
        fps=data.fps or None,
        clips_per_video=data.clips_per_video,
    )
    videos = find_videos([Path(root) for root in data.root])
    dataset = ClipDataset(
        videos,
        sampling=sampling,
        seed=config.run.seed,
        quarantine=quarantine,
    )
    global_batch = data.batch_size * fabric.world_size
    if len(dataset) < global_batch:
        raise ConfigError(
            f"an epoch has {len(dataset)} clips ({len(videos)} videos x data.clips_per_video "
            f"{sampling.clips_per_video}), fewer than the {global_batch} of one step; "
            "raise data.clips_per_video or lower data.batch_size"
        )
    sampler = ClipSampler(
        len(dataset),
        batch_size=data.batch_size,
        seed=config.run.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    loader = DataLoader(
        dataset,
        batch_size=data.batch_size,
        sampler=sampler,
        num_workers=data.num_workers,
        collate_fn=list,
        drop_last=True,
        persistent_workers=data.num_workers > 0,
    )
    return loader, sampler


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
    else:
        other = "choose another --out"
        continue_run = f"it holds a run; pass --resume to continue it or {other}"
        new_folder(out, advice=continue_run if list_checkpoints(out) else other)
    (out / "checkpoints").mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def _check_same_run(config: TrainConfig, path: Path) -> None:
    earlier = from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    changed = differences(earlier, config)
    if changed:
        name, old, new = changed[0]
        raise ConfigError(
            f"the run in {path.parent} has {name} {old}, now it is {new}; resume with the same "
            "configuration or choose another --out"
        )
