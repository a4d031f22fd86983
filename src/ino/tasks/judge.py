"""`ino judge`: predicts J&F on videos without labels, for weights and protocols or for results.

What is measured and how it becomes a number is in `ino.propagate.judge`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from ino.data.label_maps import VOID, as_labels, read_labels
from ino.data.video import count_frames, frame_names, read_chosen, video_name
from ino.errors import ConfigError, MaskError, VideoError
from ino.models.backbone import choose_device
from ino.models.load import load_backbone
from ino.models.weights import NetworkName
from ino.propagate.features import quick_precision
from ino.propagate.judge import (
    Difference,
    Judgement,
    chained,
    judge_difference,
    judge_frames,
    judge_labels,
)
from ino.propagate.protocols import Protocol, get_protocol
from ino.propagate.refine import Motion, estimate_motion
from ino.propagate.tracker import FeatureBackbone
from ino.tasks.masks import read_masks

RATE = 8.0
"""Frames per second that are judged, where the video has so many and is long enough."""

NUM_FRAMES = 12
SHORT_SIDE = 240
STRIDES = 4
"""From one of these frames to the next, optical flow is followed in so many strides, where the
video has frames between them: long motions are not found at once."""

Video = Path | str | Sequence[np.ndarray] | UInt8[np.ndarray, "frames height width 3"]


def judge(
    backbone: FeatureBackbone | str | Path,
    video: Video,
    *,
    protocol: Protocol | str | None = None,
    mask: np.ndarray | str | Path | None = None,
    num_frames: int = NUM_FRAMES,
    short_side: int = SHORT_SIDE,
    device: torch.device | str = "cpu",
) -> Judgement:
    """The J&F that a network and a protocol are predicted to reach on a video without labels.

    Example:
        ours = ino.judge("ino_vitt8", "clip.mp4", mask="first.png")
        raw = ino.judge("color", "clip.mp4", mask="first.png")
        print(ours.score, ino.judge_difference(ours, raw))

    Args:
        backbone: what `load_backbone` gives or takes.
        video: path, or uint8 RGB frames (height, width, 3), which are taken as they follow.
        protocol: name of a protocol or a Protocol; None for the one that suits the weights.
        mask: of the first frame, height x width (0 background, 1 to 254 objects, 255 void); or
            what `ino segment --mask` takes, where `FRAME=` before it names another frame to begin
            with. None: regions of the first frame that stand out by motion or color are propagated
            instead, and the interval is wider.
        num_frames: the most frames to judge, 3 or more: about 8 per second of the video, from the
            one of the mask on. The prediction was made for 12.
        short_side: frames are reduced to this short side, pixels; also the input of the network
            where the protocol's is larger. The prediction was made for 240.
        device: see `Tracker`.

    Raises:
        VideoError: the video cannot be read, has fewer than 3 frames from the mask on, does not
            move, or has no texture.
        MaskError: the mask cannot be used or has no object.
        ConfigError: a value is out of range, or the protocol is unknown or does not fit.
        CheckpointError: see `load_backbone`.
    """
    if isinstance(backbone, str | Path):
        backbone = load_backbone(backbone)
    chosen = protocol if protocol is not None else getattr(backbone, "protocol", "ino-davis")
    if isinstance(chosen, str):
        chosen = get_protocol(chosen)
    clip = read_judged(video, mask=mask, num_frames=num_frames, short_side=short_side)
    return judge_clip(backbone, clip, chosen, short_side=short_side, device=device)


def judge_result(
    result: Path | str,
    video: Path | str,
    *,
    num_frames: int = NUM_FRAMES,
    short_side: int = SHORT_SIDE,
) -> Judgement:
    """The J&F that a result, of any method, is predicted to have on a video without labels.

    Args:
        result: folder of `ino segment`, or of indexed PNGs, one per frame of the video. The first
            mask with an object counts as given.
        video: path of the video.
        num_frames, short_side: see `judge`.

    Raises:
        VideoError, ConfigError: see `judge`.
        MaskError: there is not one mask per frame, or none has an object.
    """
    folder, video = Path(result), Path(video)
    if (folder / "masks").is_dir():
        folder = folder / "masks"
    if not folder.is_dir():
        raise MaskError(f"{folder} is not a folder: give one with one PNG mask per frame")
    paths = sorted(folder.glob("*.png"))
    total = count_frames(video)
    if len(paths) != total:
        raise MaskError(
            f"{folder} holds {len(paths)} PNG masks, but {video} has {total} frames; give a "
            "folder with one mask per frame"
        )
    if names := frame_names(video):
        paths = [folder / f"{name}.png" for name in names]
        if missing := [path for path in paths if not path.is_file()]:
            raise MaskError(f"{missing[0]} is missing; masks are named as the frames of {video}")
    for start, path in enumerate(paths):  # noqa: B007
        if _objects(read_labels(path)).any():
            break
    else:
        raise MaskError(f"no mask in {folder} has an object; give a result with objects")
    clip = read_judged(video, start=start, num_frames=num_frames, short_side=short_side)
    size = clip.frames[0].shape[1::-1]
    labels = []
    for number in clip.numbers:
        found = read_labels(paths[number])
        _check_size(found, clip.size, str(paths[number]))
        labels.append(_resized(_objects(found), size))
    return judge_labels(clip.frames, np.stack(labels), motions=clip.motions)


class JudgedClip(NamedTuple):
    """Reduced frames of a video that are judged.

    Attributes:
        frames: uint8 RGB.
        motions: from each of them to the next, by way of frames between them.
        numbers: of these frames in the video, from 0.
        mask: of the first one, if one is given.
        size: height and width of the video, pixels.
    """

    frames: list[np.ndarray]
    motions: list[Motion]
    numbers: list[int]
    mask: np.ndarray | None
    size: tuple[int, int]


def read_judged(
    video: Video,
    *,
    mask: np.ndarray | str | Path | None = None,
    start: int = 0,
    num_frames: int = NUM_FRAMES,
    short_side: int = SHORT_SIDE,
) -> JudgedClip:
    """The frames that `judge` looks at, from `start` or that of the mask on.

    Raises:
        VideoError, MaskError, ConfigError: see `judge`.
    """
    if num_frames < 3:
        raise ConfigError(f"the number of frames to judge is {num_frames}; it must be 3 or more")
    if short_side < 32:
        raise ConfigError(f"the short side is {short_side} pixels; it must be 32 or more")
    path = Path(video) if isinstance(video, str | Path) else None
    labels = None
    if isinstance(mask, str | Path):
        if path is None:
            raise ConfigError("the mask of frames that are no file must be an array")
        given = {
            number: one
            for number, one in read_masks([str(mask)], path).labels.items()
            if _objects(one).any()
        }
        if not given:
            raise MaskError(f"the mask {mask} holds no object; mark at least one")
        start = min(given)
        labels = given[start]
    elif mask is not None:
        labels = as_labels(mask, "the mask")
    numbers: list[int] = []

    def choose(total: int, fps: float) -> list[int]:
        left = total - start
        if left < 3:
            of = f" from frame {start} on" if start else ""
            raise VideoError(
                f"{video_name(path) if path else 'the video'} has {left} "
                f"frame{'s' if left != 1 else ''}{of}, but a judge needs 3 or more"
            )
        step = max(1, min(round(fps / RATE), left // num_frames))
        numbers[:] = range(start, total, step)[:num_frames]
        return with_strides(numbers)

    if path is not None:
        reading: Any = read_chosen(path, choose, fill=True)
    else:
        given_frames: Any = video
        reading = (np.asarray(given_frames[i]) for i in choose(len(given_frames), RATE))
    small, (height, width) = reduced(reading, short_side)
    if labels is not None:
        labels = _objects(labels)
        _check_size(labels, (height, width), "the mask")
        if not labels.any():
            raise MaskError("the mask holds no object; mark at least one")
        labels = _resized(labels, small[0].shape[1::-1])
        if not labels.any():
            raise MaskError(
                f"no object of the mask is left at a short side of {short_side} pixels; give a "
                "larger one"
            )
    by_number = dict(zip(with_strides(numbers), small, strict=True))
    frames = [by_number[number] for number in numbers]
    motions = followed_motions(by_number, numbers)
    return JudgedClip(frames, motions, numbers, labels, (height, width))


def with_strides(numbers: Sequence[int]) -> list[int]:
    """Numbers of frames, and of those between them by way of which the motion is followed."""
    found = {*numbers}
    for a, b in pairwise(numbers):
        found |= {round(one) for one in np.linspace(a, b, min(b - a, STRIDES) + 1)}
    return sorted(found)


def followed_motions(frames: Mapping[int, np.ndarray], numbers: Sequence[int]) -> list[Motion]:
    """From each of these frames to the next, by way of those between them (`with_strides`)."""
    between = sorted(frames)
    return [
        chained([estimate_motion(frames[i], frames[j]) for i, j in pairwise(between) if a <= i < b])
        for a, b in pairwise(numbers)
    ]


def reduced(
    frames: Iterable[np.ndarray], short_side: int
) -> tuple[list[np.ndarray], tuple[int, int]]:
    """The frames at a short side of at most `short_side`, and their own height and width."""
    small, shape, size = [], (0, 0, 0), (0, 0)
    for frame in frames:
        if not small and frame.ndim == 3:
            shape = frame.shape
            scale = min(1.0, short_side / min(shape[:2]))
            size = (max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale)))
        if frame.dtype != np.uint8 or frame.shape != shape or shape[2] != 3:
            raise VideoError("frames must be uint8 RGB images of one size, height x width x 3")
        small.append(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
    return small, shape[:2]


def _check_size(labels: np.ndarray, size: tuple[int, int], what: str) -> None:
    if labels.shape != size:
        raise MaskError(
            f"{what} is {labels.shape[0]}x{labels.shape[1]} but the frames are "
            f"{size[0]}x{size[1]} (height x width); give masks of the video's size"
        )


def _objects(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == VOID, 0, labels).astype(np.uint8)


def _resized(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)


@dataclass(frozen=True)
class RankedRow:
    """One network and protocol, or one result, on all videos.

    Attributes:
        name: the weights, or the folder of the result.
        protocol: its name; empty for a result.
        score, low, high: predicted J&F, mean over the videos, and its interval, 0..1.
        videos: the judgement of each video by its path.
    """

    name: str
    protocol: str
    score: float
    low: float
    high: float
    videos: dict[str, Judgement]


@dataclass(frozen=True)
class Ranking:
    """Rows, best first, and how the first differs from the second; None where there is one row."""

    rows: list[RankedRow]
    difference: Difference | None

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        rows = []
        for row in self.rows:
            videos = {
                video: {
                    "score": one.score,
                    "low": one.low,
                    "high": one.high,
                    "frames": one.frames,
                    "cues": one.cues,
                }
                for video, one in row.videos.items()
            }
            rows.append({**vars(row), "videos": videos})
        found: dict[str, Any] = {"rows": rows}
        if self.difference is not None:
            found["difference"] = {
                **self.difference._asdict(),
                "is_clear": self.difference.is_clear,
            }
        return found


def judge_many(
    videos: Sequence[Path],
    *,
    weights: Sequence[str],
    protocols: Sequence[str | None],
    masks: Sequence[str] | None = None,
    network: NetworkName | None = None,
    device: str = "cpu",
    num_frames: int = NUM_FRAMES,
    short_side: int = SHORT_SIDE,
    on_progress: Callable[[int], None] = lambda total: None,
) -> Ranking:
    """Each of the weights with each of the protocols, judged on all videos.

    Args:
        videos: paths, at least one.
        weights: what `load_backbone` takes.
        protocols: names; None for the one that suits the weights.
        masks: one for each video, see `judge`; None: without masks.
        network: see `load_backbone`.
        device, num_frames, short_side: see `judge`.
        on_progress: called with the number of judgements after each of them.

    Raises:
        InoError: as `judge`; there is not one mask for each video, or a video is given twice.
    """
    if masks is not None and len(masks) != len(videos):
        raise MaskError(
            f"the number of masks is {len(masks)} and that of videos {len(videos)}: give one mask "
            "for each video, in the same order, or none"
        )
    if repeated := [one for one in videos if videos.count(one) > 1]:
        raise ConfigError(f"the video {repeated[0]} is given twice: give each one once")
    for name in protocols:
        if name is not None:
            get_protocol(name)
    sizes: dict[str, Any] = {"num_frames": num_frames, "short_side": short_side}
    clips = {
        str(video): read_judged(video, mask=masks[number] if masks else None, **sizes)
        for number, video in enumerate(videos)
    }
    for one in weights[1:]:  # what is broken ends this now, and not after the others are judged
        load_backbone(one, network=network)
    rows = []
    for one in weights:
        backbone = load_backbone(one, network=network)
        for chosen in protocols:
            name = chosen or backbone.protocol
            found = {}
            for video, clip in clips.items():
                found[video] = judge_clip(
                    backbone, clip, get_protocol(name), short_side=short_side, device=device
                )
                on_progress(len(weights) * len(protocols) * len(clips))
            rows.append(_row(one, name, found))
    return _rank(rows)


def judge_results(
    results: Sequence[Path],
    video: Path,
    *,
    num_frames: int = NUM_FRAMES,
    short_side: int = SHORT_SIDE,
) -> Ranking:
    """Results of one video, see `judge_result`."""
    sizes: dict[str, Any] = {"num_frames": num_frames, "short_side": short_side}
    return _rank(
        [_row(str(one), "", {str(video): judge_result(one, video, **sizes)}) for one in results]
    )


def mean_difference(first: Sequence[Judgement], second: Sequence[Judgement]) -> Difference:
    """The mean of `judge_difference` over videos, whose errors are taken as independent."""
    found = [judge_difference(*pair) for pair in zip(first, second, strict=True)]
    mean = math.fsum(one.mean for one in found) / len(found)
    half = math.hypot(*(one.high - one.mean for one in found)) / len(found)
    return Difference(mean, mean - half, mean + half)


def _row(name: str, protocol: str, found: dict[str, Judgement]) -> RankedRow:
    score = math.fsum(one.score for one in found.values()) / len(found)
    below = math.hypot(*(one.score - one.low for one in found.values())) / len(found)
    above = math.hypot(*(one.high - one.score for one in found.values())) / len(found)
    return RankedRow(name, protocol, score, score - below, score + above, found)


def _rank(rows: list[RankedRow]) -> Ranking:
    rows = sorted(rows, key=lambda row: -row.score)
    if len(rows) < 2:
        return Ranking(rows, None)
    first, second = (list(row.videos.values()) for row in rows[:2])
    return Ranking(rows, mean_difference(first, second))


def judge_clip(
    backbone: FeatureBackbone,
    clip: JudgedClip,
    protocol: Protocol,
    *,
    short_side: int = SHORT_SIDE,
    device: torch.device | str = "cpu",
) -> Judgement:
    """See `judge`; of frames that were read."""
    device = choose_device(str(device))
    return judge_frames(
        backbone,
        clip.frames,
        clip.mask,
        protocol=protocol,
        motions=clip.motions,
        short_side=short_side,
        device=device,
        precision=quick_precision(device),
    )
