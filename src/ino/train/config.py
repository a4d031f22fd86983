"""What a training run is made of: nested dataclasses, filled from a recipe and dotted overrides.

`variant` sets every point on which the paper's text and the released code differ (the fields whose
default is None, see train.variants); each can also be set by itself. Imports nothing heavy, so that
the command line can show its options at once.
"""

from dataclasses import dataclass, field
from typing import Literal

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
