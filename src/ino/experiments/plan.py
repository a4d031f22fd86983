"""From an experiment to its trials: which weights, protocols, seeds and runs each row asks for.

All that can be wrong with an experiment is found here, before the first row starts, as far as that
takes no network.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from cachetools import cached

from ino.errors import CheckpointError, ConfigError, InoError
from ino.experiments.rows import Experiment, Plot, Row, SquareRow
from ino.experiments.trial import Evaluation, Trial
from ino.models.backbone import split_weights
from ino.models.load import PUBLIC, list_weights
from ino.models.weights import is_exported, list_checkpoints
from ino.pretraining import with_steps
from ino.propagate.judge import check_clip
from ino.propagate.protocols import Protocol, get_protocol
from ino.tasks.judge import read_judged
from ino.tasks.results import check_settings
from ino.train.config import DataConfig, differences, load_recipe, resolve, untrained_name
from ino.train.data import count_epoch_clips
from ino.train.run import CONFIG_NAME, read_config

_LABEL = re.compile(r"[\w+][\w.,=+-]*")
_ENDINGS = (".pth", ".pt", ".pth.tar", ".tar", ".safetensors", "")
_NAME = re.compile(r"color|[a-z][\w.-]+:.+")  # a path of Windows has one letter before its colon
_OF_STEPS = ("run.max_steps", "optim.epochs", "optim.warmup_epochs")


@dataclass(frozen=True)
class Plan:
    """Trials in the order of the table, labels of the rows that are asked for, and plots.

    `steps` is the length of the runs if they are scored on the way, else None.
    """

    title: str
    out: Path
    trials: tuple[Trial, ...]
    labels: frozenset[str]
    plots: tuple[Plot, ...]
    steps: int | None = None

    @property
    def chosen(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.label in self.labels]


def plan_experiment(
    experiment: Experiment,
    *,
    out: Path,
    only: Sequence[str] | None = None,
    may_train: bool = True,
    is_list: bool = False,
) -> Plan:
    """The trials of an experiment, each checked as far as that takes no network.

    Args:
        experiment: as `read_experiment` gives it.
        out: folder of the experiment.
        only: labels of the rows to do; all where None. The others are in the plan too, whether or
            not their weights and data sets are at hand.
        may_train: whether rows may train; where not, those that would are absent.
        is_list: the rows are only listed: data sets and videos may be missing.

    Raises:
        ConfigError: a run in the folder was configured otherwise; names row and field.
        OutputError: results in the folder were made with other settings; names the first.
        InoError: a label, weights, a protocol or a field cannot be used, or videos or a data set
            are missing.
    """
    if (folder := experiment.weights_dir) is not None and not folder.is_dir():
        raise ConfigError(f"the folder of weights {folder} does not exist; create it or give one")
    for video in () if is_list else experiment.judge:
        check_clip(read_judged(video).frames)
    # Rows and seeds share their data sets and videos, each of which is read once.
    once = cached({}, key=lambda row: (row.root, row.data, repr(row.choices)))
    check_data_set, count = once(_check_data_set), cached({}, key=repr)(count_epoch_clips)
    trials: list[Trial] = []
    labels: list[str] = []
    plots = list(experiment.panels)
    for name in experiment.rows:
        try:
            points = _points(name, experiment.read_row(name), experiment.grid)
            if plot := _grid_plot(name, points, experiment.grid):
                plots.append(plot)
            for label, row in points:
                if label in labels:
                    raise ConfigError(f"two rows have the label {label}; each needs its own")
                labels.append(label)
                is_chosen = only is None or label in only
                usual = experiment.read_usual_row(name)
                found = _trials(label, row, usual, experiment, out, may_train, is_chosen)
                if is_chosen and not is_list and not found[0].absent:
                    check_data_set(row)
                    if found[0].weights is None:
                        found = [_configured(trial, experiment, count) for trial in found]
                trials += found
        except InoError as error:
            raise type(error)(f"row {name}: {error}") from error
    _check_labels(labels)
    for asked in [only or (), *(plot.points for plot in plots)]:
        if unknown := [label for label in asked if label not in labels]:
            raise ConfigError(f"there is no row {unknown[0]}; the rows are {', '.join(labels)}")
    for trial in trials:
        _check_folder(trial)
    chosen = frozenset(labels if only is None else only)
    steps = experiment.steps if experiment.curve else None
    return Plan(experiment.title, out, tuple(trials), chosen, tuple(plots), steps)


def _points(label: str, row: Row, grid: Mapping[str, Sequence[Any]]) -> list[tuple[str, Row]]:
    """The row at each point of the grid, with a label; only rows that train are varied."""
    if row.train is None or not grid:
        return [(label, row)]
    if twice := [name for name in grid if name in row.train]:
        raise ConfigError(f"{twice[0]} is set by the row and by the grid; keep one")
    found = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        texts = [f"{name.rpartition('.')[2]}={value}" for name, value in point.items()]
        name = ",".join([label, *(re.sub(r"[^\w.+=-]+", "-", one).strip("-") for one in texts)])
        found.append((name, row.model_copy(update={"train": row.train | point})))
    return found


def _grid_plot(
    label: str, points: Sequence[tuple[str, Row]], grid: Mapping[str, Sequence[Any]]
) -> Plot | None:
    """The plot of a row that trains over a grid of one field with numbers."""
    if len(grid) != 1 or points[0][1].train is None:
        return None
    ((field, values),) = grid.items()
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        return None
    labels = [name for name, _ in points]
    return Plot(title=f"{label}, {field}", points=dict(zip(labels, values, strict=True)))


def _check_labels(labels: Sequence[str]) -> None:
    """Checks that each label can name a folder of its own on any disk."""
    seen: dict[str, str] = {}
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ConfigError(
                f"the label {label!r} cannot name a folder; use letters, digits and . , = + -"
            )
        if (other := seen.setdefault(label.lower(), label)) != label:
            raise ConfigError(f"the labels {other} and {label} name one folder on some disks")


def _trials(
    label: str,
    row: Row,
    usual: Row,
    experiment: Experiment,
    out: Path,
    may_train: bool,
    is_chosen: bool,
) -> list[Trial]:
    """The trials of a row, one for each seed that makes a difference; runs are not configured.

    `usual` is the row without what the command line overrides.
    """
    try:
        weights, absent = find_weights(row, experiment)
    except CheckpointError as error:
        if is_chosen:
            raise
        weights, absent = row.weights, f"absent: {error}"
    trains = weights is None and row.train is not None
    if trains and not may_train:
        absent = "absent: ino sweep trains it"
    is_random = trains or (weights or "").startswith("random:")
    seeds = (row.seeds or experiment.seeds) if is_random else (None,)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds are {', '.join(map(str, seeds))}; give each once")
    sides, networks = row.short_side or (None,), row.network or (None,)
    if weights is not None and weights.startswith(("color", "random:")):
        networks = networks[:1]  # they have one
    evaluations = []
    steps = (*experiment.curve, None) if trains else (None,)
    for step, side, network in itertools.product(
        steps, dict.fromkeys(sides), dict.fromkeys(networks)
    ):
        protocol = _protocol(row, side)
        folder = f"{row.data}_{protocol.short_side or 'native'}_{network or 'student'}"
        if not trains and len(sides) == len(networks) == 1:
            folder = ""
        if step is not None:
            folder += f"_step_{step}"
        remarks = _remarks(row, usual, protocol)
        if trains and experiment.changed_training:
            remarks += (f"trained with {', '.join(experiment.changed_training)}",)
        evaluations.append(Evaluation(folder, network, protocol, remarks, step))
    judge = frozenset() if isinstance(row, SquareRow) else frozenset(experiment.judge)
    ways = tuple(evaluations)
    return [Trial(label, row, s, ways, out, weights, None, judge, absent) for s in seeds]


def find_weights(row: Row, experiment: Experiment) -> tuple[str | None, str]:
    """The weights of a row.

    Returns:
        The argument for `load_backbone` and "", or None and the reason why there are no weights (""
        if the row trains them).

    Raises:
        CheckpointError: `weights` is a path that does not exist.
        ConfigError: the row has neither weights nor published numbers.
    """
    folder, weights = experiment.weights_dir, row.weights
    if row.file is not None and folder is not None:
        for ending in _ENDINGS:
            if (path := folder / f"{row.file}{ending}").exists():
                return str(path), ""
    if weights == "untrained":
        model = load_recipe(_base(experiment), experiment.train).model
        return untrained_name(model), ""
    if weights is not None:
        _check_weights(weights)
        return weights, ""
    if row.train is not None:
        return None, ""
    if row.file is not None:
        where = f"in {folder}" if folder is not None else "in the folder given by --weights-dir"
        return None, f"absent: {row.file}.pth is expected {where}"
    if not row.published:
        raise ConfigError("it names no weights; give weights, or file and --weights-dir, or train")
    return None, "published numbers only"


def _check_weights(weights: str) -> None:
    """Checks that files are there; names of models are looked up when the row starts."""
    _, file = split_weights(weights)
    is_name = weights in [*list_weights(), *PUBLIC] or _NAME.fullmatch(weights)
    is_name = is_name or timm.is_model(re.split(r"[./]", weights)[0])
    if not (file.is_file() if file else is_name or Path(weights).exists()):
        raise CheckpointError(
            f"{file or Path(weights)} is neither a file or folder nor a known name; give a "
            "checkpoint, the folder of a run, color or a name such as random:vit_tiny/8"
        )


def _base(experiment: Experiment) -> str:
    if experiment.base is None:
        raise ConfigError("the experiment names no base recipe; pass --base RECIPE")
    return experiment.base


def _protocol(row: Row, side: int | None) -> Protocol:
    """The row's protocol; with another short side the window covers the same part of a frame."""
    published = get_protocol(row.protocol, **row.published_with)
    changes = {"short_side": side, "layer": row.layer, "radius": row.radius}
    changes = {name: value for name, value in changes.items() if value is not None}
    usual = published.short_side or row.native_side
    if side and usual and published.radius:
        changes.setdefault("radius", max(1, round(published.radius * side / usual)))
    return get_protocol(row.protocol, **row.published_with | changes | row.set)


