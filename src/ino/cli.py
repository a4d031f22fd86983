"""The command `ino`: parses, calls, prints. Heavy libraries are imported once a command runs."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace

from ino import __version__
from ino.errors import ConfigError, InoError, MaskError

PROTOCOL_DEFAULT = "ino-davis"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and gives its exit status: 0, 2 for what the user can mend, 130 stopped."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _log_to_screen()
    try:
        options = build_parser().parse_args(_with_recipe(arguments))
        if options.subcommand == "train" and options.train.recipe != arguments[1]:
            raise ConfigError(f"name the recipe first: ino train {options.train.recipe} ...")
        return COMMANDS[_command_of(options)](options)
    except ArgumentError as error:
        print(f"ino: {_one_line(error)} (ino --help shows the options)", file=sys.stderr)
    except InoError as error:
        print(f"ino: {_one_line(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("ino: stopped", file=sys.stderr)
        return 130
    return 2


def _log_to_screen() -> None:
    """Warnings of ino as lines like those of errors; other libraries keep their own ways."""
    log = logging.getLogger("ino")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("ino: %(message)s"))
        log.addHandler(handler)
        log.propagate = False


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _command_of(options: Namespace) -> str:
    command = options.subcommand
    return f"{command} {options[command].subcommand}" if command == "evaluate" else command


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
    commands.add_subcommand("segment", _segment_parser(), help="carry masks through a video")
    evaluate = _parser("Propagates the given masks of a data set and scores the result.")
    commands.add_subcommand("evaluate", evaluate, help="propagate and score a data set")
    data_sets = evaluate.add_subcommands(required=True)  # only once `evaluate` has its place
    data_sets.add_subcommand("davis", _davis_parser(), help="DAVIS-2016 or DAVIS-2017")
    commands.add_subcommand("score", _score_parser(), help="score folders of masks")
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
        required=True,
        metavar="PNG",
        help="indexed PNG of frame 0, FRAME=PNG for another frame, or a folder of FRAME.png",
    )
    parser.add_argument(
        "--resize-mask", action=ActionYesNo, default=False, help="fit masks to the video's size"
    )
    parser.add_argument("--overlay", action=ActionYesNo, default=True, help="write overlay.mp4")
    _add_output(parser, default=None, shown="segments/VIDEO")
    _add_tracker(parser)
    return parser


def _davis_parser() -> ArgumentParser:
    parser = _parser("Propagates the first masks of a DAVIS split and scores the result.")
    _add_davis(parser)
    _add_output(parser, default=Path("davis"))
    _add_tracker(parser)
    return parser


def _score_parser() -> ArgumentParser:
    parser = _parser("Scores masks made by anything: PREDICTIONS/SEQUENCE/FRAME.png.")
    parser.add_argument("predictions", type=Path, help="folder with a folder a sequence")
    _add_davis(parser)
    parser.add_argument("--out", type=Path, help="folder for CSV and JSON (default: none)")
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
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="only these sequences")


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
    parser.add_argument("--protocol", default=PROTOCOL_DEFAULT, help="ino-davis or ino-ytvos")
    parser.add_argument(
        "--set", nargs="+", metavar="FIELD=VALUE", help="replace fields of the protocol"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def _with_recipe(arguments: Sequence[str]) -> list[str]:
    """The arguments of `ino train RECIPE ...` with the recipe's options before those given."""
    if len(arguments) < 2 or arguments[0] != "train" or arguments[1].startswith("-"):
        return list(arguments)

    from ino.train.recipes import recipe_arguments

    return [*arguments[:2], *recipe_arguments(arguments[1]), *arguments[2:]]


def _train(options: Namespace) -> int:
    from ino.train.recipes import config_of

    config = config_of(options.train)
    out = options.train.out or Path("runs") / Path(options.train.recipe).stem

    from ino.train.loop import train

    print(f"last checkpoint: {train(config, out=out, resume=options.train.resume)}")
    return 0


def _segment(options: Namespace) -> int:
    chosen = options.segment
    out = chosen.out or Path("segments") / chosen.video.stem
    masks = read_masks(chosen.mask)
    tracker, settings = _tracker(chosen)

    from ino.data.video import read_info
    from ino.pipeline import resize_masks, segment_video

    info = read_info(chosen.video)
    if chosen.resize_mask:
        masks = resize_masks(masks, size=(info.height, info.width))
    with _progress("frames", info.num_frames) as advance:
        count = segment_video(
            chosen.video,
            masks,
            out=out,
            tracker=tracker,
            settings=settings | {"video": str(chosen.video)},
            overlay=chosen.overlay,
            overwrite=chosen.overwrite,
            on_frame=advance,
        )
    print(f"{count} masks in {out / 'masks'}")
    return 0


