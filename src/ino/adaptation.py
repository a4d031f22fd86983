"""`ino adapt`: weights that suit the user's own footage better, if a judge without labels agrees.

Features x of a network are followed by a linear map W (x - m), where m is their mean over the
footage, which hides what tells the parts of one video apart, and W makes equal either the
deviations of the channels, or the changes of features from frame to frame:

    W = (0.3 S + 0.7 s I)^(-1/2)

with S the covariance of the change of a feature along optical flow and s the mean of its diagonal.
This is within-class covariance normalization (Hatch, Kajarekar and Stolcke, Interspeech 2006),
where a class is a point that moves. Before that the network may learn on by the objective, on the
footage alone (recipe `adapt`). The judge (`ino.propagate.judge`) predicts J&F of each network; the
weights stay as they were unless one of the others is predicted to be better by `LEAST_GAIN`.
"""

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ino.data.video import count_frames, read_chosen, read_info
from ino.errors import ConfigError, InoError, MaskError, OutputError, StoppedError, VideoError
from ino.export import export_files, write_files
from ino.models.backbone import VitBackbone, choose_device
from ino.models.load import load_backbone
from ino.models.vit import ARCHITECTURES, PATCH_SIZES, VisionTransformer
from ino.models.weights import NetworkName, is_exported
from ino.propagate.features import FeatureBackbone, FeatureExtractor, quick_precision
from ino.propagate.judge import Difference, Judgement, check_clip, scaled_protocol
from ino.propagate.protocols import Protocol, fit_layer, get_protocol
from ino.propagate.refine import estimate_motion
from ino.schema import read_json
from ino.system import check_new_folder, write_text
from ino.tasks.judge import (
    RATE,
    SHORT_SIDE,
    JudgedClip,
    judge_clip,
    mean_difference,
    read_judged,
    reduced,
)
from ino.tasks.results import fingerprint
from ino.train.config import load_recipe, resolve
from ino.train.loop import train

BEFORE = "before"
LEARNED = "after learning"
FITS = ("mean removed, deviations equal", "mean removed, changes equal")
"""The linear maps that are tried, of the network before and of the one that learned on."""

LEAST_GAIN = 0.015
"""Difference of predicted J&F, 0..1, from which on other weights are kept."""

JUDGED_SIDE = 480
"""Short side at which the networks are judged, pixels, where the protocol's is not smaller: what
helps at half the size may not help there."""

NUM_PAIRS = 12
"""Pairs of frames of all videos together whose features are looked at."""

TRUSTED = 0.5
"""Trust in optical flow above which it says where a feature was before."""

SHRINKAGE = 0.7
"""Share of equal variances in the covariance of the changes."""

LEAST_SECONDS = 1.0
"""Shorter footage says little about what else there is in it."""

LEARNING_SIDE = 256
"""Short side of the frames that are learned from, pixels."""

LEARNING_FPS = 12.0
"""Frames per second of what is learned from, where the video has so many."""

MOST_FRAMES = 600
"""Frames of all videos together that are learned from."""

STRETCH = 16
"""Frames, at that rate, of each stretch of a video of which not all frames are taken."""

REPORT = "adapt.json"

_LOG = logging.getLogger("ino")


