"""The commands that look at many evaluations: evaluate suite and compare."""

from pathlib import Path

from jsonargparse import Namespace


def with_suite(arguments: list[str]) -> list[str]:
    """`evaluate --suite FILE` as `evaluate suite FILE`, which it is short for."""
    if arguments[:1] == ["evaluate"] and len(arguments) > 1:
        name, separator, value = arguments[1].partition("=")
        if name == "--suite":
            return ["evaluate", "suite", *([value] if separator else []), *arguments[2:]]
    return arguments


def evaluate(options: Namespace) -> int:
    """Evaluates the rows of an experiment, or lists them."""
    chosen = options.evaluate.suite

    from ino.experiments import read_experiment, run_experiment

    experiment = read_experiment(
        chosen.file,
        weights_dir=chosen.weights_dir,
        roots={name: chosen[name] for name in ("davis", "ytvos", "jhmdb", "vip")},
        overrides={name: chosen[name] for name in ("sequences", "short_side", "precision")},
    )
    return run_experiment(
        experiment,
        out=chosen.out or Path("suites") / Path(chosen.file).stem,
        only=chosen.rows,
        may_train=False,
        is_list=chosen.list,
        jobs=chosen.jobs,
        devices=chosen.devices,
    )


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
