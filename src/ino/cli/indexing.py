"""The command `ino index`: what a folder of videos holds, before anything is trained on it."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ino.cli.shared_options import plain_parser
from ino.errors import VideoError


def index_parser() -> ArgumentParser:
    """The options of `ino index`."""
    parser = plain_parser(
        "Tells what videos there are: number, hours, sizes, rates, and which are broken. Headers "
        "alone are read, each once; `ino train` uses what was found."
    )
    parser.add_argument("roots", nargs="+", type=Path, help="as for --data.root of ino train")
    parser.add_argument(
        "--index", type=Path, metavar="FILE", help="where it is kept (default: the user's cache)"
    )
    parser.add_argument(
        "--broken", type=Path, metavar="FILE", help="write the broken videos there, one a line"
    )
    return parser


def index(options: Namespace) -> int:
    """Reads the headers of videos and prints what they tell.

    Raises:
        VideoError: there is no video, or none that can be used.
    """
    chosen = options.index

    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from ino.data.video_index import (
        default_index,
        index_videos,
        wide_video_remark,
        write_faults,
    )

    file = chosen.index or default_index(chosen.roots)
    started = time.perf_counter()
    columns = ("headers", MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Where nobody sees it move, the bar would leave an empty line.
    hidden = not console.is_interactive
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=None)
        found = index_videos(
            chosen.roots,
            file=file,
            on_found=lambda num_videos: bar.update(task, total=num_videos),
            on_header=lambda num_more: bar.advance(task, num_more),
        )
    seconds = time.perf_counter() - started
    Console().print(summary_table(found))
    for reason in list(found.faults.values())[:3]:
        print(f"broken: {reason}")
    if len(found.faults) > 3:
        print(
            f"and {len(found.faults) - 3} more" + ("" if chosen.broken else "; see --broken FILE")
        )
    if chosen.broken:
        write_faults(found, chosen.broken)
    if remark := wide_video_remark(found):
        print(remark)
    headers = "header" if found.num_read == 1 else "headers"
    print(f"{found.num_read} {headers} read in {seconds:.1f} s; kept in {file}", flush=True)
    if len(found.faults) == len(found):
        raise VideoError(f"none of the videos can be used ({len(found)}): give others")
    return 0


def summary_table(found: Any) -> Any:
    """A table of what an index holds."""
    import numpy as np
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    is_usable = np.ones(len(found), bool)
    is_usable[list(found.faults)] = False
    seconds, sizes = found.seconds[is_usable], found.sizes[is_usable]
    table = Table(box=SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_row("videos", str(int(is_usable.sum())), "")
    table.add_row("broken", str(len(found.faults)), "")
    table.add_row("hours", f"{seconds.sum() / 3600:.2f}", "")
    if len(seconds):
        low, middle, high = np.percentile(seconds, [5, 50, 95])
        table.add_row("median seconds", f"{middle:.1f}", f"5% to 95%: {low:.1f} to {high:.1f}")
    pairs = [f"{width}x{height}" for height, width in sizes.tolist()]
    for name, values in (
        ("width x height", pairs),
        ("frames a second", [f"{fps:.3g}" for fps in found.fps[is_usable]]),
    ):
        kinds, counts = np.unique(values, return_counts=True)
        for place in np.argsort(-counts, kind="stable")[:5]:
            table.add_row(name, str(kinds[place]), f"{100 * counts[place] / len(values):.0f}%")
            name = ""
        if len(kinds) > 5:
            table.add_row("", f"{len(kinds) - 5} others", "")
    return table
