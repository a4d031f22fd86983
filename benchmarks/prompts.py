"""Mean J of masks from a box or from clicks, on the annotated frames of any data set as DAVIS's.

    python benchmarks/prompts.py --data DAVIS [--year 2016] [--split val] [--every 20] [--json FILE]
        [--sequences NAME ...] [--weights ino_vitt8] [--without features]
        [--size 480p] [--threads N] [--quick]

The box is that of the annotation. `jittered box`: each side moved by up to a tenth of the box's
width or height. A click is placed as interactive segmentation is scored in the field (f-BRS, RITM):
in the middle of the largest region that is wrong, at the largest distance from its border, and
labeled as the annotation says there. `box` and `grabCut` beside them: the box itself as the mask,
and OpenCV's grabCut started with the box and five iterations, on the frame at 240 lines.

A frame is used if it is at least `--every` frames after the last one used; each of its objects with
at least 200 pixels is one case. Means are over cases in a sequence, then over sequences.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from ino.data.davis import read_davis
from ino.data.images import read_image
from ino.data.label_maps import read_labels
from ino.metrics import region_similarity
from ino.models.load import load_backbone
from ino.propagate import prompts
from ino.propagate.prompts import mask_from_prompt
from report import build_parser, conclude, describe_machine, print_table

SMALLEST = 200
"""Pixels of an object."""
NUM_CLICKS = {"box": 3, "alone": 5}
CUES = {
    "features": "FEATURES",
    "global-color": "GLOBAL_COLOR",
    "local-color": "LOCAL_COLOR",
    "barrier": "BARRIER",
    "edges": "SMOOTHNESS",
}
"""What `--without` leaves out, and the weight that it sets to 0."""

Point = tuple[int, int, bool]
Box = tuple[float, float, float, float]


def next_click(found: np.ndarray, truth: np.ndarray) -> Point | None:
    """The middle of the largest wrong region; None if nothing is wrong."""
    largest, region, is_object = 0, None, True
    for kind, wrong in ((True, truth & ~found), (False, found & ~truth)):
        _, regions, stats, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8))
        areas = stats[1:, cv2.CC_STAT_AREA]
        if len(areas) and areas.max() > largest:
            largest, is_object = int(areas.max()), kind
            region = regions == 1 + int(areas.argmax())
    if region is None:
        return None
    inner = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(x), int(y), is_object


def box_of(mask: np.ndarray) -> Box:
    """The smallest box around a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def jitter(box: Box, random: np.random.Generator) -> Box:
    """The box with each side moved by up to a tenth of its width or height."""
    x0, y0, x1, y1 = box
    spans = np.array([x1 - x0, y1 - y0] * 2)
    moved = np.array(box) + random.uniform(-0.1, 0.1, 4) * spans
    return tuple(moved.tolist())  # type: ignore[return-value]


def box_mask(box: Box, size: tuple[int, int]) -> np.ndarray:
    """The box as a mask."""
    mask = np.zeros(size, dtype=bool)
    x0, y0, x1, y1 = (round(number) for number in box)
    mask[y0:y1, x0:x1] = True
    return mask


