"""Scores and speed of `ino segment --quality fast|default|best`, from images to written masks.

    python benchmarks/quality.py --data ROOT [--year 2016] [--sequences NAME ...] [--frames N]
    python benchmarks/quality.py --quick [--json FILE]

ROOT is in the layout of DAVIS. Each sequence is propagated from its first annotation by the weights
that come with ino (`--weights` takes others). J and F are means over the objects and the annotated
frames, without the first and the last one, in percent. `--set` measures a single change:

    python benchmarks/quality.py --data ROOT --qualities fast --set num_context=3

Seconds are those of the wall and of the processor, all threads together, per frame, decoding and
writing included. Other processes slow both down, so compare only ratios within one run.

Ratios: `fast_speedup`, `best_cost` (processor time of default over fast, and of best over default),
`fast_minus_default`, `best_minus_default` (points of J&F, means over the sequences).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import yaml

from ino.data.davis import read_davis
from ino.data.images import image_size, read_image
from ino.data.label_maps import read_labels, write_labels
from ino.data.video import in_background
from ino.demo.synthetic import generate_clip
from ino.errors import InoError
from ino.metrics import score_labels
from ino.models.load import load_backbone
from ino.propagate.protocols import protocol_for
from ino.propagate.tracker import Tracker, usual_precision
from report import build_parser, conclude, describe_machine, print_table

QUALITIES = ("fast", "default", "best")


class Clip(NamedTuple):
    """Images of a sequence and its annotations by the number of the frame."""

    name: str
    images: list[Path]
    labels: dict[int, np.ndarray]


class Found(NamedTuple):
    """Mean J and F in percent; seconds per frame of the wall and of the processor."""

    j: float
    f: float
    seconds: float
    processor: float

    @property
    def jf(self) -> float:
        return (self.j + self.f) / 2


def read_clips(root: Path, options: argparse.Namespace) -> list[Clip]:
    """The sequences, their first `--frames` frames of those that come every `--every`."""
    clips = []
    for one in read_davis(root, year=options.year, sequences=options.sequences):
        chosen = list(range(0, len(one.frames), options.every))[: options.frames]
        labels = {
            place: read_labels(one.annotations[number])
            for place, number in enumerate(chosen)
            if number in one.annotations
        }
        if options.year == 2016:
            labels = {place: (map_ > 0).astype(np.uint8) for place, map_ in labels.items()}
        clips.append(Clip(one.name, [one.frames[number] for number in chosen], labels))
    return clips


def write_clips(folder: Path, *, num_frames: int) -> list[Clip]:
    """One generated clip."""
    clip = generate_clip(0, num_frames=num_frames, height=96, width=128)
    images = []
    for number, frame in enumerate(clip.frames):
        images.append(folder / f"{number:05d}.png")
        cv2.imwrite(str(images[-1]), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return [Clip("generated", images, dict(enumerate(clip.labels)))]


def measure(clip: Clip, tracker: Tracker) -> Found:
    """Propagates the first annotation, and scores what was written."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number:05d}.png" for number in range(len(clip.images))]
        size = image_size(clip.images[0])
        started = time.perf_counter(), time.process_time()
        frames = in_background(read_image(path, size=size) for path in clip.images)
        results = tracker.track(frames, {0: clip.labels[0]}, name=clip.name)
        for path, labels in zip(paths, results, strict=True):
            write_labels(path, labels)
        spent = time.perf_counter() - started[0], time.process_time() - started[1]
        num_objects = int(clip.labels[0][clip.labels[0] < 255].max())
        scores = [
            score_labels(read_labels(paths[number]), labels, num_objects=num_objects)
            for number, labels in clip.labels.items()
            if 0 < number < len(paths) - 1
        ]
    j, f = 100 * np.mean(np.array(scores), axis=(0, 2))
    return Found(float(j), float(f), *(one / len(paths) for one in spent))


def print_found(found: dict[str, dict[str, Found]], *, weights: str) -> None:
    """One row per sequence; J&F (J / F) and, in the last row, frames per second of each quality."""
    rows = [
        [name, *(f"{one.jf:.1f} ({one.j:.1f} / {one.f:.1f})" for one in by_sequence)]
        for name, by_sequence in zip(
            next(iter(found.values())),
            zip(*(one.values() for one in found.values()), strict=True),
            strict=True,
        )
    ]
    means = {quality: mean(one.values()) for quality, one in found.items()}
    rows.append(["mean", *(f"{one.jf:.1f} ({one.j:.1f} / {one.f:.1f})" for one in means.values())])
    rows.append(["frames per second", *(f"{1 / one.seconds:.2f}" for one in means.values())])
    rows.append(["processor seconds", *(f"{one.processor:.2f}" for one in means.values())])
    print_table(f"{weights}, J&F (J / F) in percent", ["", *found], rows)


def mean(found: Any) -> Found:
    """Means over the sequences."""
    return Found(*np.mean(list(found), axis=0).tolist())


def ratios_of(means: dict[str, Found]) -> dict[str, float]:
    """Those of the qualities that were measured."""
    ratios = {}
    usual = means.get("default")
    if usual is not None and "fast" in means:
        ratios["fast_speedup"] = usual.processor / means["fast"].processor
        ratios["fast_minus_default"] = means["fast"].jf - usual.jf
    if usual is not None and "best" in means:
        ratios["best_cost"] = means["best"].processor / usual.processor
        ratios["best_minus_default"] = means["best"].jf - usual.jf
    return ratios


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder that holds JPEGImages")
    parser.add_argument("--weights", default="ino_vitt8", metavar="WEIGHTS", help="of any network")
    parser.add_argument("--year", type=int, default=2016, help="of the list; 2016 has one object")
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--frames", type=int, metavar="N", help="the first ones only")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="leave out frames")
    parser.add_argument("--qualities", nargs="+", choices=QUALITIES, default=list(QUALITIES))
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="of protocols")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: the quality's")
    options = parser.parse_args(arguments)
    if (options.data is None) != options.quick:
        parser.error("give --data ROOT, or --quick, which generates a clip")
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    fields = {one.partition("=")[0]: yaml.safe_load(one.partition("=")[2]) for one in options.set}
    if options.quick:
        fields |= {"short_side": 64}
    backbone = load_backbone(options.weights)
    found: dict[str, dict[str, Found]] = {}
    machine = describe_machine(precision=options.precision or "of each quality")
    with tempfile.TemporaryDirectory() as folder:
        clips = (
            write_clips(Path(folder), num_frames=6)
            if options.quick
            else read_clips(options.data, options)
        )
        for clip in clips:
            for quality in options.qualities:
                tracker = Tracker(
                    backbone,
                    protocol=protocol_for("ino-near", quality, **fields),
                    precision=options.precision or usual_precision(quality, "cpu"),
                )
                one = measure(clip, tracker)
                found.setdefault(quality, {})[clip.name] = one
                print(f"{clip.name} {quality}: {one.jf:.1f}", file=sys.stderr)
    print_found(found, weights=options.weights)
    measured = {
        quality: {name: one._asdict() for name, one in by_name.items()}
        for quality, by_name in found.items()
    }
    means = {quality: mean(one.values()) for quality, one in found.items()}
    conclude(
        "quality", ratios=ratios_of(means), machine=machine, measured=measured, path=options.json
    )


if __name__ == "__main__":
    try:
        main()
    except InoError as error:
        sys.exit(f"quality: {error}")
