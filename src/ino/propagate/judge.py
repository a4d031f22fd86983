"""A judge without labels: from a propagation to the J&F that it is predicted to reach.

Without labels, this can be measured: masks should move as the optical flow does, and keep their
size and their colors; and a staged video, in which the objects of the first frame move in a known
way, should be solved. Each such cue is a number in 0..1, the mean over objects and frames. The
prediction is

    J&F = 1 / (1 + exp(-(b + sum of w x (cue - m) / s)))

with the numbers of judge.json, which `benchmarks/judge.py` fits to annotated sequences; the
interval comes from errors on sequences that the fit has not seen. There are three fits: for a given
mask, for none (objects are then regions that stand out), and for a result alone.

Limits: where the optical flow is wrong, masks that follow it are trusted too much; and objects that
leave the frame are not recognized as such.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ino.errors import ConfigError, MaskError, VideoError
from ino.metrics import score_labels
from ino.propagate.features import Precision
from ino.propagate.protocols import Protocol
from ino.propagate.refine import Motion, estimate_motion
from ino.propagate.tracker import FeatureBackbone, Tracker

Frame = UInt8[np.ndarray, "height width 3"]
Labels = UInt8[np.ndarray, "height width"]
Kind = Literal["mask", "none", "result"]
LabelMaps = UInt8[np.ndarray, "frames height width"]

STAGED_STEPS = 4
"""Frames of the staged video after the first."""

NEAR = 4
"""Frames after the first in the cue near_flow."""

NUM_REGIONS = 3
LEAST_REGION = 0.004
LARGEST_REGION = 0.15
"""Regions that stand out: how many, and what share of the frame they have."""

CALIBRATION = Path(__file__).with_name("judge.json")
"""Written by benchmarks/judge.py."""

LEAST_CHANGE = 3.0
"""A video in which hardly any pixel changes by so many grey levels does not move."""

LEAST_TEXTURE = 2.0
"""A frame whose grey levels deviate by less has no texture."""


@dataclass(frozen=True)
class Judgement:
    """What is predicted of one network and protocol, or one result, on one video.

    Attributes:
        score: predicted J&F, 0..1.
        low, high: it is between these in about nine of ten cases.
        cues: what was measured, 0..1 each, by name.
        frames: how many were looked at.
        labels: their label maps, of the given mask or of regions that stand out.
        kind: what they are of: a given mask, regions that stand out, or a result alone.
    """

    score: float
    low: float
    high: float
    cues: dict[str, float]
    frames: int
    labels: LabelMaps = field(repr=False, compare=False)
    kind: Kind


class Difference(NamedTuple):
    """How much the J&F of one is above that of another on the same video, and its interval."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether it is more than noise: 0 lies outside of the interval."""
        return self.low > 0 or self.high < 0

    def in_words(self) -> str:
        """A sentence, in points of J&F."""
        mean, low, high = (100 * one for one in self)
        span = f"{mean:.1f} points, {low:.1f} to {high:.1f}"
        if self.is_clear:
            return f"the first is better than the second by more than noise: {span}"
        return f"the first and the second do not differ by more than noise: {span}"


