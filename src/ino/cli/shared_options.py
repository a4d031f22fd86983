"""What options of several commands are made from."""

from pathlib import Path

from jsonargparse import ActionYesNo, ArgumentParser


def plain_parser(description: str) -> ArgumentParser:
    """A parser that raises in place of leaving the process."""
    return ArgumentParser(description=description, exit_on_error=False)


def add_output(parser: ArgumentParser, *, default: Path | None, shown: str = "") -> None:
    """Where results go."""
    words = f"folder of the results (default: {shown or default})"
    parser.add_argument("--out", type=Path, default=default, help=words)
    add_overwrite(parser)


def add_overwrite(parser: ArgumentParser) -> None:
    """Whether the folder of the results may hold something."""
    parser.add_argument(
        "--overwrite",
        action=ActionYesNo,
        default=False,
        help="write into a folder that holds something",
    )


def add_tracker(
    parser: ArgumentParser, *, weights: str | None = None, protocol: str | None = "ino-davis"
) -> None:
    """The network, the protocol and where they run.

    Args:
        parser: of the command.
        weights: the default; None: they must be given.
        protocol: the default; None: the one that suits the weights.
    """
    parser.add_argument(
        "--weights",
        type=str,
        required=weights is None,
        default=weights,
        help="run, export, checkpoint (ours, DINO, CRW, ...), ino_vitt8, color, random:MODEL, "
        "timm:MODEL[@FILE]" + (f" (default: {weights}, which comes with ino)" if weights else ""),
    )
    words = "of a file with both (default: the one that its authors evaluate)"
    parser.add_argument("--network", choices=["student", "teacher"], help=words)
    parser.add_argument(
        "--protocol",
        default=protocol,
        help="ino-davis, ino-ytvos, dino, dinov3, crw, vfs, dul, mast, corrflow, contcorr, "
        "timecycle or ino-near"
        + ("" if protocol else " (unless given, the one that suits the weights)"),
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
