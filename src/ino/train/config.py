"""What a training run is made of: nested dataclasses, filled from a recipe and dotted overrides.

`variant` sets every point on which the paper's text and the released code differ (the fields whose
default is None, see train.variants); each can also be set by itself. Imports nothing heavy, so that
the command line can show its options at once.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ino.errors import ConfigError
from ino.models.vit import ARCHITECTURES, PATCH_SIZES
from ino.plain_yaml import named_file, plain_words, read_yaml, yaml_names

Variant = Literal["paper", "released"]


@dataclass
class ModelConfig:
    """The networks.

    Args:
        arch: vit_nano, vit_tiny, vit_small or vit_base.
        patch_size: pixels a side of a patch, 8 or 16.
        drop_path: probability of dropping the last block's branches in the student.
        out_dim: classes of the head.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: width before the head's last layer.
    """

    arch: str = "vit_small"
    patch_size: int = 8
    drop_path: float = 0.1
    out_dim: int = 4096
    hidden_dim: int = 2048
    bottleneck_dim: int = 256


@dataclass
class DataConfig:
    """Which videos, and which of their frames make a clip.

    Args:
        root: folders, video files or lists of them, or tar shards; a folder of images is one video.
        clip_length: frames of a clip (L), even.
        frame_step: frames from one to the next in the source; 0 to go by `fps`. Set by `variant`.
        fps: frames a second of a clip; 0 to go by `frame_step`. Set by `variant`.
        clips_per_video: clips of each video in an epoch.
        visits: take all clips of a video in one reading and mix them with those of others; quicker
            where several clips have to be decoded from one key frame on.
        batch_size: clips of each device in a step.
        shard_videos: how many videos tar shards hold; 0 to count, which only files allow.
        num_workers: processes that decode, for each device; auto goes by the cores at hand.
        prefetch: batches that each of them has ready.
        index: file that keeps what headers of videos tell; auto is one in the user's cache, off
            reads no header before training.
    """

    root: str | list[str] = field(default_factory=list)
    clip_length: int = 4
    frame_step: int | None = None
    fps: float | None = None
    clips_per_video: int = 5
    visits: bool = False
    batch_size: int = 4
    shard_videos: int = 0
    num_workers: int | Literal["auto"] = "auto"
    prefetch: int = 2
    index: str = "auto"


@dataclass
class ViewsConfig:
    """Crops of each frame and their colours.

    Args:
        global_size: pixels a side of the global crop.
        global_scale: share of the frame's area that it covers.
        num_local: local crops of each frame (M); 0 for none.
        local_size: pixels a side of a local crop.
        local_scale: share of the frame's area that it covers.
        flip: probability of mirroring a crop.
        jitter: probability of changing brightness, contrast, saturation and hue.
        grey: probability of dropping colour.
        local_blur: probability of blurring a local crop.
        colour_on_global: flip and colour global crops as well. Set by `variant`.
    """

    global_size: int = 224
    global_scale: tuple[float, float] = (0.8, 0.95)
    num_local: int = 8
    local_size: int = 64
    local_scale: tuple[float, float] = (0.05, 0.8)
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    local_blur: float = 0.5
    colour_on_global: bool | None = None


@dataclass
class MaskingConfig:
    """Masks of the student's global crops.

    Args:
        probability: share of steps with in-generative learning.
        ratio: range of the share of masked positions (r).
        kind: blockwise or random positions. Set by `variant`.
        shared: one mask for all clips of a step. Set by `variant`.
    """

    probability: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    kind: Literal["blockwise", "random"] | None = None
    shared: bool | None = None


@dataclass
class LossConfig:
    """The terms of Eq. 6; a weight of 0 switches a term off.

    Args:
        g2g: weight of global-to-global generation (Eq. 1).
        l2g: weight of local-to-global generation (Eq. 2).
        masked: weight of masked prediction (Eq. 3).
        affinity: weight of affinity consistency (Eq. 5).
        teacher_temperature: of the teacher's softmax.
        student_temperature: of the student's softmax.
        affinity_teacher_temperature: tau_t of Eq. 4.
        affinity_student_temperature: tau_s of Eq. 4.
        center_momentum: weight of the old centre in the new one.
        center_update: when a centre moves, once a step or after each group. Set by `variant`.
        out_mean: g2g and l2g each as a mean, or one joint mean. Set by `variant`.
        affinity_on: what the affinity compares. Set by `variant`.
    """

    g2g: float = 1.0
    l2g: float = 1.0
    masked: float = 1.0
    affinity: float = 1.0
    teacher_temperature: float = 0.04
    student_temperature: float = 0.1
    affinity_teacher_temperature: float = 0.04
    affinity_student_temperature: float = 0.1
    center_momentum: float = 0.9
    center_update: Literal["step", "group"] | None = None
    out_mean: Literal["each", "joint"] | None = None
    affinity_on: Literal["distributions", "logits"] | None = None


@dataclass
class OptimConfig:
    """AdamW, its schedules and the teacher's momentum.

    Args:
        epochs: passes over the videos.
        lr: learning rate for 1024 frames a step over all devices; scaled linearly.
        min_lr: learning rate at the end, not scaled.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: at the start; cosine to `weight_decay_end`.
        weight_decay_end: at the end.
        teacher_momentum: at the start; cosine to 1.
        clip_grad: largest norm of each parameter's gradient; 0 for no clipping.
        first_epoch: epoch at which the schedules start. Set by `variant`.
        freeze_last_layer_epochs: epochs before the head's last layer learns. Set by `variant`.
    """

    epochs: int = 25
    lr: float = 3e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 2.0
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    teacher_momentum: float = 0.996
    clip_grad: float = 3.0
    first_epoch: int | None = None
    freeze_last_layer_epochs: int | None = None


@dataclass
class RunConfig:
    """On what the run goes, and what it keeps.

    Args:
        seed: of weights, clips, crops and masks.
        max_steps: stop after this many steps; 0 for no limit. Schedules stay as they are.
        accelerator: auto, cpu, cuda or mps.
        strategy: ddp copies the networks to each device, fsdp cuts them over the devices; auto is
            ddp for several devices.
        devices: processes on each machine; 0 for those that torchrun or SLURM started, else one.
        num_nodes: machines; 0 likewise.
        precision: auto is bf16-mixed on a device that computes in it, else 32-true.
        accumulate: parts of a step's clips that are gone through one after the other, to save
            memory; a divisor of data.batch_size. The numbers stay the same to rounding, but for
            dropped paths, which are drawn for each part.
        activation_checkpointing: compute the student's blocks again for gradients instead of
            keeping their activations: less memory, a quarter more time.
        compile: have torch compile the blocks.
        log_every: steps between lines on the screen and in TensorBoard.
        save_every: steps between checkpoints.
        keep: checkpoints kept, the newest.
        pictures_every: steps between pictures of crops and masks, from the first; 0 for none.
        eval_every: steps between scores of the student on labelled sequences; 0 for none.
        eval_root: data set in the layout of DAVIS.
        eval_year: of its list of sequences, 2016 or 2017.
        eval_split: name of that list.
        eval_sequences: those of the list to do; empty for all.
        eval_protocol: how masks are carried.
        eval_short_side: pixels, the protocol's radius with it; 0 for the protocol's own.
        wandb: project of Weights & Biases that the run is told to; empty for none.
    """

    seed: int = 0
    max_steps: int = 0
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    devices: int = 0
    num_nodes: int = 0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    accumulate: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    log_every: int = 10
    save_every: int = 500
    keep: int = 2
    pictures_every: int = 1000
    eval_every: int = 0
    eval_root: str = ""
    eval_year: int = 2017
    eval_split: str = "val"
    eval_sequences: list[str] = field(default_factory=list)
    eval_protocol: str = "ino-davis"
    eval_short_side: int = 0
    wandb: str = ""


@dataclass
class TrainConfig:
    """A training run.

    Args:
        variant: `paper` follows the paper's text, `released` computes what its code computes.
        init: weights to start from instead of random ones: a run's folder, its checkpoint, or a
            release of INO, iBOT or DINO.
        model: the networks.
        data: videos and clips.
        views: crops and colours.
        masking: masks of the student's global crops.
        loss: the terms of the objective.
        optim: optimiser and schedules.
        run: devices, precision, checkpoints.
    """

    variant: Variant = "paper"
    init: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


# What `variant` sets: the points on which the paper's text and the released code differ.


VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {
        "data.frame_step": 8,
        "data.fps": 0.0,
        "views.colour_on_global": True,
        "masking.kind": "blockwise",
        "masking.shared": False,
        "loss.center_update": "step",
        "loss.out_mean": "each",
        "loss.affinity_on": "distributions",
        "optim.first_epoch": 0,
        "optim.freeze_last_layer_epochs": 1,
    },
    "released": {
        "data.frame_step": 0,
        "data.fps": 8.0,
        "views.colour_on_global": False,
        "masking.kind": "random",
        "masking.shared": True,
        "loss.center_update": "group",
        "loss.out_mean": "joint",
        "loss.affinity_on": "logits",
        "optim.first_epoch": 1,
        "optim.freeze_last_layer_epochs": 0,
    },
}
"""Where the two variants differ; docs/paper-and-code.md tells what each difference does."""


# A training run's configuration as plain values, nested or by dotted name.
#
# Imports nothing heavy, so that the command line can name its options at once.


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, for YAML and JSON."""
    plain = dataclasses.asdict(config)
    for section in plain.values():
        if isinstance(section, dict):
            section.update({k: list(v) for k, v in section.items() if isinstance(v, tuple)})
    return plain


