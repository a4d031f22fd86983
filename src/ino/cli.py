"""The command `ino`: parses, calls, prints. Heavy libraries are imported once a command runs."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace

from ino.cli_options import build_parser
from ino.errors import ConfigError, InoError, MaskError


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

    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from ino.train.loop import train

    checkpoint = train(config, out=out, resume=options.train.resume)
    rank_zero_only(print)(f"last checkpoint: {checkpoint}")
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