def _remarks(row: Row, usual: Row, protocol: Protocol) -> tuple[str, ...]:
    """How a row is measured otherwise than its published numbers were, each in a few words."""
    remarks = [
        f"measured on {name} {row.choices[name]} in place of {usual.choices[name]}"
        for name in ("year", "split")
        if row.choices.get(name) != usual.choices.get(name)
    ]
    if (names := row.choices.get("sequences")) is not None:
        shown = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
        remarks.append(f"measured on {len(names)} sequence{'s' * (len(names) != 1)} only ({shown})")
    published = get_protocol(row.protocol, **row.published_with).as_dict()
    changes = [
        f"{name} {value} in place of {published[name]}".replace("None", "none")
        for name, value in protocol.as_dict().items()
        if value != published[name]
    ]
    if changes:
        remarks.append(f"measured by {row.protocol} with {', '.join(changes)}")
    if row.precision != "fp32":
        remarks.append(f"measured in {row.precision}")
    return tuple(remarks)


def _check_data_set(row: Row) -> None:
    if row.root is None:
        raise ConfigError(f"no root of {row.data} is given; pass --{row.data} ROOT")
    if not row.read():
        raise ConfigError(f"no sequence of {row.root} is chosen: name at least one")


def _configured(trial: Trial, experiment: Experiment, count: Callable[[DataConfig], int]) -> Trial:
    """The trial with the configuration of its run, whose videos are there."""
    values = experiment.train | (trial.row.train or {})
    if "run.seed" in values:
        raise ConfigError("run.seed is no field of a row; list seeds under seeds")
    if experiment.steps is not None and (set_too := [one for one in _OF_STEPS if one in values]):
        raise ConfigError(f"{set_too[0]} follows from steps; leave one of them out")
    config = load_recipe(_base(experiment), values | {"run.seed": trial.seed})
    if experiment.steps is not None:
        config = with_steps(config, experiment.steps, count=count)
    else:
        config = resolve(config)
        count(config.data)
    return dataclasses.replace(trial, config=config)


