"""The commands that look at many runs: sweep and plot."""

from pathlib import Path

from jsonargparse import Namespace


def sweep(options: Namespace) -> int:
    """Trains and evaluates the rows of an experiment, or lists them."""
    chosen = options.sweep

    from ino.experiments import read_experiment, run_experiment
    from ino.train.config import field_names

    row = ("year", "split", "sequences", "protocol", "short_side", "radius", "network")
    given = {name: chosen[name] for name in field_names()}
    experiment = read_experiment(
        chosen.file,
        base=chosen.base,
        steps=chosen.steps,
        seeds=chosen.seeds,
        roots={"davis": chosen.davis},
        overrides={name: chosen[name] for name in row},
        vary={name: [value] for name, value in given.items() if value is not None},
    )
    return run_experiment(
        experiment,
        out=chosen.out or Path("sweeps") / Path(chosen.file).stem,
        only=chosen.rows,
        is_list=chosen.list,
        jobs=chosen.jobs,
        devices=chosen.devices,
    )


def plot(options: Namespace) -> int:
    """Draws the curves of runs."""
    from ino.report.curves import plot_runs

    chosen = options.plot
    print(f"curves in {plot_runs(chosen.runs, out=chosen.out)}")
    return 0
