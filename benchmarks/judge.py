"""Fits the judge without labels to annotated sequences, and measures how well it ranks.

    python benchmarks/judge.py --data ROOT [ROOT ...] --bank FOLDER [--candidates NAME:PROTOCOL ...]
    python benchmarks/judge.py --data ROOT [ROOT ...] --bank FOLDER --only-fit [--write]
    python benchmarks/judge.py --quick [--json FILE]

Each ROOT holds JPEGImages/480p and Annotations/480p. Each candidate, weights under a protocol
(`NAME:PROTOCOL`, `NAME:PROTOCOL@LAYER` for another layer), propagates the first mask of each
sequence through 12 frames at a short side of 240 pixels, with all passes that the judge makes. NAME
is what `load_backbone` takes, random:ARCH/PATCH#SEED, or WEIGHTS+NOISE, whose matrices get normal
noise of so many of their standard deviations. What was propagated is kept in the bank, so that a
run that is stopped goes on, and a fit takes seconds.

The fit is a ridge regression of the logit of J&F with weights of 0 or more, so that no cue that
gets worse makes a prediction better, and with differences within a sequence counted once more, as
these decide a choice. Every number below is for sequences that the fit has not seen.

Numbers: `rank`, Spearman's correlation of predicted and true J&F over all candidates and sequences;
`rank_within`, the same over the candidates of a sequence, mean over the sequences; `regret`, points
of J&F by which the candidate with the best prediction is below the best one, mean over the
sequences; `regret_all`, the same where one candidate is chosen for all sequences by its mean
prediction; `covered`, share of intervals that hold the truth; and `error`, mean, in points. For
pairs of candidates of a sequence: `pairs_covered`, and of the differences that are called clear,
`clear`, the share that has the right sign, `clear_right`. Each for a given mask, for none and for
results alone. Also Spearman's correlation of each single cue.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from scipy.optimize import nnls
from scipy.stats import spearmanr
from torch import nn

from ino.data.images import image_size, read_image
from ino.data.label_maps import read_labels
from ino.demo.synthetic import generate_clip
from ino.errors import InoError
from ino.metrics import score_labels
from ino.models.load import load_backbone
from ino.propagate.features import quick_precision
from ino.propagate.judge import (
    CALIBRATION,
    KeptFeatures,
    Passes,
    disagreement,
    measure_result,
    measure_staged,
    numbered,
    pseudo_objects,
    run_passes,
    scaled_protocol,
    stage_video,
)
from ino.propagate.protocols import get_protocol
from ino.propagate.refine import Motion
from ino.system import write_text
from ino.tasks.judge import followed_motions, with_strides
from report import build_parser, conclude, describe_machine, print_table

SHORT_SIDE = 240
NUM_FRAMES = 12
MOST_STEP = 3
"""Frames from one that is used to the next."""

CANDIDATES = (
    "ino_vitt8:ino-davis",
    "ino_vitt8:ino-near",
    "ino_vitt8:ino-near@3",
    "ino_vitt8:dinov3",
    "ino_vitt8:vfs",
    "ino_vitt8:dino",
    "ino_vitt8:crw",
    "ino_vitt8:ino-fast",
    "ino_vitt8:ino-default",
    "color:ino-near",
    "color:dinov3",
    "color:ino-davis",
    "color:ino-fast",
    "random:vit_tiny/8#0:ino-davis@7",
    "random:vit_tiny/8#0:ino-near@2",
    "random:vit_tiny/8#0:ino-fast",
    "ino_vitt8+0.5:ino-near@3",
    "ino_vitt8+1:ino-near@2",
)

OF_RESULT = ("near_flow", "far_flow", "moves", "size", "colors")
CUES = {
    "result": OF_RESULT,
    "mask": (*OF_RESULT, "staged"),
    "none": (*OF_RESULT, "staged"),
}
"""The cues of each fit."""

KINDS = ("mask", "none")
"""Passes with the annotated mask, and with regions that stand out."""

CLAIMED = ("rank", "regret", "error")
"""The numbers that are told as ratios."""

STILL = "still"
"""A candidate that leaves the first mask where it is, so that the fit learns that this is easy."""

RIDGE = 5.0
WITHIN = 3.0
"""Weight of differences within a sequence beside those across all, in the fit."""

COVERAGE = 0.9


class Clip(NamedTuple):
    """Reduced frames, the motion from each to the next by way of the frames between them, and the
    label maps of those that are annotated by their place."""

    name: str
    frames: list[np.ndarray]
    motions: list[Motion]
    truth: dict[int, np.ndarray]


class Entry(NamedTuple):
    """One candidate on one sequence: true J&F, cues by kind, and the label maps of the result."""

    candidate: str
    sequence: str
    true: float
    cues: dict[str, dict[str, float]]
    labels: np.ndarray


def read_clips(roots: Sequence[Path]) -> Iterator[Clip]:
    """The sequences; frames that are annotated take the place of the nearest one."""
    for root in roots:
        for folder in sorted((root / "JPEGImages/480p").iterdir()):
            images = sorted(folder.iterdir())
            annotations = root / "Annotations/480p" / folder.name
            known = {i: annotations / f"{one.stem}.png" for i, one in enumerate(images)}
            known = {i: path for i, path in known.items() if path.is_file()}
            yield _read_clip(folder.name, images, known)


def _read_clip(name: str, images: Sequence[Path], known: dict[int, Path]) -> Clip:
    step = max(1, min(MOST_STEP, len(images) // NUM_FRAMES))
    chosen = list(range(0, len(images), step))[:NUM_FRAMES]
    for number in sorted(known):
        if number < chosen[-1] and number not in chosen:
            places = range(1, len(chosen))
            nearest = min(places, key=lambda place: abs(chosen[place] - number))
            if chosen[nearest] not in known:
                chosen[nearest] = number
    chosen.sort()
    frames, truth = {}, {}
    for number in with_strides(chosen):
        frame = read_image(images[number], size=image_size(images[number]))
        scale = SHORT_SIDE / min(frame.shape[:2])
        size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
        frames[number] = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    ids = None
    for place, number in enumerate(chosen):
        if number in known:
            labels = read_labels(known[number])
            size = frames[number].shape[1::-1]
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
            ids = np.unique(labels) if ids is None else ids
            truth[place] = numbered(labels, ids)
    motions = followed_motions(frames, chosen)
    return Clip(name, [frames[number] for number in chosen], motions, truth)


def load_candidate(name: str) -> Any:
    """The network of a candidate."""
    weights, _, noise = name.partition("+")
    weights, _, seed = weights.partition("#")
    backbone = load_backbone(weights, seed=int(seed or 0))
    if noise:
        generator = torch.Generator().manual_seed(0)
        assert isinstance(backbone, nn.Module)
        with torch.no_grad():
            for one in backbone.parameters():
                if one.ndim > 1:
                    normal = torch.randn(one.shape, generator=generator)
                    one.add_(float(noise) * one.std() * normal)
    return backbone


def file_of(bank: Path, candidate: str, sequence: str, kind: str) -> Path:
    """Where a candidate's passes on a sequence are kept."""
    return bank / f"{re.sub(r'[^a-zA-Z0-9.+@#-]', '_', candidate)}__{sequence}__{kind}.npz"


