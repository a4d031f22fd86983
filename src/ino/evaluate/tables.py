"""DAVIS scores as a printed table, as the CSV files of the official evaluation, and as JSON.

Only formatting: nothing is computed. The page with pictures is in ino.evaluate.report.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ino import __version__
from ino.errors import OutputError
from ino.evaluate.davis import DavisScores, ObjectScore
from ino.evaluate.metrics import Summary
from ino.files import atomic_path, write_text


def global_scores(scores: DavisScores) -> dict[str, float]:
    """The means over objects under the column names of the official evaluation, as fractions."""
    return {
        "J&F-Mean": scores.jf_mean,
        "J-Mean": scores.j_mean,
        "J-Recall": scores.j_recall,
        "J-Decay": scores.j_decay,
        "F-Mean": scores.f_mean,
        "F-Recall": scores.f_recall,
        "F-Decay": scores.f_decay,
    }


def print_scores(scores: DavisScores, console: Console) -> None:
    """Prints a row an object and, below, the means over objects, in percent."""
    totals = global_scores(scores)
    # Two lines a heading and little padding: the table fits into a terminal of 80 columns.
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, show_footer=True)
    table.add_column("Sequence", footer="mean")
    table.add_column("Object", footer=str(len(scores.objects)), justify="right")
    for name, value in totals.items():
        table.add_column(name.replace("-", "\n"), footer=_percent(value), justify="right")
    for score in scores.objects:
        j, f = score.j, score.f
        values = ((j.mean + f.mean) / 2, j.mean, j.recall, j.decay, f.mean, f.recall, f.decay)
        table.add_row(score.sequence, str(score.object_id), *map(_percent, values))
    console.print(table)


def write_csv(scores: DavisScores, folder: Path, *, split: str = "val") -> tuple[Path, Path]:
    """The two files of davis2017-evaluation, fractions with three decimals.

    Args:
        scores: of one data set.
        folder: an existing folder; files of the same names are replaced.
        split: named in the file names.

    Returns:
        The paths of global_results-<split>.csv and per-sequence_results-<split>.csv.

    Raises:
        OutputError: a file cannot be written.
    """
    totals = global_scores(scores)
    whole = folder / f"global_results-{split}.csv"
    write_rows(whole, [list(totals), [_fraction(value) for value in totals.values()]])
    single = folder / f"per-sequence_results-{split}.csv"
    rows = [
        [f"{one.sequence}_{one.object_id}", _fraction(one.j.mean), _fraction(one.f.mean)]
        for one in scores.objects
    ]
    write_rows(single, [["Sequence", "J-Mean", "F-Mean"], *rows])
    return whole, single


def write_json(scores: DavisScores, path: Path, *, protocol: Mapping[str, Any] | None) -> None:
    """All scores in full precision, with the version of this software and how masks were made.

    Args:
        scores: of one data set.
        path: where the file will be; an existing one is replaced.
        protocol: the settings of the propagation, or None where they are not known. A value that
            JSON does not have, such as a path, is written as text.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {
        "software": {"name": "ino", "version": __version__},
        "protocol": None if protocol is None else dict(protocol),
        "global": global_scores(scores),
        "objects": [asdict(score) for score in scores.objects],
    }
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_text(path, text)


def read_means(path: Path) -> dict[str, float] | None:
    """The means over objects in a file of scores, as fractions by column name.

    Means without a truth are left out. None where the file is missing or damaged: whoever made it
    can make it again.
    """
    try:
        means = json.loads(path.read_text(encoding="utf-8"))["global"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(means, dict):
        return None
    return {name: value for name, value in means.items() if value is not None}


def read_json(path: Path) -> DavisScores:
    """The scores that `write_json` wrote.

    Raises:
        OutputError: the file is missing, broken, or holds the scores of another data set.
    """
    try:
        objects = json.loads(path.read_text(encoding="utf-8"))["objects"]
        return DavisScores(
            tuple(
                ObjectScore(
                    one["sequence"], one["object_id"], j=Summary(**one["j"]), f=Summary(**one["f"])
                )
                for one in objects
            )
        )
    except FileNotFoundError as error:
        raise OutputError(
            f"{path} does not exist: give the folder of an evaluation on DAVIS that is done"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{path} does not hold scores on DAVIS: give the folder of such an evaluation"
        ) from error


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes a CSV file, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _fraction(value: float) -> str:
    return f"{value:.3f}"
