"""Mean J against the number of annotated frames: all of them as references, and two older ways.

    python benchmarks/references.py --data ROOT... [--sequences NAME...] [--counts 1 2 3 5 8]
        [--seeds 2] [--every 2] [--short-side 240] [--protocol NAME] [--cache DIR] [--json FILE]
        [--plot FILE]

Each ROOT holds JPEGImages/480p and Annotations/480p. Every second frame is taken; frames and masks
are first scaled to the short side, which the network sees as well. Features are those of
`ino_vitt8`. J is the mean over all objects and all of these frames that have ground truth,
annotated ones included, which are as drawn in every way, and beside it that of the others; with one
of them, on the first frame, all ways are the same. Rows that the file of `--json` holds are not
measured again. `--plot` draws the means over sequences.

Ways: `references` is `Tracker.track_references`; `correct` goes forward once, and each annotated
frame replaces the reference from there on; `both-ways` takes the nearest annotated frame, earlier
or later. Choices of frames: `random` is frame 0 and others at random; `even` is evenly spaced, both
ends included; `program` is frame 0 and what `rank_frames` says, one after the other.
"""

import argparse
import json
import random
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import ino.propagate.tracker
from ino.data.label_maps import VOID, read_labels
from ino.data.video import read_frames
from ino.models.load import load_backbone
from ino.propagate.protocols import get_protocol
from ino.propagate.references import rank_frames
from ino.propagate.refine import Motion, estimate_motion
from ino.propagate.tracker import Tracker

Masks = dict[int, np.ndarray]


