"""A configuration that lasts a given number of steps, its schedules with it."""

import dataclasses
import math
from collections.abc import Callable

from ino.data.clip_sampler import count_batches
from ino.errors import ConfigError
from ino.train.config import DataConfig, TrainConfig
from ino.train.resolve import count_clips, resolve
from ino.train.videos import count_epoch, has_shards


def with_steps(
    config: TrainConfig, steps: int, *, count: Callable[[DataConfig], int] = count_epoch
) -> TrainConfig:
    """The configuration with `run.max_steps` and schedules as long, up to a whole epoch.

    The warm-up keeps its share of the run, and the head's last layer learns in the last epoch at
    the latest, however short the run is.

    Args:
        config: as a recipe gives it; its videos are counted.
        steps: length of the run, above 0.
        count: clips of an epoch; for those who have counted before.

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
    frozen = min(optim.freeze_last_layer_epochs or 0, epochs - 1)
    warmup = optim.warmup_epochs * epochs / optim.epochs
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(
            optim, epochs=epochs, warmup_epochs=warmup, freeze_last_layer_epochs=frozen
        ),
        run=dataclasses.replace(config.run, max_steps=steps),
    )
