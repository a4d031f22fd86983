"""The configuration of a training run: every option, with its range and its meaning.

`variant` sets each point on which the paper's text and the released code differ: the fields whose
default is None, until `resolve` fills them. Each can also be set by itself. Recipes are YAML files;
a recipe may start from another one (`base: tiny`), and dotted names override single fields.
Imports nothing heavy, so that the command line can show its options at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from ino.errors import ConfigError
from ino.schema import Model, checked, named_file, read_yaml, yaml_value

Variant = Literal["paper", "released"]

OneOrMore = Annotated[int, Field(gt=0)]
ZeroOrMore = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"must have its smaller value first, but is {list(pair)}")
    return pair


ShareRange = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
PositiveRange = Annotated[tuple[AboveZero, AboveZero], AfterValidator(_ascending)]
Names = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(lambda names: [names] if isinstance(names, str) else names),
]


class _Section(Model):
    """Fields that a program may change until the run is resolved, which checks them again."""

    model_config = ConfigDict(frozen=False)


class ModelConfig(_Section):
    """The networks."""

    arch: (
        Literal["vit_nano", "vit_tiny", "vit_small", "vit_base"]
        | Annotated[str, Field(pattern=r"^timm:.")]
    ) = "vit_small"
    """Backbone: ino's own Vision Transformer of a width, or timm:NAME, a network of timm, which may
    be convolutional (timm:resnet50/8 with stride 8)."""
    patch_size: Literal[8, 16] = 8
    """Side of a patch in pixels of ino's own networks; those of timm have their own."""
    depth: OneOrMore = 12
    """Number of blocks of ino's own networks; those of timm have their own."""
    positions: Literal["learned", "sincos"] = "learned"
    """What the position embeddings of ino's own networks start from: noise (learned), or sines and
    cosines of row and column (sincos). They are learned in both cases. With `init` those of the
    weights are taken."""
    drop_path: Probability = 0.1
    """Probability of dropping the branches of the student's last block; less in earlier ones."""
    out_dim: OneOrMore = 4096
    """Classes of the head."""
    hidden_dim: OneOrMore = 2048
    """Width of the head's hidden layers."""
    bottleneck_dim: OneOrMore = 256
    """Width before the head's last layer."""

    @model_validator(mode="after")
    def _check_positions(self) -> "ModelConfig":
        if self.positions != "learned" and self.arch.startswith("timm:"):
            raise ValueError(
                f"positions is {self.positions}, but {self.arch} has its own; leave it out, or "
                "choose a network of ino"
            )
        return self


class DataConfig(_Section):
    """Which videos, and which of their frames make a clip."""

    root: Names = Field(default_factory=list)
    """Folders, video files, lists of them, or tar shards; a folder of images is one video."""
    clip_length: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    """Frames of a clip (L), an even number."""
    frame_step: ZeroOrMore | None = None
    """Distance between two frames of a clip, in frames of the video; 0 to use fps instead. Set by
    variant."""
    fps: NotNegative | None = None
    """Frame rate of a clip in frames per second; 0 to use frame_step instead. Set by variant."""
    clips_per_video: OneOrMore = 5
    """Clips of each video in an epoch."""
    visits: bool = False
    """Decode all clips of a video at once and mix them with those of other videos: faster if a
    video has few key frames."""
    sampling: Literal["uniform", "motion"] = "uniform"
    """uniform samples all videos equally often; motion those more often in which more moves, at
    most 3 times as often as the mean."""
    cuts: Literal["allow", "avoid"] = "allow"
    """avoid takes a clip that crosses a cut between two scenes from another place of the video, of
    which four are tried."""
    batch_size: OneOrMore = 4
    """Clips of each device in a step."""
    shard_videos: ZeroOrMore = 0
    """Number of videos in all tar shards together; 0 to count them, which needs local files."""
    num_workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """Decoding processes for each device; auto derives their number from that of the cores."""
    prefetch: Annotated[int, Field(gt=0, le=256)] = 2
    """Batches that each of them keeps ready."""
    index: str = "auto"
    """File that caches the headers of the videos; auto is a file in the user's cache folder, off
    starts training without reading headers."""

    @model_validator(mode="after")
    def _check_rate(self) -> "DataConfig":
        if None not in (self.frame_step, self.fps) and bool(self.frame_step) == bool(self.fps):
            raise ValueError(
                f"frame_step and fps are {self.frame_step} and {self.fps}; one must be above 0 and "
                "the other 0"
            )
        if self.sampling == "motion" and self.index == "off":
            raise ValueError(
                "sampling by motion needs the index, which keeps what was measured: give index a "
                "file or auto, or leave sampling at uniform"
            )
        return self


