"""The runs and evaluations that a sweep file asks for, checked before the first of them starts."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ino.data.davis import read_davis
from ino.errors import ConfigError, VideoError
from ino.experiments.rows import check_labels, with_steps
from ino.experiments.sweep_file import EvaluationConfig, SweepConfig, label_of
from ino.models.weights import NetworkName
from ino.propagate.protocols import Protocol
from ino.tasks.results import sized_protocol
from ino.train.config import (
    DataConfig,
    TrainConfig,
    field_names,
    flatten,
    load_recipe,
    resolve,
)
from ino.train.data import count_epoch

MAX_RUNS = 1000
_OF_STEPS = ("run.max_steps", "optim.epochs", "optim.warmup_epochs")


@dataclass(frozen=True)
class Pass:
    """One evaluation of a network; `name` is that of its folder."""

    name: str
    network: NetworkName
    protocol: Protocol


@dataclass(frozen=True)
class Cell:
    """What is scored once: a run of a row with a seed, or the weights of a baseline."""

    label: str
    seed: int
    config: TrainConfig | None = None
    weights: str | None = None

    @property
    def name(self) -> str:
        """Its folder within that of the sweep."""
        return f"{self.label}/seed_{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Cells in the order of the table, the evaluations of each, and published J&F by label."""

    cells: tuple[Cell, ...]
    passes: tuple[Pass, ...]
    evaluation: EvaluationConfig
    published: Mapping[str, float]

    def passes_of(self, cell: Cell) -> list[Pass]:
        """The evaluations of a cell; a baseline is one network, not a student and a teacher."""
        network = self.passes[0].network
        return [one for one in self.passes if cell.config or one.network == network]

    def settings(self, cell: Cell, one: Pass) -> dict[str, Any]:
        """What is stored beside the masks of an evaluation."""
        chosen = self.evaluation
        return {
            "weights": cell.weights or cell.name,
            "seed": cell.seed,
            "network": one.network,
            "root": chosen.root,
            "year": chosen.year,
            "split": chosen.split,
            "resolution": chosen.resolution,
            "sequences": chosen.sequences,
        }


