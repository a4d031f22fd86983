"""The command `ino` as tests call it, in this process."""

from ino import cli


def run(*arguments) -> int:
    """The exit status of the command with these arguments."""
    return cli.main([str(argument) for argument in arguments])


def refused(capsys, *arguments) -> str:
    """The one line that a command with bad input prints; it must exit with status 2."""
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ino: ")]
    assert len(lines) == 1, lines
    return lines[0]