class ViewsConfig(_Section):
    """Crops of each frame and their colors."""

    global_size: OneOrMore = 224
    """Side of the global crop in pixels."""
    global_scale: ShareRange = (0.8, 0.95)
    """Range of the share of the frame's area that it covers."""
    num_local: ZeroOrMore = 8
    """Local crops of each frame (M); 0 for none."""
    local_size: OneOrMore = 64
    """Side of a local crop in pixels."""
    local_scale: ShareRange = (0.05, 0.8)
    """Range of the share of the frame's area that it covers."""
    ratio: PositiveRange = (3 / 4, 4 / 3)
    """Range of the aspect ratio (width / height) of all crops."""
    flip: Probability = 0.5
    """Probability of mirroring a crop."""
    jitter: Probability = 0.8
    """Probability of changing brightness, contrast, saturation and hue."""
    brightness: NotNegative = 0.4
    """Strength of the change: the factor is between 1 - strength and 1 + strength."""
    contrast: NotNegative = 0.4
    """Likewise for contrast."""
    saturation: NotNegative = 0.2
    """Likewise for saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest hue shift, as a fraction of the color circle, 0 to 0.5."""
    grey: Probability = 0.2
    """Probability of converting a crop to grayscale."""
    local_blur: Probability = 0.5
    """Probability of blurring a local crop."""
    blur_sigma: PositiveRange = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels."""
    color_on_global: bool | None = None
    """Apply flips and color changes to global crops as well. Set by variant."""


class MaskingConfig(_Section):
    """Masks of the student's global crops (section 3.3)."""

    probability: Probability = 0.5
    """Probability that a step has in-generative learning (Eq. 3 to 5)."""
    ratio: ShareRange = (0.1, 0.5)
    """Range of the share of masked positions (r)."""
    kind: Literal["blockwise", "random"] | None = None
    """Blockwise or random positions. Set by variant."""
    shared: bool | None = None
    """One mask for all clips of a step. Set by variant."""


class LossConfig(_Section):
    """The terms of Eq. 6; a weight of 0 switches a term off."""

    g2g: NotNegative = 1.0
    """Weight of global-to-global generation (Eq. 1)."""
    l2g: NotNegative = 1.0
    """Weight of local-to-global generation (Eq. 2)."""
    masked: NotNegative = 1.0
    """Weight of masked prediction (Eq. 3)."""
    affinity: NotNegative = 1.0
    """Weight of affinity consistency (Eq. 5)."""
    extra: str = ""
    """A term of your own, module:function (docs/training.md); empty for none. Recipe files cannot
    set it, as it runs code."""
    extra_weight: NotNegative = 1.0
    """Its weight."""
    teacher_temperature: AboveZero = 0.04
    """Temperature of the teacher's softmax."""
    student_temperature: AboveZero = 0.1
    """Temperature of the student's softmax."""
    affinity_teacher_temperature: AboveZero = 0.04
    """tau_t of Eq. 4."""
    affinity_student_temperature: AboveZero = 0.1
    """tau_s of Eq. 4."""
    center_momentum: Probability = 0.9
    """Weight of the old center in the new one."""
    center_update: Literal["step", "group"] | None = None
    """Update the centers once per step, or after each group of outputs. Set by variant."""
    out_mean: Literal["each", "joint"] | None = None
    """Take the means of g2g and l2g separately (each), or one mean over all their terms (joint).
    Set by variant."""
    affinity_on: Literal["distributions", "logits"] | None = None
    """Compute the affinity (Eq. 4) from the distributions or from the logits of the head. Set by
    variant."""

    @model_validator(mode="after")
    def _check_weights(self) -> "LossConfig":
        if not (any((self.g2g, self.l2g, self.masked, self.affinity)) or self.extra):
            raise ValueError("the weights are all 0; at least one term must be above 0")
        return self


