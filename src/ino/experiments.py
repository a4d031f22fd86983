"""Experiments: Tables 2, 3 and 4 and Fig. 5 of the paper, and tables of one's own.

An experiment is a YAML file of rows. A row names weights or trains them, propagates labels
through a data set, and is scored; one table shows all rows beside the published numbers. How far
each row is can be read from the folder alone. So the same command resumes an experiment that was
stopped, and several processes share its work: each takes the next row that nobody has.

    DIR/LABEL/[seed_N/]              of given weights: results as `ino evaluate` leaves them
    DIR/LABEL/seed_N/                of a row that trains: a run as `ino train` leaves it,
    DIR/LABEL/seed_N/davis_480_.../  and its results
    .../done.json                    beside the results once they are scored
    DIR/LABEL[/seed_N].error.txt     while the row is worked on, and why it failed
    DIR/.locks/LABEL[/seed_N]/       held by the process that works on the row
    DIR/table.md, .csv, .json        written after each row; figure.png where values are varied
    DIR/worker_N.log.txt             what a process printed, with several jobs

Training, propagation and scoring themselves are those of `ino train` and `ino evaluate`.
"""

import dataclasses
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ino.data.davis import VideoSequence, read_davis
from ino.data.jhmdb import PoseVideo, read_jhmdb
from ino.data.vip import read_vip
from ino.data.ytvos import YtvosSplit, YtvosVideo, read_ytvos_split
from ino.errors import CheckpointError, ConfigError, InoError, OutputError, StoppedError
from ino.models.backbone import Backbone, choose_device, split_weights
from ino.models.load import bundled_names, load_backbone
from ino.models.weights import NetworkName, list_checkpoints
from ino.pretrain import pretrain, with_steps
from ino.propagate.features import Precision
from ino.propagate.protocols import Protocol, get_protocol
from ino.propagate.tracker import Tracker
from ino.schema import Model, checked, named_file, read_yaml, yaml_names
from ino.system import atomic_path, available_cores, folder_lock, write_text
from ino.tables import markdown, print_table, write_csv, write_json
from ino.tasks.davis import propagate_sequence, score_davis, sequence_is_whole
from ino.tasks.jhmdb import JointMaps, joints_are_whole, propagate_joints, score_jhmdb
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.results import (
    check_settings,
    fingerprint,
    note_finished,
    open_folder,
    read_finished,
    read_means,
    settings_text,
    sized_protocol,
)
from ino.tasks.vip import parts_are_whole, propagate_parts, score_vip
from ino.tasks.ytvos import finish_split, propagate_video, video_is_whole
from ino.train.config import (
    DataConfig,
    TrainConfig,
    differences,
    flatten,
    load_recipe,
    resolve,
)
from ino.train.data import count_epoch_clips
from ino.train.run import CONFIG_NAME, read_config

FOLDER = Path(__file__).parent / "experiment_files"
"""Where the named experiments are."""

_LABEL = re.compile(r"[\w+][\w.,=+-]*")
_ENDINGS = (".pth", ".pt", ".pth.tar", ".tar", ".safetensors", "")
_OTHER_ENDINGS = (
    "in place of .pth a file may end with .pt, .pth.tar, .tar or .safetensors, or be a run's folder"
)
_NAME = re.compile(r"color|[a-z][\w.-]+:.+")  # a path of Windows has one letter before its colon
_OF_STEPS = ("run.max_steps", "optim.epochs", "optim.warmup_epochs")
_KILLED = "its process ended without a word: it was killed, or the memory did not suffice"
_CAPTION = "percent; in brackets what was published, and measured minus published"


def _several(value: Any) -> Any:
    """One value, a list of values, or text with commas between them, as a tuple."""
    if isinstance(value, str):
        return tuple(value.split(","))
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Seeds = Annotated[tuple[int, ...], BeforeValidator(_several), Field(min_length=1)]


# What a file says.


