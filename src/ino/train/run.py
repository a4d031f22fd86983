"""Signals that ask a run to stop: the step is finished and saved first."""

import contextlib
import logging
import os
import shutil
import signal
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, cast

import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ino.data.clips import ClipSampler, VisitSampler
from ino.data.shards import ShardSchedule
from ino.errors import CheckpointError, ConfigError, OutputError, StoppedError
from ino.models.student_teacher import Network, StudentTeacher
from ino.models.vit import ProjectionHead, build_vit
from ino.models.weights import (
    FORMAT,
    VERSION,
    NetworkWeights,
    check_exact,
    describe,
    list_checkpoints,
    position_side,
    read_checkpoint,
    read_weights,
)
from ino.system import (
    atomic_path,
    check_new_folder,
    folder_lock,
    new_folder,
    remove_leftovers,
    write_text,
)
from ino.train.config import (
    ModelConfig,
    TrainConfig,
    check_same_batch,
    count_clips,
    differences,
    from_dict,
    to_dict,
)
from ino.train.data import build_data, record_videos
from ino.train.distributed import (
    build_fabric,
    gather,
    is_restart,
    launch,
    launch_name,
    load_module,
    load_optimizer,
    of_first,
    with_processes,
)
from ino.train.objective import Objective
from ino.train.optim import Schedules, build_optimizer

SAVED_STATUS = 75
"""Exit status after SIGTERM or SIGUSR1: sysexits' EX_TEMPFAIL, "try again later". A batch script
tells by it that the run is to be queued again, and torchrun that the process has not finished."""