def fill_bank(
    bank: Path, clips: Sequence[Clip], candidates: Sequence[str], kinds: Sequence[str]
) -> None:
    """Makes the passes that are not there yet; those of one network on a clip share features."""
    by_name: dict[str, list[str]] = {}
    for one in candidates:
        by_name.setdefault(one.rpartition(":")[0], []).append(one)
    for name, those in by_name.items():
        network = load_candidate(name)
        for clip in clips:
            kept = KeptFeatures(network)
            for candidate in those:
                for kind in kinds:
                    path = file_of(bank, candidate, clip.name, kind)
                    if path.exists():
                        continue
                    mask = clip.truth[0] if kind == "mask" else pseudo_objects(clip.frames)
                    chosen, _, layer = candidate.rpartition(":")[2].partition("@")
                    protocol = get_protocol(chosen, **({"layer": int(layer)} if layer else {}))
                    passes = run_passes(
                        kept,
                        clip.frames,
                        mask,
                        protocol=scaled_protocol(protocol, SHORT_SIDE),
                        precision=quick_precision("cpu"),
                    )
                    np.savez_compressed(path, **passes._asdict())
                print(f"{candidate} {clip.name}", file=sys.stderr)


def still_passes(frames: Sequence[np.ndarray], mask: np.ndarray) -> Passes:
    """Those of a method that leaves the first mask where it is."""
    staged, truth = stage_video(frames[0], mask)
    still = np.stack([mask] * len(frames))
    return Passes(still, still[: len(staged)], truth)


