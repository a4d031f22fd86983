"""Weights fitted to footage: J&F before and after, and whether the judge was right.

    python benchmarks/adapt.py --data ROOT [ROOT...] --out DIR [--sequences NAME...] [--all]

The roots are in the layout of DAVIS. Each sequence is reduced to a short side of 240 pixels; its
first mask is given to `ino adapt`, and labels of later frames are used for the scores only: of
every second frame, 25 at most. `--no-mask` lets the judge go without. `--all` also scores the fits
that were not kept.

Ratios: `gain_mean`, `gain_least`: J&F after minus before in points, mean and least over sequences;
`gain_kept`: mean of those whose weights were changed.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from ino.adaptation import BEFORE, FITS, adapt, feature_statistics, fit_norm
from ino.data.images import image_size, read_image
from ino.data.label_maps import read_labels, write_labels
from ino.metrics import score_labels
from ino.models.backbone import VitBackbone, choose_device
from ino.models.load import load_backbone
from ino.propagate.judge import KeptFeatures, numbered, scaled_protocol
from ino.propagate.protocols import Protocol, get_protocol
from ino.propagate.tracker import Tracker
from report import build_parser, conclude, describe_machine, print_table

SHORT_SIDE = 240
NUM_FRAMES = 25
STEP = 2


class Sequence240(NamedTuple):
    """Reduced frames, label maps by their place, and what `ino adapt` is given."""

    frames: list[np.ndarray]
    truth: dict[int, np.ndarray]
    folder: Path
    mask: Path


def read_sequence(root: Path, name: str, out: Path) -> Sequence240:
    """The frames that are scored, and all frames, reduced, as a folder of images."""
    images = sorted((root / "JPEGImages/480p" / name).iterdir())
    folder = out / "frames" / name
    folder.mkdir(parents=True, exist_ok=True)
    frames, truth, ids = [], {}, None
    mask = out / "frames" / f"{name}.png"
    for number, path in enumerate(images):
        frame = read_image(path, size=image_size(path))
        scale = SHORT_SIDE / min(frame.shape[:2])
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
    return Sequence240(frames, truth, folder, mask)


def score(backbone: Any, sequence: Sequence240, *, protocol: Protocol) -> float:
    """J&F in percent of the mask of the first frame, propagated."""
    scaled = scaled_protocol(protocol, SHORT_SIDE)
    tracker = Tracker(backbone, protocol=scaled, device="cpu", precision="bf16", warns=False)
    found = list(tracker.track(sequence.frames, {0: sequence.truth[0]}))
    num_objects = int(sequence.truth[0].max())
    scores = [
        np.nanmean(score_labels(found[place], labels, num_objects=num_objects))
        for place, labels in list(sequence.truth.items())[1:]
    ]
    return 100 * float(np.mean(scores))


def fitted_networks(weights: str, sequence: Sequence240, *, protocol: Protocol) -> Iterator[Any]:
    """The network under each fit."""
    for share, power in FITS.values():
        backbone = load_backbone(weights)
        assert isinstance(backbone, VitBackbone)
        mean, deviation = feature_statistics(
            KeptFeatures(backbone),
            [sequence.folder],
            protocol=protocol,
            device=choose_device("cpu"),
        )
        backbone.vit = fit_norm(backbone.vit, mean=share * mean, deviation=deviation**power)
        yield backbone


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
    parser.add_argument("--mask", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--all", action="store_true", help="score what was not kept as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    protocol = get_protocol(options.protocol)
    rows, measured = [], {}
    shown = list(FITS) if options.all else []
    for root, name in names_of(options.data, options.sequences):
        sequence = read_sequence(root, name, options.out)
        before = load_backbone(options.weights)
        found = adapt(
            [sequence.folder],
            weights=options.weights,
            out=options.out / name,
            masks=[str(sequence.mask)] if options.mask else None,
            protocol=protocol,
            device="cpu",
            overwrite=True,
        )
        scores = [score(before, sequence, protocol=protocol)]
        after = load_backbone(found.weights)
        scores.append(score(after, sequence, protocol=protocol) if found.helped else scores[0])
        if options.all:
            networks = fitted_networks(options.weights, sequence, protocol=protocol)
            scores += [score(one, sequence, protocol=protocol) for one in networks]
        number = [BEFORE, *FITS].index(found.kept)
        rows.append([name, str(number), *(f"{one:.1f}" for one in scores)])
        predicted = [[row.name, row.score, list(row.difference)] for row in found.rows]
        measured[name] = {"kept": found.kept, "jf": scores, "predicted": predicted}
        heads = [f"fit {number}" for number in range(1, len(shown) + 1)]
        print_table("J&F", ["", "kept fit", "before", "after", *heads], rows)
    gains = [one["jf"][1] - one["jf"][0] for one in measured.values()]
    changed = [one["jf"][1] - one["jf"][0] for one in measured.values() if one["kept"] != BEFORE]
    conclude(
        "adapt",
        ratios={
            "gain_mean": float(np.mean(gains)),
            "gain_least": min(gains),
            "gain_kept": float(np.mean(changed)) if changed else 0.0,
        },
        machine=describe_machine(precision="bf16"),
        measured=measured,
        path=options.json,
    )


if __name__ == "__main__":
    main()
