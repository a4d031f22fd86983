"""Pretraining by In-N-Out generative learning: the algorithm of section 3, step by step.

All randomness of a step is drawn from (seed, step), so a run that was killed continues from its
newest checkpoint to the same parameters as one that was not. Nothing in a step waits for the
device; its numbers are read now and then, together.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ino.errors import OutputError
from ino.models.student_teacher import Views, separate
from ino.train.batches import batches
from ino.train.checkpoint import restore_checkpoint, save_checkpoint
from ino.train.config import TrainConfig
from ino.train.drawing import draw_views, seed_drop_path
from ino.train.earlier import newest_checkpoint
from ino.train.health import MOST_IN_ROW, MOST_IN_ROW_FP16, Health, Unread
from ino.train.log import RunLog
from ino.train.objective import Targets, Terms
from ino.train.optim import clip_gradients, set_rates, take_step
from ino.train.resolve import count_clips, resolve
from ino.train.setup import Run, start
from ino.train.stopping import StopSignals, stopping_at_once
from ino.train.watching import Evaluate, Watch

_LOG = logging.getLogger("ino")


def train(
    config: TrainConfig, *, out: Path, resume: bool = False, evaluate: Evaluate | None = None
) -> Path:
    """Trains as configured and gives the last checkpoint.

    Args:
        config: as a recipe gives it.
        out: folder of the run, to which are written: config.yaml, log.jsonl (a line a step),
            tensorboard/, checkpoints/, pictures/ and quarantine.jsonl (videos that could not be
            used).
        resume: continue from the newest checkpoint in `out`, or start if there is none. Where
            torchrun or SLURM restarts the run that it started, this goes without saying.
        evaluate: scores the student every `run.eval_every` steps (see ino.pipeline.pretraining).

    Raises:
        ConfigError: a value is out of range, or does not fit the run that is resumed.
        VideoError: there are no videos, or most of them are broken.
        OutputError: the folder holds a run and `resume` is off, or it cannot be written.
        TrainingError: loss or gradients stay not finite; the message names term and step.
        StoppedError: a signal asked the run to stop; it was saved.
    """
    with ExitStack() as held:
        with stopping_at_once():
            run = start(resolve(config), out=out, resume=resume, held=held)
        _run(run, out=out, evaluate=evaluate)
    checkpoint = newest_checkpoint(out)
    assert checkpoint is not None
    return checkpoint


def _run(run: Run, *, out: Path, evaluate: Evaluate | None) -> None:
    with (
        StopSignals() as stop,
        RunLog(
            out,
            first_step=run.first_step,
            num_steps=run.num_steps,
            log_every=run.config.run.log_every,
            clips_per_step=count_clips(run.config),
            wandb=run.config.run.wandb,
            enabled=run.fabric.is_global_zero,
        ) as log,
    ):
        watch = Watch(run, out=out, log=log, evaluate=evaluate)
        _steps(run, out=out, log=log, stop=stop, watch=watch)
    run.fabric.barrier()


def _steps(run: Run, *, out: Path, log: RunLog, stop: StopSignals, watch: Watch) -> None:
    """All steps that are left."""
    config, fabric, schedules = run.config, run.fabric, run.schedules
    model, objective, optimizer, scaler, _ = run.state
    student_parameters = list(model.student.parameters())
    frozen_steps = (config.optim.freeze_last_layer_epochs or 0) * run.steps_per_epoch
    first_clip = fabric.global_rank * config.data.batch_size
    health = Health(reduce_mean=objective.reduce_mean, device=fabric.device)
    most_skipped = MOST_IN_ROW if scaler is None else MOST_IN_ROW_FP16
    unread = Unread()
    model.train()
    for step, clips in enumerate(log.waiting(_batches(run)), start=run.first_step):
        lr, weight_decay, momentum = schedules.at(step)
        set_rates(optimizer, lr=lr, weight_decay=weight_decay)
        seed_drop_path(config.run.seed, step=step, rank=fabric.global_rank)
        views = draw_views(config, clips, step=step, device=fabric.device, first_clip=first_clip)

        centers = objective.centers()
        with torch.no_grad():  # around the call, or data-parallel training waits for its gradients
            targets = objective.targets(run.network(views, role="teacher"))
        terms = _take_gradients(run, views, targets, num_parts=config.run.accumulate)
        if scaler is not None:
            scaler.unscale_(optimizer)
        if step < frozen_steps:
            model.student.head.last_layer.zero_grad()
        grad_norm = clip_gradients(student_parameters, max_norm=config.optim.clip_grad)

        is_good, numbers = health.judge(terms, grad_norm, stop=stop.received is not None)
        take_step(optimizer, where=is_good, scaler=scaler)
        optimizer.zero_grad()
        model.update_teacher(momentum, where=is_good)
        objective.put_back(centers, unless=is_good)

        rates = {"lr": lr, "weight_decay": weight_decay, "teacher_momentum": momentum}
        looks = watch.look(step, views, targets)
        unread.add(step, numbers | looks, rates | watch.score(step))
        is_last, is_due = step + 1 == run.num_steps, (step + 1) % config.run.save_every == 0
        if not (is_last or is_due or _reads(run, step, stop)):
            continue
        last = _write_unread(unread, log, watch)
        if last["skipped"] >= most_skipped and not is_last:
            checkpoint = health.go_back(fabric.broadcast(newest_checkpoint(out)), last, step=step)
            restore_checkpoint(checkpoint, run.state)
        is_stopped = last["stop"] > 0 and not is_last
        # A checkpoint is a state to go back to: none is written while steps are skipped.
        if is_last or ((is_due or is_stopped) and not last["skipped"]):
            _save(run, out=out, step=step + 1, must=is_last or is_stopped)
        if is_stopped:
            raise _stopped(run, stop, out=out)


def _take_gradients(run: Run, views: Views, targets: Targets, *, num_parts: int) -> Terms:
    """The terms of a step, whose gradients are then in the student.

    Part after part, so that activations of one part are kept at a time; processes exchange
    gradients in the last.
    """
    parts = list(separate(views, num_parts=num_parts))
    found = []
    for index, (clips, part) in enumerate(parts):
        is_last = index + 1 == len(parts)
        with run.fabric.no_backward_sync(run.network, enabled=not is_last):
            terms = run.state.objective(run.network(part, role="student"), targets.of(clips))
            run.fabric.backward(terms.loss / num_parts)
        found.append(terms.stacked())
    return Terms(*(torch.stack(found).sum(dim=0) / num_parts).unbind())


def _batches(run: Run) -> Iterator[list[Tensor]]:
    return batches(
        run.loader,
        run.sampler,
        first_step=run.first_step,
        num_steps=run.num_steps,
        steps_per_epoch=run.steps_per_epoch,
    )


def _reads(run: Run, step: int, stop: StopSignals) -> bool:
    """Whether the numbers of the steps so far are read now; equal on all processes.

    On a CPU reading costs nothing. Elsewhere it waits for the device, so it goes with the lines of
    the log, and a single process reads as well when it is asked to stop.
    """
    if run.fabric.device.type == "cpu" or step % run.config.run.log_every == 0:
        return True
    return run.fabric.world_size == 1 and stop.received is not None


def _write_unread(unread: Unread, log: RunLog, watch: Watch) -> Mapping[str, float]:
    """Logs the steps that were not read yet and gives the numbers of the last."""
    numbers: Mapping[str, float] = {}
    for step, numbers in unread.read():
        shown = {name: value for name, value in numbers.items() if name != "stop"}
        log.write(step, watch.judge(step, shown))
    return numbers


def _save(run: Run, *, out: Path, step: int, must: bool) -> None:
    """Saves a checkpoint. A disk that is full costs it, and the run only if this is the last one.

    Raises:
        OutputError: it cannot be written and `must` be.
    """
    failure = ""
    writes = run.fabric.is_global_zero
    try:
        save_checkpoint(run.config, run.state, out=out, step=step, writes=writes)
    except OutputError as error:
        failure = str(error)
        if not must:
            _LOG.warning("%s; the run goes on and tries again at the next checkpoint", failure)
        elif newest := newest_checkpoint(out):
            failure += f"; {newest.name} is whole: make room and resume"
        else:
            failure += "; no checkpoint was written: make room; --resume begins at the first step"
    if must and (failure := run.fabric.broadcast(failure)):
        raise OutputError(failure)


def _stopped(run: Run, stop: StopSignals, *, out: Path) -> Exception:
    run.fabric.barrier()
    newest = newest_checkpoint(out)
    where = "nothing was saved yet" if newest is None else f"{newest} is saved"
    environment = getattr(run.fabric.strategy, "cluster_environment", None)
    own_launch = environment is not None and not environment.creates_processes_externally
    succeeds = own_launch and not run.fabric.is_global_zero
    return stop.stopped(where=f"{where}: pass --resume to continue", succeeds=succeeds)
