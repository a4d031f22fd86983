"""The options of commands that evaluate on a data set or look at its masks."""

from pathlib import Path

from jsonargparse import ActionYesNo, ArgumentParser

from ino.cli.shared_options import add_output, add_tracker, plain_parser


def davis_parser() -> ArgumentParser:
    parser = plain_parser("Propagates the first masks of a DAVIS split and scores the result.")
    _add_davis(parser)
    add_output(parser, default=Path("davis"))
    _add_resume(parser)
    add_tracker(parser)
    return parser


def ytvos_parser() -> ArgumentParser:
    parser = plain_parser(
        "Carries the given masks of a YouTube-VOS split through all frames, packs submission.zip, "
        "checks it, and scores it where later frames are annotated."
    )
    _add_ytvos(parser)
    _add_seen(parser)
    add_output(parser, default=Path("ytvos"))
    _add_resume(parser)
    add_tracker(parser, protocol="ino-ytvos")
    return parser


def jhmdb_parser() -> ArgumentParser:
    parser = plain_parser(
        "Carries the first joints of JHMDB's test videos and scores PCK@0.1 and @0.2."
    )
    parser.add_argument("--root", type=Path, required=True, help="folder that holds Rename_Images")
    parser.add_argument("--split", type=int, default=1, help="1, 2 or 3")
    parser.add_argument(
        "--joint-topk", type=int, default=5, help="positions that give a joint (CRW: 3)"
    )
    _add_input_size(parser, default=320)
    add_output(parser, default=Path("jhmdb"))
    _add_resume(parser)
    add_tracker(parser)
    return parser


def vip_parser() -> ArgumentParser:
    parser = plain_parser("Carries the first part labels of a VIP split and scores the mean IoU.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds Images")
    parser.add_argument("--split", type=str, default="val", help="name of the list of videos")
    _add_input_size(parser, default=560)
    add_output(parser, default=Path("vip"))
    _add_resume(parser)
    add_tracker(parser)
    return parser


def score_parser() -> ArgumentParser:
    parser = plain_parser("Scores masks made by anything: PREDICTIONS/SEQUENCE/FRAME.png.")
    parser.add_argument("predictions", type=Path, help="folder with a folder a sequence")
    parser.add_argument(
        "--layout",
        choices=["davis", "ytvos"],
        default="davis",
        help="of the data set; with ytvos, --split is the folder's name (default then: valid)",
    )
    _add_davis(parser)
    _add_seen(parser)
    parser.add_argument("--out", type=Path, help="folder for CSV and JSON (default: none)")
    parser.add_argument("--workers", type=int, help="processes (default: as frames are worth)")
    return parser


def check_parser() -> ArgumentParser:
    parser = plain_parser(
        "Checks a submission to YouTube-VOS: every mask that is asked for is there, nothing else, "
        "and each is an indexed PNG of the right size and objects."
    )
    parser.add_argument("predictions", type=Path, help="zip file, or folder with a folder a video")
    _add_ytvos(parser)
    return parser


def _add_davis(parser: ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True, help="folder that holds JPEGImages")
    parser.add_argument("--year", type=int, default=2017, help="2016 or 2017")
    parser.add_argument("--split", type=str, default="val", help="name of the list of sequences")
    parser.add_argument("--resolution", type=str, default="480p", help="folder of that name")
    parser.add_argument(
        "--sequences", nargs="+", action="extend", metavar="NAME", help="only these"
    )


def _add_ytvos(parser: ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the split")
    parser.add_argument("--split", type=str, default="valid", help="name of the split's folder")
    parser.add_argument("--videos", nargs="+", action="extend", metavar="NAME", help="only these")


def _add_seen(parser: ArgumentParser) -> None:
    words = "YouTube-VOS: seen categories, one a line, or a meta.json (default: train/meta.json)"
    parser.add_argument("--seen", type=Path, metavar="FILE", help=words)


def _add_resume(parser: ArgumentParser) -> None:
    words = "go on with what was made with the same settings"
    parser.add_argument("--resume", action=ActionYesNo, default=False, help=words)


def _add_input_size(parser: ArgumentParser, *, default: int) -> None:
    words = f"side of the square input, pixels (default: {default}, as in papers; 0: by protocol)"
    parser.add_argument("--input-size", type=int, default=default, help=words)
