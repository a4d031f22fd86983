"""The command `ino`: parses, calls, prints. Heavy libraries are imported once a command runs."""

import logging
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentError, Namespace

from ino.cli import dense, evaluating, making, ytvos
from ino.cli.options import build_parser
from ino.errors import ConfigError, InoError


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
    if command == "evaluate":
        return f"{command} {options.evaluate.subcommand}"
    if command == "score":
        return f"{command} {options.score.layout}"
    return command


def _with_recipe(arguments: Sequence[str]) -> list[str]:
    """The arguments of `ino train RECIPE ...` with the recipe's options before those given."""
    if len(arguments) < 2 or arguments[0] != "train" or arguments[1].startswith("-"):
        return list(arguments)

    from ino.train.recipes import recipe_arguments

    return [*arguments[:2], *recipe_arguments(arguments[1]), *arguments[2:]]


COMMANDS = {
    "demo": making.demo,
    "train": making.train,
    "segment": making.segment,
    "evaluate davis": evaluating.evaluate_davis,
    "evaluate ytvos": ytvos.evaluate,
    "score davis": evaluating.score,
    "score ytvos": ytvos.score,
    "check": ytvos.check,
    "evaluate jhmdb": dense.evaluate_jhmdb,
    "evaluate vip": dense.evaluate_vip,
}
"""What each command does."""