def plan_sweep(sweep: SweepConfig, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The runs and evaluations of a sweep, each checked as far as that takes no network.

    Args:
        sweep: as `read_sweep` gives it.
        overrides: fields of every run, by dotted name, as given on the command line.

    Raises:
        InoError: a label, a field or a value cannot be used, videos or the data set are missing.
    """
    if sweep.base is None:
        raise ConfigError("the sweep names no base recipe; pass --base RECIPE")
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        raise ConfigError(f"seeds are {sweep.seeds}; give one or more, each once")
    varied = _rows(sweep)
    common = dict(flatten(sweep.set)) | dict(overrides or {})
    _check_fields(sweep, varied, given=overrides or {})
    baselines = list(_baselines(sweep, common))
    others = {cell.label for cell in baselines}
    if both := [label for label in varied if label in others]:
        raise ConfigError(f"a row has the label of the baseline {both[0]}; give it another")
    check_labels([*varied, *others])
    passes = tuple(_passes(sweep.evaluation))
    _check_data_set(sweep.evaluation)
    num_runs = len(varied) * len(sweep.seeds)
    if num_runs > MAX_RUNS:
        raise ConfigError(f"the sweep asks for {num_runs} runs; split it, {MAX_RUNS} are the most")
    count = _counted_once()
    runs = [
        Cell(label, seed, _configure(sweep, common | values, label=label, seed=seed, count=count))
        for label, values in varied.items()
        for seed in sweep.seeds
    ]
    cells = [*baselines, *runs]
    unknown = [label for label in sweep.published if label not in {one.label for one in cells}]
    if unknown:
        known = ", ".join(dict.fromkeys(one.label for one in cells))
        raise ConfigError(f"published names {unknown[0]}, but the labels are {known}")
    return Plan(tuple(cells), passes, sweep.evaluation, sweep.published)


def _rows(sweep: SweepConfig) -> dict[str, dict[str, Any]]:
    """Fields of each row at each point of the grid, by label."""
    rows = {label: dict(flatten(values)) for label, values in sweep.rows.items()} or {"": {}}
    for name, values in sweep.grid.items():
        if not values:
            raise ConfigError(f"the grid has no values for {name}; list one or more")
    found: dict[str, dict[str, Any]] = {}
    for row, fields in rows.items():
        for point in itertools.product(*sweep.grid.values()):
            values = dict(zip(sweep.grid, point, strict=True))
            label = label_of(values, row=row) or Path(sweep.base or "").stem
            if label in found:
                raise ConfigError(f"two rows have the label {label}; each needs its own")
            if twice := [name for name in values if name in fields]:
                raise ConfigError(f"{twice[0]} is set by the row {row} and by the grid; keep one")
            found[label] = fields | values
    return found


def _check_fields(
    sweep: SweepConfig, varied: Mapping[str, Mapping[str, Any]], *, given: Mapping[str, Any]
) -> None:
    known = field_names()
    changed = {name: label for label, values in varied.items() for name in values}
    for name in [*_names_of(sweep.set), *changed]:
        if name not in known:
            raise ConfigError(f"the sweep sets the unknown field {name}; see ino train --help")
    for name in [*_names_of(sweep.set), *changed, *given]:
        if name == "run.seed":
            raise ConfigError("run.seed is not a field of a sweep; list seeds under seeds")
        if name in _OF_STEPS and sweep.steps is not None:
            raise ConfigError(f"{name} follows from steps in a sweep; leave one of them out")
    if both := [name for name in given if name in changed]:
        raise ConfigError(
            f"--{both[0]} is what the row {changed[both[0]]} sets; leave it out or change the file"
        )


def _names_of(values: dict[str, Any]) -> list[str]:
    return [name for name, _ in flatten(values)]


def _configure(
    sweep: SweepConfig,
    values: Mapping[str, Any],
    *,
    label: str,
    seed: int,
    count: Callable[[DataConfig], int],
) -> TrainConfig:
    try:
        config = load_recipe(sweep.base or "", {**values, "run.seed": seed})
        if sweep.steps is not None:
            return with_steps(config, sweep.steps, count=count)
        config = resolve(config)
        count(config.data)
        return config
    except (ConfigError, VideoError) as error:
        raise type(error)(f"row {label}: {error}") from error


def _counted_once() -> Callable[[DataConfig], int]:
    """Counts the clips of an epoch, for equal settings once: rows and seeds share their videos."""
    found: dict[str, int] = {}

    def count(data: DataConfig) -> int:
        if (key := repr(data)) not in found:
            found[key] = count_epoch(data)
        return found[key]

    return count


def _baselines(sweep: SweepConfig, common: Mapping[str, Any]) -> Iterator[Cell]:
    for name in dict.fromkeys(sweep.baselines):
        if name == "color":
            yield Cell(name, 0, weights=name)
            continue
        weights = name
        if name == "untrained":
            model = load_recipe(sweep.base or "", common).model
            weights = f"random:{model.arch}/{model.patch_size}"
        elif not re.fullmatch(r"random:\w+/\d+", name):
            raise ConfigError(
                f"there is no baseline {name}; choose color, untrained or random:vit_tiny/8"
            )
        label = name.replace(":", "-").replace("/", "-")
        yield from (Cell(label, seed, weights=weights) for seed in sweep.seeds)


def _passes(chosen: EvaluationConfig) -> Iterator[Pass]:
    sides = chosen.short_side if isinstance(chosen.short_side, list) else [chosen.short_side]
    networks: list[NetworkName] = (
        chosen.network if isinstance(chosen.network, list) else [chosen.network]
    )
    if not sides or not networks:
        raise ConfigError("evaluation needs one short_side and one network or several of them")
    for side, network in itertools.product(dict.fromkeys(sides), dict.fromkeys(networks)):
        protocol = sized_protocol(
            chosen.protocol, short_side=side, radius=chosen.radius, overrides=chosen.set
        )
        yield Pass(f"davis_{protocol.short_side or 'native'}_{network}", network, protocol)


def _check_data_set(chosen: EvaluationConfig) -> None:
    if chosen.root is None:
        raise ConfigError("no data set to evaluate on; pass --davis ROOT")
    found = read_davis(
        Path(chosen.root),
        year=chosen.year,
        split=chosen.split,
        resolution=chosen.resolution,
        sequences=chosen.sequences,
    )
    if not found:
        raise ConfigError(f"no sequence of {chosen.root} is chosen: name at least one")
