"""What the benchmarks share: their options, the machine in words, times, peak memory, output.

Measuring and printing only; what is measured is in the scripts. Everything runs on the CPU.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ino import __version__
from ino.models.backbone import computes_in_bf16
from ino.system import atomic_path

GIB = 1 << 30


class DifferentResultsError(Exception):
    """Two sides that should compute the same do not, so their times cannot be compared."""


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write ratios and machine there")
    parser.add_argument("--threads", type=_at_least_one, default=2, metavar="N", help="of torch")
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


def describe_machine(*, precision: str) -> dict[str, str | int]:
    """The machine and what else decides a time, in words."""
    return {
        "cpu": f"{_cpu_model()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f} processes in the minute before the measurements",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


class StageTimes:
    """Seconds of each stage of something that is repeated."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block; each stage once a repeat."""
        start = time.perf_counter()
        yield
        self._seconds.setdefault(name, []).append(time.perf_counter() - start)

    def medians(self) -> dict[str, float]:
        """The median of each stage, in the order in which they came, and of their sum."""
        medians = {name: statistics.median(values) for name, values in self._seconds.items()}
        sums = [sum(repeat) for repeat in zip(*self._seconds.values(), strict=True)]
        return medians | {"total": statistics.median(sums)}


def peak_bytes() -> int:
    """The largest resident memory that this process had so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux ru_maxrss also counts what the parent held when it started this process.
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def without_bf16(sides: Mapping[str, Any]) -> dict[str, Any]:
    """The sides, those in bf16 left out where the processor emulates it, which takes minutes."""
    keeps = computes_in_bf16(torch.device("cpu"))
    return {name: side for name, side in sides.items() if keeps or not name.endswith("bf16")}


def add_child(parser: argparse.ArgumentParser, sides: Iterable[str]) -> None:
    """Adds the option by which a script calls itself to measure memory."""
    parser.add_argument("--child", choices=["baseline", *sides], help=argparse.SUPPRESS)


def peak_memory(script: str, sides: Iterable[str], options: argparse.Namespace) -> dict[str, float]:
    """GiB by side, each in a process of its own, above those of one that only builds the networks.

    With `--child SIDE`, or `--child baseline`, the script prints its `peak_bytes()` last.
    """
    common = ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    baseline = peak_bytes_of_child(script, "--child", "baseline", *common)
    return {
        side: (peak_bytes_of_child(script, "--child", side, *common) - baseline) / GIB
        for side in sides
    }


def peak_bytes_of_child(script: str, *arguments: str) -> int:
    """What `python SCRIPT ARGUMENTS` prints last, which is its `peak_bytes()`."""
    command = [sys.executable, script, *arguments]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(result.stdout.split()[-1])


def require_close(name: str, found: Tensor, expected: Tensor, *, tolerance: float) -> float:
    """The largest difference, as a share of the largest number expected or, if that is less, of 1.

    Raises:
        DifferentResultsError: it is above the tolerance.
    """
    scale = max(1.0, expected.abs().max().item())
    difference = (found - expected).abs().max().item() / scale
    if not difference <= tolerance:
        raise DifferentResultsError(
            f"{name} of ino and of the reference differ by {difference:.2e} (more than "
            f"{tolerance:.0e}), relative to numbers of up to {scale:.3g}"
        )
    return difference


def print_stages(title: str, sides: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a row a stage and a column a side."""
    stages = list(dict.fromkeys(stage for side in sides.values() for stage in side))
    rows = [
        [stage, *(f"{side[stage]:.4g}" if stage in side else "" for side in sides.values())]
        for stage in stages
    ]
    print_table(title, ["", *sides], rows)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; the first column is text, the others are numbers."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for index, column in enumerate(columns):
        heading = column.replace(" ", "\n")  # so that six columns fit into 80 characters
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print(title)
    Console().print(table)


def conclude(
    benchmark: str,
    *,
    ratios: Mapping[str, float],
    machine: Mapping[str, Any],
    measured: Mapping[str, Any],
    path: Path | None,
) -> None:
    """Prints ratios and machine and writes them, with all that was measured, if a path is given.

    Raises:
        OutputError: the file cannot be written.
    """
    for name, value in ratios.items():
        print(f"{name} {value:.3g}")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if path is None:
        return
    content = {
        "benchmark": benchmark,
        "version": __version__,
        "machine": dict(machine),
        "ratios": dict(ratios),
        "measured": dict(measured),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
