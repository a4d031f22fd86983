"""What an experiment's file says: the rows of its table, and what all of them share.

A row names weights or trains them, propagates labels through a data set, and is scored. What that
means for the folder of an experiment stands in `ino.experiments.plan`.
"""

import itertools
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from ino.data.davis import VideoSequence, read_davis
from ino.data.jhmdb import PoseVideo, read_jhmdb
from ino.data.vip import read_vip
from ino.data.ytvos import YtvosSplit, YtvosVideo, read_ytvos_split
from ino.errors import ConfigError
from ino.models.backbone import Backbone, choose_device
from ino.models.weights import NetworkName
from ino.propagate.features import Precision
from ino.propagate.protocols import Protocol, get_protocol, protocol_on
from ino.propagate.tracker import Tracker
from ino.schema import Model, checked, named_file, read_yaml
from ino.tasks.davis import propagate_sequence, score_davis, sequence_is_whole
from ino.tasks.jhmdb import joint_maps, joints_are_whole, propagate_joints, score_jhmdb
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.vip import parts_are_whole, propagate_parts, score_vip
from ino.tasks.ytvos import finish_split, propagate_video, video_is_whole
from ino.train.config import Names, flatten, refuse_code

FOLDER = Path(__file__).parent
"""Where the named experiments are."""

T = TypeVar("T")


def _as_tuple(value: Any) -> Any:
    """One value, a list of values, or text with commas between them, as a tuple."""
    if isinstance(value, str):
        return tuple(value.split(","))
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if any(first >= second for first, second in itertools.pairwise(numbers)):
        raise ValueError(f"must be ascending, but is {', '.join(map(str, numbers))}")
    return numbers


Several = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
Seeds = Annotated[Several[int], Field(min_length=1)]
Fields = Annotated[dict[str, Any], AfterValidator(flatten)]
"""Fields of a recipe by dotted name, or nested by section."""


class Row(Model):
    """One row of an experiment: what is evaluated, and how. Each data set has its own subclass."""

    data: ClassVar[str]
    scores: ClassVar[dict[str, str]]
    """Keys in the `global` part of scores.json by their names in the table, the main one first."""
    native_side: ClassVar[int | None] = None
    """The usual short side of the videos, pixels."""
    propagate: ClassVar[Any]
    """Writes the files of one video: called with it, the folder of predictions and a tracker."""
    is_whole: ClassVar[Any]
    """Whether all files of a video are there: called with it and the folder of predictions."""

    weights: str | None = None
    """What `--weights` takes, or `untrained` for the architecture of `base` with random weights."""
    file: str | None = None
    """Name of a file in `weights_dir`, without its suffix; if it exists, it is used instead of
    `weights`."""
    train: Fields | None = None
    """Fields of the recipe `base` for the run that makes the weights."""
    seeds: Seeds | None = None
    """Seeds of the run or of random weights; None for those of the experiment."""
    network: Several[NetworkName] = ()
    """Networks to evaluate, student or teacher or both; empty for the authors' choice."""
    protocol: str = "ino-davis"
    """Name of the protocol of propagation."""
    published_with: dict[str, Any] = Field({})
    """Fields of the protocol with which the published numbers were measured."""
    short_side: Several[int] = ()
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
        for name in ("short_side", "layer", "radius"):
            if name in self.set and getattr(self, name) not in (None, ()):
                raise ValueError(f"{name} is given twice, by itself and under set; keep one")
        return self

    @property
    def choices(self) -> dict[str, Any]:
        """The fields that only some data sets have."""
        names = [name for name in type(self).model_fields if name not in Row.model_fields]
        return {name: getattr(self, name) for name in names}

    @abstractmethod
    def read(self) -> Sequence[Any]:
        """The videos of the data set."""

    def tracker(self, backbone: Backbone, protocol: Protocol, device: str) -> Any:
        """What propagates the labels of the data set."""
        return Tracker(
            backbone, protocol=protocol, device=device, precision=self.precision, warns=False
        )

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

    year: Literal[2016, 2017] = 2017
    split: str = "val"
    resolution: str = "480p"
    """Name of a folder."""
    sequences: list[str] | None = None
    """The only ones to do."""

    def read(self) -> list[VideoSequence]:
        return read_davis(Path(self.root or ""), **self.choices)

    def is_whole(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, video: VideoSequence, predictions: Path
    ) -> bool:
        usual = get_protocol(self.protocol, **self.published_with).data_size
        size = self.set.get("data_size", usual)
        return sequence_is_whole(video, predictions, size=size and (size[0], size[1]))

    def score(self, out: Path, protocol: Protocol, workers: int | None) -> None:
        root = Path(self.root or "")
        scores = score_davis(
            out / "predictions",
            root,
            workers=workers,
            data_size=protocol.data_size,
            **self.choices,
        )
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

    def propagate(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, video: PoseVideo, predictions: Path, *, tracker: LabelTracker
    ) -> None:
        maps = joint_maps(tracker.protocol.name, topk=self.joint_topk)
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

    @model_validator(mode="before")
    @classmethod
    def _as_its_authors(cls, given: Any) -> Any:
        """Where the authors of a protocol evaluate VIP otherwise, takes what they take, such as
        cropmae-vip and its own size."""
        if not isinstance(given, dict):
            return given
        name = str(given.get("protocol", cls.model_fields["protocol"].default))
        if (there := protocol_on(name, cls.data)) != name:
            given = given | {"protocol": there}
        return {"input_size": 0} | given if there.endswith("-vip") else given

    def read(self) -> list[VideoSequence]:
        return read_vip(Path(self.root or ""), split=self.split)

    def score(self, out: Path, protocol: Protocol, workers: int | None) -> None:
        score_vip(out / "predictions", self.read()).write(out)


