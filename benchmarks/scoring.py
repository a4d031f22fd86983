"""J and F of a folder of masks, beside a plain loop over frames and objects.

    python benchmarks/scoring.py [--quick] [--json FILE] [--threads N]

Drawn label maps on disk, 480x854 and 1080x1920 pixels, 1 to 200 objects a frame. The plain side
loads both maps of a frame, makes a mask of each object, and takes boundary maps and dilations of
the whole frame for each; ours is `score_davis` as a user calls it, alone and with N processes
(--threads), their start included. What is compared first: J and F of each object, to 1e-12.

Ratios: frames times objects a second, ours over plain, 480x854 with 3 objects, with N processes
(`scoring_speedup`) and alone (`scoring_speedup_alone`), and with 200 objects alone
(`scoring_speedup_many`); peak memory above that of the imports, plain over ours, with the most
objects (`scoring_memory_ratio`).
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ino.data.label_maps import write_labels
from ino.tasks.davis import DavisScores, score_davis
from report import (
    DifferentResultsError,
    add_child,
    build_parser,
    conclude,
    describe_machine,
    peak_bytes,
    peak_memory,
    print_table,
)
from scoring_plain import plain_scores

TOLERANCE = 1e-12
NUM_DRAWN = 12
"""Different frames of a case; the long sequence repeats them."""


@dataclass(frozen=True)
class Case:
    """What is scored: objects a frame, and how many frames by the plain loop and by ours."""

    height: int
    width: int
    num_objects: int
    num_plain: int
    num_ours: int

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width}, {self.num_objects}"


FULL = (
    Case(480, 854, 1, 10, 600),
    Case(480, 854, 3, 10, 600),
    Case(480, 854, 10, 6, 400),
    Case(480, 854, 200, 2, 60),
    Case(1080, 1920, 3, 4, 150),
    Case(1080, 1920, 50, 2, 40),
)
QUICK = (Case(480, 854, 3, 6, 400), Case(480, 854, 200, 1, 20))
SIDES = ("plain", "ino")


def draw_labels(rng: np.random.Generator, case: Case) -> np.ndarray:
    """Ellipses, later ones over earlier ones."""
    labels = np.zeros((case.height, case.width), dtype=np.uint8)
    size = np.sqrt(case.height * case.width / case.num_objects)
    for label in range(1, case.num_objects + 1):
        center = (int(rng.integers(case.width)), int(rng.integers(case.height)))
        axes = tuple(int(axis) for axis in rng.uniform(0.15, 0.45, 2) * size + 1)
        cv2.ellipse(labels, center, axes, int(rng.integers(180)), 0, 360, label, -1)
    return labels


def write_case(case: Case, root: Path) -> None:
    """A data set with a short sequence and, repeating its frames, a long one; predictions too."""
    rng = np.random.default_rng(0)
    short, long = (root / "drawn" / kind for kind in ("truth", "predicted"))
    for folder in (short, long):
        folder.mkdir(parents=True)
    for number in range(NUM_DRAWN):
        labels = draw_labels(rng, case)
        write_labels(short / f"{number}.png", labels)
        write_labels(long / f"{number}.png", np.roll(labels, (3, 5), axis=(0, 1)))
    lengths = {"short": case.num_plain + 2, "long": case.num_ours + 2}
    for name, length in lengths.items():
        places = {
            "truth": root / "Annotations" / "480p" / name,
            "predicted": root / "predictions" / name,
        }
        frames = root / "JPEGImages" / "480p" / name
        for folder in (*places.values(), frames):
            folder.mkdir(parents=True)
        for number in range(length):
            (frames / f"{number:05d}.jpg").touch()
            for kind, folder in places.items():
                drawn = root / "drawn" / kind / f"{number % NUM_DRAWN}.png"
                (folder / f"{number:05d}.png").hardlink_to(drawn)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(lengths), encoding="utf-8")


def score_ours(root: Path, sequence: str, *, workers: int) -> DavisScores:
    """As a user does."""
    return score_davis(root / "predictions", root, sequences=[sequence], workers=workers)


def score_plain(root: Path, case: Case) -> np.ndarray:
    """The frames of the short sequence but for the first and the last."""
    names = [f"{number:05d}.png" for number in range(1, case.num_plain + 1)]
    folders = root / "Annotations" / "480p" / "short", root / "predictions" / "short"
    pairs = [(folders[0] / name, folders[1] / name) for name in names]
    return plain_scores(pairs, num_objects=case.num_objects)


def compare(root: Path, case: Case) -> float:
    """The largest difference of a mean of J or F.

    Raises:
        DifferentResultsError: it is above rounding.
    """
    objects = score_ours(root, "short", workers=1).objects
    found = np.array([[one.j.mean for one in objects], [one.f.mean for one in objects]])
    difference = float(np.abs(found - score_plain(root, case).mean(axis=-1)).max())
    if not difference <= TOLERANCE:
        raise DifferentResultsError(f"J or F of {case.name} objects differs by {difference:.1e}")
    return difference


def measure(case: Case, *, repeats: int, workers: int) -> tuple[dict[str, float], float]:
    """Frames times objects a second of each side, and the largest difference of a score.

    Of the repeats, in which the sides take turns, the fastest counts: other work only slows down.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_case(case, root)
        difference = compare(root, case)
        sides: dict[str, tuple[int, Callable[[], object]]] = {
            "plain": (case.num_plain, lambda: score_plain(root, case)),
            "ino, 1 process": (case.num_ours, lambda: score_ours(root, "long", workers=1)),
            f"ino, {workers} processes": (
                case.num_ours,
                lambda: score_ours(root, "long", workers=workers),
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, (num_frames, run) in sides.items():
                start = time.perf_counter()
                run()
                seconds = time.perf_counter() - start
                rates[name].append(num_frames * case.num_objects / seconds)
    return {name: max(values) for name, values in rates.items()}, difference


def run_child(name: str, case: Case) -> None:
    """Prints the peak memory of one side, or of the imports and the drawing (`baseline`)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_case(case, root)
        if name == "plain":
            score_plain(root, case)
        elif name == "ino":
            score_ours(root, "short", workers=1)
    print(peak_bytes())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    add_child(parser, SIDES)
    options = parser.parse_args(arguments)
    cases = QUICK if options.quick else FULL
    most = max(cases, key=lambda case: case.num_objects)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    if options.child:
        run_child(options.child, most)
        return
    machine = describe_machine(precision="float64")
    memory = peak_memory(__file__, SIDES, options)
    rates, differences = {}, {}
    for case in cases:
        rates[case.name], differences[case.name] = measure(
            case, repeats=1 if options.quick else 5, workers=options.threads
        )
    names = list(next(iter(rates.values())))
    print_table(
        "Frames times objects a second",
        ["pixels, objects", *names],
        [[case, *(f"{value:.0f}" for value in sides.values())] for case, sides in rates.items()],
    )
    print_table(
        f"Peak memory above the imports, MiB: {most.name} objects",
        ["", *SIDES],
        [["", *(f"{1024 * value:.0f}" for value in memory.values())]],
    )
    usual = next(
        sides for case, sides in zip(cases, rates.values(), strict=True) if case.num_objects == 3
    )
    ratios = {
        "scoring_speedup": usual[names[2]] / usual["plain"],
        "scoring_speedup_alone": usual[names[1]] / usual["plain"],
        "scoring_speedup_many": rates[most.name][names[1]] / rates[most.name]["plain"],
        "scoring_memory_ratio": memory["plain"] / max(memory["ino"], 1 / 1024),
    }
    measured = {"rates": rates, "peak_gib": memory, "largest_differences": differences}
    conclude("scoring", ratios=ratios, machine=machine, measured=measured, path=options.json)


if __name__ == "__main__":
    main()
