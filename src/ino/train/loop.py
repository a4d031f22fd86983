"""Pretraining by In-N-Out generative learning: the algorithm of section 3, step by step.

All randomness of a step is drawn from (seed, step, process), so a run that was killed continues
from its newest checkpoint to the same parameters as one that was not.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor

from ino.data.colours import PLAIN, Photometric
from ino.data.token_masks import draw_masks, draw_num_masked
from ino.data.views import CropGeometry, make_crops
from ino.errors import InoError, TrainingError
from ino.models.checkpoints import list_checkpoints
from ino.models.student_teacher import Views, separate
from ino.train.checkpoint import save_checkpoint
from ino.train.config import TrainConfig
from ino.train.log import RunLog
from ino.train.objective import Targets, Terms
from ino.train.optim import clip_gradients, set_rates
from ino.train.resolve import resolve
from ino.train.setup import Run, start


def train(config: TrainConfig, *, out: Path, resume: bool = False) -> Path:
    """Trains as configured and gives the last checkpoint.

    Args:
        config: as a recipe gives it.
        out: folder of the run, to which are written: config.yaml, log.jsonl (a line a step),
            tensorboard/, checkpoints/ and quarantine.jsonl (videos that could not be used).
        resume: continue from the newest checkpoint in `out`, or start if there is none.

    Raises:
        ConfigError: a value is out of range, or does not fit the run that is resumed.
        VideoError: there are no videos, or most of them are broken.
        OutputError: the folder holds a run and `resume` is off, or it cannot be written.
        TrainingError: the loss is not finite; the message names term and step.
    """
    config = resolve(config)
    run = start(config, out=out, resume=resume)
    fabric, model, objective = run.fabric, run.state.model, run.state.objective
    student_parameters = list(model.student.parameters())
    frozen_steps = (config.optim.freeze_last_layer_epochs or 0) * run.steps_per_epoch
    model.train()
    with RunLog(
        out,
        first_step=run.first_step,
        num_steps=run.num_steps,
        log_every=config.run.log_every,
        enabled=fabric.is_global_zero,
    ) as log:
        for step, clips in enumerate(_batches(run), start=run.first_step):
            lr, weight_decay, momentum = run.schedules.at(step)
            set_rates(run.state.optimizer, lr=lr, weight_decay=weight_decay)
            views = draw_views(config, clips, step=step, fabric=fabric)

            targets = objective.targets(run.network(views, role="teacher"))
            terms = _take_gradients(run, views, targets, num_parts=config.run.accumulate)
            numbers = _finite_numbers(terms, step=step)

            fabric.strategy.precision.unscale_gradients(run.state.optimizer)
            if step < frozen_steps:
                model.student.head.last_layer.zero_grad()
            grad_norm = clip_gradients(student_parameters, max_norm=config.optim.clip_grad)
            run.optimizer.step()
            run.optimizer.zero_grad()
            model.update_teacher(momentum)

            rates = {"lr": lr, "weight_decay": weight_decay, "teacher_momentum": momentum}
            log.write(step, numbers | rates | {"grad_norm": grad_norm.item()})
            is_last = step + 1 == run.num_steps
            if fabric.is_global_zero and (is_last or (step + 1) % config.run.save_every == 0):
                save_checkpoint(config, run.state, out=out, step=step + 1)
    fabric.barrier()
    return list_checkpoints(out)[-1]


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
        found.append(torch.stack(terms).detach())
    return Terms(*(torch.stack(found).sum(dim=0) / num_parts).unbind())


def _batches(run: Run) -> Iterator[list[Tensor]]:
    """The clips of each step that is left, epoch after epoch."""
    step = run.first_step
    while step < run.num_steps:
        epoch, batch = divmod(step, run.steps_per_epoch)
        run.sampler.set_position(epoch, batch)
        try:
            for clips in run.loader:
                yield clips
                step += 1
                if step == run.num_steps:
                    return
        except InoError as error:
            # A worker process puts its whole traceback into the message.
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__name__}: ")[2]) from error


def draw_views(config: TrainConfig, clips: list[Tensor], *, step: int, fabric: Fabric) -> Views:
    """The crops and the masked positions of a step, drawn from seed, step and process.

    The number of masked positions is that of all processes; with `masking.shared`, so is the mask.
    """
    settings, masking = config.views, config.masking
    shared_rng = np.random.default_rng([config.run.seed, step, 0])
    rng = np.random.default_rng([config.run.seed, step, 1 + fabric.global_rank])
    torch.manual_seed(int(rng.integers(2**63)))  # drop path
    side = settings.global_size // config.model.patch_size
    has_in_generative = config.loss.masked > 0 or config.loss.affinity > 0
    num_masked = draw_num_masked(
        shared_rng,
        num_tokens=side * side,
        probability=masking.probability if has_in_generative else 0.0,
        ratio=masking.ratio,
    )
    masked = None
    if num_masked:
        drawn = draw_masks(
            shared_rng if masking.shared else rng,
            num_clips=len(clips),
            rows=side,
            columns=side,
            num_masked=num_masked,
            kind=masking.kind or "blockwise",
            shared=bool(masking.shared),
        )
        positions = np.nonzero(drawn)[1].reshape(len(clips), num_masked)
        masked = torch.from_numpy(positions).to(fabric.device)
    colour = Photometric(flip=settings.flip, jitter=settings.jitter, grey=settings.grey)
    clips = [clip.to(fabric.device, non_blocking=True) for clip in clips]
    global_crops = make_crops(
        clips,
        geometry=CropGeometry(settings.global_size, settings.global_scale),
        photometric=colour if settings.colour_on_global else PLAIN,
        num_crops=1,
        rng=rng,
    )[:, 0]
    local_crops = None
    if settings.num_local and config.loss.l2g > 0:
        local_crops = make_crops(
            clips,
            geometry=CropGeometry(settings.local_size, settings.local_scale),
            photometric=dataclasses.replace(colour, blur=settings.local_blur),
            num_crops=settings.num_local,
            rng=rng,
        )
    return Views(global_crops, local_crops, masked)


def _finite_numbers(terms: Terms, *, step: int) -> dict[str, float]:
    """The terms by name.

    Raises:
        TrainingError: one is not finite; the message names it and the step.
    """
    numbers = dict(zip(Terms._fields, torch.stack(terms).tolist(), strict=True))
    broken = [name for name, value in numbers.items() if not math.isfinite(value)]
    if broken:
        term = next((name for name in broken if name != "loss"), "loss")
        raise TrainingError(
            f"the term {term} is {numbers[term]} at step {step}; the last checkpoint is whole: "
            "resume from it with a lower optim.lr or with run.precision 32-true"
        )
    return numbers