class Row(NamedTuple):
    """One network, judged on all videos: predicted J&F and its difference from `before`, 0..1."""

    name: str
    score: float
    low: float
    high: float
    difference: Difference


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` found.

    Attributes:
        kept: name of the network that was kept; `before` if the weights stay as they were.
        weights: the folder that was written, which `load_backbone` takes.
        protocol: by which it was judged, and which the folder names.
        rows: the networks in the order in which they were tried, `before` first.
    """

    kept: str
    weights: str
    protocol: str
    rows: list[Row]

    @property
    def helped(self) -> bool:
        """Whether other weights than before were kept."""
        return self.kept != BEFORE

    def in_words(self) -> str:
        """A sentence."""
        if not self.helped:
            return (
                f"nothing is predicted to gain {100 * LEAST_GAIN:g} points of J&F: the weights "
                "stay as they were"
            )
        (row,) = (row for row in self.rows if row.name == self.kept)
        mean, low, high = (100 * one for one in row.difference)
        return (
            f"kept: {self.kept}, predicted to be better by {mean:.1f} points of J&F ({low:.1f} to "
            f"{high:.1f})"
        )


def adapt(
    videos: Sequence[Path | str],
    *,
    weights: str = "ino_vitt8",
    out: Path | str = "runs/adapted",
    masks: Sequence[str] | None = None,
    protocol: Protocol | str | None = None,
    network: NetworkName | None = None,
    steps: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    on_progress: Callable[[str, int], None] = lambda what, total: None,
) -> Adaptation:
    """Fits weights to footage and writes those that the judge prefers, as `ino export` would.

    A folder with the result of the same weights and footage is left as it is. Where nothing is
    better, the folder gets the weights as they were.

    Args:
        videos: paths of videos or folders of images, at least one.
        weights: of one of ino's ViTs, see `load_backbone`.
        out: folder for the weights and adapt.json, which says how each network was judged.
        masks: one for each video, see `ino.judge`; None: the judge follows regions that stand out,
            and sees only large differences.
        protocol: under which the weights will be used; its layer is the one that is fitted. None
            for the one that suits the weights.
        network: see `load_backbone`.
        steps: of learning, about; 0: only maps are fitted.
        device: see `Tracker`.
        overwrite: accept a folder that holds something.
        on_progress: called after each step and judgement, with `learning` or `judging` and the
            number of these.

    Raises:
        VideoError: no video moves and is long enough, or one cannot be read.
        MaskError: a mask cannot be used, or there is not one for each video.
        ConfigError: the weights are of another kind of network, the protocol does not fit, or the
            number of steps is below 0.
        CheckpointError: see `load_backbone`.
        OutputError: the folder holds something else, or cannot be written.
        StoppedError: a signal asked to stop while the network learned; nothing is written.
    """
    if steps < 0:
        raise ConfigError(f"the number of steps is {steps}; it must be 0 or more")
    out = Path(out)
    backbone = load_backbone(weights, network=network)
    if not isinstance(backbone, VitBackbone):
        raise ConfigError(
            f"{weights} cannot be adapted: its network is no ViT of ino's own, as ino_vitt8, runs "
            "of ino train and releases of DINO and INO are"
        )
    chosen = protocol or backbone.protocol
    if isinstance(chosen, str):
        chosen = get_protocol(chosen)
    chosen = fit_layer(chosen, backbone.strides)
    backbone.check_layer(chosen.layer)
    side = min(JUDGED_SIDE, chosen.short_side or JUDGED_SIDE)
    clips = _read_clips(videos, masks, short_side=side)
    videos = list(clips)
    settings: dict[str, Any] = {
        "weights": weights,
        **fingerprint(weights),
        "network": network,
        "protocol": chosen.as_dict(),
        "steps": steps,
        "judged_side": side,
        "footage": [_digest(clip) for clip in clips.values()],
    }
    if (found := read_adaptation(out, settings)) is not None:
        return found
    check_new_folder(out, overwrite=overwrite)

    where = choose_device(device)
    networks = candidates(
        backbone,
        videos,
        protocol=chosen,
        steps=steps,
        device=where,
        on_step=lambda total: on_progress("learning", total),
    )
    rows: list[Row] = []
    first: list[Judgement] = []
    for name, candidate in networks.items():
        judged = []
        for clip in clips.values():
            judged.append(judge_clip(candidate, clip, chosen, short_side=side, device=where))
            on_progress("judging", len(networks) * len(clips))
        first = first or judged
        rows.append(_row(name, judged, first))
    best = max(rows[1:], key=lambda row: row.difference.mean)
    name = best.name if best.difference.mean >= LEAST_GAIN else BEFORE
    vit = networks[name].vit

    result = Adaptation(name, str(out), backbone.protocol, rows)
    sha256 = settings.get("sha256")
    facts = {
        "network": network or "",
        "layer": vit.depth,
        "protocol": backbone.protocol,
        "arch": _arch_of(vit) or "vit",
        "adapted": name,
        "started_from": f"weights with SHA-256 {sha256}" if sha256 else weights,
    }
    files = export_files(vit.cpu(), std=backbone.std, facts=facts)
    write_files(out, files, overwrite=True)
    write_text(out / REPORT, json.dumps({**asdict(result), "settings": settings}, indent=2) + "\n")
    return result


def read_adaptation(out: Path, settings: dict[str, Any]) -> Adaptation | None:
    """What `adapt` found before with these settings; None if the folder holds no such result."""
    try:
        found = read_json(out / REPORT)
        rows = [
            Row(name, score, low, high, Difference(*difference))
            for name, score, low, high, difference in found["rows"]
        ]
        known = found["settings"]
    except (OSError, KeyError, TypeError, ValueError, InoError):
        return None
    if known != json.loads(json.dumps(settings)) or not is_exported(out):
        return None
    return Adaptation(found["kept"], str(out), found["protocol"], rows)


def candidates(
    backbone: VitBackbone,
    videos: Sequence[Path | str],
    *,
    protocol: Protocol,
    steps: int,
    device: torch.device,
    on_step: Callable[[int], None] = lambda total: None,
) -> dict[str, VitBackbone]:
    """The networks that are judged, by name, the one before first; arguments are those of `adapt`
    and `learn_on`."""
    bases = {BEFORE: backbone}
    if steps:
        learned = learn_on(backbone, videos, steps=steps, device=device, on_step=on_step)
        if learned is not None:
            bases[LEARNED] = _like(backbone, learned)
    found: dict[str, VitBackbone] = {}
    for name, base in bases.items():
        found[name] = base.to(device)
        for fit, one in fit_maps(look_at(base, videos, protocol=protocol, device=device)).items():
            label = fit if name == BEFORE else f"{name}, {fit}"
            found[label] = _like(base, with_map(base.vit, one))
    return found


class LinearMap(NamedTuple):
    """Features x become weight (x - mean)."""

    mean: Float[Tensor, " dim"]
    weight: Float[Tensor, "dim dim"]


@torch.no_grad()
def with_map(vit: VisionTransformer, fitted: LinearMap) -> VisionTransformer:
    """A copy of a network whose features go through the map, after one that it may have."""
    mapped = deepcopy(vit)
    head = nn.Linear(vit.embed_dim, vit.embed_dim)
    weight, bias = fitted.weight.cpu(), -fitted.weight.cpu() @ fitted.mean.cpu()
    if isinstance(vit.head, nn.Linear):
        weight, bias = weight @ vit.head.weight.cpu(), weight @ vit.head.bias.cpu() + bias
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    mapped.head = head.to(vit.pos_embed.device)
    return mapped


def _like(backbone: VitBackbone, vit: VisionTransformer) -> VitBackbone:
    """The backbone with another network."""
    other = deepcopy(backbone)
    other.vit = vit
    return other.eval()


class Footage(NamedTuple):
    """What features of a network are like in some videos.

    Attributes:
        features: of all positions of the frames, which were looked at.
        changes: of features from a frame to another, along optical flow where it is trusted.
    """

    features: Float[Tensor, "features dim"]
    changes: Float[Tensor, "changes dim"]


def fit_maps(footage: Footage) -> dict[str, LinearMap]:
    """The maps by the names in `FITS`.

    0.1 is added to the deviation of a channel, relative to that of all, so that one that hardly
    changes does not count for much. The second map is left out where optical flow is trusted at
    fewer positions than a feature has channels.
    """
    mean, deviation = footage.features.mean(dim=0), footage.features.std(dim=0)
    deviation = deviation / deviation.mean().clamp(min=1e-6) + 0.1
    maps = {FITS[0]: LinearMap(mean, torch.diag(1 / deviation))}
    changes = footage.changes
    if len(changes) > changes.shape[1]:
        covariance = changes.T @ changes / len(changes)
        scale = covariance.diagonal().mean().clamp(min=1e-12)
        shrunk = torch.lerp(covariance / scale, torch.eye(len(covariance)).to(scale), SHRINKAGE)
        values, vectors = torch.linalg.eigh(shrunk)
        maps[FITS[1]] = LinearMap(mean, (vectors * values.rsqrt()) @ vectors.T)
    return maps


def look_at(
    backbone: FeatureBackbone,
    videos: Sequence[Path | str],
    *,
    protocol: Protocol,
    device: torch.device,
) -> Footage:
    """The features of `NUM_PAIRS` pairs of frames, about 1 / `RATE` seconds from each other, spread
    over the videos, at a short side of `SHORT_SIDE`."""
    scaled = scaled_protocol(protocol, SHORT_SIDE)
    alone = {"normalize_features": False, "learned_metric": False, "color_share": 0.0}
    plain = scaled.model_copy(update=alone)
    extractor = FeatureExtractor(
        backbone, protocol=plain, device=device, precision=quick_precision(device)
    )
    num_each = max(1, NUM_PAIRS // len(videos))
    features, changes = [], []
    for video in videos:
        pairs: list[tuple[int, int]] = []

        def spread(total: int, fps: float, pairs: list[tuple[int, int]] = pairs) -> list[int]:
            gap = min(max(1, round(fps / RATE)), total - 1)
            starts = np.linspace(0, total - 1 - gap, num_each).round().astype(int).tolist()
            pairs[:] = [(start, start + gap) for start in sorted(set(starts))]
            return sorted({number for pair in pairs for number in pair})

        frames = reduced(read_chosen(Path(video), spread, fill=True), SHORT_SIDE)[0]
        by_number = dict(zip(sorted({n for pair in pairs for n in pair}), frames, strict=True))
        found = {number: extractor(frame).float() for number, frame in by_number.items()}
        features += [one.flatten(0, 1) for one in found.values()]
        changes += [
            _changes(by_number[a], by_number[b], before=found[a], after=found[b]) for a, b in pairs
        ]
    return Footage(torch.cat(features), torch.cat(changes))


def _changes(
    old: np.ndarray, new: np.ndarray, *, before: Tensor, after: Tensor
) -> Float[Tensor, "changes dim"]:
    """Of the features of two frames, those of the second minus where they were in the first."""
    rows, columns = after.shape[:2]
    motion = estimate_motion(old, new)
    height, width = new.shape[:2]
    inner = np.ix_(
        (np.arange(rows) * 2 + 1) * height // (2 * rows),
        (np.arange(columns) * 2 + 1) * width // (2 * columns),
    )
    places = np.stack(
        [(2 * motion.column[inner] + 1) / width - 1, (2 * motion.row[inner] + 1) / height - 1], -1
    )
    grid = torch.from_numpy(places).to(after)[None]
    found = F.grid_sample(
        before.movedim(2, 0)[None], grid, align_corners=False, padding_mode="border"
    )
    is_trusted = torch.from_numpy(motion.trust[inner] > TRUSTED).to(after.device)
    return (after - found[0].movedim(0, 2))[is_trusted]


def learn_on(
    backbone: VitBackbone,
    videos: Sequence[Path | str],
    *,
    steps: int,
    device: torch.device,
    on_step: Callable[[int], None] = lambda total: None,
) -> VisionTransformer | None:
    """The network after some steps of the recipe `adapt` on the videos alone.

    None, with a warning, where it is of a size that `ino train` does not build, or where no video
    has frames enough for a clip.

    Args:
        backbone: the network as it was; it stays so.
        videos: paths, at least one.
        steps: about how many; a whole number of epochs are done.
        device: where it learns.
        on_step: called with the number of steps after each of them.

    Raises:
        InoError: see `train`.
    """
    vit = backbone.vit
    arch = _arch_of(vit)
    if arch is None or vit.patch_size not in PATCH_SIZES:
        _LOG.warning("networks of this size do not learn on: only maps of its features are fitted")
        return None
    config = load_recipe("adapt")
    with tempfile.TemporaryDirectory(prefix="ino-adapt-") as name:
        folder = Path(name)
        folders = write_footage(videos, folder / "frames", clip_length=config.data.clip_length)
        if not folders:
            _LOG.warning("the footage has too few frames to learn from: only maps are fitted")
            return None
        write_files(folder / "before", export_files(vit.cpu(), std=backbone.std))
        clips = config.data.batch_size * steps / config.optim.epochs
        config = config.with_values(
            {
                "init": str(folder / "before"),
                "model.arch": arch,
                "model.depth": vit.depth,
                "model.patch_size": vit.patch_size,
                "data.root": [str(folder / "frames")],
                "data.clips_per_video": max(1, round(clips / len(folders))),
                "run.accelerator": device.type,
                "run.devices": 1,
                "run.num_nodes": 1,
            }
        )
        total = len(folders) * config.data.clips_per_video // config.data.batch_size
        total *= config.optim.epochs
        try:
            train(resolve(config), out=folder / "run", on_step=lambda step: on_step(total))
        except StoppedError as error:
            text = "stopped while the network learned: nothing is written"
            raise StoppedError(text, status=error.status) from None
        found = load_backbone(str(folder / "run"))
        assert isinstance(found, VitBackbone)
        return found.vit


def write_footage(videos: Sequence[Path | str], folder: Path, *, clip_length: int) -> list[Path]:
    """Writes reduced frames at the rate of learning, as folders of PNGs, and returns these folders.

    Frames between those of one folder are in others, so all are used. Of long videos, or of many,
    some stretches are taken.

    Raises:
        OutputError: a file cannot be written.
    """
    most = max(1, MOST_FRAMES // len(videos))
    folders = []
    for number, video in enumerate(videos):
        stretches: list[range] = []

        def choose(total: int, fps: float, stretches: list[range] = stretches) -> list[int]:
            step = max(1, round(fps / LEARNING_FPS))
            stretches[:] = _stretches(total, step=step, most=most)
            return sorted({frame for one in stretches for frame in one})

        frames = reduced(read_chosen(Path(video), choose, fill=True), LEARNING_SIDE)[0]
        by_number = dict(zip(sorted({n for one in stretches for n in one}), frames, strict=True))
        for count, stretch in enumerate(stretches):
            if len(stretch) < clip_length:
                continue
            target = folder / f"{number:04d}-{count:04d}"
            target.mkdir(parents=True)
            for frame in stretch:
                path = target / f"{frame:08d}.png"
                if not cv2.imwrite(str(path), by_number[frame][..., ::-1]):
                    raise OutputError(f"cannot write {path}: is the disk full?")
            folders.append(target)
    return folders


def _stretches(total: int, *, step: int, most: int) -> Iterator[range]:
    """Frame numbers that follow each other by a step, about as many as may be taken."""
    length = total if total <= most else min(total, STRETCH * step)
    count = max(1, most // length) if length < total else 1
    for start in np.linspace(0, total - length, count).round().astype(int).tolist():
        for first in range(min(step, length)):
            yield range(start + first, start + length, step)


def _read_clips(
    videos: Sequence[Path | str], masks: Sequence[str] | None, *, short_side: int
) -> dict[Path, JudgedClip]:
    """Of each video what is judged; those that nothing can be learned from are left out."""
    if not videos:
        raise VideoError("no video was given; give one or several")
    if masks is not None and len(masks) != len(videos):
        raise MaskError(
            f"{len(masks)} masks are given for {len(videos)} videos: give one for each, in the "
            "same order, or none"
        )
    clips, faults = {}, []
    for number, video in enumerate(videos):
        path = Path(video)
        try:
            seconds = count_frames(path) / read_info(path).fps
            if seconds < LEAST_SECONDS:
                raise VideoError(
                    f"{seconds:.2g} seconds are too short to learn from: {LEAST_SECONDS:g} or more "
                    "are needed"
                )
            mask = masks[number] if masks else None
            clip = read_judged(path, mask=mask, short_side=short_side)
            check_clip(clip.frames)
        except VideoError as error:
            text = str(error)
            faults.append(text if text.startswith(str(video)) else f"{video}: {text}")
        else:
            clips[path] = clip
    if not clips:
        raise VideoError(f"{'; '.join(faults)}; the weights stay as they are")
    for fault in faults:
        _LOG.warning("%s; it is left out", fault)
    return clips


def _row(name: str, judged: Sequence[Judgement], first: Sequence[Judgement]) -> Row:
    score = math.fsum(one.score for one in judged) / len(judged)
    below = math.hypot(*(one.score - one.low for one in judged)) / len(judged)
    above = math.hypot(*(one.high - one.score for one in judged)) / len(judged)
    return Row(name, score, score - below, score + above, mean_difference(judged, first))


def _digest(clip: JudgedClip) -> str:
    digest = hashlib.sha256()
    for array in (*clip.frames, *(() if clip.mask is None else (clip.mask,))):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _arch_of(vit: VisionTransformer) -> str | None:
    """The name of a network of this width and number of heads; None if there is none."""
    block: Any = vit.blocks[0]
    heads = block.attn.num_heads
    for name, sizes in ARCHITECTURES.items():
        if sizes == {"embed_dim": vit.embed_dim, "num_heads": heads}:
            return name
    return None
