"""Pretraining by In-N-Out generative learning: the algorithm of section 3, step by step.

All randomness of a step follows from (seed, step), so a run that was killed continues from its
newest checkpoint to the same parameters as one that was not. Nothing but evaluation and pictures
waits for the device; the metrics of several steps are read in one transfer. A step whose loss or
gradient is not finite is skipped on the device; after several in a row the run returns to its
newest checkpoint.
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ino.errors import TrainingError
from ino.losses import Targets, Terms
from ino.models.student_teacher import Logits, Views, split_views
from ino.train.config import TrainConfig, resolve
from ino.train.data import batches, sample_views, seed_drop_path
from ino.train.log import RunLog
from ino.train.monitors import Evaluate, Monitor
from ino.train.optim import clip_gradients, set_rates, take_step
from ino.train.run import (
    Run,
    StopRequest,
    build_run,
    newest_checkpoint,
    record_signal,
    restore_checkpoint,
    save_checkpoint,
    stop_on_signal,
    stopped_error,
)

MOST_SKIPPED = 5
"""Steps in a row that may be skipped before the run goes back to its newest checkpoint."""

MOST_SKIPPED_FP16 = 30
"""fp16's loss scale starts high and halves at each overflow until gradients fit."""

_ADVICE = (
    "Start again with a lower optim.lr or a longer optim.warmup_epochs, with a lower "
    "optim.clip_grad, or with run.precision 32-true"
)
_LOG = logging.getLogger("ino")
Numbers = tuple[int, Mapping[str, Tensor], Mapping[str, float]]
"""A step, its numbers that are still on the device, and others that are known."""