ROWS: dict[str, type[Row]] = {kind.data: kind for kind in (DavisRow, YtvosRow, JhmdbRow, VipRow)}
"""By the name of the data set that a row gives."""


class Plot(Model):
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
    train: Fields = Field({})
    """Fields of every run."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({})
    """Values of fields, by dotted name: each row that trains does so at each point."""
    steps: PositiveInt | None = None
    """Length of a run, with schedules as long; None for the recipe's own."""
    curve: Annotated[Several[PositiveInt], AfterValidator(_ascending)] = ()
    """Steps, before the last one, after which each run is scored as well."""
    judge: Names = Field([])
    """Videos without labels on which the J&F of every row is predicted, see `ino.tasks.judge`."""
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
    changed_training: list[str] = Field([])
    """How runs are trained otherwise than the file says, each in a few words."""
    panels: list[Plot] = Field([])
    """Plots of figure.png; a grid of one field has its own."""

    @model_validator(mode="after")
    def _check(self) -> "Experiment":
        if self.grid and not any("train" in (row or {}) for row in self.rows.values()):
            raise ValueError("a grid is for rows that train, and there is none")
        known = {"data"}.union(*(kind.model_fields for kind in ROWS.values())) - {"published"}
        if unknown := [key for key in self.defaults if key not in known]:
            raise ValueError(f"unknown key defaults.{unknown[0]}; give it to a row")
        if self.curve and not any("train" in (row or {}) for row in self.rows.values()):
            raise ValueError("a curve is for rows that train, and there is none")
        if self.curve and self.curve[-1] >= (self.steps or 0):
            raise ValueError(
                f"curve ends with {self.curve[-1]} and steps is {self.steps}; give the length of "
                "the runs as steps, and as curve smaller numbers: the end is always scored"
            )
        return self

    def read_usual_row(self, label: str) -> Row:
        """A row as it is without the overrides."""
        return self.model_copy(update={"overrides": {}}).read_row(label)

    def read_row(self, label: str) -> Row:
        """A row with what it takes from the defaults, the overrides and the roots.

        Raises:
            ConfigError: a field is unknown or its value breaks a rule.
        """
        fields = dict(self.rows[label] or {})
        data = fields.pop("data", self.defaults.get("data", "davis"))
        if (kind := ROWS.get(str(data))) is None:
            raise ConfigError(f"data is {data!r}; choose one of {', '.join(ROWS)}")
        usable = set(kind.model_fields)
        if issubclass(kind, SquareRow) and {**self.defaults, **fields}.get("input_size") != 0:
            usable -= {"short_side"}
        has_weights = not fields.keys().isdisjoint(_WEIGHTS)
        defaults = _only(usable - _WEIGHTS if has_weights else usable, self.defaults)
        if isinstance(defaults.get("set"), dict) and isinstance(fields.get("set"), dict):
            fields["set"] = defaults["set"] | fields["set"]
        overrides = _only(usable if kind is DavisRow else usable - _OF_DAVIS, self.overrides)
        root = {"root": str(self.roots[kind.data])} if kind.data in self.roots else {}
        return checked(kind, _given(root | defaults | fields | overrides))


