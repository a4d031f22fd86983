"""A configuration made whole by its variant and checked, or compared with another."""

import dataclasses
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ino.errors import ConfigError
from ino.models.vit import ARCHITECTURES, PATCH_SIZES
from ino.train.config import LossConfig, TrainConfig
from ino.train.config_dict import flatten, to_dict
from ino.train.variants import VARIANTS

# Whatever these are, the clips are the same.
_OF_NO_ACCOUNT = frozenset({"data.num_workers", "data.prefetch", "data.index", "data.batch_size"})
"""Fields that leave a run's numbers as they are; of the batch size see `check_same_batch`."""


def resolve(config: TrainConfig) -> TrainConfig:
    """A copy in which every field that the variant sets has its value; checked.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """
    resolved = dataclasses.replace(
        config,
        **{
            section.name: dataclasses.replace(getattr(config, section.name))
            for section in dataclasses.fields(config)
            if dataclasses.is_dataclass(getattr(config, section.name))
        },
    )
    if isinstance(resolved.data.root, str):
        resolved.data.root = [resolved.data.root]
    if resolved.variant not in VARIANTS:
        raise ConfigError(f"variant is {resolved.variant!r}; choose paper or released")
    if resolved.data.frame_step and resolved.data.fps is None:
        resolved.data.fps = 0.0
    if resolved.data.fps and resolved.data.frame_step is None:
        resolved.data.frame_step = 0
    for name, value in VARIANTS[resolved.variant].items():
        section, option = name.split(".")
        if getattr(getattr(resolved, section), option) is None:
            setattr(getattr(resolved, section), option, value)
    _check(resolved)
    return resolved


_Rule = tuple[str, Any, bool, str]
"""Name of a field, its value, whether the rule holds, what the value must be."""


def _check(config: TrainConfig) -> None:
    for name, found, holds, wanted in chain(_finite(config), _choices(config), _ranges(config)):
        if not holds:
            raise ConfigError(f"{name} is {found}; it must be {wanted}")


def _finite(config: TrainConfig) -> Iterator[_Rule]:
    for name, value in flatten(to_dict(config)):
        if isinstance(value, float):
            yield name, value, math.isfinite(value), "a finite number"


def _choices(config: TrainConfig) -> Iterator[_Rule]:
    """Values of which some fit and others do not, or that must fit each other."""
    model, data, views, loss = config.model, config.data, config.views, config.loss
    known = model.arch in ARCHITECTURES
    yield "model.arch", model.arch, known, f"one of {', '.join(ARCHITECTURES)}"
    patch = model.patch_size
    yield "model.patch_size", patch, patch in PATCH_SIZES, "8 or 16"
    yield "data.clip_length", data.clip_length, _is_even(data.clip_length), "an even number >= 2"
    steps = f"{data.frame_step} and {data.fps}"
    is_one = bool(data.frame_step) != bool(data.fps)
    yield "data.frame_step and data.fps", steps, is_one, "one above 0 and the other 0"
    parts = config.run.accumulate
    divides = parts > 0 and data.batch_size % parts == 0
    yield "run.accumulate", parts, divides, f"a divisor of data.batch_size {data.batch_size}"
    yield "loss weights", "all 0", _any_weight(loss), "above 0 for at least one term"
    for name, size in (("global", views.global_size), ("local", views.local_size)):
        fits = size > 0 and size % patch == 0
        yield f"views.{name}_size", size, fits, f"a multiple of the patch size {patch}"


