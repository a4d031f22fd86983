"""Weights adapted to footage: J&F before and after, and whether the judge was right.

    python benchmarks/adapt.py --data ROOT [ROOT...] --out DIR [--sequences NAME...] [--steps N]

The roots are in the layout of DAVIS. Each sequence is reduced to a short side of 480 pixels (or
`--short-side`); its first mask is given to the judge as `ino adapt --mask` does, and labels of
later frames are used for the scores only: of every fourth frame, 12 at most. All networks that
`ino adapt` tries are scored, also those that it would not keep. `--no-mask` lets the judge go
without.

Ratios: `gain_mean`, `gain_least`: J&F of what is kept minus before in points, mean and least over
sequences; `gain_kept`: mean of those whose weights were changed; `gain_best`: mean if the best
network were always known.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from ino.adaptation import BEFORE, JUDGED_SIDE, LEAST_GAIN, candidates
from ino.data.images import image_size, read_image
from ino.data.label_maps import read_labels, write_labels
from ino.metrics import score_labels
from ino.models.backbone import VitBackbone
from ino.models.load import load_backbone
from ino.propagate.features import quick_precision
from ino.propagate.judge import judge_difference, numbered, scaled_protocol
from ino.propagate.protocols import Protocol, get_protocol
from ino.propagate.tracker import Tracker
from ino.tasks.judge import judge_clip, read_judged
from report import build_parser, conclude, describe_machine, print_table

NUM_FRAMES = 12
STEP = 4


class ReducedSequence(NamedTuple):
    """Reduced frames, label maps by their place, and what `ino adapt` is given."""

    frames: list[np.ndarray]
    truth: dict[int, np.ndarray]
    folder: Path
    mask: Path


def read_sequence(root: Path, name: str, out: Path, *, short_side: int) -> ReducedSequence:
    """The frames that are scored, and all frames, reduced, as a folder of images."""
    images = sorted((root / "JPEGImages/480p" / name).iterdir())
    folder = out / "frames" / name
    folder.mkdir(parents=True, exist_ok=True)
    frames, truth, ids = [], {}, None
    mask = out / "frames" / f"{name}.png"
    for number, path in enumerate(images):
        frame = read_image(path, size=image_size(path))
        scale = short_side / min(frame.shape[:2])
        size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        target = folder / f"{number:05d}.png"
        if not target.exists():
            cv2.imwrite(str(target), frame[..., ::-1])
        if number % STEP or len(frames) == NUM_FRAMES:
            continue
        annotation = root / "Annotations/480p" / name / f"{path.stem}.png"
        if annotation.is_file():
            labels = cv2.resize(read_labels(annotation), size, interpolation=cv2.INTER_NEAREST)
            ids = np.unique(labels) if ids is None else ids
            truth[len(frames)] = numbered(labels, ids)
        frames.append(frame)
    write_labels(mask, truth[0])
    return ReducedSequence(frames, truth, folder, mask)


def score(
    backbone: Any, sequence: ReducedSequence, *, protocol: Protocol, short_side: int
) -> float:
    """J&F in percent of the mask of the first frame, propagated."""
    scaled = scaled_protocol(protocol, short_side)
    tracker = Tracker(
        backbone, protocol=scaled, device="cpu", precision=quick_precision("cpu"), warns=False
    )
    found = list(tracker.track(sequence.frames, {0: sequence.truth[0]}))
    num_objects = int(sequence.truth[0].max())
    scores = [
        np.nanmean(score_labels(found[place], labels, num_objects=num_objects))
        for place, labels in list(sequence.truth.items())[1:]
    ]
    return 100 * float(np.mean(scores))


def names_of(roots: Sequence[Path], chosen: Sequence[str] | None) -> Iterator[tuple[Path, str]]:
    """Root and name of each sequence."""
    for root in roots:
        for folder in sorted((root / "JPEGImages/480p").iterdir()):
            if chosen is None or folder.name in chosen:
                yield root, folder.name


def main() -> None:
    """Parses the arguments, adapts to each sequence and writes the table."""
    parser = build_parser(__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="annotated sequences")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is made")
    parser.add_argument("--sequences", nargs="+", help="only these")
    parser.add_argument("--weights", default="ino_vitt8")
    parser.add_argument("--protocol", default="ino-near")
    parser.add_argument("--short-side", type=int, default=JUDGED_SIDE, metavar="PIXELS")
    parser.add_argument("--steps", type=int, default=0, help="of learning")
    parser.add_argument("--mask", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    side = options.short_side
    protocol = get_protocol(options.protocol)
    measured: dict[str, dict[str, Any]] = {}
    for root, name in names_of(options.data, options.sequences):
        sequence = read_sequence(root, name, options.out, short_side=side)
        before = load_backbone(options.weights)
        assert isinstance(before, VitBackbone)
        started = time.perf_counter()
        networks = candidates(
            before,
            [sequence.folder],
            protocol=protocol,
            steps=options.steps,
            device=torch.device("cpu"),
        )
        seconds = time.perf_counter() - started
        mask = str(sequence.mask) if options.mask else None
        clip = read_judged(sequence.folder, mask=mask, short_side=side)
        judged = {
            key: judge_clip(one, clip, protocol, short_side=side) for key, one in networks.items()
        }
        differences = {key: judge_difference(one, judged[BEFORE]) for key, one in judged.items()}
        best = max(differences, key=lambda key: differences[key].mean)
        kept = best if differences[best].mean >= LEAST_GAIN else BEFORE
        scores = {
            key: score(one, sequence, protocol=protocol, short_side=side)
            for key, one in networks.items()
        }
        measured[name] = {
            "kept": kept,
            "seconds": seconds,
            "jf": scores,
            "predicted": {key: [100 * x for x in one] for key, one in differences.items()},
        }
        _print(measured)
    gains = [one["jf"][one["kept"]] - one["jf"][BEFORE] for one in measured.values()]
    changed = [
        gain for gain, one in zip(gains, measured.values(), strict=True) if one["kept"] != BEFORE
    ]
    conclude(
        "adapt",
        ratios={
            "gain_mean": float(np.mean(gains)),
            "gain_least": min(gains),
            "gain_kept": float(np.mean(changed)) if changed else 0.0,
            "gain_best": float(
                np.mean([max(one["jf"].values()) - one["jf"][BEFORE] for one in measured.values()])
            ),
        },
        machine=describe_machine(precision=quick_precision("cpu")),
        measured=measured,
        path=options.json,
    )


def _print(measured: dict[str, dict[str, Any]]) -> None:
    """J&F of each network, and by how much the judge predicts it to be better."""
    keys = list(dict.fromkeys(key for one in measured.values() for key in one["jf"]))
    for number, key in enumerate(keys):
        print(f"{number}: {key}")
    scores, predicted = [], []
    for name, one in measured.items():
        gain = one["jf"][one["kept"]] - one["jf"][BEFORE]
        found = [f"{one['jf'][key]:.1f}" if key in one["jf"] else "-" for key in keys]
        scores.append([name, *found, str(keys.index(one["kept"])), f"{gain:+.1f}"])
        given = one["predicted"]
        predicted.append(
            [name, *(f"{given[key][0]:+.1f}" if key in given else "-" for key in keys)]
        )
    numbers = [str(number) for number in range(len(keys))]
    print_table("J&F", ["", *numbers, "kept", "gain"], scores)
    print_table("predicted difference", ["", *numbers], predicted)


if __name__ == "__main__":
    main()
