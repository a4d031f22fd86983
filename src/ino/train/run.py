"""Everything of a run but its steps: signals, output folder, networks and checkpoints.

A checkpoint is whole or absent, and enough to continue to the same numbers: all randomness follows
from seed, step and clip, and so does the position in the data, so no generator's state is kept.
Tensors are stored whole however they are sharded: a run may continue with another number of
processes or another strategy. The steps themselves are in `train.loop`.
"""

import logging
import os
import shutil
import signal
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from rich.console import Console
from torch import Tensor, nn

from ino.errors import CheckpointError, ConfigError, OutputError, StoppedError
from ino.losses import Objective
from ino.models.backbone import TIMM, warn_of_slow_bf16
from ino.models.initial import fill, find_initial, weights_for_timm, weights_for_vit
from ino.models.masked_timm import MaskedTimm
from ino.models.student_teacher import StudentTeacher
from ino.models.vit import ProjectionHead, build_vit
from ino.models.weights import (
    FORMAT,
    VERSION,
    are_tensors,
    check_exact,
    list_checkpoints,
    position_grid_side,
    read_checkpoint,
)
from ino.schema import read_yaml
from ino.system import (
    atomic_path,
    check_new_folder,
    folder_lock,
    handle_signals,
    new_folder,
    remove_leftovers,
    write_text,
)
from ino.tables import shown
from ino.train.config import (
    ModelConfig,
    TrainConfig,
    differences,
    from_dict,
    global_batch_size,
    to_dict,
    to_yaml,
)
from ino.train.data import Clips, build_data, record_videos
from ino.train.distributed import (
    broadcast_from_first,
    build_fabric,
    count_processes,
    gather,
    is_restart,
    launch,
    launch_name,
    load_module,
    load_optimizer,
)
from ino.train.extra import ExtraTerm, find_extra
from ino.train.log import check_wandb
from ino.train.optim import FRAMES_OF_BASE_LR, Schedules, build_optimizer, layer_factors

SAVED_STATUS = 75
"""Exit status after SIGTERM or SIGUSR1: sysexits' EX_TEMPFAIL, "try again later". A batch script
tells by it that the run is to be queued again, and torchrun that the process has not finished."""

INTERRUPTED_STATUS = 130
"""Exit status after Ctrl-C, as shells have it."""

CONFIG_NAME = "config.yaml"
LAYER_DECAY = 0.75
"""`optim.layer_decay` of a backbone that was trained before, under heads that were not."""
LAUNCH_NAME = ".launch"  # hidden: a folder that holds nothing else is empty
BEST_NAME = "best.pt"
DAMAGED_SUFFIX = ".damaged"

_LOG = logging.getLogger("ino")


class Origin(NamedTuple):
    """The weights that a run started from; no path for random ones."""

    path: str = ""
    sha256: str = ""
    notes: tuple[str, ...] = ()
    fresh_head: bool = False
    """Whether the backbone was trained before and the head was not."""