def judge_frames(
    backbone: FeatureBackbone,
    frames: Sequence[Frame],
    mask: Labels | None,
    *,
    protocol: Protocol,
    motions: Sequence[Motion] | None = None,
    short_side: int = 240,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> Judgement:
    """The judgement of a network under a protocol.

    Args:
        backbone: see `Tracker`.
        frames: 3 or more, with a short side of at most `short_side`.
        mask: of the first frame; None: regions that stand out are propagated.
        protocol: its own short side is reduced to `short_side`, and its radius in proportion.
        motions: see `measure_result`.
        short_side: pixels.
        device, precision: see `Tracker`.

    Raises:
        VideoError: see `check_clip`; or no mask is given and nothing stands out.
        MaskError: the mask has no object.
        ConfigError: the protocol does not fit the backbone.
    """
    check_clip(frames)
    labels = numbered(mask) if mask is not None else pseudo_objects(frames)
    if not labels.any():
        raise MaskError("the mask holds no object; mark at least one")
    passes = run_passes(
        backbone,
        frames,
        labels,
        protocol=scaled_protocol(protocol, short_side),
        device=device,
        precision=precision,
    )
    cues = measure_result(passes.forward, frames, motions) | measure_staged(passes)
    return predict(cues, passes.forward, kind="none" if mask is None else "mask")


def judge_labels(
    frames: Sequence[Frame], labels: LabelMaps, *, motions: Sequence[Motion] | None = None
) -> Judgement:
    """The judgement of label maps alone, of any method; the first one counts as given.

    `motions`: see `measure_result`.

    Raises:
        VideoError: see `check_clip`.
        MaskError: the first label map has no object.
    """
    check_clip(frames)
    if not labels[0].any():
        raise MaskError("the first mask holds no object; give a result that begins with one")
    ids = np.unique(labels[0])
    labels = np.stack([numbered(one, ids) for one in labels])
    return predict(measure_result(labels, frames, motions), labels, kind="result")


def check_clip(frames: Sequence[Frame]) -> None:
    """Raises VideoError if there are less than 3 frames, no motion or no texture to judge by."""
    if len(frames) < 3:
        raise VideoError(
            f"a judge needs 3 frames or more, but there {'is' if len(frames) == 1 else 'are'} "
            f"{len(frames)}; give a longer video"
        )
    grey = [cv2.blur(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), (5, 5)) for one in frames]
    if float(grey[0].std()) < LEAST_TEXTURE:
        raise VideoError("the first frame has no texture, so there is nothing to judge by")
    change = max(float(np.percentile(cv2.absdiff(grey[0], one), 99.5)) for one in grey[1:])
    if change < LEAST_CHANGE:
        raise VideoError(
            "the video does not move, and a judge sees nothing where every mask stays right; give "
            "one with motion"
        )


def numbered(labels: Labels, ids: np.ndarray | None = None) -> Labels:
    """Objects become 1, 2, ... in the order of their ids; those that are not in `ids` vanish."""
    known = [one for one in (np.unique(labels) if ids is None else ids) if one]
    table = np.zeros(256, dtype=np.uint8)
    table[known] = np.arange(1, len(known) + 1)
    return table[labels]


def scaled_protocol(protocol: Protocol, short_side: int) -> Protocol:
    """The protocol at another short side, its radius in proportion, as `get_protocol` does."""
    before = protocol.short_side
    if before is None or before <= short_side:
        return protocol
    radius = protocol.radius and max(1, round(protocol.radius * short_side / before))
    return protocol.model_copy(update={"short_side": short_side, "radius": radius})


# Passes ---------------------------------------------------------------------------------------


class Passes(NamedTuple):
    """What a network and a protocol make of a video.

    Attributes:
        forward: from the mask of the first frame.
        staged, staged_truth: of the staged video, and what is right there.
    """

    forward: LabelMaps
    staged: LabelMaps
    staged_truth: LabelMaps


