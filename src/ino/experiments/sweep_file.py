"""Sweep files: YAML that says which runs to compare, and by which evaluation.

Reading checks the form of the file; `ino.experiments.sweep_plan` checks the runs that it asks for.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ino.plain_yaml import check_keys, named_file, read_yaml, typed, yaml_names

FOLDER = Path(__file__).parent.parent / "sweeps"
"""Where the named sweeps are."""

Network = Literal["student", "teacher"]


@dataclass
class EvaluationConfig:
    """How each network is scored on DAVIS, or on any data set in that layout.

    Args:
        root: the data set.
        year: 2016 or 2017.
        split: name of the list of sequences.
        resolution: name of the folder between Annotations and the sequences.
        sequences: those of the list to do; all where None.
        protocol: how masks are carried.
        short_side: pixels, one or several; None for the protocol's own. The protocol's radius is
            scaled with it.
        radius: of the window, in feature positions; None as said above.
        set: other fields of the protocol.
        network: student, teacher or both of each run.
    """

    root: str | None = None
    year: int = 2017
    split: str = "val"
    resolution: str = "480p"
    sequences: list[str] | None = None
    protocol: str = "ino-davis"
    short_side: int | list[int] | None = None
    radius: int | None = None
    set: dict[str, Any] = field(default_factory=dict)
    network: Network | list[Network] = "student"


@dataclass
class SweepConfig:
    """What to compare.

    Args:
        base: recipe that every run starts from.
        set: fields of every run, by dotted name.
        rows: fields of each row, by label.
        grid: values of fields, by dotted name; with rows, each row is run at each point.
        seeds: of weights, clips, crops and masks; each row is run with each.
        steps: length of a run, with schedules as long; None for the recipe's own.
        baselines: what is scored untrained: color, untrained (the architecture of the base with
            random weights, a network a seed) or random:ARCH/PATCH.
        evaluation: how networks are scored.
        published: J&F in percent by label, shown beside ours.
    """

    base: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    steps: int | None = None
    baselines: list[str] = field(default_factory=lambda: ["color", "untrained"])
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    published: dict[str, float] = field(default_factory=dict)


def sweep_names() -> list[str]:
    """Names of the sweeps that come with ino."""
    return yaml_names(FOLDER)


def read_sweep(name: str, changes: Mapping[str, Any] | None = None) -> SweepConfig:
    """A sweep with changes of the command line.

    Args:
        name: one of `sweep_names()`, or the path of a YAML file.
        changes: fields of the file by dotted name ("evaluation.root"); None leaves one as it is.

    Raises:
        ConfigError: there is no such sweep, it is no YAML, has a key that is not known or is there
            twice, or a value is not of its field's type.
    """
    path = named_file(name, FOLDER, what="sweep")
    where = f"the sweep {path}"
    content = read_yaml(path, what="sweep")
    check_keys(content, SweepConfig, where=where)
    content = {key: value for key, value in content.items() if value is not None}
    evaluation = content.get("evaluation", {})
    check_keys(evaluation, EvaluationConfig, where=where, prefix="evaluation.")
    if isinstance(rows := content.get("rows"), dict):
        content["rows"] = {str(label): {} if row is None else row for label, row in rows.items()}
    for dotted, value in (changes or {}).items():
        section, _, option = dotted.rpartition(".")
        if value is not None:
            (content.setdefault(section, {}) if section else content)[option] = value
    values = typed(content, SweepConfig, where=where)
    evaluation = EvaluationConfig(**values.pop("evaluation"))
    return SweepConfig(**values, evaluation=evaluation)


def label_of(values: Mapping[str, Any], *, row: str = "") -> str:
    """The label of a row at a point of the grid: "released,affinity_teacher_temperature=0.02"."""
    parts = [f"{name.rpartition('.')[2]}={_plain(value)}" for name, value in values.items()]
    return ",".join([row, *parts] if row else parts)


def _plain(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
