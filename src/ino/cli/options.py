"""The options of the command `ino`. Imports nothing heavy, so that `--help` is quick."""

from pathlib import Path

from jsonargparse import ActionYesNo, ArgumentParser

from ino import __version__
from ino.cli.indexing import index_parser
from ino.cli.suite_options import compare_parser, suite_parser
from ino.cli.sweep_options import plot_parser, sweep_parser

PROTOCOL_DEFAULT = "ino-davis"
YTVOS_PROTOCOL_DEFAULT = "ino-ytvos"


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = ArgumentParser(
        prog="ino",
        description="Dense features from unlabeled video, and masks carried through a video.",
        exit_on_error=False,
        version=__version__,
    )
    commands = parser.add_subcommands(required=True)
    commands.add_subcommand("demo", _demo_parser(), help="the whole story on generated video")
    commands.add_subcommand("train", _train_parser(), help="learn from unlabeled video")
    commands.add_subcommand("index", index_parser(), help="tell what videos there are")
    commands.add_subcommand("sweep", sweep_parser(), help="train and compare many runs")
    commands.add_subcommand("plot", plot_parser(), help="draw the curves of runs")
    commands.add_subcommand("segment", _segment_parser(), help="carry masks through a video")
    evaluate = _parser("Propagates the given masks of a data set and scores the result.")
    commands.add_subcommand("evaluate", evaluate, help="propagate and score a data set")
    data_sets = evaluate.add_subcommands(required=True)  # only once `evaluate` has its place
    data_sets.add_subcommand("davis", _davis_parser(), help="DAVIS-2016 or DAVIS-2017")
    data_sets.add_subcommand("ytvos", _ytvos_parser(), help="YouTube-VOS 2018 or 2019")
    data_sets.add_subcommand("jhmdb", _jhmdb_parser(), help="joints of JHMDB")
    data_sets.add_subcommand("vip", _vip_parser(), help="human parts of VIP")
    data_sets.add_subcommand("suite", suite_parser(), help="many rows, one table")
    commands.add_subcommand("compare", compare_parser(), help="compare two evaluations")
    commands.add_subcommand("score", _score_parser(), help="score folders of masks")
    commands.add_subcommand("check", _check_parser(), help="check a YouTube-VOS submission")
    return parser


def _parser(description: str) -> ArgumentParser:
    return ArgumentParser(description=description, exit_on_error=False)


def _demo_parser() -> ArgumentParser:
    parser = _parser(
        "Generates video, learns from it, carries masks through clips it has not seen, scores them "
        "beside raw colour and an untrained network, and writes report.html."
    )
    _add_output(parser, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=0, help="of video, weights and training")
    parser.add_argument("--steps", type=int, default=None, help="training steps (about a minute)")
    return parser


def _train_parser() -> ArgumentParser:
    from ino.train.recipes import add_config_arguments, recipe_names

    parser = _parser(
        "Trains by a recipe: the name of one that comes with ino, or a YAML file. Every field can "
        f"be set, as in --data.root FOLDER --optim.lr 0.001. Recipes: {', '.join(recipe_names())}."
    )
    parser.add_argument("recipe", type=str, help="name of a recipe or path of a YAML file")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE)")
    parser.add_argument(
        "--resume", action=ActionYesNo, default=False, help="continue the run in the folder"
    )
    add_config_arguments(parser)
    return parser


def _segment_parser() -> ArgumentParser:
    parser = _parser("Carries masks through a video: indexed PNGs and an overlay video.")
    parser.add_argument("video", type=Path, help="video file or folder of images")
    parser.add_argument(
        "--mask",
        nargs="+",
        action="extend",
        required=True,
        metavar="PNG",
        help="indexed PNG of frame 0, FRAME=PNG for another frame, or a folder of FRAME.png",
    )
    parser.add_argument(
        "--resize-mask", action=ActionYesNo, default=False, help="fit masks to the video's size"
    )
    parser.add_argument("--overlay", action=ActionYesNo, default=True, help="write overlay.mp4")
    parser.add_argument(
        "--correct",
        action=ActionYesNo,
        default=False,
        help="later masks correct the objects of earlier ones, too",
    )
    parser.add_argument(
        "--both-ways",
        action=ActionYesNo,
        default=False,
        help="carry masks backward, too: the nearest mask decides, and holds all visible objects",
    )
    parser.add_argument(
        "--check-every",
        type=int,
        default=0,
        metavar="FRAMES",
        help="warn of objects that do not find back to their reference (0: never)",
    )
    _add_output(parser, default=None, shown="segments/VIDEO")
    _add_tracker(parser)
    return parser