class Row(Model):
    """One row of an experiment: what is evaluated, and how. Each data set has its own subclass."""

    data: ClassVar[str]
    scores: ClassVar[dict[str, str]]
    """Keys in the `global` part of scores.json by their names in the table, the main one first."""
    native_side: ClassVar[int | None] = None
    """The usual short side of the videos, pixels."""

    weights: str | None = None
    """What `--weights` takes, or `untrained` for the architecture of `base` with random weights."""
    file: str | None = None
    """Name of a file in `weights_dir`, without its suffix; if it exists, it is used instead of
    `weights`."""
    train: dict[str, Any] | None = None
    """Fields of the recipe `base` for the run that makes the weights."""
    seeds: Seeds | None = None
    """Seeds of the run or of random weights; None for those of the experiment."""
    network: Annotated[tuple[NetworkName, ...], BeforeValidator(_several)] = ()
    """Networks to evaluate, student or teacher or both; empty for the authors' choice."""
    protocol: str = "ino-davis"
    """Name of the protocol of propagation."""
    published_with: dict[str, Any] = Field({})
    """Fields of the protocol with which the published numbers were measured."""
    short_side: Annotated[tuple[int, ...], BeforeValidator(_several)] = ()
    """Short side of the network's input in pixels, one or several; scales the protocol's radius."""
    layer: int | None = None
    """Block whose features are read, from 1; None for the protocol's own."""
    radius: int | None = None
    """Radius of the window in feature positions; None for the protocol's own, scaled."""
    set: dict[str, Any] = Field({})
    """Other fields of the protocol."""
    precision: Precision = "fp32"
    """Of the network."""
    root: str | None = None
    """Of the data set; None for that of `roots`."""
    about: str = ""
    """Words beside the label."""
    published: dict[str, float] = Field({})
    """Numbers to compare with, in percent, by the name of a score."""

    @model_validator(mode="after")
    def _check(self) -> "Row":
        if self.train is not None and self.weights is not None:
            raise ValueError("a row has weights or trains them; give weights or train")
        if unknown := [name for name in self.published if name not in self.scores]:
            known = ", ".join(self.scores)
            raise ValueError(f"published names {unknown[0]}, but the scores are {known}")
        return self

    propagate: ClassVar[Any]
    """Writes the files of one video: called with it, the folder of predictions and a tracker."""
    is_whole: ClassVar[Any]
    """Whether all files of a video are there: called with it and the folder of predictions."""

    @property
    def choices(self) -> dict[str, Any]:
        """The fields that only some data sets have."""
        names = [name for name in type(self).model_fields if name not in Row.model_fields]
        return {name: getattr(self, name) for name in names}

    @abstractmethod
    def read(self) -> Sequence[Any]:
        """The videos of the data set."""

    def name(self, video: Any) -> str:
        """By which a video is noted as done."""
        return video.name

    def tracker(self, backbone: Backbone, protocol: Protocol, device: str) -> Any:
        """What propagates the labels of the data set."""
        return Tracker(backbone, protocol=protocol, device=device, precision=self.precision)

    @abstractmethod
    def score(self, out: Path, protocol: Protocol, workers: int | None) -> None:
        """Scores the files in `out`/predictions and writes scores.json."""


class DavisRow(Row):
    """A row on DAVIS, or on any data set in its layout."""

    data = "davis"
    scores: ClassVar = {
        "J&F": "J&F-Mean",
        "J": "J-Mean",
        "J recall": "J-Recall",
        "F": "F-Mean",
        "F recall": "F-Recall",
    }
    native_side = 480
    propagate: ClassVar = staticmethod(propagate_sequence)
    is_whole: ClassVar = staticmethod(sequence_is_whole)

    year: Literal[2016, 2017] = 2017
    split: str = "val"
    resolution: str = "480p"
    """Name of a folder."""
    sequences: list[str] | None = None
    """The only ones to do."""

    def read(self) -> list[VideoSequence]:
        return read_davis(Path(self.root or ""), **self.choices)

    def score(self, out: Path, protocol: Protocol, workers: int | None) -> None:
        root = Path(self.root or "")
        scores = score_davis(out / "predictions", root, workers=workers, **self.choices)
        scores.write(out, split=self.split, protocol=protocol)


class YtvosRow(Row):
    """A row on YouTube-VOS; without annotations of later frames it only writes submission.zip."""

    data = "ytvos"
    scores: ClassVar = {
        "mean": "Overall",
        "J seen": "J-Seen",
        "F seen": "F-Seen",
        "J unseen": "J-Unseen",
        "F unseen": "F-Unseen",
        "all J&F": "J&F-All",
    }
    native_side = 720
    propagate: ClassVar = staticmethod(propagate_video)
    is_whole: ClassVar = staticmethod(video_is_whole)

    protocol: str = "ino-ytvos"
    split: str = "valid"
    sequences: list[str] | None = None
    """The only ones to do."""

    def _split(self) -> YtvosSplit:
        return read_ytvos_split(Path(self.root or ""), split=self.split, videos=self.sequences)

    def read(self) -> Sequence[YtvosVideo]:
        return self._split().videos

    def score(self, out: Path, protocol: Protocol, workers: int | None) -> None:
        finish_split(self._split(), out, protocol=protocol, workers=workers)


class SquareRow(Row):
    """A row whose papers feed the network square images."""

    input_size: NonNegativeInt
    """Side of the square, pixels; 0 for the protocol's own size."""

    @model_validator(mode="after")
    def _check_size(self) -> "SquareRow":
        if self.input_size and (self.short_side or "short_side" in self.set):
            raise ValueError(
                f"short_side has no meaning for {self.data}, whose frames are made square; give "
                "input_size, or input_size: 0 for the size of the protocol"
            )
        return self

    def tracker(self, backbone: Backbone, protocol: Protocol, device: str) -> LabelTracker:
        size, where = self.input_size or None, choose_device(device)
        return LabelTracker(
            backbone, protocol, device=where, precision=self.precision, input_size=size
        )


class JhmdbRow(SquareRow):
    """A row on the joints of JHMDB."""

    data = "jhmdb"
    scores: ClassVar = {"PCK@0.1": "PCK@0.1", "PCK@0.2": "PCK@0.2"}
    is_whole: ClassVar = staticmethod(joints_are_whole)

    split: Literal[1, 2, 3] = 1
    input_size: NonNegativeInt = 320
    joint_topk: PositiveInt = 5
    """Positions that give a joint."""

    def read(self) -> list[PoseVideo]:
        return read_jhmdb(Path(self.root or ""), split=self.split)

    def name(self, video: PoseVideo) -> str:
        return f"{video.action}/{video.name}"

    def propagate(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, video: PoseVideo, predictions: Path, *, tracker: LabelTracker
    ) -> None:
        maps = JointMaps(topk=self.joint_topk)
        propagate_joints(video, predictions, tracker=tracker, maps=maps)

    def score(self, out: Path, protocol: Protocol, workers: int | None) -> None:
        score_jhmdb(out / "predictions", self.read()).write(out)