def from_dict(plain: dict[str, Any]) -> TrainConfig:
    """The configuration that `to_dict` wrote."""
    sections = {}
    for section in dataclasses.fields(TrainConfig):
        value = plain[section.name]
        if isinstance(value, dict):
            build: Any = section.default_factory
            value = build(**{k: _frozen(k, v) for k, v in value.items()})
        sections[section.name] = value
    return TrainConfig(**sections)


_LISTS = ("root", "eval_sequences")
"""Fields that hold a list; other sequences are pairs of numbers."""


def _frozen(name: str, value: Any) -> Any:
    return tuple(value) if isinstance(value, list) and name not in _LISTS else value


def flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested sections: ("model.arch", "vit_tiny")."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def field_names() -> list[str]:
    """The dotted names of all fields: "model.arch"."""
    return [name for name, _ in flatten(to_dict(TrainConfig()))]


# A configuration made whole by its variant and checked, or compared with another.


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

_SEEDS = 2**63
"""How many torch's generators tell apart."""


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
    yield "data.root", data.root, "" not in data.root, "without empty names"
    yield "run.seed", run.seed, 0 <= run.seed < _SEEDS, f"0 or more and less than {_SEEDS}"
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
        **{f"run.{n}": getattr(run, n) for n in ("max_steps", "devices", "num_nodes")},
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