def _check_folder(trial: Trial) -> None:
    """Checks that what is in the trial's folder was made with the same configuration."""
    folder = trial.folder
    if trial.config is not None and (folder / CONFIG_NAME).exists():
        old, new = read_config(folder), trial.config
        changed = differences(old, new)
        if old.run.max_steps not in (new.run.max_steps, *(one.step for one in trial.evaluations)):
            changed.append(("run.max_steps", old.run.max_steps, new.run.max_steps))
        if changed:
            name, before, now = changed[0]
            raise ConfigError(
                f"{folder} was run with {name} {before}, now it is {now}: choose another --out, or "
                "move that folder away to do it anew"
            )
    saved = list_checkpoints(folder) if trial.weights is None else []
    at = int(saved[-1].stem.split("_")[1]) if saved else 0
    for one in trial.evaluations:
        if one.step is not None and one.step < at and not is_exported(trial.weights_file(one)):
            raise ConfigError(
                f"the run in {folder} is at step {at}, and its weights after step {one.step} were "
                f"not kept: choose another --out, or leave {one.step} out of the curve"
            )
        stored = folder / one.folder / "settings.json"
        if stored.is_file() and not trial.absent:
            # A list is shown without the data set at hand.
            unknown = ("root",) if trial.row.root is None else ()
            check_settings(stored, json.loads(trial.settings(one)), leave_out=unknown)
