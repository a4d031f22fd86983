"""Scores on YouTube-VOS as a printed table, as CSV files and as JSON. Nothing is computed."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ino import __version__
from ino.evaluate.tables import write_rows
from ino.evaluate.ytvos import YtvosScores
from ino.files import write_text


def global_scores(scores: YtvosScores) -> dict[str, float | None]:
    """The means over objects as fractions, under the names of the benchmark; None where there is no
    object to take them over.

    `J&F-All` and the two before it do not tell seen from unseen.
    """
    return {
        "Overall": scores.overall,
        "J-Seen": scores.j_seen,
        "J-Unseen": scores.j_unseen,
        "F-Seen": scores.f_seen,
        "F-Unseen": scores.f_unseen,
        "J-All": scores.j_all,
        "F-All": scores.f_all,
        "J&F-All": scores.jf_all,
    }


def print_scores(scores: YtvosScores, console: Console) -> None:
    """Prints a row an object, the means below, in percent, and what told seen from unseen."""
    rows = Table(box=SIMPLE_HEAD, collapse_padding=True)
    rows.add_column("Video")
    rows.add_column("Object", justify="right")
    rows.add_column("Category")
    for name in ("Seen", "Frames", "J&F", "J", "F"):
        rows.add_column(name, justify="right")
    for one in scores.objects:
        seen = {True: "yes", False: "no", None: "-"}[one.is_seen]
        values = ((one.j + one.f) / 2, one.j, one.f)
        about = (one.video, str(one.object_id), one.category or "-", seen, str(one.num_frames))
        rows.add_row(*about, *map(_percent, values))
    console.print(rows)
    means = Table(box=SIMPLE_HEAD, collapse_padding=True)
    totals = global_scores(scores)
    for name in totals:
        means.add_column(name.replace("-", "\n"), justify="right")
    means.add_row(*map(_percent, totals.values()))
    console.print(means)
    console.print(describe_seen(scores), soft_wrap=True, highlight=False)


def describe_seen(scores: YtvosScores) -> str:
    """One line: what counts as seen, and why a number is missing."""
    if not any(one.category for one in scores.objects):
        return "meta.json tells no categories, so there are means over all objects only"
    if scores.seen_source is None:
        return (
            "nothing tells which categories are seen, so there are means over all objects only: "
            "--seen FILE or train/meta.json would"
        )
    groups = {True: "seen", False: "unseen", None: "without a category"}
    counts = [
        f"{count} {word}"
        for is_seen, word in groups.items()
        if (count := sum(one.is_seen is is_seen for one in scores.objects)) or is_seen is not None
    ]
    text = f"seen: {scores.seen_source}; objects: {', '.join(counts)}"
    return text if scores.overall is not None else f"{text}; Overall needs both kinds"


def write_csv(scores: YtvosScores, folder: Path, *, split: str = "valid") -> tuple[Path, Path]:
    """Writes the means and the scores of objects, fractions with three decimals.

    A number that does not exist is left empty.

    Args:
        scores: of one split.
        folder: an existing folder; files of the same names are replaced.
        split: named in the file names.

    Returns:
        The paths of global_results-<split>.csv and per-object_results-<split>.csv.

    Raises:
        OutputError: a file cannot be written.
    """
    totals = global_scores(scores)
    whole = folder / f"global_results-{split}.csv"
    write_rows(whole, [list(totals), [_fraction(value) for value in totals.values()]])
    single = folder / f"per-object_results-{split}.csv"
    head = ["Video", "Object", "Category", "Seen", "Frames", "J-Mean", "F-Mean"]
    seen = {True: "yes", False: "no", None: ""}
    rows = [
        [
            *(one.video, str(one.object_id), one.category or "", seen[one.is_seen]),
            *(str(one.num_frames), _fraction(one.j), _fraction(one.f)),
        ]
        for one in scores.objects
    ]
    write_rows(single, [head, *rows])
    return whole, single


def write_json(scores: YtvosScores, path: Path, *, protocol: Mapping[str, Any] | None) -> None:
    """All scores in full precision, with the version of this software and how masks were made.

    Args:
        scores: of one split.
        path: where the file will be; an existing one is replaced.
        protocol: the settings of the propagation, or None where they are not known.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {
        "software": {"name": "ino", "version": __version__},
        "protocol": None if protocol is None else dict(protocol),
        "seen": scores.seen_source,
        "global": global_scores(scores),
        "objects": [asdict(score) for score in scores.objects],
    }
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_text(path, text)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
