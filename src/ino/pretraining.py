"""`ino train`: pretraining, with the student evaluated on annotated sequences during the run."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ino.data.clips import count_batches
from ino.data.davis import read_davis
from ino.errors import ConfigError
from ino.models.backbone import TIMM, Backbone, choose_device
from ino.models.load import backbone_of
from ino.models.masked_timm import MaskedTimm
from ino.models.vit import build_vit
from ino.models.weights import load_exactly, position_grid_side
from ino.propagate.judge import check_clip
from ino.propagate.protocols import fit_layer, get_protocol
from ino.propagate.tracker import Tracker
from ino.tasks.davis import evaluate_davis, has_truth
from ino.tasks.judge import judge_clip, read_judged
from ino.tasks.results import sized_protocol
from ino.train.config import DataConfig, TrainConfig, global_batch_size, resolve
from ino.train.data import count_epoch_clips, has_shards
from ino.train.loop import train
from ino.train.monitors import Evaluate

EVALUATIONS = "evaluations"


def pretrain(config: TrainConfig, *, out: Path | str, resume: bool = False) -> Path:
    """Trains as `ino.train.loop.train` does, and returns the path of the last checkpoint.

    If `run.eval_every` is above 0, the student is evaluated on the sequences of `run.eval_root`
    every so many steps and after the last one: J&F, J and F in percent are logged as `eval_jf`,
    `eval_j` and `eval_f`, the masks are written to `evaluations/step_.../`, and the checkpoint with
    the highest J&F is kept as checkpoints/best.pt.

    If `run.judge_every` is above 0, the J&F of the student on `run.judge_videos` is predicted
    without labels every so many steps and after the last one, and logged as `judge_jf` in percent;
    without `run.eval_every`, it decides which checkpoint is best.pt.

    Raises:
        DatasetError: the sequences are not there.
        ConfigError: `run.eval_every` is set but `run.eval_root` is not, `run.judge_every` is set
            but `run.judge_videos` is not, or a protocol is invalid.
        VideoError: a video to judge by cannot be used.
        InoError: see `train`.
    """
    config, out = resolve(config), Path(out)
    evaluate = build_evaluation(config, out=out) if config.run.eval_every else None
    judge = build_judge(config) if config.run.judge_every else None
    return train(config, out=out, resume=resume, evaluate=evaluate, judge=judge)


def build_judge(config: TrainConfig) -> Evaluate:
    """Checks the `run.judge_*` settings and returns the function that judges a student.

    Raises:
        ConfigError: `run.judge_videos` is empty, or the protocol is invalid.
        VideoError: a video cannot be read, or is too short or too still to judge by.
    """
    run = config.run
    if not run.judge_videos:
        raise ConfigError("run.judge_every is set, but not run.judge_videos, one or several videos")
    protocol = get_protocol(run.judge_protocol)
    clips = [read_judged(video) for video in run.judge_videos]
    for clip in clips:
        check_clip(clip.frames)

    def judge(weights: Mapping[str, Tensor], step: int) -> dict[str, float]:
        backbone = _student(config, weights, source=Path(f"student of step {step}"))
        device = choose_device(run.accelerator)
        found = [judge_clip(backbone, clip, protocol, device=device) for clip in clips]
        return {"judge_jf": 100 * math.fsum(one.score for one in found) / len(found)}

    return judge


def build_evaluation(config: TrainConfig, *, out: Path) -> Evaluate:
    """Checks the `run.eval_*` settings and returns the function that evaluates a student.

    Raises:
        DatasetError: the data set is not in the layout of DAVIS.
        ConfigError: `run.eval_root` is missing or lists no sequence, or the protocol is invalid.
    """
    run = config.run
    if not run.eval_root:
        raise ConfigError("run.eval_every is set, but not run.eval_root, the folder of a data set")
    root, sequences = Path(run.eval_root), run.eval_sequences or None
    protocol = sized_protocol(run.eval_protocol, short_side=run.eval_short_side or None)
    found = read_davis(root, year=run.eval_year, split=run.eval_split, sequences=sequences)
    if not any(map(has_truth, found)):
        raise ConfigError(
            f"run.eval_root {root} lists no sequence with later annotations in {run.eval_split}.txt"
        )
    model = config.model
    if model.arch.startswith(TIMM):  # before training, not after it
        backbone = backbone_of(MaskedTimm(model.arch), variant=config.variant)
        backbone.check_layer(fit_layer(protocol, backbone.strides).layer)

    def evaluate(weights: Mapping[str, Tensor], step: int) -> dict[str, float]:
        folder = out / EVALUATIONS / f"step_{step:08d}"
        scores = evaluate_davis(
            root,
            out=folder,
            tracker=Tracker(
                _student(config, weights, source=folder),
                protocol=protocol,
                device=choose_device(run.accelerator),
                warns=False,
            ),
            year=run.eval_year,
            split=run.eval_split,
            sequences=sequences,
            settings={"weights": f"student after {step} steps", "root": str(root)},
            overwrite=True,
        )
        assert scores is not None
        named = {"eval_jf": scores.jf_mean, "eval_j": scores.j_mean, "eval_f": scores.f_mean}
        return {name: 100 * value for name, value in named.items()}

    return evaluate


def _student(config: TrainConfig, weights: Mapping[str, Tensor], *, source: Path) -> Backbone:
    """The network of a run with these weights, in evaluation mode; messages name `source`."""
    model = config.model
    if model.arch.startswith(TIMM):
        network = MaskedTimm(model.arch)
    else:
        network = build_vit(
            model.arch,
            patch_size=model.patch_size,
            depth=model.depth,
            position_grid_side=position_grid_side(dict(weights)),
        )
    load_exactly(network, dict(weights), source=source)
    return backbone_of(network.eval(), variant=config.variant)


def with_steps(
    config: TrainConfig, steps: int, *, count: Callable[[DataConfig], int] = count_epoch_clips
) -> TrainConfig:
    """The configuration of a run of `steps` steps, with schedules scaled to that length.

    The schedules are as long as the smallest number of whole epochs that holds `steps`. The warm-up
    keeps its share of the run, and the head's last layer is trained at least in the last epoch.

    Args:
        config: as a recipe gives it.
        steps: length of the run, above 0.
        count: returns the number of clips in an epoch; by default the videos are counted.

    Raises:
        ConfigError: a value is out of range, or there are fewer clips than a step takes.
        VideoError: there are no videos.
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}; it must be above 0")
    config = resolve(config)
    optim = config.optim
    visits = config.data.visits and not has_shards(config.data)
    steps_per_epoch = count_batches(
        count(config.data),
        global_batch=global_batch_size(config),
        clips_per_visit=config.data.clips_per_video if visits else 1,
    )
    epochs = math.ceil(steps / steps_per_epoch)
    return config.with_values(
        {
            "optim.epochs": epochs,
            "optim.warmup_epochs": optim.warmup_epochs * epochs / optim.epochs,
            "optim.freeze_last_layer_epochs": min(optim.freeze_last_layer_epochs or 0, epochs - 1),
            "run.max_steps": steps,
        }
    )