class VipRow(SquareRow):
    """A row on the parts of VIP."""

    data = "vip"
    scores: ClassVar = {"mIoU": "mIoU"}
    propagate: ClassVar = staticmethod(propagate_parts)
    is_whole: ClassVar = staticmethod(parts_are_whole)

    split: str = "val"
    input_size: NonNegativeInt = 560

    def read(self) -> list[VideoSequence]:
        return read_vip(Path(self.root or ""), split=self.split)

    def score(self, out: Path, protocol: Protocol, workers: int | None) -> None:
        score_vip(out / "predictions", self.read()).write(out)


ROWS: dict[str, type[Row]] = {kind.data: kind for kind in (DavisRow, YtvosRow, JhmdbRow, VipRow)}
"""By the name of the data set that a row gives."""


class Panel(Model):
    """A plot of the main score over a value that rows vary, as in Fig. 5."""

    title: str
    """What is varied."""
    points: Annotated[dict[str, float], Field(min_length=1)]
    """The value of each row, by label."""


class Experiment(Model):
    """What to compare."""

    title: str = ""
    """Of the table."""
    base: str | None = None
    """Recipe that every run starts from."""
    train: dict[str, Any] = Field({})
    """Fields of every run."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({})
    """Values of fields, by dotted name: each row that trains does so at each point."""
    steps: PositiveInt | None = None
    """Length of a run, with schedules as long; None for the recipe's own."""
    seeds: Seeds = (0,)
    """Of rows that train, and of random weights."""
    weights_dir: Path | None = None
    """Folder of the files that rows name."""
    roots: dict[Literal["davis", "ytvos", "jhmdb", "vip"], Path] = Field({})
    """Of the data sets, by name."""
    defaults: dict[str, Any] = Field({})
    """Fields of every row that has them and does not set them itself."""
    rows: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]
    """Fields of each row, by label, which names its folder; see `Row` and its children."""
    overrides: dict[str, Any] = Field({})
    """Fields from the command line that override those of all rows. `year`, `split` and
    `sequences` apply to DAVIS only, and `short_side` only to rows without square input."""
    panels: list[Panel] = Field([])
    """Plots of figure.png; a grid of one field has its own."""

    @model_validator(mode="after")
    def _check_grid(self) -> "Experiment":
        if self.grid and not any("train" in (row or {}) for row in self.rows.values()):
            raise ValueError("a grid is for rows that train, and there is none")
        return self


def experiment_names() -> list[str]:
    """Names of the experiments that come with ino."""
    return yaml_names(FOLDER)


def read_experiment(
    name: str, *, vary: Mapping[str, Sequence[Any]] | None = None, **changes: Any
) -> Experiment:
    """An experiment with changes of the command line.

    Args:
        name: one of `experiment_names()`, or the path of a YAML file.
        vary: values of a recipe's fields, by dotted name: one is for every run, several are a grid.
        changes: fields of `Experiment`; None leaves one as it is, and so it does in `roots` and
            `overrides`.

    Raises:
        ConfigError: there is no such experiment, it is no YAML, has a key that is not known or is
            there twice, or a value breaks a rule.
    """
    path = named_file(name, FOLDER, what="experiment")
    content = read_yaml(path, what="experiment", holds="keys such as rows")
    experiment = checked(Experiment, _given(content), where=f"the experiment {path}")
    values = experiment.model_dump(exclude_unset=True)
    for key, change in _given(changes).items():
        known = values.get(key, {})
        values[key] = known | _given(change) if isinstance(change, Mapping) else change
    values["train"], values["grid"] = flatten(experiment.train), dict(experiment.grid)
    for key, several in (vary or {}).items():
        for label, fields in experiment.rows.items():
            if key in flatten((fields or {}).get("train") or {}):
                raise ConfigError(f"--{key} is what the row {label} sets; leave it out")
        for section in ("train", "grid"):
            values[section].pop(key, None)
        one = len(several) == 1
        values["train" if one else "grid"][key] = several[0] if one else list(several)
    return checked(Experiment, values)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _read_row(experiment: Experiment, label: str) -> Row:
    """A row with what it takes from the defaults and the overrides."""
    fields, defaults = dict(experiment.rows[label] or {}), dict(experiment.defaults)
    data = fields.pop("data", defaults.pop("data", "davis"))
    if data not in ROWS:
        raise ConfigError(f"data is {data!r}; choose one of {', '.join(ROWS)}")
    kind = ROWS[data]
    known = {"data"}.union(*(one.model_fields for one in ROWS.values())) - {"published"}
    if unknown := [key for key in defaults if key not in known]:
        raise ConfigError(f"unknown key defaults.{unknown[0]}; give it to a row")
    if {"weights", "file", "train"} & fields.keys():
        for key in ("weights", "file", "train"):
            defaults.pop(key, None)
    if isinstance(inner := fields.get("set"), dict):
        fields["set"] = defaults.get("set", {}) | inner
    known = set(kind.model_fields)
    if issubclass(kind, SquareRow) and {**defaults, **fields}.get("input_size") != 0:
        known -= {"short_side"}
    values = {key: value for key, value in defaults.items() if key in known} | fields
    if kind is not DavisRow:
        known -= {"year", "split", "sequences"}
    values |= {key: value for key, value in experiment.overrides.items() if key in known}
    if (root := experiment.roots.get(data)) is not None:
        values.setdefault("root", str(root))
    return checked(kind, _given(values))