class KeptFeatures:
    """A backbone that keeps all features that it gave, for several judgements of a video."""

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self._kept: dict[bytes, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def __call__(self, image: Tensor, **options: Any) -> Tensor:
        """See the backbone's."""
        key = hashlib.blake2b(image.numpy(force=True).tobytes(), digest_size=16)
        key.update(repr((image.shape, sorted(options.items(), key=str))).encode())
        if (digest := key.digest()) not in self._kept:
            self._kept[digest] = self._backbone(image, **options)
        return self._kept[digest]


def run_passes(
    backbone: FeatureBackbone | KeptFeatures,
    frames: Sequence[Frame],
    mask: Labels,
    *,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> Passes:
    """Propagates a mask with objects 1 to n through the video and on a stage."""
    if isinstance(backbone, nn.Module):
        backbone.to(device).eval()
    network: Any = backbone
    tracker = Tracker(network, protocol=protocol, device=device, precision=precision, warns=False)
    forward = _track(tracker, frames, mask)
    forward[0] = mask  # crw and dul return it as the feature grid shows it
    staged, truth = stage_video(frames[0], mask)
    return Passes(forward, _track(tracker, staged, mask), truth)


def _track(tracker: Tracker, frames: Sequence[Frame], mask: Labels) -> LabelMaps:
    """Label maps of a pass; without any object where the mask has none."""
    if not mask.any():
        return np.zeros((len(frames), *mask.shape), dtype=np.uint8)
    return np.stack(list(tracker.track(frames, {0: mask})))


def stage_video(frame: Frame, mask: Labels) -> tuple[list[Frame], LabelMaps]:
    """A video in which the objects of a frame move in a known way, and its label maps.

    The background, inpainted where objects were, pans; the objects move to the middle of the frame
    and beyond, turn by 4 degrees and grow by 2% per frame, and become a little brighter.
    """
    height, width = mask.shape
    unit, size = min(height, width) / 240, (width, height)
    hole = cv2.dilate((mask > 0).astype(np.uint8), np.ones((5, 5), np.uint8))
    empty = cv2.inpaint(frame, hole, 3, cv2.INPAINT_TELEA)
    rows, columns = np.nonzero(mask)
    center = float(columns.mean()), float(rows.mean())
    toward = np.array([width / 2 - center[0], height / 2 - center[1]])
    distance = float(np.hypot(*toward))
    toward = toward / distance if distance > 8 * unit else np.array([0.8, -0.6])
    frames, truth = [frame], [mask]
    for step in range(1, STAGED_STEPS + 1):
        pan = np.array([[1, 0, -2 * unit * step], [0, 1, unit * step]])
        turn = cv2.getRotationMatrix2D(center, 4.0 * step, 1.02**step)
        turn[:, 2] += 5 * unit * step * toward
        behind = cv2.warpAffine(empty, pan, size, borderMode=cv2.BORDER_REFLECT)
        before = cv2.warpAffine(frame, turn, size, borderMode=cv2.BORDER_REFLECT)
        before = cv2.convertScaleAbs(before, alpha=1 + 0.02 * step)
        share = cv2.warpAffine((mask > 0).astype(np.float32), turn, size)[..., None]
        frames.append((share * before + (1 - share) * behind).astype(np.uint8))
        truth.append(cv2.warpAffine(mask, turn, size, flags=cv2.INTER_NEAREST))
    return frames, np.stack(truth)


# Cues -----------------------------------------------------------------------------------------


def measure_result(
    labels: LabelMaps, frames: Sequence[Frame], motions: Sequence[Motion] | None = None
) -> dict[str, float]:
    """Cues of label maps with objects 1 to n, the first of which is given.

    `motions` is that from each frame to the next, where it is known already (`chained`).

    - near_flow, far_flow: J of label maps and the first one, moved along the optical flow from
      frame to frame; in the first frames, and in all.
    - moves: 1 minus the excess of J of label maps and the unmoved first one over what the flow
      says, so that labels that stay where objects move away are found.
    - size: smaller over larger area, of each label map and the first one.
    - colors: common part of the histograms of an object's colors in each frame and the first.
    """
    num_objects = int(labels[0].max())
    first, later = labels[0], labels[1:]
    moved = [first]
    for motion in motions or (estimate_motion(*pair) for pair in pairwise(frames)):
        moved.append(cv2.remap(moved[-1], motion.column, motion.row, cv2.INTER_NEAREST))
    follows = [_mean_j(*pair, num_objects) for pair in zip(later, moved[1:], strict=True)]
    excess = [
        max(0.0, _mean_j(one, first, num_objects) - _mean_j(other, first, num_objects))
        for one, other in zip(later, moved[1:], strict=True)
    ]
    areas = np.array([np.bincount(one.ravel(), minlength=num_objects + 1) for one in labels])
    areas = areas[:, 1 : num_objects + 1].astype(np.float64)
    ratios = np.minimum(areas[1:], areas[0]) / np.maximum(areas[1:], areas[0])
    return {
        "near_flow": _mean(follows[:NEAR]),
        "far_flow": _mean(follows),
        "moves": 1 - _mean(excess),
        "size": float(ratios.mean()),
        "colors": _color_cue(labels, frames, num_objects),
    }


def chained(motions: Sequence[Motion]) -> Motion:
    """The motion through several frames, from those between neighbors; the trust is the last one's.

    Small motions are found more surely than a large one.
    """
    whole, *others = motions
    for one in others:
        column, row = (
            cv2.remap(part, one.column, one.row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for part in (whole.column, whole.row)
        )
        whole = Motion(column, row, one.trust)
    return whole


def measure_staged(passes: Passes) -> dict[str, float]:
    """The cue `staged`: J&F in the staged video."""
    num_objects = int(passes.staged_truth[0].max())
    scores = [
        np.nanmean(score_labels(found, truth, num_objects=num_objects))
        for found, truth in zip(passes.staged[1:], passes.staged_truth[1:], strict=True)
    ]
    return {"staged": _mean([float(one) for one in scores])}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_j(these: Labels, others: Labels, num_objects: int) -> float:
    """J of two label maps, mean over the objects; 0 for one that neither has."""
    size = num_objects + 1
    pairs = these.astype(np.int64) * size + others
    table = np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)
    both = np.diag(table)[1:]
    union = table.sum(axis=0)[1:] + table.sum(axis=1)[1:] - both
    return float(np.where(union > 0, both / np.maximum(union, 1), 0.0).mean())


def _color_cue(labels: LabelMaps, frames: Sequence[Frame], num_objects: int) -> float:
    """See `measure_result`."""
    bins = [_color_bins(frame) for frame in frames]
    found = []
    for label in range(1, num_objects + 1):
        first = _histogram(bins[0][labels[0] == label])
        for one, map_ in zip(bins[1:], labels[1:], strict=True):
            chosen = one[map_ == label]
            common = np.minimum(_histogram(chosen), first).sum() if len(chosen) else 0.0
            found.append(float(common))
    return _mean(found)


_BINS = (8, 16, 16)


def _color_bins(frame: Frame) -> np.ndarray:
    """The bin of each pixel's color in Lab."""
    lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.int64)
    parts = [lab[..., i] * count // 256 for i, count in enumerate(_BINS)]
    return np.ravel_multi_index(parts, _BINS)


def _histogram(bins: np.ndarray) -> np.ndarray:
    """Shares of the bins, smoothed."""
    counts = np.bincount(bins, minlength=math.prod(_BINS)).reshape(_BINS).astype(np.float64)
    for axis, size in enumerate(_BINS):
        padded = np.pad(counts, [(1, 1) if one == axis else (0, 0) for one in range(3)])
        below, above = padded.take(range(size), axis), padded.take(range(2, size + 2), axis)
        counts = 0.5 * counts + 0.25 * (below + above)
    return counts / max(1e-9, counts.sum())


# Prediction -----------------------------------------------------------------------------------


@cache
def calibration() -> dict[str, Any]:
    """The numbers of judge.json."""
    return json.loads(CALIBRATION.read_text(encoding="utf-8"))


def predict(cues: dict[str, float], labels: LabelMaps, *, kind: Kind) -> Judgement:
    """The prediction from cues, see the module.

    Args:
        cues: 0..1.
        labels: that they are of.
        kind: mask, none or result.
    """
    fit = calibration()[kind]
    logit = fit["bias"] + math.fsum(
        one["weight"] * (cues[name] - one["mean"]) / one["scale"]
        for name, one in fit["cues"].items()
    )
    low, score, high = (_sigmoid(logit + shift * fit["error"]) for shift in (-1, 0, 1))
    return Judgement(score, low, high, cues, len(labels), labels, kind)


def judge_difference(first: Judgement, second: Judgement) -> Difference:
    """How much better the first is, of two judgements of the same video, mask and frames.

    The interval is as wide as nine of ten errors in sequences that the fit has not seen. They grow
    with the share of the objects in which both results differ, so that nearly equal results are
    told apart more finely.

    Raises:
        ConfigError: the judgements are not of the same frames, objects and kind.
    """
    if first.kind != second.kind or first.labels.shape != second.labels.shape:
        raise ConfigError(
            "two judgements can be compared only if both are of the same video, mask and frames"
        )
    if not np.array_equal(first.labels[0] > 0, second.labels[0] > 0):
        raise ConfigError("two judgements can be compared only if both begin with the same mask")
    mean = first.score - second.score
    half = difference_error(disagreement(first.labels, second.labels), kind=first.kind)
    return Difference(mean, mean - half, mean + half)


def disagreement(these: LabelMaps, others: LabelMaps) -> float:
    """1 - J of the label maps of two results, mean over frames and objects, 0..1."""
    num_objects = int(these[0].max())
    pairs = zip(these[1:], others[1:], strict=True)
    return 1 - _mean([_mean_j(*pair, num_objects) for pair in pairs])


def difference_error(apart: float, *, kind: str) -> float:
    """Half of the interval of a difference, for a disagreement."""
    fit = calibration()[kind]["difference"]
    return fit["least"] + fit["slope"] * apart


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, value))))