def passes_of(bank: Path, candidate: str, clip: Clip, kind: str) -> Passes | None:
    """From the bank; None if they are not there."""
    if candidate == STILL:
        mask = clip.truth[0] if kind == "mask" else pseudo_objects(clip.frames)
        return still_passes(clip.frames, mask)
    path = file_of(bank, candidate, clip.name, kind)
    if not path.exists():
        return None
    kept = np.load(path)
    return Passes(*(kept[name] for name in Passes._fields))


def read_bank(bank: Path, clips: Sequence[Clip], candidates: Sequence[str]) -> list[Entry]:
    """The entries that are there, with their cues."""
    entries = []
    for clip in clips:
        for candidate in candidates:
            passes = passes_of(bank, candidate, clip, "mask")
            if passes is None:
                continue
            result = measure_result(passes.forward, clip.frames, clip.motions)
            cues = {"result": result, "mask": result | measure_staged(passes)}
            if (free := passes_of(bank, candidate, clip, "none")) is not None:
                result = measure_result(free.forward, clip.frames, clip.motions)
                cues["none"] = result | measure_staged(free)
            num_objects = int(clip.truth[0].max())
            scores = [
                score_labels(passes.forward[place], labels, num_objects=num_objects)
                for place, labels in clip.truth.items()
                if place
            ]
            true = float(np.nanmean(scores))
            entries.append(Entry(candidate, clip.name, true, cues, passes.forward))
    return entries


def fit(entries: Sequence[Entry], kind: str) -> dict[str, Any]:
    """Bias and weights of the logit of J&F; weights are 0 or more. Sequences count equally."""
    names = CUES[kind]
    x = np.array([[one.cues[kind][name] for name in names] for one in entries])
    y = logit(np.array([one.true for one in entries]))
    counts = {one.sequence: 0 for one in entries}
    for one in entries:
        counts[one.sequence] += 1
    share = np.array([1 / counts[one.sequence] for one in entries])
    share /= share.mean()
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    z = (x - mean) / scale
    bias = float(np.average(y, weights=share))
    rows = [(z - np.average(z, axis=0, weights=share), y - bias, share)]
    for sequence in counts:
        inside = np.array([one.sequence == sequence for one in entries])
        rows.append(
            (
                z[inside] - z[inside].mean(axis=0),
                y[inside] - y[inside].mean(),
                WITHIN * share[inside],
            )
        )
    left = [one * np.sqrt(weight)[:, None] for one, _, weight in rows]
    right = [one * np.sqrt(weight) for _, one, weight in rows]
    left.append(np.sqrt(RIDGE) * np.eye(len(names)))
    right.append(np.zeros(len(names)))
    weights = nnls(np.concatenate(left), np.concatenate(right))[0]
    bias -= float(np.average(z, axis=0, weights=share) @ weights)
    cues = {
        name: {"mean": float(mean[i]), "scale": float(scale[i]), "weight": float(weights[i])}
        for i, name in enumerate(names)
        if weights[i] > 1e-6
    }
    return {"bias": bias, "cues": cues}


def predict(found: dict[str, Any], cues: dict[str, float]) -> float:
    """The logit of J&F."""
    return found["bias"] + sum(
        one["weight"] * (cues[name] - one["mean"]) / one["scale"]
        for name, one in found["cues"].items()
    )


def rank_correlation(these: np.ndarray, others: np.ndarray) -> float:
    """Spearman's."""
    found: Any = spearmanr(these, others)
    return float(found.statistic)


def logit(true: np.ndarray) -> np.ndarray:
    """Of J&F, which is held off 0 and 1."""
    held = np.clip(true, 0.02, 0.98)
    return np.log(held / (1 - held))


