"""A configuration that lasts a given number of steps, its schedules with it."""

import dataclasses
import math
from pathlib import Path

from ino.data.clips import find_videos
from ino.errors import ConfigError
from ino.train.config import TrainConfig
from ino.train.resolve import count_clips, resolve


def with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    """The configuration with `run.max_steps` and schedules as long, up to a whole epoch.

    The warm-up keeps its share of the run, and the head's last layer learns in the last epoch at
    the latest, however short the run is.

    Args:
        config: as a recipe gives it; its videos are counted.
        steps: length of the run, above 0.

    Raises:
        ConfigError: a value is out of range, or there are fewer clips than a step takes.
        VideoError: there are no videos.
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}; it must be above 0")
    config = resolve(config)
    data, optim, run = config.data, config.optim, config.run
    num_clips = len(find_videos([Path(root) for root in data.root])) * data.clips_per_video
    clips_per_step = count_clips(config)
    if num_clips < clips_per_step:
        raise ConfigError(
            f"an epoch has {num_clips} clips, fewer than the {clips_per_step} of one step; raise "
            "data.clips_per_video or lower data.batch_size"
        )
    epochs = math.ceil(steps / (num_clips // clips_per_step))
    frozen = min(optim.freeze_last_layer_epochs or 0, epochs - 1)
    warmup = optim.warmup_epochs * epochs / optim.epochs
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(
            optim, epochs=epochs, warmup_epochs=warmup, freeze_last_layer_epochs=frozen
        ),
        run=dataclasses.replace(run, max_steps=steps),
    )
