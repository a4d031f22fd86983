"""The command `ino`: parses, calls, prints. Heavy libraries are imported once a command runs."""

import errno
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace

from ino.cli import dense, evaluating, exporting, indexing, making, suites, sweeping, ytvos
from ino.cli.options import build_parser
from ino.errors import ConfigError, InoError, StoppedError
from ino.plain_yaml import plain_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and gives its exit status.

    0; 2 for what the user can mend; 130 stopped by Ctrl-C; 75 training saved and stopped by SIGTERM
    or SIGUSR1, to be resumed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _log_to_screen()
    try:
        options = build_parser().parse_args(suites.with_suite(_with_recipe(arguments)))
        if options.subcommand == "train" and options.train.recipe != arguments[1]:
            raise ConfigError(f"name the recipe first: ino train {options.train.recipe} ...")
        return COMMANDS[_command_of(options)](options)
    except ArgumentError as error:
        words = plain_words(error, commands=COMMANDS)
        print(f"ino: {words} ({_help_of(arguments)} shows the options)", file=sys.stderr)
    except InoError as error:
        print(f"ino: {_one_line(error)}", file=sys.stderr)
    except StoppedError as error:
        print(f"ino: {_one_line(error)}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f"ino: stopped{_how_to_go_on(suites.with_suite(arguments))}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno in (None, errno.EBADF, errno.EFAULT):  # of a library; a fault of ours
            raise
        named = "" if error.filename is None else f" {str(error.filename)[:200]!r}"
        print(
            f"ino: cannot read or write{named} ({error.strerror}): check the path, its "
            "permissions and the space on the disk",
            file=sys.stderr,
        )
    except Exception as error:
        if not _lacks_memory(error):
            raise
        print(
            "ino: the memory does not hold this work: take smaller frames (--set short_side=...), "
            "a smaller batch or a device with more memory",
            file=sys.stderr,
        )
    return 2


def _how_to_go_on(arguments: Sequence[str]) -> str:
    """What follows `stopped` for commands that keep what is done."""
    if tuple(arguments[:2]) in {("evaluate", "davis"), ("evaluate", "ytvos")}:
        return "; what is done is kept: go on with --resume"
    if arguments[:1] == ["sweep"] or arguments[:2] == ["evaluate", "suite"]:
        return "; what is done is kept: start the same command again to go on"
    return ""


def _log_to_screen() -> None:
    """Warnings of ino as lines like those of errors; other libraries keep their own ways."""
    log = logging.getLogger("ino")
    if not log.handlers:
        handler = _Screen()
        handler.setFormatter(logging.Formatter("ino: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    warnings.showwarning = _show_warning


class _Screen(logging.StreamHandler):
    """Writes to the stderr of the moment: a progress bar puts its own in place, above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any
) -> None:
    """A warning of ino as a line like those of errors, others with the line that they are from."""
    if category is UserWarning and Path(__file__).parents[1] in Path(filename).parents:
        logging.getLogger("ino").warning("%s", message)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _lacks_memory(error: Exception) -> bool:
    """Whether it is one of the ways in which Python, OpenCV and torch say so."""
    words = str(error).lower()
    signs = ("out of memory", "insufficient memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in words for sign in signs)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _help_of(arguments: Sequence[str]) -> str:
    """How to see the options of the command that was given."""
    given = " ".join(arguments[:2])
    if given.startswith("evaluate ") and given in COMMANDS:
        return f"ino {given} --help"
    is_known = any(name.split()[0] == arguments[0] for name in COMMANDS) if arguments else False
    return f"ino {arguments[0]} --help" if is_known else "ino --help"


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

    from ino.train.config import recipe_arguments

    return [*arguments[:2], *recipe_arguments(arguments[1]), *arguments[2:]]


COMMANDS = {
    "demo": making.demo,
    "train": making.train,
    "index": indexing.index,
    "sweep": sweeping.sweep,
    "plot": sweeping.plot,
    "export": exporting.export,
    "segment": making.segment,
    "evaluate davis": evaluating.evaluate_davis,
    "evaluate ytvos": ytvos.evaluate,
    "evaluate suite": suites.evaluate,
    "compare": suites.compare,
    "score davis": evaluating.score,
    "score ytvos": ytvos.score,
    "check": ytvos.check,
    "evaluate jhmdb": dense.evaluate_jhmdb,
    "evaluate vip": dense.evaluate_vip,
}
"""What each command does."""