def sigmoid(value: np.ndarray) -> np.ndarray:
    """The inverse of `logit`."""
    return 1 / (1 + np.exp(-value))


def unseen_predictions(entries: Sequence[Entry], kind: str) -> np.ndarray:
    """The logit of each entry by a fit to all other sequences."""
    found = np.empty(len(entries))
    for sequence in {one.sequence for one in entries}:
        rule = fit([one for one in entries if one.sequence != sequence], kind)
        for number, one in enumerate(entries):
            if one.sequence == sequence:
                found[number] = predict(rule, one.cues[kind])
    return found


class Pair(NamedTuple):
    """Two entries of a sequence by their places, and the disagreement of their label maps."""

    first: int
    second: int
    apart: float


def pairs_of(entries: Sequence[Entry]) -> list[Pair]:
    """All pairs of candidates of a sequence."""
    return [
        Pair(i, j, disagreement(entries[i].labels, entries[j].labels))
        for i, j in combinations(range(len(entries)), 2)
        if entries[i].sequence == entries[j].sequence
    ]


def differences(
    pairs: Sequence[Pair], predicted: np.ndarray, true: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pair: predicted and true difference, and disagreement."""
    first, second = (np.array([one[i] for one in pairs]) for i in (0, 1))
    apart = np.array([one.apart for one in pairs])
    return predicted[first] - predicted[second], true[first] - true[second], apart


def fit_difference(error: np.ndarray, apart: np.ndarray) -> dict[str, float]:
    """The narrowest intervals least + slope x disagreement that hold nine of ten errors."""
    best = None
    for least in (0.005, 0.01, 0.015, 0.02, 0.03, 0.04):
        slope = float(np.quantile(np.maximum(0, error - least) / (apart + 1e-6), COVERAGE))
        width = float((least + slope * apart).mean())
        if best is None or width < best[0]:
            best = (width, {"least": least, "slope": slope})
    assert best is not None
    return best[1]


def measure(
    entries: Sequence[Entry], kind: str, pairs: Sequence[Pair]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Numbers for unseen sequences, and the fit to all of them."""
    logits = unseen_predictions(entries, kind)
    true = np.array([one.true for one in entries])
    predicted = sigmoid(logits)
    sequences = sorted({one.sequence for one in entries})
    place = {name: np.array([one.sequence == name for one in entries]) for name in sequences}
    misses = np.abs(logits - logit(true))
    covered = [
        misses[place[name]] <= np.quantile(misses[~place[name]], COVERAGE) for name in sequences
    ]
    within = [
        rank_correlation(predicted[inside], true[inside])
        for inside in place.values()
        if true[inside].std() > 0
    ]
    regrets = [
        true[inside].max() - true[inside][predicted[inside].argmax()] for inside in place.values()
    ]
    guessed, real, apart = differences(pairs, predicted, true)
    error = np.abs(guessed - real)
    halves = np.empty(len(pairs))
    for inside in place.values():
        here = inside[[one.first for one in pairs]]
        rule = fit_difference(error[~here], apart[~here])
        halves[here] = rule["least"] + rule["slope"] * apart[here]
    clear = np.abs(guessed) > halves
    right = np.sign(guessed[clear]) == np.sign(real[clear])
    numbers = {
        "rank": rank_correlation(predicted, true),
        "rank_within": float(np.nanmean(within)),
        "regret": 100 * float(np.mean(regrets)),
        "regret_all": 100 * _regret_all(entries, predicted),
        "covered": float(np.mean(np.concatenate(covered))),
        "error": 100 * float(np.abs(predicted - true).mean()),
        "pairs_covered": float((error <= halves).mean()),
        "clear": float(clear.mean()),
        "clear_right": float(right.mean()) if len(right) else float("nan"),
    }
    found = fit(entries, kind)
    found["error"] = float(np.quantile(misses, COVERAGE))
    found["difference"] = fit_difference(error, apart)
    return numbers, found


def _regret_all(entries: Sequence[Entry], predicted: np.ndarray) -> float:
    """Of candidates that have all sequences."""
    by_name: dict[str, list[tuple[float, float]]] = {}
    for one, value in zip(entries, predicted, strict=True):
        by_name.setdefault(one.candidate, []).append((float(value), one.true))
    most = max(map(len, by_name.values()))
    means = np.array([np.mean(one, axis=0) for one in by_name.values() if len(one) == most])
    return float(means[:, 1].max() - means[means[:, 0].argmax(), 1])


def print_cues(entries: Sequence[Entry]) -> None:
    """How each cue ranks by itself."""
    true = np.array([one.true for one in entries])
    rows = []
    for name in entries[0].cues["mask"]:
        values = np.array([one.cues["mask"][name] for one in entries])
        within = []
        for sequence in {one.sequence for one in entries}:
            inside = np.array([one.sequence == sequence for one in entries])
            if values[inside].std() > 0 and true[inside].std() > 0:
                within.append(rank_correlation(values[inside], true[inside]))
        rows.append(
            [name, f"{rank_correlation(values, true):.2f}", f"{np.mean(within or [0]):.2f}"]
        )
    print_table("rank correlation of single cues", ["cue", "all", "within a sequence"], rows)


def generated_clips() -> list[Clip]:
    """Three generated clips."""
    clips = []
    for seed in range(3):
        clip = generate_clip(seed, num_frames=6, height=64, width=96)
        frames, numbers = list(clip.frames), range(len(clip.frames))
        motions = followed_motions(dict(enumerate(frames)), numbers)
        clips.append(Clip(f"generated-{seed}", frames, motions, dict(enumerate(clip.labels))))
    return clips


def main(arguments: Sequence[str] | None = None) -> None:
    """Fills the bank, measures, prints, and writes what is asked for."""
    parser = build_parser(__doc__)
    parser.add_argument("--data", type=Path, nargs="+", metavar="ROOT", help="annotated sequences")
    parser.add_argument("--bank", type=Path, metavar="FOLDER", help="where passes are kept")
    parser.add_argument(
        "--candidates", nargs="+", default=list(CANDIDATES), metavar="NAME:PROTOCOL"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of passes")
    parser.add_argument("--only-fit", action="store_true", help="of what the bank holds")
    parser.add_argument("--write", action="store_true", help="write the fit into the package")
    options = parser.parse_args(arguments)
    if options.quick == (options.data is not None and options.bank is not None):
        parser.error("give --data and --bank, or --quick, which generates clips")
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bank, candidates = options.bank or Path(folder), options.candidates
        clips = list(read_clips(options.data)) if options.data else generated_clips()
        if options.quick:
            candidates = ["color:ino-near", "color:crw"]
        bank.mkdir(parents=True, exist_ok=True)
        if not options.only_fit:
            fill_bank(bank, clips, candidates, options.kinds)
        entries = read_bank(bank, clips, [*candidates, STILL])
    print_cues(entries)
    numbers, fits = {}, {}
    kinds = [kind for kind in CUES if kind in ("result", *options.kinds)]
    for kind in kinds:
        those = [one for one in entries if kind in one.cues]
        numbers[kind], fits[kind] = measure(those, kind, pairs_of(those))
        num_sequences = len({one.sequence for one in those})
        print(f"{kind}: {len(those)} entries, {num_sequences} sequences")
    rows = [[name, *(f"{numbers[kind][name]:.3g}" for kind in kinds)] for name in numbers["result"]]
    print_table("on sequences that the fit has not seen", ["", *kinds], rows)
    if options.write:
        fits = json.loads(CALIBRATION.read_text()) | fits  # a kind that was not measured stays
        write_text(CALIBRATION, json.dumps(_rounded(fits), indent=1) + "\n")
    ratios = {f"{kind}_{name}": numbers[kind][name] for kind in kinds for name in CLAIMED}
    conclude(
        "judge",
        ratios=ratios,
        machine=describe_machine(precision="that of the judge"),
        measured={"numbers": numbers, "fits": fits},
        path=options.json,
    )


def _rounded(value: Any) -> Any:
    """The same with numbers of five digits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    try:
        main()
    except InoError as error:
        sys.exit(f"judge: {error}")