class RememberedMotion:
    """`estimate_motion` that computes each pair of frames once."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], Motion] = {}

    def __call__(self, before: np.ndarray, frame: np.ndarray) -> Motion:
        pair = (zlib.crc32(before.data), zlib.crc32(frame.data))
        if pair not in self._found:
            self._found[pair] = estimate_motion(before, frame)
        return self._found[pair]


class Remembered:
    """A feature extractor that computes each frame of a list once, or reads a cache."""

    def __init__(self, extractor: Any, frames: Sequence[np.ndarray], cache: Path | None) -> None:
        self._extractor = extractor
        self._numbers = {id(frame): number for number, frame in enumerate(frames)}
        self._features: dict[int, torch.Tensor] = {}
        if cache is not None and cache.exists():
            stored = torch.from_numpy(np.load(cache)["features"]).float()
            self._features = dict(enumerate(stored))
        elif cache is not None:
            found = torch.stack([self(frame) for frame in frames])
            np.savez(cache, features=found.numpy().astype(np.float16))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extractor, name)

    def __call__(self, frame: np.ndarray, place: object = None) -> torch.Tensor:
        assert place is None, "only whole frames are stored"
        number = self._numbers[id(frame)]
        if number not in self._features:
            self._features[number] = self._extractor(frame)
        return self._features[number]


def references(tracker: Tracker, frames: list[np.ndarray], masks: Masks) -> Masks:
    """All annotated frames as references."""
    return {one.number: one.labels for one in tracker.track_references(frames, masks)}


def correct(tracker: Tracker, frames: list[np.ndarray], masks: Masks) -> Masks:
    """Forward; an annotated frame replaces the reference from there on."""
    first = min(masks)
    found = {number: np.zeros_like(masks[first]) for number in range(first)}
    found[first] = tracker.start(frames[first], masks[first])
    for number in range(first + 1, len(frames)):
        found[number] = tracker.step(frames[number])
        if number in masks:
            found[number] = tracker.add(masks[number])
    return found


def both_ways(tracker: Tracker, frames: list[np.ndarray], masks: Masks) -> Masks:
    """From the nearest annotated frame."""
    numbers = sorted(masks)
    edges = [0, *((a + b) // 2 + 1 for a, b in pairwise(numbers)), len(frames)]
    found: Masks = {}
    for number, (first, end) in zip(numbers, pairwise(edges), strict=True):
        for path in (range(number, end), range(number, first - 1, -1)):
            found[number] = tracker.start(frames[number], masks[number])
            for index in path[1:]:
                found[index] = tracker.step(frames[index])
    return found


WAYS: dict[str, Callable[[Tracker, list[np.ndarray], Masks], Masks]] = {
    "references": references,
    "both-ways": both_ways,
    "correct": correct,
}


def read_clip(folder: Path, *, short_side: int, every: int) -> tuple[list[np.ndarray], Masks]:
    """Frames of a sequence and the masks that there are, by number among them; both scaled."""
    annotations = folder.parents[2] / "Annotations/480p" / folder.name
    images = sorted(folder.glob("*.jpg"))[::every]
    frames = list(read_frames(folder))[::every]
    scale = short_side / min(frames[0].shape[:2])
    size = (round(frames[0].shape[1] * scale), round(frames[0].shape[0] * scale))
    truth = {
        number: cv2.resize(read_labels(path), size, interpolation=cv2.INTER_NEAREST)
        for number, image in enumerate(images)
        if (path := annotations / f"{image.stem}.png").exists()
    }
    return [cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in frames], truth


WAY = "references"
"""The one that is measured with one annotated frame."""


def mean_j(found: Masks, truth: Masks) -> float:
    """Mean J over objects and frames; an object that is in neither counts 1."""
    labels = sorted({int(one) for mask in truth.values() for one in np.unique(mask)} - {0, VOID})
    scores = []
    for number, mask in truth.items():
        for label in labels:
            ours, theirs = found[number] == label, mask == label
            union = (ours | theirs).sum()
            scores.append((ours & theirs).sum() / union if union else 1.0)
    return 100 * float(np.mean(scores))


def evenly(available: Sequence[int], count: int) -> list[int]:
    """Evenly spaced ones of the frames, both ends included."""
    places = np.linspace(0, len(available) - 1, count).round().astype(int)
    return [available[place] for place in places]


def chosen_by_program(
    tracker: Tracker, frames: list[np.ndarray], truth: Masks, counts: Sequence[int]
) -> dict[int, Masks]:
    """Results of `references` by the number of frames, which `rank_frames` chooses."""
    masks = {min(truth): truth[min(truth)]}
    results: dict[int, Masks] = {}
    for count in range(1, max(counts) + 1):
        tracked = list(tracker.track_references(frames, masks))
        results[count] = {one.number: one.labels for one in tracked}
        ranked = rank_frames(
            {one.number: one.confidence for one in tracked},
            {one.number: one.survival for one in tracked},
            set(masks),
            num_frames=len(frames),
        )
        following = [one.number for one in ranked if one.number in truth]
        if not following:
            break
        masks[following[0]] = truth[following[0]]
    return results


Scores = dict[str, dict[str, list[float]]]
"""J in percent, one for each seed, by row, such as "even correct 3", by sequence."""


def means(scores: Scores) -> dict[str, float]:
    """Mean over sequences of the mean over seeds, of the rows that all sequences have."""
    rows = set.intersection(*(set(found) for found in scores.values()))
    return {row: float(np.mean([np.mean(one[row]) for one in scores.values()])) for row in rows}


def of_others(score: float, count: int, num_frames: int) -> float:
    """Mean J of the frames that are not annotated, by that of all and how many are annotated."""
    return (
        (num_frames * score - 100 * count) / (num_frames - count) if count < num_frames else 100.0
    )


def plot(scores: Scores, path: Path) -> None:
    """Mean J against the number of annotated frames: the ways, and the choices of frames."""
    from matplotlib.figure import Figure

    panels = {
        "evenly spaced frames": {way: f"even {way}" for way in WAYS},
        "all frames as references": {
            choice: f"{choice} {WAY}" for choice in ("even", "program", "random")
        },
    }
    found = means(scores)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, (title, lines) in zip(
        figure.subplots(1, 2, sharey=True), panels.items(), strict=True
    ):
        for (label, row), (color, mark) in zip(lines.items(), STYLES, strict=True):
            counts = {int(key.split()[-1]) for key in found if key.startswith(f"{row} ")} | {1}
            points = {n: found[f"{row} {n}" if n > 1 else f"even {WAY} 1"] for n in sorted(counts)}
            axes.plot([*points], [*points.values()], mark, color=color, label=label)
            axes.set(title=title, xlabel="annotated frames", xticks=[*points])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("mean J, percent")
    figure.savefig(path, dpi=100)


STYLES = (("#0072B2", "o-"), ("#D55E00", "s--"), ("#009E73", "^:"))
"""Color and marks of lines; the colors can be told apart by most color-blind readers."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Tracks, scores, prints, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--sequences", nargs="+")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 3, 5, 8])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--every", type=int, default=2, metavar="N", help="take every Nth frame")
    parser.add_argument("--choices", nargs="+", default=["random", "even", "program"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--cache", type=Path, help="folder for features")
    parser.add_argument("--protocol", default="ino-default")
    parser.add_argument("--short-side", type=int, default=240)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG, PDF or SVG")
    given = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    folders = [path for root in given.data for path in sorted((root / "JPEGImages/480p").iterdir())]
    if given.sequences:
        folders = [folder for folder in folders if folder.name in given.sequences]
    backbone = load_backbone("ino_vitt8")
    protocol = get_protocol(given.protocol, short_side=given.short_side, zoom_margin=None)
    scores: Scores = {}
    if given.json and given.json.exists():
        scores = json.loads(given.json.read_text())
    lengths: dict[str, int] = {}
    for folder in folders:
        rows = scores.setdefault(folder.name, {})

        def keep(row: str, found: list[float], folder: Path = folder) -> None:
            scores[folder.name][row] = found
            print(folder.name, row, found, flush=True)
            if given.json:
                given.json.write_text(json.dumps(scores, indent=2) + "\n")

        frames, truth = read_clip(folder, short_side=given.short_side, every=given.every)
        tracker = Tracker(backbone, protocol=protocol)
        cache = (
            given.cache and given.cache / f"{folder.name}-{given.short_side}-{protocol.name}.npz"
        )
        tracker._extractor = Remembered(tracker._extractor, frames, cache)  # type: ignore[assignment]
        ino.propagate.tracker.estimate_motion = RememberedMotion()
        available = sorted(truth)
        lengths[folder.name] = len(truth)
        counts = [count for count in given.counts if count <= len(available)]
        for count in counts:
            drawn = {
                "even": [evenly(available, count)],
                "random": [
                    [
                        0,
                        *random.Random(f"{folder.name} {count} {seed}").sample(
                            available[1:], count - 1
                        ),
                    ]
                    for seed in range(given.seeds if count > 1 else 1)
                ],
            }
            for choice, way in product(drawn, given.ways):
                row = f"{choice} {way} {count}"
                if choice in given.choices and row not in rows and (count > 1 or way == WAY):
                    masks = [{n: truth[n] for n in numbers} for numbers in drawn[choice]]
                    found = [WAYS[way](tracker, frames, one) for one in masks]
                    keep(row, [mean_j(one, truth) for one in found])
        missing = [one for one in counts if f"program references {one}" not in rows]
        if "program" in given.choices and missing:
            for count, found in chosen_by_program(tracker, frames, truth, missing).items():
                if count in missing:
                    keep(f"program references {count}", [mean_j(found, truth)])
    print("\nmean over sequences: of all frames, and of those that are not annotated")
    scores = {name: scores[name] for name in lengths}
    for row in sorted({row for rows in scores.values() for row in rows}):
        values = {name: float(np.mean(rows[row])) for name, rows in scores.items() if row in rows}
        count = int(row.split()[-1])
        others = [of_others(value, count, lengths[name]) for name, value in values.items()]
        mean = np.mean([*values.values()])
        print(f"{row:28} {mean:5.1f} {np.mean(others):5.1f}  ({len(values)} sequences)")
    if given.plot:
        plot(scores, given.plot)


if __name__ == "__main__":
    main()
