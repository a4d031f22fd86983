"""What a suite asks for, checked before the first row starts and against what is on disk."""

import dataclasses
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm

from ino.errors import CheckpointError, ConfigError, DatasetError
from ino.experiments.rows import check_labels
from ino.experiments.suite_data import DATA_SETS, Video
from ino.experiments.suite_file import RowConfig, SuiteConfig, is_square
from ino.models.backbone import split_weights
from ino.models.load import bundled_names
from ino.propagate.protocols import Protocol
from ino.tasks.results import check_settings, fingerprint, settings_text, sized_protocol

ENDINGS = (".pth", ".pt", ".pth.tar", ".tar", ".safetensors", "")
"""Of a file of weights that a row names without one; the last is a folder or a whole name."""

OTHER_ENDINGS = (
    "in place of .pth a file may end with .pt, .pth.tar, .tar or .safetensors, or be a run's folder"
)
"""Said once below rows whose files are not there."""

_NAME = re.compile(r"color|[a-z][\w.-]+:.+")  # a path of Windows has one letter before its colon
_CHOICES = ("network", "seed", "precision", "data", "root", "split")


@dataclass(frozen=True)
class SuiteRow:
    """A row that is ready to run.

    Attributes:
        label: names its folder.
        config: with weights, root, split and input size filled in; its weights are None where
            there are none at hand.
        protocol: with everything that the row replaces.
        videos: of the data set; none where the row cannot run.
        absent: why it cannot run, which is no failure; empty where it can.
    """

    label: str
    config: RowConfig
    protocol: Protocol
    videos: tuple[Video, ...]
    absent: str = ""

    @property
    def expects_file(self) -> bool:
        """Whether it is absent because the file that it names is not in the folder of weights."""
        return bool(self.absent) and self.config.weights is None and self.config.file is not None

    @cached_property
    def settings(self) -> str:
        """What is stored beside its results; two results were made alike where these are equal."""
        names = (*_CHOICES, *DATA_SETS[self.config.data].choices)
        chosen: dict[str, Any] = {name: getattr(self.config, name) for name in names}
        weights = self.config.weights or ""
        return settings_text(self.protocol, {"weights": weights, **fingerprint(weights), **chosen})


@dataclass(frozen=True)
class SuitePlan:
    """Rows in the order of the table, and the labels of those that are asked for; None: all."""

    title: str
    rows: tuple[SuiteRow, ...]
    only: frozenset[str] | None = None

    @property
    def chosen(self) -> list[SuiteRow]:
        """The rows that are asked for."""
        return [row for row in self.rows if self.only is None or row.label in self.only]

    def row(self, label: str) -> SuiteRow:
        return next(one for one in self.rows if one.label == label)


def plan_suite(
    suite: SuiteConfig, *, only: Sequence[str] | None = None, look: bool = False
) -> SuitePlan:
    """The rows of a suite, each checked as far as that takes no network.

    Args:
        suite: as `read_suite` gives it.
        only: labels of the rows to do; all where None. The others are in the plan too, whether or
            not their weights and data sets are at hand.
        look: the rows are only listed, so that data sets may be missing.

    Raises:
        InoError: a label, a weight, a protocol or a field cannot be used, or a data set is missing.
    """
    check_labels(suite.rows)
    if unknown := [label for label in only or [] if label not in suite.rows]:
        raise ConfigError(f"the suite has no row {unknown[0]}; it has {', '.join(suite.rows)}")
    folder = None if suite.weights_dir is None else Path(suite.weights_dir)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"the folder of weights {folder} does not exist; create it or give one")
    read: dict[str, tuple[Video, ...]] = {}
    rows = []
    for label, config in suite.rows.items():
        is_chosen = only is None or label in only
        try:
            row = _plan_row(label, config, suite=suite, folder=folder, is_chosen=is_chosen)
            with suppress(*([] if is_chosen else [ConfigError, DatasetError])):
                if not row.absent:
                    row = dataclasses.replace(row, videos=_videos(row.config, read, look=look))
        except (ConfigError, CheckpointError) as error:
            raise type(error)(f"row {label}: {error}") from error
        rows.append(row)
    return SuitePlan(suite.title, tuple(rows), None if only is None else frozenset(only))


def check_suite_folder(plan: SuitePlan, out: Path) -> None:
    """Compares the rows with what an earlier run of the suite left in its folder.

    Raises:
        OutputError: results there were made with other settings; the message names the first.
    """
    for row in plan.rows:
        stored = out / row.label / "settings.json"
        if not row.absent and stored.is_file():
            # A list is shown without the data set at hand.
            unknown = ("root",) if row.config.root is None else ()
            check_settings(stored, json.loads(row.settings), leave_out=unknown)