def read_masks(given: Sequence[str]) -> dict[int, Any]:
    """Label maps by frame number from `PNG`, `FRAME=PNG` and folders of `FRAME.png`.

    Raises:
        MaskError: a file cannot be used, or two are for one frame.
    """
    from ino.data.label_png import read_labels

    paths: dict[int, Path] = {}
    for frame, path in _mask_paths(given):
        if frame in paths:
            raise MaskError(f"{paths[frame]} and {path} are both for frame {frame}; give one")
        paths[frame] = path
    return {frame: read_labels(path) for frame, path in sorted(paths.items())}


def _mask_paths(given: Sequence[str]) -> Iterator[tuple[int, Path]]:
    for text in given:
        frame, separator, name = text.partition("=")
        if separator and frame.isdecimal():
            yield int(frame), Path(name)
        elif (folder := Path(text)).is_dir():
            numbered = sorted(path for path in folder.glob("*.png") if path.stem.isdecimal())
            if not numbered:
                raise MaskError(f"{folder} holds no masks named by frame numbers, as 00000.png")
            yield from ((int(path.stem), path) for path in numbered)
        else:
            yield 0, Path(text)


def _evaluate_davis(options: Namespace) -> int:
    chosen = options.evaluate.davis
    tracker, settings = _tracker(chosen)

    from rich.console import Console

    from ino.data.vos import read_davis
    from ino.evaluate.tables import print_scores
    from ino.pipeline import evaluate_davis

    choice = {name: chosen[name] for name in ("year", "split", "resolution", "sequences")}
    num_frames = sum(len(one.frames) for one in read_davis(chosen.root, **choice))
    with _progress("frames", num_frames) as advance:
        scores = evaluate_davis(
            chosen.root,
            out=chosen.out,
            tracker=tracker,
            settings=settings | {"root": str(chosen.root)},
            overwrite=chosen.overwrite,
            on_frame=advance,
            **choice,
        )
    print_scores(scores, Console())
    fields = ", ".join(f"{name} {value}" for name, value in vars(tracker.protocol).items())
    print(f"weights {chosen.weights}; protocol {fields}\nresults in {chosen.out}")
    return 0


def _score(options: Namespace) -> int:
    chosen = options.score

    from rich.console import Console

    from ino.evaluate.davis import score_davis
    from ino.evaluate.tables import print_scores, write_csv, write_json

    choice = {name: chosen[name] for name in ("year", "split", "resolution", "sequences")}
    scores = score_davis(chosen.predictions, chosen.root, **choice)
    print_scores(scores, Console())
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        write_csv(scores, chosen.out, split=chosen.split)
        write_json(scores, chosen.out / "scores.json", protocol=None)
        print(f"results in {chosen.out}")
    return 0


def _demo(options: Namespace) -> int:
    from ino.demo import run_demo

    chosen = options.demo
    report = run_demo(
        chosen.out, seed=chosen.seed, num_steps=chosen.steps, overwrite=chosen.overwrite
    )
    print(f"open {report}")
    return 0


def _tracker(chosen: Namespace) -> tuple[Any, dict[str, Any]]:
    """The tracker that the options ask for, and what to store about it."""
    from ino.propagate.protocols import get_protocol

    protocol = get_protocol(chosen.protocol, **_overrides(chosen.set or []))

    from ino.models.backbones import choose_device, load_backbone
    from ino.propagate.tracker import Tracker

    backbone = load_backbone(chosen.weights, network=chosen.network)
    device = choose_device(chosen.device)
    settings = {"weights": chosen.weights, "network": chosen.network, "device": str(device)}
    return Tracker(backbone, protocol=protocol, device=device), settings


def _overrides(texts: Sequence[str]) -> dict[str, Any]:
    overrides = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--set {text} must be FIELD=VALUE, as in --set short_side=240")
        overrides[name] = None if value.lower() == "none" else yaml.safe_load(value)
    return overrides


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (what, MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total or None)
        yield lambda: progress.advance(task)


COMMANDS = {
    "demo": _demo,
    "train": _train,
    "segment": _segment,
    "evaluate davis": _evaluate_davis,
    "score": _score,
}
"""What each command does."""
