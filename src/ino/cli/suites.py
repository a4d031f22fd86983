"""The commands that look at many evaluations: evaluate suite and compare."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ino.cli.tracking import progress
from ino.errors import ConfigError

_LOG = logging.getLogger("ino")


def with_suite(arguments: list[str]) -> list[str]:
    """`evaluate --suite FILE` as `evaluate suite FILE`, which it is short for."""
    if arguments[:1] == ["evaluate"] and len(arguments) > 1:
        name, separator, value = arguments[1].partition("=")
        if name == "--suite":
            return ["evaluate", "suite", *([value] if separator else []), *arguments[2:]]
    return arguments


def evaluate(options: Namespace) -> int:
    """Carries and scores the rows of a suite, or lists them."""
    chosen = options.evaluate.suite
    if chosen.jobs < 1:
        raise ConfigError(f"--jobs is {chosen.jobs}; it must be 1 or more")

    from ino.experiments.suite import state_of
    from ino.experiments.suite_file import read_suite
    from ino.experiments.suite_plan import OTHER_ENDINGS, check_suite_folder, plan_suite

    plan = plan_suite(read_suite(chosen.file, _changes(chosen)), only=chosen.rows, look=chosen.list)
    out = chosen.out or Path("suites") / Path(chosen.file).stem
    check_suite_folder(plan, out)
    if chosen.list:
        for row in plan.chosen:
            print(f"{row.label}: {state_of(row, out=out)}")
        if any(row.expects_file for row in plan.chosen):
            print(OTHER_ENDINGS)
        return 0
    return _run(plan, out=out, jobs=chosen.jobs, devices=_devices(chosen.devices, chosen.jobs))


def _run(plan: Any, *, out: Path, jobs: int, devices: list[str]) -> int:
    from rich.console import Console

    from ino.experiments.suite import error_file, num_left, run_suite, state_of
    from ino.experiments.suite_table import (
        CAPTION,
        note_lines,
        num_texts,
        table_lines,
        write_suite_table,
    )
    from ino.tables import print_table

    out.mkdir(parents=True, exist_ok=True)
    with progress("videos", num_left(plan, out=out)) as advance:

        def tell(task: Any) -> None:
            row = plan.row(task.row.label)
            if task.video is not None:
                advance()
            if task.video is None or error_file(row, out=out).is_file():
                print(f"{row.label}: {state_of(row, out=out)}", file=sys.stderr)
                write_suite_table(plan, out=out)

        failed = run_suite(plan, out=out, jobs=jobs, devices=devices, on_task=tell)
    labels = [row.label for row in plan.chosen]
    rows = [row for row in write_suite_table(plan, out=out) if row.label in labels]
    print_table(table_lines(rows), Console(), num_texts=num_texts(rows), caption=CAPTION)
    for line in note_lines(rows):
        print(line)
    print(f"results in {out}")
    return 1 if failed else 0


def compare(options: Namespace) -> int:
    """Compares two evaluations sequence by sequence."""
    chosen = options.compare

    from rich.console import Console

    from ino.report.comparison import compare_evaluations
    from ino.tables import print_table

    out = chosen.out or Path(f"{chosen.a.name}_and_{chosen.b.name}")
    comparison = compare_evaluations(
        chosen.a,
        chosen.b,
        out=out,
        root=chosen.root,
        num_shown=chosen.num,
        num_frames=chosen.frames,
        overwrite=chosen.overwrite,
    )
    print_table(comparison.lines(), Console(), caption="percent")
    for note in comparison.notes():
        print(note)
    print(f"look at {out / 'comparison.html'}")
    return 0


def _changes(chosen: Namespace) -> dict[str, Any]:
    """The fields of the file that options replace."""
    from ino.experiments.suite_file import DATA_NAMES

    roots = {f"roots.{name}": chosen[name] for name in DATA_NAMES}
    paths = {"weights_dir": chosen.weights_dir, **roots}
    return {key: None if path is None else str(path) for key, path in paths.items()} | {
        "rows.sequences": chosen.sequences,
        "rows.short_side": chosen.short_side,
        "rows.precision": chosen.precision,
    }


def _devices(given: str | None, jobs: int) -> list[str]:
    """The devices of the processes, in turn; each is tried.

    GPUs are only counted where other processes take them: whoever tries one holds memory of it, and
    may be the only one that it lets in.
    """
    from torch import cuda

    from ino.models.backbone import choose_device

    if given is None:
        several = jobs > 1 and cuda.device_count() > 1
        return [f"cuda:{number}" for number in range(cuda.device_count())] if several else ["auto"]
    names = given.split(",")
    for name in names:
        if jobs == 1 or not re.fullmatch(r"cuda(:\d{1,4})?", name):
            choose_device(name)
        elif int(name.partition(":")[2] or 0) >= cuda.device_count():
            raise ConfigError(
                f"the device {name!r} cannot be used here, which has {cuda.device_count()} CUDA "
                "devices; leave it out or pass --devices cpu"
            )
    if len(names) > jobs:
        words = "--devices names %d, but --jobs is %d: only %s is used"
        _LOG.warning(words, len(names), jobs, ", ".join(names[:jobs]))
    return names