class OptimConfig(_Section):
    """AdamW, its schedules and the teacher's momentum."""

    epochs: OneOrMore = 25
    """Passes over the videos."""
    lr: NotNegative = 3e-4
    """Learning rate for 1024 frames per step over all devices; scaled with the number of frames."""
    min_lr: NotNegative = 1e-6
    """Learning rate at the end, not scaled."""
    warmup_epochs: NotNegative = 2.0
    """Epochs of linear warm-up."""
    weight_decay: NotNegative = 0.04
    """Weight decay at the start; a cosine leads to weight_decay_end."""
    weight_decay_end: NotNegative = 0.4
    """Weight decay at the end."""
    teacher_momentum: Probability = 0.996
    """Momentum of the teacher at the start; a cosine leads to 1."""
    clip_grad: NotNegative = 3.0
    """Largest norm of each parameter's gradient; 0 for no clipping."""
    first_epoch: ZeroOrMore | None = None
    """Epoch at which the schedules start. Set by variant."""
    freeze_last_layer_epochs: ZeroOrMore | None = None
    """Epochs before the head's last layer learns. Set by variant."""
    heads_first_epochs: NotNegative | Literal["auto"] = "auto"
    """Epochs in which the heads learn alone; then the backbone's learning rate rises for as long.
    auto is warmup_epochs if `init` gives a backbone without a head that fits, else 0."""
    layer_decay: Share | Literal["auto"] = "auto"
    """Factor of the learning rate from each block to the one before it. auto is 0.75 if `init`
    gives a backbone without a head that fits, else 1."""


class RunConfig(_Section):
    """Where the run computes, and what it keeps."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of weights, clips, crops and masks."""
    max_steps: ZeroOrMore = 0
    """Stop after this many steps; 0 for no limit. Schedules stay as they are."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp copies the networks to each device, fsdp shards them over the devices; auto is ddp where
    there are several devices."""
    devices: ZeroOrMore = 0
    """Processes on each machine; 0 takes the number that torchrun or SLURM started, or else one."""
    num_nodes: ZeroOrMore = 0
    """Number of machines; 0 takes the number that torchrun or SLURM started, or else one."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto is bf16-mixed on a device that computes in it, else 32-true."""
    accumulate: OneOrMore = 1
    """Gradient accumulation: number of parts into which the clips of a step are divided, to save
    memory; a divisor of data.batch_size. Results are the same up to rounding, except that paths are
    dropped in each part independently."""
    activation_checkpointing: bool = False
    """Recompute the activations of the student's blocks in the backward pass instead of storing
    them: less memory, about a quarter more time."""
    compile: bool = False
    """Compile the blocks with torch.compile."""
    log_every: OneOrMore = 10
    """Steps between two lines of the log."""
    save_every: OneOrMore = 500
    """Steps between two checkpoints."""
    keep: OneOrMore = 2
    """How many of the newest checkpoints are kept."""
    pictures_every: ZeroOrMore = 1000
    """Steps between two pictures of crops and masks, the first at step 0; 0 for no pictures."""
    eval_every: ZeroOrMore = 0
    """Steps between two scores of the student on labelled sequences; 0 for none."""
    eval_root: str = ""
    """Data set to evaluate on, in the layout of DAVIS."""
    eval_year: int = 2017
    """Year of the evaluation's list of sequences, 2016 or 2017."""
    eval_split: str = "val"
    """Name of the evaluation's list of sequences."""
    eval_sequences: Names = Field(default_factory=list)
    """Sequences of that list to evaluate on; empty for all."""
    eval_protocol: str = "ino-davis"
    """Protocol by which masks are propagated."""
    eval_short_side: ZeroOrMore = 0
    """Short side of the frames in pixels; the protocol's radius scales with it. 0 for the
    protocol's own."""
    judge_every: ZeroOrMore = 0
    """Steps between two predictions of the student's J&F on videos without labels; 0 for none."""
    judge_videos: Names = Field(default_factory=list)
    """Videos for these predictions, files or folders of images; better not those of data.root."""
    judge_protocol: str = "ino-near"
    """Protocol by which the predictions propagate."""
    wandb: str = ""
    """Project of Weights & Biases that the run is logged to; empty for none."""