# What it asks for.


@dataclass(frozen=True)
class Evaluation:
    """One way in which a network is evaluated.

    Attributes:
        folder: of the results, within that of the trial; empty for the latter itself.
        network: student or teacher; None for the usual one.
        protocol: with all that the row replaces.
        remarks: where it is not what the published numbers were measured with.
    """

    folder: str
    network: NetworkName | None
    protocol: Protocol
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """A row with one seed: what one process works on.

    Attributes:
        label: of the row.
        row: with its fields.
        seed: of the run or of random weights; None where nothing is random.
        evaluations: of its network.
        weights: that are evaluated; None where they are trained or not at hand.
        config: of the run that makes them.
        absent: why the row cannot be done, which is no failure; empty where it can.
    """

    label: str
    row: Row
    seed: int | None
    evaluations: tuple[Evaluation, ...]
    weights: str | None = None
    config: TrainConfig | None = None
    absent: str = ""

    @property
    def name(self) -> str:
        """Its folder within that of the experiment."""
        return self.label if self.seed is None else f"{self.label}/seed_{self.seed}"

    @cached_property
    def _made_of(self) -> dict[str, Any]:
        weights = {"weights": self.name}
        if self.weights is not None:
            weights = {"weights": self.weights, **fingerprint(self.weights)}
        row = {"precision": self.row.precision, "data": self.row.data, "root": self.row.root}
        return {**weights, "seed": self.seed, **row, **self.row.choices}

    def settings(self, one: Evaluation) -> str:
        """What is stored beside results; two were made alike where these are equal."""
        return settings_text(one.protocol, {**self._made_of, "network": one.network})


@dataclass(frozen=True)
class Plan:
    """Trials in the order of the table, labels of the rows that are asked for, and plots."""

    title: str
    trials: tuple[Trial, ...]
    labels: frozenset[str]
    panels: tuple[Panel, ...]

    @property
    def chosen(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.label in self.labels]


def plan_experiment(
    experiment: Experiment,
    *,
    only: Sequence[str] | None = None,
    may_train: bool = True,
    is_list: bool = False,
) -> Plan:
    """The trials of an experiment, each checked as far as that takes no network.

    Args:
        experiment: as `read_experiment` gives it.
        only: labels of the rows to do; all where None. The others are in the plan too, whether or
            not their weights and data sets are at hand.
        may_train: whether rows may train; where not, those that would are absent.
        is_list: the rows are only listed: data sets and videos may be missing.

    Raises:
        InoError: a label, weights, a protocol or a field cannot be used, or videos or a data set
            are missing.
    """
    if (folder := experiment.weights_dir) is not None and not folder.is_dir():
        raise ConfigError(f"the folder of weights {folder} does not exist; create it or give one")
    num_clips: dict[str, int] = {}
    data_sets: set[str] = set()

    def count(data: DataConfig) -> int:  # rows and seeds share their videos
        if (key := repr(data)) not in num_clips:
            num_clips[key] = count_epoch_clips(data)
        return num_clips[key]

    trials: list[Trial] = []
    labels: list[str] = []
    panels = list(experiment.panels)
    for of_file in experiment.rows:
        try:
            points = _points(_read_row(experiment, of_file), of_file, grid=experiment.grid)
            if panel := _panel(of_file, points, grid=experiment.grid):
                panels.append(panel)
            for label, row in points:
                if label in labels:
                    raise ConfigError(f"two rows have the label {label}; each needs its own")
                labels.append(label)
                is_chosen = only is None or label in only
                found = _trials(label, row, experiment, may_train=may_train, is_chosen=is_chosen)
                if is_chosen and not is_list and not found[0].absent:
                    if (data := repr((row.root, row.data, row.choices))) not in data_sets:
                        _check_data_set(row)
                        data_sets.add(data)
                    if found[0].weights is None:
                        found = [_configured(trial, experiment, count=count) for trial in found]
                trials += found
        except InoError as error:
            raise type(error)(f"row {of_file}: {error}") from error
    _check_labels(labels)
    for asked in [only or (), *(panel.points for panel in panels)]:
        if unknown := [label for label in asked if label not in labels]:
            raise ConfigError(f"there is no row {unknown[0]}; the rows are {', '.join(labels)}")
    chosen = frozenset(labels if only is None else only)
    return Plan(experiment.title, tuple(trials), chosen, tuple(panels))


def _points(row: Row, label: str, *, grid: Mapping[str, Sequence[Any]]) -> list[tuple[str, Row]]:
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


def _panel(
    label: str, points: Sequence[tuple[str, Row]], *, grid: Mapping[str, Sequence[Any]]
) -> Panel | None:
    """The plot of a row over a grid of one field with numbers."""
    values = next(iter(grid.values()), ())
    is_number = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    if len(grid) != 1 or not is_number or points[0][1].train is None:
        return None
    labels = [name for name, _ in points]
    return Panel(
        title=f"{label}, {next(iter(grid))}", points=dict(zip(labels, values, strict=True))
    )


