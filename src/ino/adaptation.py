"""`ino adapt`: weights that suit the user's own footage better, if a judge without labels agrees.

Features of one video have much in common, which hides what tells its parts apart. So the final norm
is fitted to the footage:

    weight' = weight / s^b,    bias' = (bias - a m) / s^b

with the mean m of each channel over the footage, its deviation s relative to that of all channels,
and a few shares a and b. The judge (`ino.propagate.judge`) predicts J&F of each; the weights stay
as they are unless one of the others is better by more than noise.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ino.data.video import count_frames, read_chosen, read_info
from ino.errors import ConfigError, InoError, MaskError, VideoError
from ino.export import export_files, write_files
from ino.models.backbone import VitBackbone, choose_device, computes_in_bf16
from ino.models.load import load_backbone
from ino.models.vit import ARCHITECTURES, VisionTransformer
from ino.models.weights import NetworkName, is_exported
from ino.propagate.features import FeatureExtractor
from ino.propagate.judge import Difference, Judgement, KeptFeatures, check_clip, scaled_protocol
from ino.propagate.protocols import Protocol, get_protocol
from ino.schema import read_json
from ino.system import check_new_folder, write_text
from ino.tasks.judge import SHORT_SIDE, JudgedClip, judge_clip, mean_difference, read_judged
from ino.tasks.results import fingerprint

FITS = {
    "half of the mean removed": (0.5, 0.0),
    "mean removed": (1.0, 0.0),
    "half of the mean removed, deviations halfway equal": (0.5, 0.5),
    "mean removed, deviations equal": (1.0, 1.0),
}
"""What is tried by its name: the shares a of the mean and b of the deviation."""

BEFORE = "before"
NUM_FRAMES = 24
"""Frames of all videos together whose features are looked at."""

LEAST_SECONDS = 1.0
"""Shorter footage says little about what else there is in it."""

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
            return "nothing is better by more than noise: the weights stay as they were"
        (row,) = (row for row in self.rows if row.name == self.kept)
        mean, low, high = (100 * one for one in row.difference)
        return (
            f"kept: {self.kept}, predicted to be better by {mean:.1f} points of J&F, {low:.1f} to "
            f"{high:.1f}"
        )


def adapt(
    videos: Sequence[Path | str],
    *,
    weights: str = "ino_vitt8",
    out: Path | str = "runs/adapted",
    masks: Sequence[str] | None = None,
    protocol: Protocol | str | None = None,
    network: NetworkName | None = None,
    device: str = "auto",
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda total: None,
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
        device: see `Tracker`.
        overwrite: accept a folder that holds something.
        on_progress: called with the number of judgements after each of them.

    Raises:
        VideoError: no video moves and is long enough, or one cannot be read.
        MaskError: a mask cannot be used, or there is not one for each video.
        ConfigError: the weights are of another kind of network, or the protocol does not fit.
        CheckpointError: see `load_backbone`.
        OutputError: the folder holds something else, or cannot be written.
    """
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
    backbone.check_layer(chosen.layer)
    clips = _read_clips(videos, masks)
    videos = list(clips)
    settings: dict[str, Any] = {
        "weights": weights,
        **fingerprint(weights),
        "network": network,
        "protocol": chosen.as_dict(),
        "footage": [_digest(clip) for clip in clips.values()],
    }
    if (found := read_adaptation(out, settings)) is not None:
        return found
    check_new_folder(out, overwrite=overwrite)

    where = choose_device(device)
    backbone.to(where)
    kept = KeptFeatures(backbone)
    mean, deviation = feature_statistics(kept, videos, protocol=chosen, device=where)
    rows: list[Row] = []
    first: list[Any] = []
    for name, (share, power) in {BEFORE: (0.0, 0.0), **FITS}.items():
        fitted: Any = _Fitted(kept, share * mean, deviation**power)
        judged = []
        for clip in clips.values():
            judged.append(judge_clip(fitted, clip, chosen, device=where))
            on_progress((1 + len(FITS)) * len(clips))
        first = first or judged
        rows.append(_row(name, judged, first))
    # The one that is surely better by most: what is very different is also judged less surely.
    best = max(rows[1:], key=lambda row: row.difference.low)
    name = best.name if best.difference.low > 0 else BEFORE

    share, power = FITS.get(name, (0.0, 0.0))
    vit = fit_norm(backbone.vit, mean=share * mean, deviation=deviation**power)
    result = Adaptation(name, str(out), backbone.protocol, rows)
    sha256 = settings.get("sha256")
    facts = {
        "network": network or "",
        "layer": vit.depth,
        "protocol": backbone.protocol,
        "arch": _arch_of(vit),
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


@torch.no_grad()
def fit_norm(
    vit: VisionTransformer, *, mean: Float[Tensor, " dim"], deviation: Float[Tensor, " dim"]
) -> VisionTransformer:
    """A copy of a network whose features are (features - mean) / deviation."""
    fitted = deepcopy(vit)
    norm: Any = fitted.norm
    norm.bias.sub_(mean).div_(deviation)
    norm.weight.div_(deviation)
    return fitted


class _Fitted:
    """The same as a backbone, so that its features are computed once for all fits."""

    def __init__(self, kept: KeptFeatures, mean: Tensor, deviation: Tensor) -> None:
        self._kept = kept
        self._mean, self._deviation = mean[:, None, None], deviation[:, None, None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def __call__(self, image: Tensor, **options: Any) -> Tensor:
        """See the backbone's."""
        return (self._kept(image, **options).float() - self._mean) / self._deviation


def _read_clips(
    videos: Sequence[Path | str], masks: Sequence[str] | None
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
            clip = read_judged(path, mask=masks[number] if masks else None)
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


def feature_statistics(
    backbone: Any, videos: Sequence[Path | str], *, protocol: Protocol, device: torch.device
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Mean of each channel, and its deviation relative to that of all, at the size that is judged.

    0.1 is added to the deviation, so that a channel that hardly changes does not count for much.
    """
    scaled = scaled_protocol(protocol, SHORT_SIDE)
    alone = {"normalize_features": False, "learned_metric": False, "color_share": 0.0}
    plain = scaled.model_copy(update=alone)
    precision = "bf16" if computes_in_bf16(device) else "fp32"
    extractor = FeatureExtractor(backbone, protocol=plain, device=device, precision=precision)
    num_each = max(2, NUM_FRAMES // len(videos))

    def spread(total: int, fps: float) -> list[int]:
        return sorted({(2 * i + 1) * total // (2 * num_each) for i in range(num_each)})

    features = torch.cat(
        [
            extractor(frame).flatten(0, 1).float()
            for video in videos
            for frame in read_chosen(Path(video), spread, fill=True)
        ]
    )
    deviation = features.std(dim=0)
    return features.mean(dim=0), deviation / deviation.mean().clamp(min=1e-6) + 0.1


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


def _arch_of(vit: VisionTransformer) -> str:
    widths = {sizes["embed_dim"]: name for name, sizes in ARCHITECTURES.items()}
    return widths.get(vit.embed_dim, "vit")
