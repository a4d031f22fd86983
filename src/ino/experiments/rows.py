"""Labels of the rows of a table, each of which names a folder."""

import math
import os
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from ino.data.clips import count_batches
from ino.errors import ConfigError, InoError
from ino.propagate.protocols import Protocol, replaced_fields
from ino.train.config import DataConfig, TrainConfig, count_clips, resolve
from ino.train.data import count_epoch, has_shards

_LABEL = re.compile(r"[\w+][\w.,=+-]*")


def check_labels(labels: Iterable[str]) -> None:
    """Checks that each label can name a folder of its own on any disk.

    Raises:
        ConfigError: one cannot, or two are told apart by capitals alone.
    """
    seen: dict[str, str] = {}
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ConfigError(
                f"the label {label!r} cannot name a folder; use letters, digits and . , = + -"
            )
        if (other := seen.setdefault(label.lower(), label)) != label:
            raise ConfigError(f"the labels {other} and {label} name one folder on some disks")


# What a reader must know who sets a measured score beside a published one.


_MOST_NAMES = 3


def remarks_on(
    protocol: Protocol, *, sequences: Sequence[str] | None, precision: str = "fp32"
) -> tuple[str, ...]:
    """What was not done as the data set and the named protocol have it, each in a few words.

    Args:
        protocol: by which labels were carried.
        sequences: the ones that were chosen; None: all.
        precision: of the network.
    """
    remarks = []
    if sequences is not None:
        shown = ", ".join(sequences[:_MOST_NAMES])
        more = f" and {len(sequences) - _MOST_NAMES} more" * (len(sequences) > _MOST_NAMES)
        plural = "s" * (len(sequences) != 1)
        remarks.append(f"measured on {len(sequences)} sequence{plural} only ({shown}{more})")
    if replaced := replaced_fields(protocol):
        remarks.append(f"measured by {protocol.name} with {', '.join(replaced)}")
    if precision != "fp32":
        remarks.append(f"measured in {precision}")
    return tuple(remarks)


def remark_lines(rows: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """A line for each remark, with the labels of all rows that it holds for.

    Args:
        rows: label and remarks of each.
    """
    labels: dict[str, dict[str, None]] = {}
    for label, remarks in rows:
        for remark in remarks:
            labels.setdefault(remark, {})[label] = None
    return [f"{remark}: {', '.join(named)}" for remark, named in labels.items()]


# Why a part of a larger work failed, kept in a file while the other parts go on.


def failure_text(error: Exception) -> str:
    """One line for what a user can mend, else that line and the whole story."""
    if isinstance(error, InoError):
        return f"{' '.join(str(error).split())}\n"
    last = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{last}\n\n{''.join(traceback.format_exception(error))}"


def first_line(path: Path) -> str:
    """What `failure_text` says first."""
    return path.read_text(encoding="utf-8").splitlines()[0]


# Processes that share a larger work: where they print, what is said of their end, and that end.


def print_into(path: Path) -> None:
    """Sends everything that this process and its children print to the end of a file, for good."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)


def ended(process: BaseProcess, *, log: Path) -> str:
    """Why the work of a process that is gone has failed, for its error file.

    Args:
        process: that was joined.
        log: what it printed.
    """
    return f"its process ended with status {process.exitcode}; see {log}\n"


def stop_all(processes: Collection[BaseProcess]) -> None:
    """Ends processes and waits until they are gone."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


# A configuration that lasts a given number of steps, its schedules with it.


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
    return config.with_values(
        {
            "optim.epochs": epochs,
            "optim.warmup_epochs": warmup,
            "optim.freeze_last_layer_epochs": frozen,
            "run.max_steps": steps,
        }
    )