# Regions that stand out -----------------------------------------------------------------------


def pseudo_objects(frames: Sequence[Frame]) -> Labels:
    """A label map of the first frame with regions that stand out by motion and color.

    Pixels are clustered by color, place, and motion against that of the frame as a whole. The
    connected regions of 0.4% to 15% of the frame that move most and differ most from what
    surrounds them become objects, three at most.

    Raises:
        VideoError: there is none.
    """
    first = frames[0]
    height, width = first.shape[:2]
    color = cv2.cvtColor(cv2.GaussianBlur(first, (0, 0), 1.5), cv2.COLOR_RGB2LAB)
    color = color.astype(np.float32)
    speed = _own_speed(first, frames[1])
    regions = []
    for clustered in _clusters(color, speed):
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(clustered)
        for number in range(1, count):
            left, top, columns, rows, size = stats[number]
            if not LEAST_REGION <= size / (height * width) <= LARGEST_REGION:
                continue
            region = numbers == number
            around = cv2.dilate(region.astype(np.uint8), np.ones((15, 15), np.uint8)) > region
            contrast = np.abs(color[region].mean(axis=0) - color[around].mean(axis=0)).sum() / 20
            edges = (left == 0, top == 0, left + columns == width, top + rows == height)
            worth = min(3.0, speed[region].mean()) + min(2.0, contrast) - sum(edges)
            regions.append((float(worth), region))
    if not regions:
        raise VideoError("nothing in the first frame stands out by motion or color; give a mask")
    labels = np.zeros((height, width), dtype=np.uint8)
    regions.sort(key=lambda one: -one[0])
    for label, (_, region) in enumerate(regions[:NUM_REGIONS], start=1):
        labels[region] = label
    return labels