INTERRUPTED_STATUS = 130
"""Exit status after Ctrl-C, as shells have it."""

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
_LOG = logging.getLogger("ino")


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Within, before the first step, SIGTERM and SIGUSR1 end the run at once: it has nothing to
    save, and the status still says that it is to be started again.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        where = "nothing was done since the start, pass --resume to start again"
        raise StoppedError(f"stopped by {name}; {where}", status=SAVED_STATUS)

    in_main = threading.current_thread() is threading.main_thread()
    names = [name for name in _NAMES if name != "SIGINT" and hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names] if in_main else []
    earlier = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class StopSignals:
    """Notes the first SIGINT, SIGTERM or SIGUSR1; a context manager.

    A second one does what it does anywhere else, so that Ctrl-C twice ends a run at once. Outside
    the main thread, where Python handles no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                if hasattr(signal, name):  # Windows has no SIGUSR1
                    number = signal.Signals[name]
                    self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._put_back()

    def stopped(self, *, where: str, succeeds: bool) -> StoppedError:
        """The error that ends a run that was asked to stop.

        Args:
            where: what was saved.
            succeeds: whether the command is to exit with 0: processes that Fabric started, whose
                failure would have it kill the first one.
        """
        status = INTERRUPTED_STATUS if self.received == signal.SIGINT else SAVED_STATUS
        name = "a signal" if self.received is None else self.received.name
        return StoppedError(f"stopped by {name}; {where}", status=0 if succeeds else status)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._put_back()
        _LOG.warning("%s: finishing the step, saving, then stopping", self.received.name)

    def _put_back(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}


# What a folder holds of an earlier run, also where a disk or a person damaged a part of it.


CONFIG_NAME = "config.yaml"
DAMAGED_SUFFIX = ".damaged"


def newest_checkpoint(out: Path) -> Path | None:
    """The checkpoint that the run in a folder continues from, if there is one."""
    return next(reversed(list_checkpoints(out)), None)


def newest_whole(out: Path) -> Path | None:
    """The newest checkpoint whose bytes are those that were written, if there is any checkpoint.

    Newer ones that are not get the suffix `.damaged`, under which nothing reads them; a warning
    names them.

    Raises:
        CheckpointError: there are checkpoints and none is whole; all keep their names.
        OSError: one cannot be read, which tells nothing of what it holds.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(out)):
        if not (fault := _fault(path)):
            for other, reason in damaged:
                aside = other.rename(other.with_name(other.name + DAMAGED_SUFFIX))
                _LOG.warning("%s %s: it is set aside as %s", other, reason, aside.name)
            if damaged:
                _LOG.warning("the run goes on from %s, the newest that is whole", path.name)
            return path
        damaged.append((path, fault))
    if damaged:
        path, fault = damaged[0]
        raise CheckpointError(
            f"{path} {fault}, and no older checkpoint is whole: copy one there from elsewhere, or "
            "start anew with another --out"
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
        # RuntimeError is that of a flag flipped to "encrypted" or to an unknown compression, too.
        return f"({size} bytes) is cut short or no checkpoint"
    return f"({size} bytes) is damaged inside" if broken else ""


def read_config(out: Path) -> TrainConfig:
    """How the run in a folder was configured; if config.yaml is damaged or gone, its newest
    checkpoint says so, too.

    Raises:
        ConfigError: neither tells.
    """
    path = out / CONFIG_NAME
    try:
        return from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    # ValueError is that of text that is no UTF-8, too.
    except (FileNotFoundError, yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError):
        fault = "is damaged" if path.exists() else "is gone"
    checkpoint = newest_whole(out)
    try:
        if checkpoint is not None:
            config = from_dict(read_checkpoint(checkpoint)["config"])
            _LOG.warning("%s %s: %s tells how the run was configured", path, fault, checkpoint.name)
            return config
    except (CheckpointError, TypeError, KeyError):
        pass
    raise ConfigError(
        f"{path} {fault}, so the run there cannot be told from others: choose another --out"
    )


# The networks of a run: random, or started from weights.


class Origin(NamedTuple):
    """From which weights a run started; no path for random ones."""

    path: str = ""
    sha256: str = ""
    notes: tuple[str, ...] = ()


def build_networks(config: TrainConfig, *, saved: Path | None) -> tuple[StudentTeacher, Origin]:
    """Student and teacher as the run starts, or of the shapes of a checkpoint that is restored.

    `config.init` names the weights to start from: the backbones and, where their shapes fit, the
    heads of student and teacher. The centres are not taken: they belong to the videos of a run.

    Raises:
        CheckpointError: the weights cannot be used, or are of another architecture.
    """
    if saved is not None:
        content = read_checkpoint(saved)
        prefix = "backbone."
        side = position_side({k.removeprefix(prefix): v for k, v in content["student"].items()})
        return build_model(config.model, side=side), Origin(**content.get("init", {}))
    if not config.init:
        return build_model(config.model), Origin()
    weights = read_weights(Path(config.init))
    model = build_model(config.model, side=position_side(weights.student.backbone))
    notes = _fill(model.student, weights.student, weights.path)
    _fill(model.teacher, weights.teacher, weights.path)
    return model, Origin(str(weights.path), weights.sha256, tuple(notes))


def build_model(config: ModelConfig, *, side: int | None = None) -> StudentTeacher:
    """Student and teacher with equal random weights.

    Args:
        config: of the networks.
        side: positions a side of the grid of position embeddings; None for the usual one.
    """
    backbone = build_vit(
        config.arch,
        patch_size=config.patch_size,
        drop_path=config.drop_path,
        position_side=side,
    )
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


def _fill(network: Network, weights: NetworkWeights, source: Path) -> list[str]:
    """Loads what there is and says what stays random."""
    notes = []
    backbone = dict(weights.backbone)
    if "mask_token" not in backbone:
        backbone["mask_token"] = network.backbone.mask_token.data
        notes.append(f"{source} has no mask token: it starts random")
    try:
        check_exact(network.backbone, backbone, source=source)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; its weights are {describe(backbone)}") from error
    network.backbone.load_state_dict(backbone)
    if fault := weights.head_fault or _misfit(network.head, weights.head):
        notes.append(f"the head of {source} is not used, {fault}: it starts random")
    else:
        network.head.load_state_dict(weights.head)
    return notes


def _misfit(head: nn.Module, weights: dict[str, Tensor]) -> str:
    """Why weights are not those of the head; empty where they are."""
    if not weights:
        return "there is none"
    for name, value in head.state_dict().items():
        if name not in weights:
            return f"{name} is missing"
        if weights[name].shape != value.shape:
            return f"{name} is {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
    extra = weights.keys() - head.state_dict().keys()
    return f"{min(extra)} is no part of ours" if extra else ""


# Checkpoints of a run: whole or absent, and enough to continue to the same numbers.
#
# Randomness is a function of seed, step and process (train.drawing), and so is the position in the
# data, so no generator's state is kept. Tensors are stored whole however they are spread over
# devices: a run may continue with another number of processes or another strategy.


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


# What a run stands on before its first step: devices, folder, videos, networks.


LAUNCH_NAME = ".launch"  # hidden: a folder that holds nothing else is empty


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
