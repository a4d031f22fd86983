"""A GPU used to the minute: what it does is measured, then it trains, and little is carried home.

    python benchmarks/gpu.py measure --out RESULTS [--minutes 4] [--device cuda]
    python benchmarks/gpu.py pack VIDEOS... --out PACK [--megabytes 40]
    python benchmarks/gpu.py train --pack PACK --out RESULTS --minutes 9 [--run RUN]
    python benchmarks/gpu.py unpack RESULTS --run RUN
    python benchmarks/gpu.py score RUN --davis DAVIS [--judge VIDEOS...] --out SCORES

`measure` takes the measurements of `gpu_measures.py` in the order of their worth, each in its own
limit of time, and writes gpu.json and gpu.md (a table for docs/benchmarks.md) after each. One that
fails, runs out of memory or hangs is noted, and the rest go on in a new process. Called again with
the same --out it takes those that are missing.

`pack` is for the machine at home: it writes frames of videos as JPEG into tar files, so that
training elsewhere needs no video. `train` trains on them for so many minutes, keeps the whole run
in --run, where the next call goes on, and writes it small enough to be carried home into RESULTS
(see `gpu_train.py` for what is lost). `unpack` makes a run of that again. `score` makes one table,
at home: J&F of that run, of `ino_vitt8`, of random weights and of raw color on annotated sequences,
and J&F that is predicted on videos without labels.

`--quick` takes tiny sizes, which show on any CPU that all of it works and nothing else.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ino.errors import ConfigError, InoError, StoppedError
from ino.system import atomic_path, new_folder

RESULTS = "gpu.json"
TABLE = "gpu.md"
GRACE = 15.0
"""Seconds over its limit after which a measurement's process is ended."""
QUICK_PATIENCE = 4
"""Factor of the limits in a rehearsal, whose machine may be slow and busy."""
LOST = 3
"""Exit status where the device cannot be used any more in this process."""
REFUSED = 2
"""Exit status where the command line is wrong."""
LEAST = 5.0
"""Seconds that must be left for another measurement to begin."""