@dataclass
class Run:
    """The state of a run. Checkpoints store model, objective, optimizer and scaler."""

    config: TrainConfig
    out: Path
    fabric: Fabric
    clips: Clips
    network: _FabricModule
    """The model as Fabric runs it, with its precision and over all processes."""
    model: StudentTeacher
    objective: Objective
    extra: ExtraTerm | None
    """A term of the user's; else None."""
    optimizer: torch.optim.Optimizer
    scaler: Any | None
    """Scales the loss of fp16; else None."""
    origin: Origin
    schedules: Schedules
    num_steps: int
    steps_per_epoch: int
    heads_first_steps: int = 0
    """Steps in which the heads learn alone, and then those in which the backbone's rate rises."""
    first_step: int = 0


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Context in which SIGTERM and SIGUSR1 raise StoppedError at once, as nothing is to be saved.

    The exit status still asks the batch system to start the run again.
    """

    def stop(number: int, frame: Any) -> NoReturn:
        name = signal.Signals(number).name
        where = "nothing was done since the start, pass --resume to start again"
        raise StoppedError(f"stopped by {name}; {where}", status=SAVED_STATUS)

    with handle_signals("SIGTERM", "SIGUSR1", handler=stop):
        yield


@dataclass
class StopRequest:
    """The first signal that asked the run to stop, if one did."""

    received: signal.Signals | None = None


@contextmanager
def record_signal() -> Iterator[StopRequest]:
    """Context in which the first SIGINT, SIGTERM or SIGUSR1 is only recorded in the StopRequest.

    A second signal has its usual effect, so pressing Ctrl-C twice ends the run at once.
    """
    request, handlers = StopRequest(), ExitStack()

    def note(number: int, frame: Any) -> None:
        request.received = signal.Signals(number)
        handlers.close()
        _LOG.warning("%s: finishing the step, saving, then stopping", request.received.name)

    with handlers:
        handlers.enter_context(handle_signals("SIGINT", "SIGTERM", "SIGUSR1", handler=note))
        yield request


def stopped_error(run: Run, request: StopRequest) -> StoppedError:
    """Builds the StoppedError of a run that was saved after a signal, with its exit status.

    Processes that Fabric started exit with 0, because Fabric kills the first process if one of them
    fails.
    """
    run.fabric.barrier()
    newest = newest_checkpoint(run.out)
    saved = "nothing was saved yet" if newest is None else f"{newest} is saved"
    name = "a signal" if request.received is None else request.received.name
    environment = getattr(run.fabric.strategy, "cluster_environment", None)
    own_launch = environment is not None and not environment.creates_processes_externally
    status = INTERRUPTED_STATUS if request.received == signal.SIGINT else SAVED_STATUS
    if own_launch and not run.fabric.is_global_zero:
        status = 0
    return StoppedError(f"stopped by {name}; {saved}: pass --resume to continue", status=status)


def build_run(
    config: TrainConfig, *, out: Path, resume: bool, held: ExitStack, is_quiet: bool = False
) -> Run:
    """Builds everything a run needs: devices, folder, data, networks, optimizer and schedules.

    The newest whole checkpoint is restored if the run is resumed. The configuration must be
    resolved; `held` holds the lock of the folder until it is closed. What the run is about to do is
    printed, unless it `is_quiet`. For the rest see `ino.train.loop.train`.
    """
    check_wandb(config.run.wandb)
    extra = find_extra(config.loss.extra, weight=config.loss.extra_weight)
    fabric = build_fabric(config.run)
    launch(fabric)
    devices, num_nodes = count_processes(config.run)
    config = config.with_values({"run.devices": devices, "run.num_nodes": num_nodes})
    resume = resume or _is_own_restart(out)
    is_locked = out.is_dir()

    def check() -> Path | None:
        if is_locked:
            held.enter_context(folder_lock(out))
        _check_folder(config, out=out, resume=resume)
        return newest_intact_checkpoint(out) if resume else None

    def prepare() -> None:
        if not is_locked:
            held.enter_context(folder_lock(out))
        _prepare_folder(config, out=out, resume=resume, origin=origin)
        record_videos(clips, out)

    saved = broadcast_from_first(fabric, check)
    torch.manual_seed(config.run.seed)
    model, origin = build_networks(config, saved=saved)
    backbone = model.student.backbone
    if isinstance(backbone, MaskedTimm):
        backbone.check_side(config.views.global_size, field="views.global_size")
        if config.views.num_local:
            backbone.check_side(config.views.local_size, field="views.local_size")
    clips = build_data(config, fabric, out=out, is_quiet=is_quiet)
    model.student.backbone.set_grad_checkpointing(config.run.activation_checkpointing)
    if config.run.compile:
        compile_blocks(model, fabric.device)
    network = fabric.setup_module(model)
    objective = Objective(
        **config.loss.model_dump(exclude={"extra", "extra_weight"}),
        num_classes=config.model.out_dim,
        num_local=config.views.num_local,
        reduce_mean=lambda mean: cast(Tensor, fabric.all_reduce(mean, reduce_op="mean")),
    )
    steps_per_epoch = clips.order.num_batches
    num_steps = config.optim.epochs * steps_per_epoch
    heads_first, layer_decay = config.optim.heads_first_epochs, config.optim.layer_decay
    if heads_first == "auto":
        heads_first = config.optim.warmup_epochs if origin.fresh_head else 0
    if layer_decay == "auto":
        layer_decay = LAYER_DECAY if origin.fresh_head else 1.0
    is_even = not heads_first and layer_decay == 1
    factors = None if is_even else layer_factors(model.student.backbone, decay=layer_decay)
    run = Run(
        config=config,
        out=out,
        fabric=fabric,
        clips=clips,
        network=network,
        model=model,
        objective=objective.to(fabric.device),
        extra=extra,
        # Fabric does not wrap the optimizer: a step is taken or not as the device decides.
        optimizer=build_optimizer(model.student, factors=factors),
        scaler=getattr(fabric.strategy.precision, "scaler", None),
        origin=origin,
        schedules=Schedules(
            config.optim,
            steps_per_epoch=steps_per_epoch,
            frames_per_step=global_batch_size(config) * config.data.clip_length,
        ),
        num_steps=min(num_steps, config.run.max_steps or num_steps),
        steps_per_epoch=steps_per_epoch,
        heads_first_steps=int(heads_first * steps_per_epoch),
    )
    # After the networks: what cannot be built leaves no folder behind.
    broadcast_from_first(fabric, prepare)
    if fabric.is_global_zero and not is_quiet:
        for line in _plan_of(run):
            Console(stderr=True).print(shown(line), highlight=False, markup=False, soft_wrap=True)
        if config.run.precision == "bf16-mixed":
            warn_of_slow_bf16(fabric.device)
        for note in () if saved else origin.notes:
            _LOG.warning("%s", note)
    if saved:
        run.first_step = restore_checkpoint(run, saved)
    return run


def _plan_of(run: Run) -> list[str]:
    """What the run is about to do, in three lines."""
    config, precision = run.config, run.fabric.strategy.precision.precision
    num_parameters = sum(one.numel() for one in run.model.student.parameters())
    num_clips = global_batch_size(config)
    frames = num_clips * config.data.clip_length
    scaled = config.optim.lr * frames / FRAMES_OF_BASE_LR
    backbone = config.model.arch
    patch_size = run.model.student.backbone.patch_size
    if isinstance(run.model.student.backbone, MaskedTimm):
        backbone += f", {patch_size} pixels per token,"
    else:
        backbone += f"/{patch_size}"
    return [
        f"student of {num_parameters / 1e6:.1f} million parameters ({backbone} and its head)",
        f"{run.num_steps} steps, {run.steps_per_epoch} an epoch, of {num_clips} clips of "
        f"{config.data.clip_length} frames; learning rate {scaled:.2e} for {frames} frames a step",
        f"into {run.out}, on {run.fabric.device}, precision {precision}",
    ]


def _check_folder(config: TrainConfig, *, out: Path, resume: bool) -> None:
    """Checks that a run can begin there, or continue with this configuration; creates nothing."""
    if not (resume and _holds_run(out)):
        check_new_folder(out, advice=_advice(out))
        return
    before = read_config(out)
    for name, old, new in differences(before, config):
        raise ConfigError(
            f"the run in {out} has {name} {old}, now it is {new}; resume with the same "
            "configuration or choose another --out"
        )
    num_old, num_new = global_batch_size(before), global_batch_size(config)
    if num_old != num_new:
        per_process = config.data.batch_size
        num_processes = num_new // per_process
        advice = f"pass --data.batch_size {num_old // num_processes}"
        if num_old % num_processes:
            advice = f"use a number of processes that divides {num_old}"
        raise ConfigError(
            f"a step of the run in {out} has {num_old} clips, now it would have {num_new} "
            f"({num_processes} processes x data.batch_size {per_process}): {advice} to continue it"
        )


def _prepare_folder(config: TrainConfig, *, out: Path, resume: bool, origin: Origin) -> None:
    """Creates the folder, which was checked, with its configuration."""
    if resume and _holds_run(out):
        remove_leftovers(out)
        for path in (out / "checkpoints").glob(".*.pt"):  # half written, also by another machine
            path.unlink(missing_ok=True)
    else:
        new_folder(out, advice=_advice(out))
    # A kill between any two of these leaves a folder that resumes or that counts as empty.
    if name := launch_name():
        write_text(out / LAUNCH_NAME, name)
    text = to_yaml(config)
    if origin.path:
        text = f"# started from {origin.path}, sha256 {origin.sha256}\n{text}"
    write_text(out / CONFIG_NAME, text)
    (out / "checkpoints").mkdir(exist_ok=True)


def _is_own_restart(out: Path) -> bool:
    """Whether torchrun or SLURM restarts the run that it started in this folder.

    A command that was refused since the folder holds a run, and that is started again because it
    failed, is no restart of that run.
    """
    path = out / LAUNCH_NAME
    return is_restart() and path.is_file() and path.read_text(encoding="utf-8") == launch_name()


def _holds_run(out: Path) -> bool:
    return (out / CONFIG_NAME).exists() or bool(list_checkpoints(out))


def _advice(out: Path) -> str:
    other = "choose another --out"
    if list_checkpoints(out):
        return f"it holds a run; pass --resume to continue it or {other}"
    return other


def read_config(out: Path) -> TrainConfig:
    """The configuration of the run in a folder, from its newest checkpoint if config.yaml is bad.

    Raises:
        ConfigError: neither can be read.
    """
    path = out / CONFIG_NAME
    try:
        return from_dict(read_yaml(path, what="configuration"))
    except ConfigError:
        fault = "is damaged" if path.exists() else "is gone"
    checkpoint = newest_intact_checkpoint(out)
    try:
        if checkpoint is not None:
            config = from_dict(read_checkpoint(checkpoint)["config"])
            _LOG.warning("%s %s: the configuration is read from %s", path, fault, checkpoint.name)
            return config
    except (CheckpointError, ConfigError, KeyError):
        pass
    raise ConfigError(
        f"{path} {fault}, so the run there cannot be compared with this one: choose another --out"
    )


def build_networks(config: TrainConfig, *, saved: Path | None) -> tuple[StudentTeacher, Origin]:
    """The student and teacher that a run starts with, and where their weights come from.

    With `saved`, only their shapes are those of the checkpoint; it is restored later. Otherwise
    `config.init` names the weights to start from: backbones and, if their shapes fit, heads of
    student and teacher. Centers are not loaded, as they depend on the videos of a run.

    Raises:
        CheckpointError: the weights cannot be used, or are of another architecture.
    """
    if saved is not None:
        content = read_checkpoint(saved)
        student = content.get("student")
        if not are_tensors(student):
            raise CheckpointError(f"{saved} cannot be continued from: it has no student")
        own = {name.removeprefix("backbone."): value for name, value in student.items()}
        side = None if _is_of_timm(config.model) else position_grid_side(own)
        return build_model(config.model, side=side), Origin(**content.get("init", {}))
    if not config.init:
        return build_model(config.model), Origin()
    found = find_initial(config.init)
    if _is_of_timm(config.model):
        model = build_model(config.model)
        weights = weights_for_timm(found, cast(MaskedTimm, model.student.backbone))
    else:
        weights = weights_for_vit(found)
        model = build_model(config.model, side=position_grid_side(weights.student.backbone))
    notes, has_head = fill(model.student, weights.student, found=found)
    fill(model.teacher, weights.teacher, found=found)
    origin = Origin(str(found.path), found.sha256, tuple(notes), fresh_head=not has_head)
    return model, origin


def _is_of_timm(config: ModelConfig) -> bool:
    return config.arch.startswith(TIMM)


def build_model(config: ModelConfig, *, side: int | None = None) -> StudentTeacher:
    """Student and teacher with equal random weights; `side` is that of the grid of positions."""
    if _is_of_timm(config):
        backbone = MaskedTimm(config.arch, drop_path=config.drop_path)
    else:
        backbone = build_vit(
            config.arch,
            patch_size=config.patch_size,
            depth=config.depth,
            drop_path=config.drop_path,
            position_grid_side=side,
            positions=config.positions,
        )
    head = ProjectionHead(
        backbone.embed_dim,
        out_dim=config.out_dim,
        hidden_dim=config.hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
    )
    return StudentTeacher(backbone, head)


def compile_blocks(model: StudentTeacher, device: torch.device) -> None:
    """Compiles the blocks of both networks in place; their names stay.

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


