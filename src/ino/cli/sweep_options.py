"""The options of `ino sweep`, most of which replace a field of the sweep file, and `ino plot`."""

from pathlib import Path

from jsonargparse import ArgumentParser

from ino.cli.shared_options import plain_parser


def sweep_parser() -> ArgumentParser:
    from ino.schema import yaml_names
    from ino.train.config import field_names

    names = ", ".join(yaml_names(Path(__file__).parent.parent / "experiment_files"))

    parser = plain_parser(
        "Trains and scores every row of a sweep with every seed, and prints one table. Stopped, it "
        "goes on where it was. Fields of all runs can be set as in ino train, such as --data.root "
        f"FOLDER. Sweeps: {names}."
    )
    parser.add_argument("file", type=str, help="name of a sweep or path of a YAML file")
    parser.add_argument("--out", type=Path, help="folder of the sweep (default: sweeps/FILE)")
    parser.add_argument("--list", action="store_true", help="show the runs and how far each is")
    parser.add_argument(
        "--rows", nargs="+", action="extend", metavar="LABEL", help="only these rows"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--devices", type=str, metavar="NAME,...", help="as in evaluate suite")
    parser.add_argument("--base", type=str, help="recipe that every run starts from")
    parser.add_argument("--steps", type=int, help="of each run, with schedules as long")
    parser.add_argument("--seeds", type=str, metavar="N,N,...", help="of each row")
    parser.add_argument("--davis", type=str, metavar="ROOT", help="data set to score on")
    parser.add_argument("--year", type=int, help="2016 or 2017")
    parser.add_argument("--split", type=str, help="name of the list of sequences")
    parser.add_argument(
        "--sequences", nargs="+", action="extend", metavar="NAME", help="only these"
    )
    parser.add_argument("--protocol", type=str, help="how masks are carried")
    parser.add_argument(
        "--short-side", type=str, metavar="PIXELS,...", help="one or several; scales the radius"
    )
    parser.add_argument("--radius", type=int, help="of the window, in feature positions")
    parser.add_argument("--network", choices=["student", "teacher"], help="of each run")
    for name in field_names():
        parser.add_argument(f"--{name}", default=None, type=str, help="as in ino train")
    return parser


def plot_parser() -> ArgumentParser:
    parser = plain_parser(
        "Draws the curves of one or several runs: losses, targets, features, rates, speed and "
        "scores."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out", type=Path, default=Path("curves.png"), help="PNG, PDF or SVG (default: curves.png)"
    )
    return parser
