"""Suite files: YAML that says which weights to compare, each by which protocol on which data set.

Reading checks the form of the file; `ino.experiments.suite_plan` checks what its rows ask for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ino.errors import ConfigError
from ino.plain_yaml import check_keys, named_file, read_yaml, typed, yaml_names

FOLDER = Path(__file__).parent.parent / "suites"
"""Where the named suites are."""

DataName = Literal["davis", "ytvos", "jhmdb", "vip"]
DATA_NAMES: tuple[str, ...] = get_args(DataName)


@dataclass
class RowConfig:
    """What is scored, and how. Every field but `published` can also be given under `defaults`.

    Args:
        weights: what `--weights` takes: color, random:vit_tiny/8, a model's name, a path.
        file: name in the folder of weights, without its ending; where it is there, it is taken in
            place of `weights`.
        network: student or teacher of a file; None for the one that is usually evaluated.
        seed: of random weights.
        protocol: how labels are carried; None for ino-ytvos on YouTube-VOS, else ino-davis.
        short_side: of the network's input, pixels; the protocol's radius is scaled with it. Not
            where frames are made square.
        layer: block whose features are read, from 1; None for the protocol's own.
        radius: of the window, feature positions; None as said above.
        set: other fields of the protocol.
        precision: of the network.
        data: davis, ytvos, jhmdb or vip.
        root: of the data set; None takes that of `roots`.
        year: of DAVIS.
        split: None for val (DAVIS, VIP), valid (YouTube-VOS) or 1 (JHMDB).
        resolution: of DAVIS, a folder's name.
        sequences: those of the split to do; all where None. DAVIS and YouTube-VOS only.
        input_size: side of the square input, pixels; None for 320 (JHMDB) or 560 (VIP), 0 by
            protocol. JHMDB and VIP only.
        joint_topk: positions that give a joint. JHMDB only.
        about: words beside the label.
        published: numbers to compare with, in percent, by the name of a score.
    """

    weights: str | None = None
    file: str | None = None
    network: Literal["student", "teacher"] | None = None
    seed: int = 0
    protocol: str | None = None
    short_side: int | None = None
    layer: int | None = None
    radius: int | None = None
    set: dict[str, Any] = field(default_factory=dict)
    precision: Literal["fp32", "bf16"] = "fp32"
    data: DataName = "davis"
    root: str | None = None
    year: int = 2017
    split: str | int | None = None
    resolution: str = "480p"
    sequences: list[str] | None = None
    input_size: int | None = None
    joint_topk: int = 5
    about: str = ""
    published: dict[str, float] = field(default_factory=dict)


@dataclass
class SuiteConfig:
    """What to compare.

    Args:
        title: of the table.
        weights_dir: folder of the files that rows name.
        roots: of the data sets, by name.
        defaults: fields of every row that does not set them itself.
        rows: fields of each row, by label.
    """

    title: str = ""
    weights_dir: str | None = None
    roots: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, RowConfig] = field(default_factory=dict)


def suite_names() -> list[str]:
    """Names of the suites that come with ino."""
    return yaml_names(FOLDER)


def is_square(row: RowConfig) -> bool:
    """Whether frames are made squares of the row's input size, so that it has no short side."""
    return row.data in ("jhmdb", "vip") and row.input_size != 0


def read_suite(name: str, changes: Mapping[str, Any] | None = None) -> SuiteConfig:
    """A suite with changes of the command line.

    Args:
        name: one of `suite_names()`, or the path of a YAML file.
        changes: fields by dotted name: `weights_dir`, `roots.DATA`, and `rows.FIELD` for every row
            (`rows.sequences` only for those of DAVIS, `rows.short_side` not for those whose frames
            are made square); None leaves one as it is.

    Raises:
        ConfigError: there is no such suite, it is no YAML, has a key that is not known or is there
            twice (as a label), or a value is not of its field's type.
    """
    suite = _read_file(named_file(name, FOLDER, what="suite"))
    for key, value in (changes or {}).items():
        section, _, option = key.rpartition(".")
        if value is None:
            continue
        if section == "rows":
            for row in suite.rows.values():
                skipped = {"sequences": row.data != "davis", "short_side": is_square(row)}
                if not skipped.get(option, False):
                    setattr(row, option, value)
        elif section == "roots":
            suite.roots[option] = value
        else:
            setattr(suite, option, value)
    return suite


def _read_file(path: Path) -> SuiteConfig:
    """What a file says, of the right types."""
    where = f"the suite {path}"
    content = read_yaml(path, what="suite")
    check_keys(content, SuiteConfig, where=where)
    content = {key: value for key, value in content.items() if value is not None}
    defaults, rows = content.pop("defaults", {}), content.pop("rows", {})
    check_keys(defaults, RowConfig, where=where, prefix="defaults.")
    if "published" in defaults:
        raise ConfigError(f"{where} has published numbers under defaults; give each row its own")
    if not isinstance(rows, dict) or not rows:
        raise ConfigError(f"{where} has no rows; list them by label under rows")
    values = typed(content, SuiteConfig, where=where, skip=("defaults", "rows"))
    suite = SuiteConfig(**values, defaults=defaults)
    if unknown := [key for key in suite.roots if key not in DATA_NAMES]:
        known = ", ".join(DATA_NAMES)
        raise ConfigError(f"{where} has a root for {unknown[0]}; the data sets are {known}")
    for label, fields in rows.items():
        suite.rows[str(label)] = _read_row(str(label), fields, defaults, where=where)
    return suite


def _read_row(label: str, fields: Any, defaults: dict[str, Any], *, where: str) -> RowConfig:
    """A row with what it takes from the defaults."""
    check_keys(fields, RowConfig, where=where, prefix=f"rows.{label}.")
    both = {**defaults, **fields}
    if isinstance(defaults.get("set"), dict) and isinstance(fields.get("set"), dict):
        both["set"] = {**defaults["set"], **fields["set"]}
    if "weights" in fields and "file" not in fields:
        both.pop("file", None)
    return RowConfig(**typed(both, RowConfig, where=f"row {label} of {where}"))