def newest_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of the run in a folder, if there is one."""
    return next(reversed(list_checkpoints(out)), None)


def newest_intact_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that is not damaged, by its checksums; None if there is no checkpoint.

    Newer, damaged checkpoints are renamed with the suffix `.damaged`, with a warning, and are not
    read again.

    Raises:
        CheckpointError: all checkpoints are damaged; none is renamed.
        OSError: a checkpoint cannot be read, so it is not known whether it is damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(out)):
        if fault := _fault(path):
            damaged.append((path, fault))
            continue
        for other, reason in damaged:
            aside = other.rename(other.with_name(other.name + DAMAGED_SUFFIX))
            _LOG.warning("%s %s: it is set aside as %s", other, reason, aside.name)
        if damaged:
            _LOG.warning("the run continues from %s, the newest that is whole", path.name)
        return path
    for path, fault in damaged:
        raise CheckpointError(
            f"{path} {fault}, and no older checkpoint is whole: copy one there from elsewhere, or "
            "start again with another --out"
        )
    return None


def _fault(path: Path) -> str:
    """How a checkpoint is damaged, by the checksums that torch stores; empty if it is not."""
    if not path.is_file():
        return "is no file"
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError):
        # RuntimeError is also that of a flag flipped to "encrypted" or to an unknown compression.
        return f"({size} bytes) is cut short or no checkpoint"
    return f"({size} bytes) is damaged inside" if broken else ""


def save_checkpoint(run: Run, *, step: int, must: bool) -> None:
    """Writes the state after `step` steps and removes checkpoints beyond `run.keep`.

    All processes must call it: shards are gathered, and the first process writes.

    Raises:
        OutputError: the file cannot be written (full disk) and `must` is set; otherwise this only
            warns. Earlier checkpoints stay.
    """
    content, failure = _collect(run, step=step), ""
    try:
        if run.fabric.is_global_zero:
            _write(content, run.out / "checkpoints" / f"step_{step:08d}.pt")
            for old in list_checkpoints(run.out)[: -run.config.run.keep]:
                old.unlink(missing_ok=True)
    except OutputError as error:
        failure = str(error)
        if not must:
            _LOG.warning("%s; the run goes on and tries again at the next checkpoint", failure)
        elif newest := newest_checkpoint(run.out):
            failure += f"; {newest.name} is whole: make room and resume"
        else:
            failure += "; no checkpoint was written: make room; --resume begins at the first step"
    if must and (failure := run.fabric.broadcast(failure)):
        raise OutputError(failure)


def save_best(run: Run, *, step: int, score: float) -> bool:
    """Writes the state to checkpoints/best.pt if no earlier one of the run scored as high.

    All processes must call it; the score of the first one decides. `run.keep` does not count it,
    and a run does not resume from it. Tells whether this process wrote it.

    Raises:
        OutputError: it cannot be written; the earlier one stays.
    """
    content, path = _collect(run, step=step), run.out / "checkpoints" / BEST_NAME
    if not run.fabric.is_global_zero or not score > best_score(path):  # also where it is NaN
        return False
    _write(content | {"score": score}, path)
    return True


def best_score(path: Path) -> float:
    """The score that `save_best` stored, or minus infinity where there is none."""
    try:
        return float(read_checkpoint(path)["score"]) if path.exists() else float("-inf")
    except (CheckpointError, KeyError):  # damaged since: the next one replaces it
        return float("-inf")


def restore_checkpoint(run: Run, path: Path) -> int:
    """Restores a run from a checkpoint and returns the number of steps done.

    Raises:
        CheckpointError: the file is not whole, lacks a part, or is of another architecture.
    """
    content = read_checkpoint(path)
    if missing := {"student", "teacher", "objective", "optimizer", "step"} - content.keys():
        raise CheckpointError(
            f"{path} cannot be continued from: it has no {' and no '.join(sorted(missing))}, which "
            "every checkpoint of ino train has"
        )
    modules: dict[str, nn.Module] = {
        "student": run.model.student,
        "teacher": run.model.teacher,
        "objective": run.objective,
    }
    for name, module in modules.items():
        check_exact(module, content[name], source=path)
    for name, module in modules.items():
        load_module(module, content[name])
    load_optimizer(run.optimizer, content["optimizer"])
    if run.scaler is not None and content.get("scaler") is not None:
        run.scaler.load_state_dict(content["scaler"])
    return content["step"]


def _collect(run: Run, *, step: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": to_dict(run.config),
        "init": run.origin._asdict(),
        "step": step,
        "student": gather(run.model.student.state_dict()),
        "teacher": gather(run.model.teacher.state_dict()),
        "objective": run.objective.state_dict(),
        "optimizer": gather(run.optimizer.state_dict()),
        "scaler": None if run.scaler is None else run.scaler.state_dict(),
    }


def _write(content: dict[str, Any], path: Path) -> None:
    try:
        path.parent.mkdir(exist_ok=True)  # somebody may have moved it away
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except RuntimeError as error:  # so torch reports a failed write
        if "write" not in str(error) and "inline_container" not in str(error):
            raise
        raise OutputError(
            f"cannot write {path}: the disk is full or failing (free space on it)"
        ) from error
