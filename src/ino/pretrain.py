"""Pretraining that is scored on the way: training, and masks carried through labelled sequences."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ino.data.clips import count_batches
from ino.data.davis import read_davis
from ino.errors import ConfigError
from ino.models.backbone import choose_device
from ino.models.load import RELEASED_STD, VitBackbone
from ino.models.vit import build_vit
from ino.models.weights import load_exactly
from ino.propagate.tracker import Tracker
from ino.tasks.davis import evaluate_davis
from ino.tasks.results import sized_protocol
from ino.train.config import DataConfig, TrainConfig, count_clips, resolve
from ino.train.data import count_epoch, has_shards
from ino.train.log import check_wandb
from ino.train.loop import train
from ino.train.monitors import Evaluate

FOLDER = "evaluations"


def pretrain(config: TrainConfig, *, out: Path, resume: bool = False) -> Path:
    """Trains as `ino.train.loop.train` does and gives the last checkpoint.

    Every `run.eval_every` steps, and after the last, the student is scored on the sequences of
    `run.eval_root`: J&F, J and F in percent go into the log as `eval_jf`, `eval_j` and `eval_f`,
    the masks into `evaluations/step_.../`, and the best state is kept as checkpoints/best.pt.

    Raises:
        DatasetError: the sequences are not there.
        ConfigError: `run.eval_every` is set and `run.eval_root` is not, or the protocol cannot be.
        InoError: see `train`.
    """
    config = resolve(config)
    check_wandb(config.run.wandb)
    evaluate = build_evaluation(config, out=out) if config.run.eval_every else None
    return train(config, out=out, resume=resume, evaluate=evaluate)


def build_evaluation(config: TrainConfig, *, out: Path) -> Evaluate:
    """What scores a student's backbone by the settings of a run, once they are found usable."""
    run = config.run
    if not run.eval_root:
        raise ConfigError("run.eval_every is set, but not run.eval_root, the folder of a data set")
    root, sequences = Path(run.eval_root), run.eval_sequences or None
    protocol = sized_protocol(run.eval_protocol, short_side=run.eval_short_side or None)
    if not read_davis(root, year=run.eval_year, split=run.eval_split, sequences=sequences):
        raise ConfigError(f"run.eval_root {root} lists no sequence in {run.eval_split}.txt")
    model = config.model

    def evaluate(weights: Mapping[str, Tensor], step: int) -> dict[str, float]:
        vit = build_vit(model.arch, patch_size=model.patch_size)
        folder = out / FOLDER / f"step_{step:08d}"
        load_exactly(vit, dict(weights), source=folder)
        backbone = VitBackbone(vit.eval())
        if config.variant == "released":
            backbone.std = RELEASED_STD
        scores = evaluate_davis(
            root,
            out=folder,
            tracker=Tracker(backbone, protocol=protocol, device=choose_device(run.accelerator)),
            year=run.eval_year,
            split=run.eval_split,
            sequences=sequences,
            settings={"weights": f"student after {step} steps", "root": str(root)},
            overwrite=True,
        )
        named = {"eval_jf": scores.jf_mean, "eval_j": scores.j_mean, "eval_f": scores.f_mean}
        return {name: 100 * value for name, value in named.items()}

    return evaluate


def with_steps(
    config: TrainConfig, steps: int, *, count: Callable[[DataConfig], int] = count_epoch
) -> TrainConfig:
    """The configuration with `run.max_steps` and schedules as long, up to a whole epoch.

    The warm-up keeps its share of the run, and the head's last layer learns in the last epoch at
    the latest, however short the run is.

    Args:
        config: as a recipe gives it; its videos are counted.
        steps: length of the run, above 0.
        count: clips of an epoch.

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
        global_batch=count_clips(config),
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