def _plan_row(
    label: str, config: RowConfig, *, suite: SuiteConfig, folder: Path | None, is_chosen: bool
) -> SuiteRow:
    data = DATA_SETS[config.data]
    _check_meaning(config)
    unknown = [name for name in config.published if name not in data.scores]
    if unknown:
        raise ConfigError(
            f"published names {unknown[0]}, but the scores of {config.data} are "
            f"{', '.join(data.scores)}"
        )
    protocol = sized_protocol(
        config.protocol or ("ino-ytvos" if config.data == "ytvos" else "ino-davis"),
        short_side=config.short_side,
        layer=config.layer,
        radius=config.radius,
        overrides=config.set,
    )
    try:
        weights, absent = find_weights(config, folder)
    except CheckpointError as error:
        if is_chosen:
            raise
        weights, absent = config.weights, f"absent: {error}"
    filled = dataclasses.replace(
        config,
        weights=weights,
        root=config.root or suite.roots.get(config.data),
        split=data.split if config.split is None else config.split,
        input_size=data.input_size if config.input_size is None else config.input_size,
    )
    return SuiteRow(label, filled, protocol, (), absent)


def _check_meaning(config: RowConfig) -> None:
    """Refuses what a data set would silently pass over."""
    if config.sequences is not None and config.data in ("jhmdb", "vip"):
        raise ConfigError(f"sequences cannot be chosen for {config.data}; leave them out")
    if is_square(config) and (config.short_side is not None or "short_side" in config.set):
        raise ConfigError(
            f"short_side has no meaning for {config.data}, whose frames are made square; give "
            "input_size, or input_size: 0 for the size of the protocol"
        )
    for name in ("year", "resolution", "joint_topk"):
        is_usual = getattr(config, name) == getattr(RowConfig, name)
        if name not in DATA_SETS[config.data].choices and not is_usual:
            raise ConfigError(f"{name} has no meaning for {config.data}; leave it out")
    if config.input_size is not None and config.data in ("davis", "ytvos"):
        raise ConfigError(f"input_size has no meaning for {config.data}; give short_side")
    if config.input_size is not None and config.input_size < 0:
        raise ConfigError(f"input_size is {config.input_size}; give pixels, or 0 for by protocol")
    if config.year not in (2016, 2017):
        raise ConfigError(f"year is {config.year}; DAVIS has 2016 and 2017")
    if config.data == "jhmdb" and config.split not in (None, 1, 2, 3):
        raise ConfigError(f"split is {config.split}; JHMDB has 1, 2 and 3")


def find_weights(config: RowConfig, folder: Path | None) -> tuple[str | None, str]:
    """What `load_backbone` is given for a row, and, where that is not at hand, why not.

    Raises:
        CheckpointError: weights are a path at which there is nothing.
        ConfigError: the row names no weights, and no published numbers for which it would be there.
    """
    if config.file is not None and folder is not None:
        for ending in ENDINGS:
            if (path := folder / f"{config.file}{ending}").exists():
                return str(path), ""
    if config.weights is not None:
        _check_weights(config.weights)
        return config.weights, ""
    if config.file is not None:
        where = f"in {folder}" if folder is not None else "in the folder given by --weights-dir"
        return None, f"absent: {config.file}.pth is expected {where}"
    if not config.published:
        raise ConfigError("it names no weights; give weights, or file and --weights-dir")
    return None, "published numbers only"


def _check_weights(weights: str) -> None:
    """Refuses what is no name and no path; names are looked up when the row starts."""
    if weights in bundled_names():
        return
    _, file = split_weights(weights)
    path = file or Path(weights)
    is_name = _NAME.fullmatch(weights) is not None or timm.is_model(re.split(r"[./]", weights)[0])
    if not (path.is_file() if file else path.exists() or is_name):
        raise CheckpointError(
            f"{path} is neither a file or folder nor a known name; give a checkpoint, the folder "
            "of a run, color or a name such as random:vit_tiny/8"
        )


def _videos(
    config: RowConfig, read: dict[str, tuple[Video, ...]], *, look: bool
) -> tuple[Video, ...]:
    """The videos of a row; each data set is read once."""
    if config.root is None:
        if look:
            return ()
        raise ConfigError(f"no root of {config.data} is given; pass --{config.data} ROOT")
    names = ("data", "root", "split", *DATA_SETS[config.data].choices)
    key = json.dumps([getattr(config, name) for name in names])
    if key not in read:
        read[key] = tuple(DATA_SETS[config.data].read(config))
        if not read[key]:
            raise ConfigError(f"no sequence of {config.root} is chosen: name at least one")
    return read[key]
