"""What learning is worth: raw color, an untrained and a learned network on DAVIS, in J&F points.

    python benchmarks/learning.py --data VIDEOS --davis ROOT --out DIR [--json FILE]
    python benchmarks/learning.py --weights RUN --davis ROOT --out DIR
    python benchmarks/learning.py --variants --steps N --data VIDEOS --davis ROOT --out DIR
    python benchmarks/learning.py --quick

Trains the recipe `tiny` on a folder of videos, or takes a finished run, and evaluates on all
sequences of the DAVIS root's list under ino-davis with a short side of 240 and of 480 pixels; the
protocol's radius of 40 positions belongs to 480 and is scaled with the side. The untrained network
has the architecture of the learned one and random weights. `--variants` trains the recipe as
`paper` and as `released`, each for `--steps` steps with schedules as long, and compares them.
`--quick` generates videos and a data set and trains for a few steps: it shows that all of this
runs, not what learning is worth.

Ratios: differences in points of J&F for each short side, the student for learned (the network that
the authors evaluate): `learned_minus_color_240`, `learned_minus_untrained_240` and so on; with
`--variants` the variant in place of `learned`, and `paper_minus_released_240`.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ino.data.davis import read_davis
from ino.demo.synthetic import generate_clip, write_davis_layout, write_videos
from ino.errors import InoError
from ino.models.backbone import choose_device
from ino.models.load import load_backbone
from ino.models.weights import NetworkName, find_checkpoint, read_checkpoint
from ino.pretraining import with_steps
from ino.propagate.tracker import Tracker
from ino.system import new_folder
from ino.tasks.davis import DavisScores, evaluate_davis
from ino.tasks.results import sized_protocol
from ino.train.config import TrainConfig, Variant, load_recipe
from ino.train.loop import train
from report import build_parser, conclude, describe_machine, print_table

VARIANTS: tuple[Variant, ...] = ("paper", "released")
SIDES = (240, 480)
QUICK_SIDES = (240,)
QUICK_STEPS = 4
QUICK_FRAME = {"height": 120, "width": 176}


class Row(NamedTuple):
    """Features to evaluate: what they are called, and what `load_backbone` takes."""

    name: str
    weights: str
    network: NetworkName = "student"


Scores = Mapping[int, Mapping[str, DavisScores]]
"""By short side and by name of the row."""


def tiny_recipe(data: Path, *, variant: Variant, steps: int | None) -> TrainConfig:
    """The recipe `tiny` for a folder of videos.

    Args:
        data: folder of videos.
        variant: `paper` or `released`.
        steps: length of the run, with schedules as long and the same share of warm-up; the recipe's
            own where None.
    """
    config = load_recipe("tiny", {"variant": variant, "data.root": str(data)})
    return config if steps is None else with_steps(config, steps)


def untrained_name(run: Path) -> str:
    """The name of random weights of the run's architecture."""
    model = read_checkpoint(find_checkpoint(run))["config"]["model"]
    return f"random:{model['arch']}/{model['patch_size']}"


def rows_of(runs: Mapping[str, Path]) -> list[Row]:
    """Raw color, random weights, and student and teacher of each run, by its name."""
    rows = [Row("color", "color"), Row("untrained", untrained_name(next(iter(runs.values()))))]
    for name, run in runs.items():
        rows += [Row(name, str(run)), Row(f"{name} teacher", str(run), "teacher")]
    return rows


def evaluate(
    rows: Sequence[Row], *, root: Path, year: int, sides: Sequence[int], out: Path
) -> Scores:
    """Scores of every row at every short side; masks and scores of each are kept in `out`."""
    device = choose_device("auto")
    scores: dict[int, dict[str, DavisScores]] = {}
    for side in sides:
        scores[side] = {}
        for row in rows:
            started = time.perf_counter()
            backbone = load_backbone(row.weights, network=row.network)
            protocol = sized_protocol("ino-davis", short_side=side)
            found = evaluate_davis(
                root,
                out=out / f"{row.name.replace(' ', '_')}_{side}",
                tracker=Tracker(backbone, protocol=protocol, device=device),
                year=year,
                settings={"weights": row.weights, "network": row.network, "root": str(root)},
            )
            assert found is not None
            scores[side][row.name] = found
            seconds = time.perf_counter() - started
            line = f"{row.name} at {side}: J&F {100 * found.jf_mean:.1f} in {seconds:.0f} s"
            print(line, file=sys.stderr)
    return scores


def points(scores: DavisScores) -> dict[str, float]:
    """J&F, J and F of the data set, then J&F of each sequence, in 0..100."""
    means = {"J&F": scores.jf_mean, "J": scores.j_mean, "F": scores.f_mean}
    means |= {f"J&F {name}": value for name, value in scores.by_sequence().items()}
    return {name: 100 * value for name, value in means.items()}