class TrainConfig(_Section):
    """A training run."""

    variant: Variant = "paper"
    """`paper` follows the paper's text, `released` computes what the released code computes."""
    init: str = ""
    """Weights to start from instead of random ones: a run's folder, a checkpoint, an export, a
    release of another project, or a name that `ino weights` lists."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """The networks."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Videos and clips."""
    views: ViewsConfig = Field(default_factory=ViewsConfig)
    """Crops and colors."""
    masking: MaskingConfig = Field(default_factory=MaskingConfig)
    """Masks of the student's global crops."""
    loss: LossConfig = Field(default_factory=LossConfig)
    """The terms of the objective."""
    optim: OptimConfig = Field(default_factory=OptimConfig)
    """Optimizer and schedules."""
    run: RunConfig = Field(default_factory=RunConfig)
    """Devices, precision, checkpoints."""

    @model_validator(mode="after")
    def _check_together(self) -> "TrainConfig":
        patch = self.model.patch_size
        sizes = {"global_size": self.views.global_size, "local_size": self.views.local_size}
        for name, size in sizes.items():
            if size % patch and not self.model.arch.startswith("timm:"):
                raise ValueError(
                    f"views.{name} must be a multiple of the patch size {patch}, but is {size}"
                )
        if self.data.batch_size % self.run.accumulate:
            raise ValueError(
                f"run.accumulate must be a divisor of data.batch_size {self.data.batch_size}, but "
                f"is {self.run.accumulate}"
            )
        return self

    def with_values(self, values: Mapping[str, Any]) -> "TrainConfig":
        """A checked copy with other values, by dotted name: {"run.max_steps": 3}.

        Text, as the command line has it, is read as YAML where the field holds no text.

        Raises:
            ConfigError: a name is unknown or a value breaks a rule.
        """
        fields = config_fields()
        changed = flatten(values)
        for name, value in changed.items():
            if isinstance(value, str) and name in fields and not _holds_text(fields[name].type):
                changed[name] = yaml_value(value)
        return checked(TrainConfig, nest(flatten(to_dict(self)) | changed))


VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {
        "data.frame_step": 8,
        "data.fps": 0.0,
        "views.color_on_global": True,
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
        "views.color_on_global": False,
        "masking.kind": "random",
        "masking.shared": True,
        "loss.center_update": "group",
        "loss.out_mean": "joint",
        "loss.affinity_on": "logits",
        "optim.first_epoch": 1,
        "optim.freeze_last_layer_epochs": 0,
    },
}
"""Where the two variants differ; docs/paper-and-code.md says what each difference does."""


def resolve(config: TrainConfig) -> TrainConfig:
    """A validated copy in which every field left to the variant has its value.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """
    values = flatten(to_dict(config))
    if values["data.frame_step"] and values["data.fps"] is None:
        values["data.fps"] = 0.0
    if values["data.fps"] and values["data.frame_step"] is None:
        values["data.frame_step"] = 0
    for name, value in VARIANTS.get(config.variant, {}).items():
        if values[name] is None:
            values[name] = value
    return checked(TrainConfig, nest(values))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested plain values, for YAML and JSON."""
    return config.model_dump(mode="json", warnings=False)


def to_yaml(config: TrainConfig) -> str:
    """The whole configuration as YAML, a recipe by itself."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def from_dict(values: Any) -> TrainConfig:
    """The configuration that `to_dict` gave, also of a run before a field was added or renamed.

    Raises:
        ConfigError: it is incomplete or a value cannot be used.
    """
    missing = TrainConfig.model_fields.keys() - set(values if isinstance(values, dict) else ())
    if missing:
        raise ConfigError(f"{min(missing)} is missing")
    return checked(TrainConfig, nest(flatten(values)))


def untrained_name(model: ModelConfig) -> str:
    """The name by which `load_backbone` builds this backbone with random weights."""
    if model.arch.startswith("timm:"):
        return f"random:{model.arch.removeprefix('timm:')}"
    start = "+sincos" if model.positions == "sincos" else ""
    return f"random:{model.arch}/{model.patch_size}{start}"


class ConfigField(NamedTuple):
    """One field of a training run."""

    type: Any
    description: str


def config_fields(model: type[Model] = TrainConfig, prefix: str = "") -> dict[str, ConfigField]:
    """All fields by dotted name, such as "optim.lr"."""
    fields = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Model):
            fields |= config_fields(kind, f"{prefix}{name}.")
        else:
            kind = Annotated[kind, *field.metadata] if field.metadata else kind
            description = " ".join((field.description or "").split())
            fields[f"{prefix}{name}"] = ConfigField(kind, description)
    return fields


