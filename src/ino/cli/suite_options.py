"""The options of `ino evaluate suite` and `ino compare`."""

from pathlib import Path

from jsonargparse import ArgumentParser

from ino.cli.shared_options import add_output, plain_parser


def suite_parser() -> ArgumentParser:
    from ino.schema import yaml_names

    names = ", ".join(yaml_names(Path(__file__).parent.parent / "experiment_files"))
    parser = plain_parser(
        "Carries and scores every row of a suite (weights, protocol, data set) and prints one "
        "table with published numbers and the difference. Stopped, it goes on where it was. "
        f"Suites: {names}. The same as ino evaluate --suite FILE."
    )
    parser.add_argument("file", type=str, help="name of a suite or path of a YAML file")
    parser.add_argument("--out", type=Path, help="folder of the suite (default: suites/FILE)")
    parser.add_argument("--list", action="store_true", help="show the rows and how far each is")
    parser.add_argument(
        "--rows", nargs="+", action="extend", metavar="LABEL", help="only these rows"
    )
    parser.add_argument(
        "--weights-dir", type=Path, metavar="DIR", help="folder of the files that rows name"
    )
    for name in ("davis", "ytvos", "jhmdb", "vip"):
        words = f"root of the data set, for rows with data: {name}"
        parser.add_argument(f"--{name}", type=Path, metavar="ROOT", help=words)
    parser.add_argument(
        "--sequences", nargs="+", action="extend", metavar="NAME", help="of DAVIS, only these"
    )
    parser.add_argument(
        "--short-side", type=int, help="of every row, but for square inputs; scales the radius"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of every row")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes that share the videos (default: 1)"
    )
    parser.add_argument(
        "--devices",
        type=str,
        metavar="NAME,...",
        help="of the processes in turn, as in cuda:0,cuda:1 (default: with several "
        "--jobs all GPUs, else auto)",
    )
    return parser


def compare_parser() -> ArgumentParser:
    parser = plain_parser(
        "Compares two evaluations on DAVIS sequence by sequence: pictures of the largest "
        "differences, a scatter of J&F and a table, as PNGs and one HTML page."
    )
    words = "folder of an evaluation, or of a row of a suite"
    parser.add_argument("a", type=Path, metavar="A", help=words)
    parser.add_argument("b", type=Path, metavar="B", help=words)
    parser.add_argument(
        "--root", type=Path, help="folder that holds JPEGImages (default: as A was evaluated)"
    )
    add_output(parser, default=None, shown="A_and_B")
    parser.add_argument(
        "--num", type=int, default=3, help="sequences shown that are best for A, and for B"
    )
    parser.add_argument("--frames", type=int, default=5, help="shown of each sequence")
    return parser