_WEIGHTS = {"weights", "file", "train"}
"""A row that sets one of these takes none of them from the defaults."""
_OF_DAVIS = {"year", "split", "sequences"}
"""Overrides that other data sets do not take."""


def _only(names: Collection[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def read_experiment(
    name: str, *, vary: Mapping[str, Sequence[Any]] | None = None, **changes: Any
) -> Experiment:
    """An experiment with changes of the command line.

    Args:
        name: one of the experiments in `FOLDER`, or the path of a YAML file.
        vary: values of a recipe's fields, by dotted name: one is for every run, several are a grid.
        changes: fields of `Experiment`; None leaves one as it is, and so it does in `roots` and
            `overrides`.

    Raises:
        ConfigError: there is no such experiment, it is no YAML, has a key that is not known or is
            there twice, names a command or a module to run, or a value breaks a rule.
    """
    path = named_file(name, FOLDER, what="experiment")
    content = read_yaml(path, what="experiment", holds="keys such as rows")
    experiment = checked(Experiment, _given(content), where=f"the experiment {path}")
    trained = [
        experiment.train,
        *((row or {}).get("train") or {} for row in experiment.rows.values()),
    ]
    trained += [{field: one} for field, choices in experiment.grid.items() for one in choices]
    for fields in trained:
        if isinstance(fields, Mapping):  # else its row says so
            refuse_code(fields, where=f"the experiment {path}")
    values = experiment.model_dump(exclude_unset=True)
    for key, change in _given(changes).items():
        is_mapping = isinstance(change, Mapping)
        values[key] = values.get(key, {}) | _given(change) if is_mapping else change
    train, grid = dict(experiment.train), dict(experiment.grid)
    for field, choices in (vary or {}).items():
        for label, row in experiment.rows.items():
            own = (row or {}).get("train")
            if isinstance(own, dict) and field in flatten(own):
                raise ConfigError(f"--{field} is what the row {label} sets; leave it out")
        train.pop(field, None)
        grid.pop(field, None)
        if len(choices) == 1:
            train[field] = choices[0]
        else:
            grid[field] = list(choices)
    changed = [
        f"{key} {Path(str(values[key])).name}" + f" in place of {old}" * (old is not None)
        for key, old in (("base", experiment.base), ("steps", experiment.steps))
        if values.get(key) != old
    ]
    changed += [
        f"{field} {choices[0]}"
        for field, choices in (vary or {}).items()
        if len(choices) == 1 and not field.startswith(_NO_TRAINING)
    ]
    values |= {"train": train, "grid": grid, "changed_training": changed}
    return checked(Experiment, values)


_NO_TRAINING = ("data.root", "data.num_workers", "data.prefetch", "data.index", "run.")
"""Fields of a recipe that say where and how fast it runs."""