RENAMED = {"views.colour_on_global": "views.color_on_global"}
"""Fields of earlier versions, which keep working."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted name: {"model.arch": "vit_tiny"}."""
    found = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flatten(value, f"{name}.")
        else:
            found[RENAMED.get(name, name)] = value
    return found


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = RENAMED.get(name, name).split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{section} must hold keys and values, but is {inner}")
        inner[key] = value
    return nested


RECIPES = Path(__file__).parent.parent / "recipes"
"""Where the named recipes are."""


def recipe_values(name: str) -> dict[str, Any]:
    """The values set by a recipe and its base recipes, nested by section, not yet validated.

    Args:
        name: of a recipe in `RECIPES`, or the path of a YAML file. Its key `base` names the recipe
            that it starts from, a path being relative to the file.

    Raises:
        ConfigError: there is no such recipe, it cannot be read, it names a command or a module to
            run, or recipes start from each other.
    """
    values: dict[str, Any] = {}
    path = named_file(name, RECIPES, what="recipe")
    seen = [path.resolve()]
    while True:
        content = read_yaml(path, what="recipe", holds="sections such as model and data")
        base = content.pop("base", None)
        refuse_code(content, where=f"the recipe {path}")
        values = flatten(content) | values
        if base is None:
            return nest(values)
        if not isinstance(base, str):
            raise ConfigError(f"the recipe {path}: base must name a recipe, but is {base}")
        near = path.parent / base
        path = near if near.is_file() else named_file(base, RECIPES, what="recipe")
        seen.append(path.resolve())
        if seen[-1] in seen[:-1]:
            chain = " -> ".join(one.stem for one in seen)
            raise ConfigError(f"the recipe {name} starts from itself: {chain}")


def refuse_code(values: Mapping[str, Any], *, where: str) -> None:
    """Checks that values out of a file run no code: whoever sends a recipe could choose it.

    Args:
        values: fields of a run, nested or by dotted name.
        where: the file, such as "the recipe FILE".

    Raises:
        ConfigError: a root of `data.root` begins with `pipe:`, or `loss.extra` names a module; only
            the command line and Python may do that.
    """
    fields = flatten(values)
    roots = fields.get("data.root")
    for root in roots if isinstance(roots, list) else [roots]:
        if isinstance(root, str) and root.startswith("pipe:"):
            raise ConfigError(
                f"{where} has a command in data.root ({root[:80]!r}), which no file may run: if "
                "you trust it, take it out of the file and give it on the command line with "
                "--data.root"
            )
    if extra := fields.get("loss.extra"):
        raise ConfigError(
            f"{where} has a module in loss.extra ({str(extra)[:80]!r}), whose code no file may "
            "run: if you trust it, take it out of the file and give it on the command line with "
            "--loss.extra"
        )


def load_recipe(name: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of a recipe; fields that it leaves out have their defaults.

    Args:
        name: of a recipe in `RECIPES`, or the path of a YAML file.
        overrides: values by dotted name, such as {"optim.lr": 0.001}; see `with_values`.

    Raises:
        ConfigError: see `recipe_values`; or a key is unknown or a value breaks a rule.
    """
    config = checked(TrainConfig, recipe_values(str(name)), where=f"the recipe {name}")
    return config.with_values(overrides) if overrides else config


def _holds_text(kind: Any) -> bool:
    return kind is str or isinstance(kind, str) or any(map(_holds_text, get_args(kind)))


_SAME_NUMBERS = ("run.", "data.num_workers", "data.prefetch", "data.index", "data.batch_size")
"""Fields that leave a run's numbers as they are, if its global batch size stays the same."""
_OTHER_NUMBERS = ("run.seed", "run.precision")


def differences(first: TrainConfig, second: TrainConfig) -> list[tuple[str, Any, Any]]:
    """The fields that differ and that affect results, as (name, old value, new value)."""
    old, new = flatten(to_dict(first)), flatten(to_dict(second))
    return [
        (name, old[name], new[name])
        for name in old
        if old[name] != new[name] and (name in _OTHER_NUMBERS or not name.startswith(_SAME_NUMBERS))
    ]


def global_batch_size(config: TrainConfig) -> int:
    """The global batch size: clips per step over all processes.

    `run.devices` and `run.num_nodes` must be resolved; 0 counts as 1.
    """
    run = config.run
    return config.data.batch_size * max(1, run.devices) * max(1, run.num_nodes)