def differences(scores: Scores, runs: Sequence[str]) -> dict[str, float]:
    """Points of J&F that each run is above the baselines, and the first run above the second."""
    found = {}
    for side, by_row in scores.items():
        for run in runs:
            for baseline in ("color", "untrained"):
                gain = by_row[run].jf_mean - by_row[baseline].jf_mean
                found[f"{run}_minus_{baseline}_{side}"] = 100 * gain
        if len(runs) == 2:
            gain = by_row[runs[0]].jf_mean - by_row[runs[1]].jf_mean
            found[f"{runs[0]}_minus_{runs[1]}_{side}"] = 100 * gain
    return found


def print_scores(scores: Scores) -> None:
    """One table: a row a side and score, a column a kind of features."""
    rows = []
    for side, by_row in scores.items():
        columns = [points(found) for found in by_row.values()]
        rows += [
            [f"{side} {score}", *(f"{column[score]:.1f}" for column in columns)]
            for score in columns[0]
        ]
    names = list(next(iter(scores.values())))
    print_table("Short side in pixels, and score in percent", ["", *names], rows)


def generate_data(folder: Path) -> tuple[Path, Path]:
    """A folder of videos and a data set in the layout of DAVIS-2017, of other clips."""
    videos = {f"{seed}": generate_clip(seed, num_frames=8, **QUICK_FRAME) for seed in range(6)}
    sequences = {
        f"clip{seed}": generate_clip(100 + seed, num_frames=5, **QUICK_FRAME) for seed in range(2)
    }
    write_videos(videos, folder / "videos")
    write_davis_layout(sequences, folder / "davis")
    return folder / "videos", folder / "davis"


def learn(options: argparse.Namespace, *, data: Path, out: Path) -> dict[str, Path]:
    """The folders of the runs by name, trained if need be."""
    if options.weights is not None:
        return {"learned": options.weights}
    steps = options.steps or (QUICK_STEPS if options.quick else None)
    names = VARIANTS if options.variants else ("learned",)
    for name in names:
        config = tiny_recipe(
            data,
            variant="released" if name == "released" else "paper",
            steps=steps,
        )
        started = time.perf_counter()
        train(config, out=out / "runs" / name)
        print(f"{name}: trained in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return {name: out / "runs" / name for name in names}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, once they fit together."""
    parser = build_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="VIDEOS", help="folder of videos")
    parser.add_argument("--davis", type=Path, metavar="ROOT", help="data set, with a list of 2016")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder for runs and masks")
    parser.add_argument("--weights", type=Path, metavar="RUN", help="a finished run to evaluate")
    parser.add_argument("--variants", action="store_true", help="compare paper and released")
    parser.add_argument("--steps", type=int, metavar="N", help="of training (default: the recipe)")
    parser.add_argument("--sides", type=int, nargs="+", metavar="PIXELS", help="default: 240 480")
    options = parser.parse_args(arguments)
    if options.quick and (options.data or options.davis or options.weights):
        parser.error("--quick generates its data: leave out --data, --davis and --weights")
    if not options.quick:
        if options.davis is None or options.out is None:
            parser.error("give --davis ROOT and --out DIR, or --quick")
        if (options.data is None) == (options.weights is None):
            parser.error("give either --data VIDEOS to learn from or --weights RUN")
    if options.variants and options.weights is not None:
        parser.error("--variants trains its own runs: give --data, not --weights")
    if options.variants and options.steps is None and not options.quick:
        parser.error("--variants needs --steps N")
    if options.out is not None and options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty: choose another --out")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates, prints, and writes JSON if asked to."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    machine = describe_machine(precision="fp32 in evaluation, in training as the recipe decides")
    sides = options.sides or (QUICK_SIDES if options.quick else SIDES)
    year = 2017 if options.quick else 2016
    with contextlib.ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        new_folder(out)
        data, root = options.data, options.davis
        if options.quick:
            data, root = generate_data(out / "generated")
        read_davis(root, year=year)  # its faults are found before hours of training
        runs = learn(options, data=data, out=out)
        scores = evaluate(rows_of(runs), root=root, year=year, sides=sides, out=out / "davis")
    print_scores(scores)
    measured = {
        "protocol": "ino-davis",
        "year": year,
        "points": {
            side: {name: points(found) for name, found in by_row.items()}
            for side, by_row in scores.items()
        },
    }
    conclude(
        "learning",
        ratios=differences(scores, list(runs)),
        machine=machine,
        measured=measured,
        path=options.json,
    )


if __name__ == "__main__":
    try:
        main()
    except InoError as error:
        sys.exit(f"learning: {error}")