# Recipes: YAML files that set fields of a training run, by name or by path.
#
# The command line takes a recipe as options that come before those given, so that a value is
# checked the same way wherever it is written; programs take it as a configuration.


FOLDER = Path(__file__).parent.parent / "recipes"
"""Where the named recipes are."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with ino."""
    return yaml_names(FOLDER)


def read_recipe(name: str) -> dict[str, Any]:
    """What a recipe sets, by dotted field: {"model.arch": "vit_tiny"}.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.

    Raises:
        ConfigError: there is no such recipe, it is no YAML, or it has a key that is not known or is
            there twice.
    """
    path = named_file(name, FOLDER, what="recipe")
    content = read_yaml(path, what="recipe", holds="sections such as model and data")
    known_keys = field_names()
    flat = dict(flatten(content))
    for key in flat:
        if key not in known_keys:
            raise ConfigError(f"the recipe {path} has the unknown key {key}; see ino train --help")
    return flat


def load_recipe(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a recipe; fields that it leaves out have their defaults.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.
        overrides: options as on the command line, such as `--optim.lr=0.001`.

    Raises:
        ConfigError: see `read_recipe`; or a value is not of its field's type.
    """
    parser = ArgumentParser(exit_on_error=False)
    add_config_arguments(parser)
    try:
        return config_of(parser.parse_args([*recipe_arguments(name), *overrides]))
    except ArgumentError as error:
        raise ConfigError(f"the recipe {name} cannot be used: {plain_words(error)}") from error


def recipe_arguments(name: str) -> list[str]:
    """What a recipe sets, as options of the command line: ["--model.arch=vit_tiny"].

    Raises:
        ConfigError: see `read_recipe`.
    """
    return as_options(read_recipe(name))


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Values by dotted field as options of the command line."""
    return [f"--{key}={_as_text(value)}" for key, value in values.items()]


def add_config_arguments(parser: ArgumentParser) -> None:
    """Adds every field of a training run as an option: --optim.lr."""
    parser.add_class_arguments(TrainConfig, nested_key=None, fail_untyped=False)


def config_of(options: Namespace) -> TrainConfig:
    """The configuration among parsed options, added by `add_config_arguments`."""
    values = {name: options[name] for name in TrainConfig.__dataclass_fields__}
    return from_dict({n: v.as_dict() if isinstance(v, Namespace) else v for n, v in values.items()})


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