def read_results(out: Path) -> dict[str, Any]:
    """What was measured so far."""
    path = out / RESULTS
    if not path.is_file():
        return {"machine": {}, "measured": {}, "failed": {}, "running": None}
    return json.loads(path.read_text(encoding="utf-8"))


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Writes both files, each whole or not at all."""
    with atomic_path(out / RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with atomic_path(out / TABLE) as temporary:
        temporary.write_text(table_of(results), encoding="utf-8")


def table_of(results: dict[str, Any]) -> str:
    """Markdown: the machine, a row for each number, and what failed."""
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    lines = [
        f"Measured on: {machine or 'not known yet'}.",
        "",
        "| what | number | |",
        "|---|---|---|",
    ]
    for name, numbers in results["measured"].items():
        numbers = {key: value for key, value in numbers.items() if key != "seconds taken"}
        for index, (key, value) in enumerate(numbers.items()):
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"| {'' if index else name} | {key} | {shown} |")
    lines += [f"| {name} | not measured | {why} |" for name, why in results["failed"].items()]
    return "\n".join(lines) + "\n"


def measure(options: argparse.Namespace) -> None:
    """Has other processes measure until all is done or the time is up."""
    new_folder(options.out, overwrite=True)
    end = time.monotonic() + 60 * options.minutes
    command = [sys.executable, __file__, "measure", "--child", "--out", str(options.out)]
    command += ["--device", options.device, *(["--quick"] if options.quick else [])]
    if options.only:
        command += ["--only", *options.only]
    with tempfile.TemporaryDirectory(prefix="ino-gpu-") as folder:
        while (left := end - time.monotonic()) > LEAST:
            child = subprocess.Popen(
                [*command, "--minutes", str(left / 60)], env={**os.environ, "TMPDIR": folder}
            )
            why = _watch(child, options.out, end)
            results = read_results(options.out)
            if results["running"] is None:
                if child.returncode == LOST:
                    continue
                if child.returncode == REFUSED:  # it said why
                    sys.exit(REFUSED)
                if child.returncode == 0 or time.monotonic() > end:
                    break
                sys.exit(f"gpu: the process that measures failed ({why}) between measurements")
            results["failed"][results["running"]["name"]] = why
            results["running"] = None
            write_results(options.out, results)
    if not (options.out / TABLE).is_file():
        raise ConfigError("nothing was measured in that time: give more --minutes")
    print((options.out / TABLE).read_text(encoding="utf-8"), end="")


def _watch(child: "subprocess.Popen[bytes]", out: Path, end: float) -> str:
    """Waits for a process, ends it if a measurement or all of them take too long, says why."""
    while True:
        try:
            status = child.wait(timeout=0.5)
            return f"the process ended with status {status}"
        except subprocess.TimeoutExpired:
            running = read_results(out)["running"]
        over = running is not None and time.time() > running["since"] + running["limit"] + GRACE
        if over or time.monotonic() > end + GRACE:
            child.kill()
            child.wait()
            return "took too long" if over else "the time was up"


def measure_here(options: argparse.Namespace) -> None:
    """Takes the measurements that are missing, in this process."""
    import gpu_measures

    results = read_results(options.out)
    known = [one.name for one in gpu_measures.MEASURES]
    if unknown := [name for name in options.only or () if name not in known]:
        raise ConfigError(f"there is no measurement {unknown[0]!r}; there are {', '.join(known)}")
    end = time.monotonic() + 60 * options.minutes
    place = gpu_measures.Place.of(options.device, quick=options.quick)
    before = results["machine"].get("device", place.machine["device"])
    if before != place.machine["device"]:
        sys.exit(
            f"gpu: {options.out} has what {before} does, which is not here: take another --out"
        )
    results["machine"] = place.machine
    for one in gpu_measures.MEASURES:
        left = end - time.monotonic()
        if one.name in {*results["measured"], *results["failed"]}:
            continue
        if left < LEAST or (options.only and one.name not in options.only):
            continue
        limit = min(one.limit * (QUICK_PATIENCE if options.quick else 1), left)
        results["running"] = {"name": one.name, "since": time.time(), "limit": limit}
        write_results(options.out, results)
        try:
            results["measured"][one.name] = gpu_measures.take(one, place, limit)
        except Exception as error:  # whatever it is, it must not stop the rest
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            results["failed"][one.name] = f"{type(error).__name__}: {first[:200]}"
            if place.is_lost():
                write_results(options.out, results | {"running": None})
                os._exit(LOST)  # at once: nothing of the device can be freed
        results["running"] = None
        write_results(options.out, results)


def above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    """An argparse type for finite numbers above 0."""

    def read(text: str) -> float:
        number = kind(text)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return number

    read.__name__ = "number"  # in argparse's message for other texts
    return read


def build_parser() -> argparse.ArgumentParser:
    """The five commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("measure", help="part 1")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    one.add_argument("--minutes", type=above_zero(float), default=4.0)
    one.add_argument("--device", default="auto", help="auto, cpu or cuda")
    one.add_argument("--only", nargs="+", metavar="NAME", help="these measurements")
    one.add_argument("--quick", action="store_true", help="tiny sizes")
    one.add_argument("--child", action="store_true", help=argparse.SUPPRESS)

    two = commands.add_parser("pack", help="frames of videos as JPEG in tar files")
    two.add_argument("videos", type=Path, nargs="+", help="folders, video files or lists of them")
    two.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    two.add_argument("--megabytes", type=above_zero(float), default=40.0, help="in all, at most")
    two.add_argument("--short-side", type=above_zero(int), default=160, metavar="PIXELS")
    two.add_argument(
        "--frames", type=above_zero(int), default=12, help="of a piece, which follow one another"
    )
    two.add_argument("--fps", type=above_zero(float), default=8.0, help="of a piece, at most")
    two.add_argument("--jpeg", type=int, default=80, choices=range(1, 101), metavar="1..100")
    two.add_argument("--seed", type=int, default=0)

    three = commands.add_parser("train", help="part 2")
    three.add_argument(
        "--pack", type=Path, required=True, metavar="DIR", help="of gpu.py pack, or of videos"
    )
    three.add_argument("--out", type=Path, required=True, metavar="DIR", help="to carry home")
    three.add_argument("--run", type=Path, default=Path("runs/gpu"), metavar="DIR")
    three.add_argument("--minutes", type=above_zero(float), default=9.0)
    three.add_argument(
        "--total-minutes", type=above_zero(float), help="of all parts; default: --minutes"
    )
    three.add_argument(
        "--steps", type=above_zero(int), help="of all parts, instead of what fits that time"
    )
    three.add_argument("--recipe", default=str(Path(__file__).with_name("gpu.yaml")))
    three.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of the recipe")
    three.add_argument("--device", default="auto", help="auto, cpu or cuda")
    three.add_argument(
        "--carry-megabytes", type=above_zero(float), default=60.0, help="in all, at most"
    )
    three.add_argument("--quick", action="store_true", help="a tiny network")

    four = commands.add_parser("unpack", help="a run out of what was carried home")
    four.add_argument("results", type=Path)
    four.add_argument("--run", type=Path, required=True, metavar="DIR", help="a new folder")

    five = commands.add_parser("score", help="what was learned, in one table")
    five.add_argument("run", type=Path, help="of gpu.py unpack")
    five.add_argument("--davis", type=Path, required=True, metavar="ROOT")
    five.add_argument("--year", type=int, default=2016, choices=(2016, 2017), help="of its list")
    five.add_argument("--short-side", type=above_zero(int), default=240, metavar="PIXELS")
    five.add_argument("--protocols", nargs="+", default=["ino-near", "ino-davis"], metavar="NAME")
    five.add_argument("--judge", type=Path, nargs="+", default=[], metavar="VIDEO")
    five.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of the commands."""
    options = build_parser().parse_args(arguments)
    if options.command == "measure":
        (measure_here if options.child else measure)(options)
        return
    import gpu_train

    getattr(gpu_train, options.command)(options)


if __name__ == "__main__":
    try:
        main()
    except StoppedError as error:
        print(f"gpu: {error}", file=sys.stderr)
    except InoError as error:
        print(f"gpu: {error}", file=sys.stderr)
        sys.exit(REFUSED)