def _ranges(config: TrainConfig) -> Iterator[_Rule]:
    """Numbers within bounds."""
    model, data, views = config.model, config.data, config.views
    masking, loss, optim, run = config.masking, config.loss, config.optim, config.run
    shares = {"views.global_scale": views.global_scale, "views.local_scale": views.local_scale}
    for name, (low, high) in (shares | {"masking.ratio": masking.ratio}).items():
        holds = 0 < low <= high <= 1
        yield name, [low, high], holds, "a range within 0..1, smaller value first"
    probabilities = {
        "model.drop_path": model.drop_path,
        "masking.probability": masking.probability,
        "loss.center_momentum": loss.center_momentum,
        "optim.teacher_momentum": optim.teacher_momentum,
        **{f"views.{n}": getattr(views, n) for n in ("flip", "jitter", "grey", "local_blur")},
    }
    yield from ((n, v, 0 <= v <= 1, "between 0 and 1") for n, v in probabilities.items())
    positive = {
        "data.batch_size": data.batch_size,
        "data.clips_per_video": data.clips_per_video,
        "data.prefetch": data.prefetch,
        "model.out_dim": model.out_dim,
        "model.hidden_dim": model.hidden_dim,
        "model.bottleneck_dim": model.bottleneck_dim,
        "optim.epochs": optim.epochs,
        **{f"loss.{n}": v for n, v in vars(loss).items() if n.endswith("temperature")},
        **{f"run.{n}": getattr(run, n) for n in ("log_every", "save_every", "keep")},
    }
    yield from ((n, v, v > 0, "above 0") for n, v in positive.items())
    not_negative = {
        "views.num_local": views.num_local,
        "data.num_workers": 0 if data.num_workers == "auto" else data.num_workers,
        "data.shard_videos": data.shard_videos,
        "data.frame_step": data.frame_step,
        "data.fps": data.fps,
        **{f"loss.{n}": getattr(loss, n) for n in ("g2g", "l2g", "masked", "affinity")},
        **{f"optim.{n}": v for n, v in vars(optim).items() if n != "epochs"},
        **{f"run.{n}": getattr(run, n) for n in ("seed", "max_steps", "devices", "num_nodes")},
        **{f"run.{n}": getattr(run, n) for n in ("pictures_every", "eval_every")},
        "run.eval_short_side": run.eval_short_side,
    }
    yield from ((n, v, v >= 0, "0 or more") for n, v in not_negative.items())


def _is_even(length: int) -> bool:
    return length >= 2 and length % 2 == 0


def _any_weight(loss: LossConfig) -> bool:
    return max(loss.g2g, loss.l2g, loss.masked, loss.affinity) > 0


_RUN_MATTERS = {"run.seed", "run.precision"}


def differences(earlier: TrainConfig, later: TrainConfig) -> list[tuple[str, Any, Any]]:
    """Fields that change the numbers of a run and differ: name, earlier and later value."""
    found = []
    old, new = to_dict(earlier), to_dict(later)
    for section, value in old.items():
        if not isinstance(value, dict):
            found += [(section, value, new[section])] if value != new[section] else []
            continue
        for key, was in value.items():
            name = f"{section}.{key}"
            matters = name in _RUN_MATTERS or (section != "run" and name not in _OF_NO_ACCOUNT)
            if matters and was != new[section][key]:
                found.append((name, was, new[section][key]))
    return found


def check_same_batch(earlier: TrainConfig, later: TrainConfig, *, run: Path) -> None:
    """Checks that a step has as many clips as before, over however many processes.

    Args:
        earlier: with the numbers of processes and machines that were found.
        later: likewise.
        run: named in the message.

    Raises:
        ConfigError: it has not; the message says which data.batch_size would do.
    """
    num_old, num_new = count_clips(earlier), count_clips(later)
    if num_old == num_new:
        return
    per_process = later.data.batch_size
    num_processes = num_new // per_process
    advice = f"pass --data.batch_size {num_old // num_processes}"
    if num_old % num_processes:
        advice = f"use a number of processes that divides {num_old}"
    raise ConfigError(
        f"a step of the run in {run} has {num_old} clips, now it would have {num_new} "
        f"({num_processes} processes x data.batch_size {per_process}): {advice} to continue it"
    )


def count_clips(config: TrainConfig) -> int:
    """Clips of a step over all processes; their numbers must have been found."""
    run = config.run
    return config.data.batch_size * max(1, run.devices) * max(1, run.num_nodes)