def train(
    config: TrainConfig,
    *,
    out: Path,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    judge: Evaluate | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Trains a model and returns the path of the last checkpoint.

    Args:
        config: as a recipe gives it.
        out: folder of the run, to which are written: config.yaml, log.jsonl (a line per step),
            tensorboard/, checkpoints/, pictures/ and quarantine.sqlite (videos that could not be
            used).
        resume: continue from the newest checkpoint in `out`, or start if there is none. Implied if
            torchrun or SLURM restarts a run that it started.
        evaluate: called every `run.eval_every` steps and after the last one to evaluate the student
            (see `ino.pretraining`); None for never.
        judge: the same, every `run.judge_every` steps, without labels.
        on_step: called with the number of steps done after each of them, in place of what is shown
            on the screen otherwise.

    Raises:
        ConfigError: a value is out of range, or does not fit the run that is resumed.
        VideoError: there are no videos, or most of them are broken.
        OutputError: the folder holds a run and `resume` is off, or it cannot be written.
        TrainingError: loss or gradients stay not finite; the message names term and step.
        StoppedError: a signal asked the run to stop; the newest checkpoint holds where it was.
    """
    with ExitStack() as held:
        with stop_on_signal():
            is_quiet = on_step is not None
            run = build_run(resolve(config), out=out, resume=resume, held=held, is_quiet=is_quiet)
        stop = held.enter_context(record_signal())
        log = held.enter_context(
            RunLog(
                out,
                config=run.config,
                first_step=run.first_step,
                num_steps=run.num_steps,
                enabled=run.fabric.is_global_zero,
                on_step=on_step,
            )
        )
        monitor = Monitor(run, log=log, evaluate=evaluate, judge=judge)
        _train(run, log=log, stop=stop, monitor=monitor)
        run.fabric.barrier()
    checkpoint = newest_checkpoint(out)
    assert checkpoint is not None
    return checkpoint


def _train(run: Run, *, log: RunLog, stop: StopRequest, monitor: Monitor) -> None:
    """The steps that are left, each as in section 3."""
    config, fabric = run.config, run.fabric
    model, objective, optimizer, scaler = run.model, run.objective, run.optimizer, run.scaler
    student_parameters = list(model.student.parameters())
    frozen_steps = (config.optim.freeze_last_layer_epochs or 0) * run.steps_per_epoch
    first_clip = fabric.global_rank * config.data.batch_size
    most_skipped = MOST_SKIPPED if scaler is None else MOST_SKIPPED_FP16
    skipped = torch.zeros((), device=fabric.device)  # in a row
    went_back_to: Path | None = None
    unread: list[Numbers] = []
    model.train()
    loaded = batches(run.clips, first_step=run.first_step, num_steps=run.num_steps)
    for step, clips in enumerate(log.waiting(loaded), start=run.first_step):
        # Schedules
        lr, weight_decay, momentum = run.schedules.at(step)
        heads_alone = step < run.heads_first_steps
        rising = (step + 1 - run.heads_first_steps) / max(1, run.heads_first_steps)
        trained = min(1.0, max(0.0, rising))
        set_rates(optimizer, lr=lr, weight_decay=weight_decay, trained=trained)

        # Global and local crops (3.2), masked positions (3.3)
        seed_drop_path(config.run.seed, step=step, rank=fabric.global_rank)
        views = sample_views(config, clips, step=step, device=fabric.device, first_clip=first_clip)

        # The teacher's targets (3.1)
        with torch.no_grad():  # around the call, or data-parallel training waits for its gradients
            teacher = run.network(views, role="teacher")
        targets = objective.targets(teacher.global_class, teacher.patch)

        # The student's terms (Eq. 1 to 6) and their gradients
        terms, extra = _backward(run, views, targets, teacher)
        if scaler is not None:
            scaler.unscale_(optimizer)
        if step < frozen_steps:
            model.student.head.last_layer.zero_grad()
        if heads_alone:
            model.student.backbone.zero_grad()
        grad_norm = clip_gradients(student_parameters, max_norm=config.optim.clip_grad)

        # Student, teacher (its moving average) and centers move, if the step is good
        is_good, numbers = _judge(
            terms,
            extra,
            grad_norm,
            stop=stop.received is not None,
            reduce_mean=objective.reduce_mean,
        )
        skipped = torch.where(is_good, 0.0, skipped + 1.0)
        take_step(optimizer, where=is_good, scaler=scaler)
        optimizer.zero_grad()
        model.update_teacher(momentum, where=is_good, reduce_mean=objective.reduce_mean)
        objective.update_centers(targets, where=is_good)

        # Log, and evaluate now and then
        measured = numbers | {"skipped": skipped} | monitor.measure(step, views, targets)
        rates = {"lr": lr, "weight_decay": weight_decay, "teacher_momentum": momentum}
        unread.append((step, measured, rates | monitor.score(step)))
        is_last, is_due = step + 1 == run.num_steps, (step + 1) % config.run.save_every == 0
        if not (is_last or is_due or _reads_now(run, step, stop)):
            continue
        last = _log_unread(unread, log=log, monitor=monitor)

        # Go back, save, or stop
        if last["skipped"] >= most_skipped and not is_last:
            newest = fabric.broadcast(newest_checkpoint(run.out))
            went_back_to = _way_back(newest, last, step=step, before=went_back_to)
            restore_checkpoint(run, went_back_to)
            skipped = torch.zeros_like(skipped)
        is_stopped = last["stop"] > 0 and not is_last
        # A checkpoint is a state to go back to: none is written while steps are skipped.
        if is_last or ((is_due or is_stopped) and not last["skipped"]):
            save_checkpoint(run, step=step + 1, must=is_last or is_stopped)
        if is_stopped:
            raise stopped_error(run, stop)


def _backward(
    run: Run, views: Views, targets: Targets, teacher: Logits
) -> tuple[Terms, dict[str, Tensor]]:
    """The terms of a step and the user's term by name, whose gradients are then in the student.

    Each group of clips gives one part with its local crops and one with its global crops, taken one
    after the other, so that the activations of one part are kept at a time; processes exchange
    gradients in the last.
    """
    num_groups = run.config.run.accumulate
    parts = list(split_views(views, num_groups=num_groups))
    found, extra = [], dict[str, Tensor]()
    for index, (clips, part) in enumerate(parts):
        is_last = index + 1 == len(parts)
        with run.fabric.no_backward_sync(run.network, enabled=not is_last):
            student = run.network(part, role="student")
            terms = run.objective(targets.of(clips), *student)
            if run.extra is not None:
                term = run.extra(student, teacher.of(clips))
                terms = terms._replace(loss=terms.loss + run.extra.weight * term)
                share = term.detach().float() / num_groups
                extra[run.extra.name] = extra.get(run.extra.name, 0.0) + share
            run.fabric.backward(terms.loss / num_groups)
        found.append(terms.stacked())
    return Terms(*(torch.stack(found).sum(dim=0) / num_groups).unbind()), extra


def _judge(
    terms: Terms,
    extra: Mapping[str, Tensor],
    grad_norm: Float[Tensor, ""],
    *,
    stop: bool,
    reduce_mean: Callable[[Tensor], Tensor],
) -> tuple[Bool[Tensor, ""], dict[str, Tensor]]:
    """Whether all processes can take the step, and its numbers; no device is waited for.

    The numbers are means over the processes, so `stop` is above 0 if any of them is to stop.
    """
    flag = terms.loss.new_full((1,), float(stop), dtype=torch.float32)
    own = [term.reshape(1) for term in extra.values()]
    reduced = reduce_mean(torch.cat([terms.stacked(), *own, flag]))
    is_good = torch.isfinite(reduced).all() & torch.isfinite(grad_norm)
    numbers = dict(zip((*Terms._fields, *extra, "stop"), reduced.unbind(), strict=True))
    return is_good, numbers | {"grad_norm": grad_norm}


def _reads_now(run: Run, step: int, stop: StopRequest) -> bool:
    """Whether the numbers of the steps so far are read now; equal on all processes.

    On a CPU reading costs nothing. Elsewhere it waits for the device, so it goes with the lines of
    the log, and a single process reads as well when it is asked to stop.
    """
    if run.fabric.device.type == "cpu" or step % run.config.run.log_every == 0:
        return True
    return run.fabric.world_size == 1 and stop.received is not None


def _log_unread(unread: list[Numbers], *, log: RunLog, monitor: Monitor) -> dict[str, float]:
    """Reads the numbers in one transfer, logs them, and gives those of the last step."""
    values = [value.detach().float() for _, on_device, _ in unread for value in on_device.values()]
    read = iter(torch.stack(values).tolist())
    numbers: dict[str, float] = {}
    for step, on_device, known in unread:
        numbers = {name: next(read) for name in on_device} | dict(known)
        shown = {name: value for name, value in numbers.items() if name != "stop"}
        log.write(step, monitor.complete(step, shown))
    unread.clear()
    return numbers


def _way_back(
    checkpoint: Path | None, numbers: Mapping[str, float], *, step: int, before: Path | None
) -> Path:
    """The newest checkpoint, unless there is none or the run went back to it before.

    Training continues with later clips and crops, as the same ones would fail again.
    """
    reason = diagnosis(numbers, step=step)
    if checkpoint is None:
        raise TrainingError(f"{reason}; there is no checkpoint to go back to. {_ADVICE}")
    if checkpoint == before:
        raise TrainingError(
            f"{reason}, again after going back to {checkpoint.name}, which is whole. {_ADVICE}"
        )
    _LOG.warning("%s; going back to %s, with later clips", reason, checkpoint.name)
    return checkpoint


def diagnosis(numbers: Mapping[str, float], *, step: int) -> str:
    """A message that names the first metric that is not finite, and the state of the step."""
    own = [name for name in numbers if name.startswith("extra_")]
    names = (*own, *Terms._fields, "grad_norm")
    broken = [name for name in names if not math.isfinite(numbers[name])]
    culprit = next((name for name in broken if name != "loss"), "loss")
    what = "the norm of the gradients" if culprit == "grad_norm" else f"the term {culprit}"
    return (
        f"{what} is {numbers[culprit]} at step {step}, and {numbers['skipped']:.0f} steps in a row "
        f"could not be taken (lr {numbers['lr']:.2e}, gradient norm {numbers['grad_norm']:.3g})"
    )