def _davis_parser() -> ArgumentParser:
    parser = _parser("Propagates the first masks of a DAVIS split and scores the result.")
    _add_davis(parser)
    _add_output(parser, default=Path("davis"))
    _add_tracker(parser)
    return parser


def _ytvos_parser() -> ArgumentParser:
    parser = _parser(
        "Carries the given masks of a YouTube-VOS split through all frames, packs submission.zip, "
        "checks it, and scores it where later frames are annotated."
    )
    _add_ytvos(parser)
    _add_seen(parser)
    _add_output(parser, default=Path("ytvos"))
    parser.add_argument(
        "--resume",
        action=ActionYesNo,
        default=False,
        help="go on with what was made with the same settings",
    )
    _add_tracker(parser)
    parser.set_defaults({"protocol": YTVOS_PROTOCOL_DEFAULT})
    return parser


def _check_parser() -> ArgumentParser:
    parser = _parser(
        "Checks a submission to YouTube-VOS: every mask that is asked for is there, nothing else, "
        "and each is an indexed PNG of the right size and objects."
    )
    parser.add_argument("predictions", type=Path, help="zip file, or folder with a folder a video")
    _add_ytvos(parser)
    return parser


def _jhmdb_parser() -> ArgumentParser:
    parser = _parser("Carries the first joints of JHMDB's test videos and scores PCK@0.1 and @0.2.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds Rename_Images")
    parser.add_argument("--split", type=int, default=1, help="1, 2 or 3")
    parser.add_argument(
        "--joint-topk", type=int, default=5, help="positions that give a joint (CRW: 3)"
    )
    _add_input_size(parser, default=320)
    _add_output(parser, default=Path("jhmdb"))
    _add_tracker(parser)
    return parser


def _vip_parser() -> ArgumentParser:
    parser = _parser("Carries the first part labels of a VIP split and scores the mean IoU.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds Images")
    parser.add_argument("--split", type=str, default="val", help="name of the list of videos")
    _add_input_size(parser, default=560)
    _add_output(parser, default=Path("vip"))
    _add_tracker(parser)
    return parser


def _add_input_size(parser: ArgumentParser, *, default: int) -> None:
    words = f"side of the square input, pixels (default: {default}, as in papers; 0: by protocol)"
    parser.add_argument("--input-size", type=int, default=default, help=words)


def _score_parser() -> ArgumentParser:
    parser = _parser("Scores masks made by anything: PREDICTIONS/SEQUENCE/FRAME.png.")
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


def _add_output(parser: ArgumentParser, *, default: Path | None, shown: str = "") -> None:
    words = f"folder of the results (default: {shown or default})"
    parser.add_argument("--out", type=Path, default=default, help=words)
    parser.add_argument(
        "--overwrite",
        action=ActionYesNo,
        default=False,
        help="write into a folder that holds something",
    )


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


def _add_tracker(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=str,
        required=True,
        help="checkpoint or folder of a run, color, or random:vit_tiny/8",
    )
    parser.add_argument(
        "--network", choices=["student", "teacher"], default="student", help="of a run"
    )
    parser.add_argument(
        "--protocol",
        default=PROTOCOL_DEFAULT,
        help="ino-davis, ino-ytvos, dino, dinov3, crw, vfs, dul, mast, corrflow, contcorr or "
        "timecycle",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", metavar="FIELD=VALUE", help="replace protocol fields"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="of the network; bf16 is quicker where the device multiplies in it",
    )