def grab_cut(frame: np.ndarray, box: Box, lines: int = 240) -> np.ndarray:
    """OpenCV's grabCut, started with the box."""
    size = frame.shape[:2]
    scale = min(1, lines / min(size))
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    x0, y0, x1, y1 = (round(number * scale) for number in box)
    labels = np.full(small.shape[:2], cv2.GC_BGD, dtype=np.uint8)
    labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if (labels == cv2.GC_BGD).any() and (labels == cv2.GC_PR_FGD).any():
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, labels, None, *models, 5, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    found = (labels & 1).astype(np.float32)
    return cv2.resize(found, size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5


class Case:
    """The scores and times of one object in one frame."""

    def __init__(self, frame: np.ndarray, truth: np.ndarray, backbone, seed: int) -> None:
        self.scores: dict[str, float] = {}
        self.seconds: list[float] = []
        self.next_seconds: list[float] = []
        self._frame, self._truth, self._backbone = frame, truth, backbone
        box = box_of(truth)
        self._score("box itself", box_mask(box, truth.shape))
        self._score("grabCut", grab_cut(frame, box))
        jittered = jitter(box, np.random.default_rng(seed))
        self._correct("box", box, NUM_CLICKS["box"])
        self._correct("jittered box", jittered, NUM_CLICKS["box"])
        self._correct("no box", None, NUM_CLICKS["alone"])

    def _score(self, name: str, found: np.ndarray) -> None:
        self.scores[name] = region_similarity(found, self._truth)

    def _correct(self, name: str, box: Box | None, num_clicks: int) -> None:
        features: dict = {}
        points: list[Point] = []
        found = np.zeros_like(self._truth)
        for count in range(num_clicks + 1):
            if count:
                click = next_click(found, self._truth)
                points += [] if click is None else [click]
            elif box is None:
                continue
            known = len(features)
            started = time.perf_counter()
            found = mask_from_prompt(
                self._frame, box=box, points=points, backbone=self._backbone, features=features
            )
            times = self.seconds if len(features) > known else self.next_seconds
            times.append(time.perf_counter() - started)
            self._score(name if not count else f"{name}, {count} clicks", found)


def run(options: argparse.Namespace) -> dict[str, list[Case]]:
    """All cases by sequence."""
    backbone = load_backbone(options.weights)
    cases: dict[str, list[Case]] = {}
    for sequence in read_davis(
        options.data,
        year=options.year,
        split=options.split,
        resolution=options.size,
        sequences=options.sequences,
    ):
        last = -options.every
        for number, path in sorted(sequence.annotations.items()):
            if number - last < options.every:
                continue
            last = number
            frame, labels = read_image(sequence.frames[number], size=None), read_labels(path)
            for label in np.unique(labels[(labels > 0) & (labels < 255)]).tolist():
                truth = labels == label
                if truth.sum() >= SMALLEST:
                    case = Case(frame, truth, backbone, seed=1000 * number + label)
                    cases.setdefault(sequence.name, []).append(case)
            if options.quick:
                break
    return cases


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder in DAVIS's layout")
    parser.add_argument("--year", type=int, default=2017, help="of the list of sequences")
    parser.add_argument("--split", default="val", help="of the list of sequences")
    parser.add_argument("--size", default="480p", help="name of the folder of that resolution")
    parser.add_argument("--every", type=int, default=20, help="frames from one used to the next")
    parser.add_argument("--sequences", nargs="+", help="of the list; all by default")
    parser.add_argument("--weights", default="ino_vitt8", help="as for `ino segment`")
    parser.add_argument("--without", choices=CUES, help="leave one cue out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    if options.without:
        setattr(prompts, CUES[options.without], 0.0)
    machine = describe_machine(precision="fp32")
    cases = run(options)
    names = list(next(iter(cases.values()))[0].scores)
    by_sequence = {
        sequence: {name: float(np.mean([case.scores[name] for case in found])) for name in names}
        for sequence, found in cases.items()
    }
    mean = {name: float(np.mean([s[name] for s in by_sequence.values()])) for name in names}
    rows = [
        [name, *(f"{scores[name]:.3f}" for scores in by_sequence.values()), f"{mean[name]:.3f}"]
        for name in names
    ]
    total = sum(map(len, cases.values()))
    print_table(f"Mean J, {total} objects", ["", *by_sequence, "mean"], rows)
    every = [case for found in cases.values() for case in found]
    seconds = {
        "with features": float(np.mean([s for case in every for s in case.seconds])),
        "features kept": float(np.mean([s for case in every for s in case.next_seconds])),
    }
    print_table("Seconds per call", ["", "mean"], [[n, f"{s:.2f}"] for n, s in seconds.items()])
    measured = {"by_sequence": by_sequence, "seconds": seconds, "objects": total}
    conclude("prompts", ratios=mean, machine=machine, measured=measured, path=options.json)


if __name__ == "__main__":
    main()
