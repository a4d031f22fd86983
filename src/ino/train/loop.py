"""Steps whose loss or gradient is not finite: skipped, counted, gone back from, explained.

A step is judged on the device and nothing waits for it; the count is read with the numbers that
are logged.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ino.errors import OutputError, TrainingError
from ino.models.student_teacher import Views, separate
from ino.train.config import TrainConfig, count_clips, resolve
from ino.train.data import batches, sample_views, seed_drop_path
from ino.train.log import RunLog
from ino.train.monitors import Evaluate, Watch
from ino.train.objective import Targets, Terms
from ino.train.optim import clip_gradients, set_rates, take_step
from ino.train.run import (
    Run,
    StopSignals,
    newest_checkpoint,
    restore_checkpoint,
    save_checkpoint,
    start,
    stopping_at_once,
)

MOST_IN_ROW = 5
MOST_IN_ROW_FP16 = 30
"""fp16's loss scale starts high and halves at each overflow until gradients fit."""

_LOG = logging.getLogger("ino")


class Health:
    """Judges the steps of all processes and counts those skipped in a row."""

    def __init__(self, *, reduce_mean: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Args:
        reduce_mean: averages a tensor over all processes.
        device: of the training.
        """
        self._reduce_mean = reduce_mean
        self._skipped = torch.zeros((), device=device)
        self._went_back_to: Path | None = None

    def judge(
        self, terms: Terms, grad_norm: Tensor, *, stop: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Whether all processes can take the step, one truth value, and the step's numbers.

        Args:
            terms: of this process.
            grad_norm: over all gradients of all processes.
            stop: whether this process was asked to stop.

        Returns:
            The numbers are means over the processes; `skipped` counts the steps in a row, with this
            one, that were not taken, and `stop` is above 0 if any process is to stop.
        """
        flag = terms.loss.new_full((1,), float(stop), dtype=torch.float32)
        reduced = self._reduce_mean(torch.cat([terms.stacked(), flag]))
        is_good = torch.isfinite(reduced).all() & torch.isfinite(grad_norm)
        self._skipped = torch.where(is_good, 0.0, self._skipped + 1.0)
        names = (*Terms._fields, "stop")
        numbers = dict(zip(names, reduced.unbind(), strict=True))
        return is_good, numbers | {"grad_norm": grad_norm, "skipped": self._skipped}

    def go_back(self, checkpoint: Path | None, numbers: Mapping[str, float], *, step: int) -> Path:
        """The checkpoint to go back to, as steps are skipped in a row; training goes on with later
        clips and crops, as the same ones would fail again.

        Args:
            checkpoint: the newest, which is never written while steps are skipped.
            numbers: of the last step, read.
            step: counted from 0.

        Raises:
            TrainingError: there is no checkpoint, or the run went back to it before.
        """
        reason = diagnosis(numbers, step=step)
        if checkpoint is None:
            raise TrainingError(f"{reason}; there is no checkpoint to go back to. {ADVICE}")
        if checkpoint == self._went_back_to:
            raise TrainingError(
                f"{reason}, again after going back to {checkpoint.name}, which is whole. {ADVICE}"
            )
        _LOG.warning("%s; going back to %s, with later clips", reason, checkpoint.name)
        self._went_back_to = checkpoint
        self._skipped = torch.zeros_like(self._skipped)
        return checkpoint


ADVICE = (
    "Start again with a lower optim.lr or a longer optim.warmup_epochs, with a lower "
    "optim.clip_grad, or with run.precision 32-true"
)


def diagnosis(numbers: Mapping[str, float], *, step: int) -> str:
    """Which number is not finite, and what the step was like."""
    broken = [name for name in (*Terms._fields, "grad_norm") if not math.isfinite(numbers[name])]
    culprit = next((name for name in broken if name != "loss"), "loss")
    what = "the norm of the gradients" if culprit == "grad_norm" else f"the term {culprit}"
    return (
        f"{what} is {numbers[culprit]} at step {step}, and {numbers['skipped']:.0f} steps in a row "
        f"could not be taken (lr {numbers['lr']:.2e}, gradient norm {numbers['grad_norm']:.3g})"
    )


class Unread:
    """Numbers of steps, left on the device until they are read together."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, dict[str, Tensor], dict[str, float]]] = []

    def add(self, step: int, on_device: Mapping[str, Tensor], known: Mapping[str, float]) -> None:
        """Keeps the numbers of a step: single values on the device, and others that are known."""
        self._steps.append((step, dict(on_device), dict(known)))

    def read(self) -> list[tuple[int, dict[str, float]]]:
        """The steps that were not read yet and their numbers, in one transfer."""
        waiting, self._steps = self._steps, []
        if not waiting:
            return []
        values = torch.stack([v.detach().float() for _, held, _ in waiting for v in held.values()])
        numbers = iter(values.tolist())
        return [
            (step, {name: next(numbers) for name in held} | known) for step, held, known in waiting
        ]


# Pretraining by In-N-Out generative learning: the algorithm of section 3, step by step.
#
# All randomness of a step is drawn from (seed, step), so a run that was killed continues from its
# newest checkpoint to the same parameters as one that was not. Nothing in a step waits for the
# device; its numbers are read now and then, together.


def train(
    config: TrainConfig, *, out: Path, resume: bool = False, evaluate: Evaluate | None = None
) -> Path:
    """Trains as configured and gives the last checkpoint.

    Args:
        config: as a recipe gives it.
        out: folder of the run, to which are written: config.yaml, log.jsonl (a line a step),
            tensorboard/, checkpoints/, pictures/ and quarantine.sqlite (videos that could not be
            used).
        resume: continue from the newest checkpoint in `out`, or start if there is none. Where
            torchrun or SLURM restarts the run that it started, this goes without saying.
        evaluate: scores the student every `run.eval_every` steps (see ino.pretrain).

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
        views = sample_views(config, clips, step=step, device=fabric.device, first_clip=first_clip)

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