def _check_labels(labels: Iterable[str]) -> None:
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
    label: str, row: Row, experiment: Experiment, *, may_train: bool, is_chosen: bool
) -> list[Trial]:
    """The trials of a row, one for each seed that makes a difference; runs are not configured."""
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
    for side, network in itertools.product(dict.fromkeys(sides), dict.fromkeys(networks)):
        protocol = _protocol(row, side)
        folder = f"{row.data}_{protocol.short_side or 'native'}_{network or 'student'}"
        if not trains and len(sides) == len(networks) == 1:
            folder = ""
        evaluations.append(Evaluation(folder, network, protocol, _remarks(row, protocol)))
    return [Trial(label, row, s, tuple(evaluations), weights, absent=absent) for s in seeds]


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
        return f"random:{model.arch}/{model.patch_size}", ""
    if weights is not None:
        # Names are looked up when the row starts.
        file = split_weights(weights)[1]
        path = file or Path(weights)
        is_name = weights in bundled_names() or _NAME.fullmatch(weights)
        is_name = is_name or timm.is_model(re.split(r"[./]", weights)[0])
        if not (path.is_file() if file else is_name or path.exists()):
            raise CheckpointError(
                f"{path} is neither a file or folder nor a known name; give a checkpoint, the "
                "folder of a run, color or a name such as random:vit_tiny/8"
            )
        return weights, ""
    if row.train is not None:
        return None, ""
    if row.file is not None:
        where = f"in {folder}" if folder is not None else "in the folder given by --weights-dir"
        return None, f"absent: {row.file}.pth is expected {where}"
    if not row.published:
        raise ConfigError("it names no weights; give weights, or file and --weights-dir, or train")
    return None, "published numbers only"


def _base(experiment: Experiment) -> str:
    if experiment.base is None:
        raise ConfigError("the experiment names no base recipe; pass --base RECIPE")
    return experiment.base


def _protocol(row: Row, side: int | None) -> Protocol:
    """The row's protocol; with another short side the window covers the same part of a frame."""
    fields, radius = row.published_with | row.set, row.radius
    published = get_protocol(row.protocol, **row.published_with)
    usual = published.short_side or row.native_side
    if radius is None and side and usual and published.radius and "radius" not in row.set:
        radius = max(1, round(published.radius * side / usual))
    if radius is not None and "radius" not in row.set:
        fields.pop("radius", None)
    return sized_protocol(
        row.protocol, short_side=side, layer=row.layer, radius=radius, overrides=fields
    )


def _remarks(row: Row, protocol: Protocol) -> tuple[str, ...]:
    """How a row is measured otherwise than its published numbers were, each in a few words."""
    remarks = []
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


def _configured(
    trial: Trial, experiment: Experiment, *, count: Callable[[DataConfig], int]
) -> Trial:
    """The trial with the configuration of its run, whose videos are there."""
    values = experiment.train | (trial.row.train or {})
    for name in values:
        if name == "run.seed":
            raise ConfigError("run.seed is no field of a row; list seeds under seeds")
        if name in _OF_STEPS and experiment.steps is not None:
            raise ConfigError(f"{name} follows from steps; leave one of them out")
    config = load_recipe(_base(experiment), values | {"run.seed": trial.seed})
    if experiment.steps is not None:
        config = with_steps(config, experiment.steps, count=count)
    else:
        config = resolve(config)
        count(config.data)
    return dataclasses.replace(trial, config=config)


def check_folder(plan: Plan, out: Path) -> None:
    """Compares a plan with what is in its folder already.

    Raises:
        ConfigError: a run there was configured otherwise; the message names row and field.
        OutputError: results there were made with other settings; the message names the first.
    """
    for trial in plan.trials:
        folder = out / trial.name
        if trial.config is not None and (folder / CONFIG_NAME).exists():
            old, new = read_config(folder), trial.config
            steps = ("run.max_steps", old.run.max_steps, new.run.max_steps)
            changed = differences(old, new) + [steps] * (steps[1] != steps[2])
            for name, before, now in changed:
                raise ConfigError(
                    f"{folder} was run with {name} {before}, now it is {now}: choose another "
                    "--out, or move that folder away to do it anew"
                )
        for one in trial.evaluations:
            stored = folder / one.folder / "settings.json"
            if stored.is_file() and not trial.absent:
                # A list is shown without the data set at hand.
                unknown = ("root",) if trial.row.root is None else ()
                check_settings(stored, json.loads(trial.settings(one)), leave_out=unknown)


# How far it is, from what is on disk.


class State(NamedTuple):
    """The progress of a trial, and details in a few words."""

    kind: Literal["waiting", "running", "done", "failed", "absent"]
    detail: str

    def __str__(self) -> str:
        joint = ": " if self.kind == "failed" else ", "
        return self.detail if self.kind == "absent" else joint.join(filter(None, self))


def read_state(trial: Trial, *, out: Path) -> State:
    """How far a trial is."""
    folder, error = out / trial.name, error_file(trial, out=out)
    if (done := read_done(trial, out=out)) is not None:
        main = next(iter(trial.row.scores))
        shown = " ".join(f"{one[main]:.1f}" for one in done if main in one)
        others = ", ".join(f"{name} {value:.1f}" for one in done for name, value in one.items())
        server = f"its server scores {folder / 'submission.zip'}"
        return State("done", f"{main} {shown}" if shown else others or server)
    if trial.absent:
        return State("absent", trial.absent)
    kind: Literal["waiting", "running"] = "waiting"
    if error.is_file():
        if not _is_held(trial, out=out):
            text = error.read_text(encoding="utf-8", errors="replace")
            return State("failed", text.partition("\n")[0])
        kind = "running"
    parts = []
    if saved := list_checkpoints(folder) if trial.weights is None else []:
        parts.append(f"saved at step {int(saved[-1].stem.split('_')[1])}")
    if num := sum(len(read_finished(folder / one.folder)) for one in trial.evaluations):
        parts.append(f"{num} video{'s' * (num > 1)} done")
    return State(kind, ", ".join(parts))


