"""Scores of joints and of parts as printed tables and as JSON. Only formatting."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ino import __version__
from ino.evaluate.jhmdb import JOINT_NAMES
from ino.evaluate.parts import PartScores
from ino.evaluate.pose import PoseScores
from ino.files import write_text


def print_pose(scores: PoseScores, console: Console) -> None:
    """Prints a row a joint and, below, the mean over joints, in percent."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, show_footer=True)
    table.add_column("Joint", footer="mean")
    for threshold in scores.by_joint:
        table.add_column(
            f"PCK@{threshold:g}", footer=_percent(scores.pck(threshold)), justify="right"
        )
    for name, *values in zip(JOINT_NAMES, *scores.by_joint.values(), strict=True):
        table.add_row(name, *map(_percent, values))
    console.print(table)


def print_parts(scores: PartScores, console: Console) -> None:
    """Prints a row a class that occurs and, below, the mean over these, in percent."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, show_footer=True)
    table.add_column("Part", footer="mean")
    table.add_column("IoU", footer=_percent(scores.mean_iou), justify="right")
    for name, iou in zip(scores.names, scores.iou, strict=True):
        if not math.isnan(iou):
            table.add_row(name, _percent(iou))
    console.print(table)


def write_pose_json(scores: PoseScores, path: Path) -> None:
    """All scores in full precision, as fractions; null for a joint that never counts.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {
        "global": {f"PCK@{value:g}": scores.pck(value) for value in scores.by_joint},
        "joints": {
            f"PCK@{threshold:g}": _named(JOINT_NAMES, values)
            for threshold, values in scores.by_joint.items()
        },
        "num_videos": scores.num_videos,
        "num_joints": scores.num_joints,
    }
    _write(path, content)


def write_parts_json(scores: PartScores, path: Path) -> None:
    """All scores in full precision, as fractions; null for a class that does not occur.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {
        "global": {"mIoU": scores.mean_iou, "accuracy": scores.accuracy},
        "parts": {"IoU": _named(scores.names, scores.iou)},
        "num_frames": scores.num_frames,
    }
    _write(path, content)


def _named(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    pairs = zip(names, values, strict=True)
    return {name: None if math.isnan(value) else float(value) for name, value in pairs}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    whole = {"software": {"name": "ino", "version": __version__}, **content}
    write_text(path, json.dumps(whole, indent=2) + "\n")


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"
