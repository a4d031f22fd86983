"""The commands that look at many runs: sweep and plot."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ino.errors import ConfigError

CHANGES = {
    "base": "base",
    "steps": "steps",
    "seeds": "seeds",
    "davis": "evaluation.root",
    "year": "evaluation.year",
    "split": "evaluation.split",
    "sequences": "evaluation.sequences",
    "protocol": "evaluation.protocol",
    "short_side": "evaluation.short_side",
    "radius": "evaluation.radius",
    "network": "evaluation.network",
}
"""The field of a sweep file that each option replaces."""


def sweep(options: Namespace) -> int:
    """Trains and scores the cells of a sweep, or lists them."""
    chosen = options.sweep
    if chosen.jobs < 1:
        raise ConfigError(f"--jobs is {chosen.jobs}; it must be 1 or more")

    from rich.console import Console

    from ino.experiments.sweep import run_sweep, state_of
    from ino.experiments.sweep_changes import check_folder
    from ino.experiments.sweep_file import read_sweep
    from ino.experiments.sweep_plan import plan_sweep
    from ino.experiments.sweep_table import print_table, table_rows, write_table

    changes = {field: _changed(option, chosen[option]) for option, field in CHANGES.items()}
    plan = plan_sweep(read_sweep(chosen.file, changes), dict(_given_fields(chosen)))
    out = chosen.out or Path("sweeps") / Path(chosen.file).stem
    check_folder(plan, out)
    if chosen.list:
        for cell in plan.cells:
            print(f"{cell.name}: {state_of(plan, cell, out=out)}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    started = time.perf_counter()

    def tell(cell: Any) -> None:
        seconds = time.perf_counter() - started
        state = state_of(plan, cell, out=out)
        console.print(f"{cell.name}: {state} ({seconds:.0f} s)", markup=False, highlight=False)
        write_table(table_rows(plan, out=out), out)

    failed = run_sweep(plan, out=out, jobs=chosen.jobs, on_cell=tell)
    rows = table_rows(plan, out=out)
    write_table(rows, out)
    print_table(rows, Console())
    for cell in failed:
        print(f"{cell.name}: {state_of(plan, cell, out=out)}")
    print(f"results in {out}")
    return 1 if failed else 0


def plot(options: Namespace) -> int:
    """Draws the curves of runs."""
    from ino.report.curves import plot_runs

    chosen = options.plot
    print(f"curves in {plot_runs(chosen.runs, out=chosen.out)}")
    return 0


def _changed(option: str, value: Any) -> Any:
    """The value of an option as the file would hold it; None where it was not given."""
    if value is None or option not in ("seeds", "short_side"):
        return value
    try:
        return [int(part) for part in value.split(",")]
    except ValueError as error:
        name = option.replace("_", "-")
        raise ConfigError(
            f"--{name} {value} must be whole numbers with commas between, as in 0,1,2"
        ) from error


def _given_fields(chosen: Namespace) -> Iterator[tuple[str, str]]:
    """The fields of a run that were given on the command line."""
    from ino.train.config import field_names

    for name in field_names():
        if chosen[name] is not None:
            yield name, chosen[name]