def read_done(trial: Trial, *, out: Path) -> list[dict[str, float]] | None:
    """The scores of each evaluation in percent, by their names in the table; None until all are
    done. A damaged file is made again."""
    found = [_read_scores(out / trial.name / one.folder) for one in trial.evaluations]
    return None if None in found else [one for one in found if one is not None]


def _read_scores(folder: Path) -> dict[str, float] | None:
    try:
        scores = json.loads((folder / "done.json").read_text(encoding="utf-8"))["scores"]
        return {name: float(value) for name, value in scores.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def error_file(trial: Trial, *, out: Path) -> Path:
    """Path of the file that says why a trial failed.

    It also exists while the trial runs, so that a killed process leaves a message.
    """
    return out / f"{trial.name}.error.txt"


def _lock(trial: Trial, *, out: Path) -> AbstractContextManager[None]:
    """Held by the process that works on a trial; OutputError where another one has it."""
    return folder_lock(out / ".locks" / trial.name, command="ino")


def _is_held(trial: Trial, *, out: Path) -> bool:
    try:
        with _lock(trial, out=out):
            return False
    except OutputError:
        return True


# Doing it.


def run_experiment(
    experiment: Experiment,
    *,
    out: Path,
    only: Sequence[str] | None = None,
    may_train: bool = True,
    is_list: bool = False,
    jobs: int = 1,
    devices: str | None = None,
) -> int:
    """Runs every trial of an experiment that is not done, and prints the table.

    Several processes may run the same experiment at once: each takes trials that no other runs.

    Args:
        experiment: as `read_experiment` gives it.
        out: folder of the experiment.
        only: see `plan_experiment`.
        may_train: see `plan_experiment`.
        is_list: only print the table and the progress of each row.
        jobs: number of processes that share the work.
        devices: comma-separated devices, assigned to the processes in turn; None for all GPUs if
            there are several jobs, else auto. With one job, `run.accelerator` of the recipe decides
            where a run is trained.

    Returns:
        The exit status: 1 if a row has failed or is still waiting, for example because its process
        was killed, else 0.

    Raises:
        InoError: see `plan_experiment` and `check_folder`; or a device cannot be used.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; it must be 1 or more")
    plan = plan_experiment(experiment, only=only, may_train=may_train, is_list=is_list)
    check_folder(plan, out)
    if is_list:
        _print_table(plan, out=out, with_done=True)
        return 0
    names = choose_devices(devices, jobs=jobs)
    for trial in plan.chosen:
        if error_file(trial, out=out).is_file() and not _is_held(trial, out=out):
            error_file(trial, out=out).unlink()  # it is tried again
    out.mkdir(parents=True, exist_ok=True)
    if jobs == 1:
        _work(plan, out, device=names[0])
    else:
        _share(plan, out, jobs=jobs, devices=names)
    write_tables(plan, out)
    _print_table(plan, out=out)
    print(f"results in {out}")
    return int(any(read_state(one, out=out).kind in ("failed", "waiting") for one in plan.chosen))


def choose_devices(given: str | None, *, jobs: int) -> list[str]:
    """The devices of the processes, in turn.

    Where other processes take them, GPUs are only counted: whoever tries one holds memory of it,
    and may be the only one that it lets in.

    Raises:
        ConfigError: a device cannot be used.
    """
    num_gpus = torch.cuda.device_count()
    if given is None:
        several = jobs > 1 and num_gpus > 1
        return [f"cuda:{number}" for number in range(num_gpus)] if several else ["auto"]
    for name in given.split(","):
        gpu = re.fullmatch(r"cuda(?::(\d{1,4}))?", name)
        if jobs == 1 or gpu is None:
            choose_device(name)
        elif int(gpu[1] or 0) >= num_gpus:
            raise ConfigError(f"there is no {name} here, but {num_gpus} GPUs; pass --devices cpu")
    return given.split(",")


def _work(plan: Plan, out: Path, *, device: str, workers: int | None = None) -> None:
    """Does trials that wait and that nobody has, until there is none."""
    while sum(_take(trial, plan, out, device, workers) for trial in plan.chosen):
        pass


def _take(trial: Trial, plan: Plan, out: Path, device: str, workers: int | None) -> bool:
    """Does a trial if it waits and nobody has it; whether it did."""
    with ExitStack() as held:
        if read_state(trial, out=out).kind != "waiting":
            return False
        try:
            held.enter_context(_lock(trial, out=out))
        except OutputError:
            return False
        if read_done(trial, out=out) or error_file(trial, out=out).is_file():
            return False  # meanwhile another process did it
        _do(trial, out, device=device, workers=workers)
    print(f"{trial.name}: {read_state(trial, out=out)}", file=sys.stderr, flush=True)
    write_tables(plan, out)
    return True


def _do(trial: Trial, out: Path, *, device: str, workers: int | None) -> None:
    """Trains and scores; what goes wrong is written to the error file."""
    folder, error = out / trial.name, error_file(trial, out=out)
    error.parent.mkdir(parents=True, exist_ok=True)
    write_text(error, f"{_KILLED}\n")
    try:
        if trial.config is not None:
            pretrain(trial.config, out=folder, resume=True)
            device = trial.config.run.accelerator if device == "auto" else device
        for one in trial.evaluations:
            if _read_scores(folder / one.folder) is None:
                _evaluate(trial, one, folder / one.folder, device=device, workers=workers)
    except (StoppedError, KeyboardInterrupt):
        error.unlink()
        raise
    except Exception as fault:  # the other rows go on
        kind = "" if isinstance(fault, InoError) else f"{type(fault).__name__}: "
        reason = f"{''.join(getattr(fault, '__notes__', []))}{kind}{fault}"
        story = "".join(traceback.format_exception(fault))
        write_text(error, f"{' '.join(reason.split())}\n\n{story}")
    else:
        error.unlink()


def _evaluate(
    trial: Trial, one: Evaluation, out: Path, *, device: str, workers: int | None
) -> None:
    """Propagates through the videos that are not done, and scores."""
    row, predictions = trial.row, out / "predictions"
    open_folder(out, trial.settings(one), resume=True, overwrite=False)
    predictions.mkdir(exist_ok=True)
    weights = trial.weights or out.parent
    backbone = load_backbone(weights, network=one.network, seed=trial.seed or 0)
    tracker = row.tracker(backbone, one.protocol, device)
    console = Console(stderr=True)
    columns = (trial.name, MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    # Where nobody sees it move, the bar would leave an empty line.
    hidden = not console.is_interactive
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        for video in bar.track(row.read()):
            name = row.name(video)
            if name in read_finished(out) and row.is_whole(video, predictions):
                continue
            try:
                row.propagate(video, predictions, tracker=tracker)
            except Exception as fault:
                fault.add_note(f"{name}: ")
                raise
            note_finished(out, name)
    row.score(out, one.protocol, workers)
    means = read_means(out / "scores.json") or {}
    scores = {name: 100 * means[key] for name, key in row.scores.items() if key in means}
    write_json(out / "done.json", {"scores": scores})


def _share(plan: Plan, out: Path, *, jobs: int, devices: Sequence[str]) -> None:
    """`_work` in several processes; one that is killed takes no other with it."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, available_cores() // jobs)
    children = [
        context.Process(
            target=_work_as_child, args=(plan, out, n, devices[n % len(devices)], threads)
        )
        for n in range(jobs)
    ]
    untold = [one for one in plan.chosen if read_state(one, out=out).kind == "waiting"]
    try:
        for child in children:
            child.start()
        while running := [child.sentinel for child in children if child.is_alive()]:
            connection.wait(running, timeout=1)
            for trial in list(untold):
                state = read_state(trial, out=out)
                if state.kind in ("done", "failed"):
                    print(f"{trial.name}: {state}", file=sys.stderr, flush=True)
                    untold.remove(trial)
    finally:
        started = [child for child in children if child.pid is not None]
        for child in started:
            child.terminate()
        for child in started:
            child.join()


def _work_as_child(plan: Plan, out: Path, number: int, device: str, threads: int) -> None:
    with (out / f"worker_{number}.log.txt").open("a", encoding="utf-8") as log:
        for stream in (1, 2):  # what its own children print, too
            os.dup2(log.fileno(), stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    kind, _, index = device.partition(":")
    if kind == "cuda":  # training, too, sees this one only
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        index = index or "0"
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(index)] if visible else index
    try:
        _work(plan, out, device=kind, workers=1)
    except StoppedError as stopped:
        sys.exit(stopped.status)


def _end_with_parent() -> None:
    """Stops this process as a batch system does once the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


# The table.


def table(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """The rows of table.json, one per label and evaluation, from the files in the folder.

    Scores are in percent, as mean and sample standard deviation over seeds.
    """
    rows = []
    for label, group in itertools.groupby(plan.trials, key=lambda trial: trial.label):
        trials = list(group)
        row = trials[0].row
        for one in trials[0].evaluations:
            found = {trial.seed: _read_scores(out / trial.name / one.folder) for trial in trials}
            done = {seed: scores for seed, scores in found.items() if scores is not None}
            scores = {}
            for name in row.scores:
                values = [of_seed[name] for of_seed in done.values() if name in of_seed]
                measured, published = fmean(values) if values else None, row.published.get(name)
                apart = None if measured is None or published is None else measured - published
                if values or published is not None:
                    scores[name] = {
                        "measured": measured,
                        "std": stdev(values) if len(values) > 1 else None,
                        "values": values,
                        "published": published,
                        "difference": apart,
                    }
            is_beside = any(score["difference"] is not None for score in scores.values())
            rows.append(
                {
                    "label": label,
                    "about": row.about,
                    "data": row.data,
                    "protocol": row.protocol,
                    "short_side": one.protocol.short_side,
                    "network": one.network,
                    "seeds": list(done),
                    "num_seeds": len(trials),
                    "states": {trial.name: str(read_state(trial, out=out)) for trial in trials},
                    "remarks": list(one.remarks) if is_beside else [],
                    "scores": scores,
                }
            )
    return rows


def table_lines(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], int]:
    """The texts of the table, headings first, and how many of the columns are words; columns that
    would say the same of all rows are left out."""
    labels = [row["label"] for row in rows]
    texts = {"row": labels}
    for heading, key in (("what", "about"), ("data", "data"), ("network", "network")):
        texts[heading] = [row[key] or "" for row in rows]
    num_texts = sum(len(set(column)) > 1 for column in list(texts.values())[1:]) + 1
    if len(set(labels)) < len(labels):
        texts["short side"] = [str(row["short_side"] or "native") for row in rows]
    if any(row["num_seeds"] > 1 for row in rows):
        of = [f" of {row['num_seeds']}" * (len(row["seeds"]) < row["num_seeds"]) for row in rows]
        texts["seeds"] = [f"{len(row['seeds'])}{more}" for row, more in zip(rows, of, strict=True)]
    shown = {k: texts[k] for k in texts if k in ("row", "seeds") or len(set(texts[k])) > 1}
    for name in _score_names(rows):
        shown[name] = [_cell(row["scores"].get(name)) for row in rows]
    return [list(shown), *map(list, zip(*shown.values(), strict=True))], num_texts


def _score_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    present = {name for row in rows for name in row["scores"]}
    return [name for kind in ROWS.values() for name in kind.scores if name in present]


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    measured, std, _, published, difference = score.values()
    text = "-" if measured is None else f"{measured:.1f}"
    text += "" if std is None else f" ± {std:.1f}"
    beside = [] if published is None else [f"{published:.1f}"]
    beside += [] if difference is None else [f"{difference:+.1f}"]
    return text + (f" ({', '.join(beside)})" if beside else "")


def note_lines(rows: Sequence[Mapping[str, Any]], *, with_done: bool = False) -> list[str]:
    """What stands below the table: how scores beside published ones were measured, then how far
    the rows are."""
    labels: dict[str, dict[str, None]] = {}
    states: dict[str, None] = {}
    for row in rows:
        for remark in row["remarks"]:
            labels.setdefault(remark, {})[row["label"]] = None
        has_scores = any(score["values"] for score in row["scores"].values())
        for name, state in row["states"].items():
            if with_done or not (has_scores and state.startswith("done")):
                states[f"{name}: {state}"] = None
    lines = [f"{remark}: {', '.join(named)}" for remark, named in labels.items()]
    lacks_file = any("is expected in" in state for state in states)
    return [*lines, *states, *[_OTHER_ENDINGS] * lacks_file]


def _print_table(plan: Plan, *, out: Path, with_done: bool = False) -> None:
    rows = [row for row in table(plan, out) if row["label"] in plan.labels]
    lines, num_texts = table_lines(rows)
    print_table(lines, Console(), num_texts=num_texts, caption=_CAPTION)
    for note in note_lines(rows, with_done=with_done):
        print(note)


def write_tables(plan: Plan, out: Path) -> None:
    """Writes table.md, table.csv, table.json and, where values are varied, figure.png.

    Raises:
        OutputError: a file cannot be written.
    """
    rows: list[dict[str, Any]] = []
    # Again where another process has finished a row meanwhile, and written it before this one.
    while rows != (rows := table(plan, out)):
        lines, num_texts = table_lines(rows)
        notes = "".join(f"- {note}\n" for note in note_lines(rows))
        title = f"# {plan.title}\n\n" if plan.title else ""
        text = f"{title}{markdown(lines, num_texts=num_texts)}\nP{_CAPTION[1:]}.\n"
        write_text(out / "table.md", text + (f"\n{notes}" if notes else ""))
        write_json(out / "table.json", {"title": plan.title, "rows": rows})
        write_csv(out / "table.csv", _csv_lines(rows))
        if plan.panels:
            _plot(plan.panels, rows, out / "figure.png")


def _csv_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Scores in full precision, one line for each row of the table."""
    names, kinds = _score_names(rows), ("measured", "std", "published")
    heads = ["label", "about", "data", "protocol", "short_side", "network"]
    yield [*heads, "num_seeds", *(f"{name} {kind}" for name in names for kind in kinds)]
    for row in rows:
        scores = [row["scores"].get(name, {}).get(kind) for name in names for kind in kinds]
        cells = [*(row[head] for head in heads), len(row["seeds"]), *scores]
        yield ["" if cell is None else str(cell) for cell in cells]


def _plot(panels: Sequence[Panel], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The main score over each varied value: mean and standard deviation over seeds as dots with
    bars, published numbers as rings."""
    figure = Figure(figsize=(3.2 * len(panels), 3), layout="constrained")
    FigureCanvasAgg(figure)
    first = {row["label"]: row for row in reversed(rows)}  # of several evaluations
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(grid, panels, strict=True):
        labels = sorted(panel.points, key=panel.points.__getitem__)
        main = next(iter(ROWS[first[labels[0]]["data"]].scores))
        points = [(panel.points[one], first[one]["scores"].get(main, {})) for one in labels]
        done = [(x, score) for x, score in points if score.get("values")]
        means = [score["measured"] for _, score in done]
        spread = [score["std"] or 0 for _, score in done]
        looks: dict[str, Any] = {"color": "#0072B2", "capsize": 3, "label": "measured"}
        axes.errorbar([x for x, _ in done], means, yerr=spread, fmt="o-", **looks)
        known = [(x, score["published"]) for x, score in points if score.get("published")]
        looks = {"color": "#D55E00", "fillstyle": "none", "label": "published"}
        axes.plot([x for x, _ in known], [y for _, y in known], "o", **looks)
        axes.margins(x=0.15)
        axes.autoscale_view()
        axes.set_xticks([x for x, _ in points])
        axes.set_xlabel(panel.title, parse_math=False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.set_ylabel(f"{main} (percent)")
        axes.label_outer()
    figure.axes[0].legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
