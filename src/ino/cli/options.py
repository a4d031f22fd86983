"""The options of the command `ino`. Imports nothing heavy, so that `--help` is quick."""

from pathlib import Path

from jsonargparse import ActionYesNo, ArgumentParser

from ino import __version__
from ino.cli.data_set_options import (
    check_parser,
    davis_parser,
    jhmdb_parser,
    score_parser,
    vip_parser,
    ytvos_parser,
)
from ino.cli.exporting import export_parser
from ino.cli.indexing import index_parser
from ino.cli.shared_options import add_output, add_tracker, plain_parser
from ino.cli.suite_options import compare_parser, suite_parser
from ino.cli.sweep_options import plot_parser, sweep_parser
from ino.models.load import DEFAULT


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
    commands.add_subcommand("export", export_parser(), help="write a network for others to load")
    commands.add_subcommand("segment", _segment_parser(), help="carry masks through a video")
    evaluate = plain_parser("Propagates the given masks of a data set and scores the result.")
    commands.add_subcommand("evaluate", evaluate, help="propagate and score a data set")
    data_sets = evaluate.add_subcommands(required=True)  # only once `evaluate` has its place
    data_sets.add_subcommand("davis", davis_parser(), help="DAVIS-2016 or DAVIS-2017")
    data_sets.add_subcommand("ytvos", ytvos_parser(), help="YouTube-VOS 2018 or 2019")
    data_sets.add_subcommand("jhmdb", jhmdb_parser(), help="joints of JHMDB")
    data_sets.add_subcommand("vip", vip_parser(), help="human parts of VIP")
    data_sets.add_subcommand("suite", suite_parser(), help="many rows, one table")
    commands.add_subcommand("compare", compare_parser(), help="compare two evaluations")
    commands.add_subcommand("score", score_parser(), help="score folders of masks")
    commands.add_subcommand("check", check_parser(), help="check a YouTube-VOS submission")
    return parser


def _demo_parser() -> ArgumentParser:
    parser = plain_parser(
        "Generates video, learns from it, carries masks through clips it has not seen, scores them "
        "beside raw colour and an untrained network, and writes report.html."
    )
    add_output(parser, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=0, help="of video, weights and training")
    parser.add_argument("--steps", type=int, default=None, help="training steps (about a minute)")
    return parser


def _train_parser() -> ArgumentParser:
    from ino.train.config import add_config_arguments, recipe_names

    parser = plain_parser(
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
    parser = plain_parser("Carries masks through a video: indexed PNGs and an overlay video.")
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
    add_output(parser, default=None, shown="segments/VIDEO")
    add_tracker(parser, weights=DEFAULT, protocol=None)
    return parser