def _own_speed(first: Frame, second: Frame) -> Float[np.ndarray, "height width"]:
    """Pixels by which each pixel of a frame moves against the affine motion of most pixels."""
    motion = estimate_motion(second, first)
    rows, columns = np.indices(motion.column.shape, dtype=np.float32)
    flow = np.stack([motion.column - columns, motion.row - rows], axis=-1)
    flow = (flow * (motion.trust[..., None] > 0.1)).reshape(-1, 2)
    place = np.stack([columns, rows, np.ones_like(rows)], axis=-1).reshape(-1, 3)
    chosen = np.ones(len(flow), dtype=bool)
    speed = np.zeros(len(flow))
    for _ in range(4):
        affine = np.linalg.lstsq(place[chosen], flow[chosen], rcond=None)[0]
        speed = np.hypot(*(flow - place @ affine).T)
        chosen = speed <= max(1.0, float(np.median(speed)) * 1.5)
    return cv2.GaussianBlur(speed.reshape(rows.shape).astype(np.float32), (0, 0), 2)


def _clusters(color: np.ndarray, speed: np.ndarray) -> Iterator[Labels]:
    """1 at the pixels of each of twelve clusters; the same for the same frames."""
    height, width = speed.shape
    rows, columns = np.indices(speed.shape, dtype=np.float32)
    parts = [
        color / 12,
        np.stack([columns, rows], axis=-1) / (min(height, width) / 6),
        np.minimum(speed, 8)[..., None] / 1.5,
    ]
    small = (max(4, width // 4), max(3, height // 4))
    reduced = [cv2.resize(one, small, interpolation=cv2.INTER_AREA) for one in parts]
    points = np.dstack(reduced)
    down, across = np.indices(small[::-1])
    start = (down * 3 // small[1]) * 4 + across * 4 // small[0]
    _, found, _ = cv2.kmeans(
        points.reshape(-1, points.shape[-1]),
        12,
        start.reshape(-1, 1).astype(np.int32),
        (cv2.TERM_CRITERIA_MAX_ITER, 20, 0),
        1,
        cv2.KMEANS_USE_INITIAL_LABELS,
    )
    grid = found.reshape(small[::-1]).astype(np.uint8)
    grid = cv2.resize(grid, (width, height), interpolation=cv2.INTER_NEAREST)
    grid = cv2.medianBlur(grid, 9)
    for cluster in range(12):
        yield (grid == cluster).astype(np.uint8)
