"""Masks for `ino segment` from files, and from boxes and points by looking at the frames."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ino.data.annotations import Annotations, Prompt, read_annotations
from ino.data.video import count_frames, read_clip
from ino.errors import MaskError, PromptError
from ino.models.load import DEFAULT, load_backbone
from ino.propagate.prompts import mask_from_prompt


def read_masks(given: Sequence[str], video: Path | str, *, resize: bool = False) -> Annotations:
    """The masks that texts as of `ino segment --mask` name, boxes and points turned into masks.

    Example:
        masks = read_masks(["drawn.json", "40=dog:box=10,20,80,90"], "clip.mp4")
        segment_video("clip.mp4", masks.labels, objects=masks.names, out="out", tracker=tracker)

    Args:
        given: see `ino.data.annotations.read_annotations`.
        video: the video that the masks are of.
        resize: fit masks of another size to the video.

    Raises:
        MaskError: as `read_annotations`; or a box or point shows no object.
        VideoError: the video cannot be read.
    """
    annotations = read_annotations(given, video, resize=resize)
    if not annotations.prompts:
        return annotations
    video = Path(video)
    wanted = sorted({prompt.frame for prompt in annotations.prompts})
    if wanted[-1] >= (num_frames := count_frames(video)):
        raise MaskError(
            f"{annotations.sources[wanted[-1]]} is for frame {wanted[-1]}, but the video has "
            f"{num_frames} frames, numbered from 0"
        )
    labels, backbone = dict(annotations.labels), load_backbone(DEFAULT)
    for index in wanted:
        (frame,) = read_clip(video, [index], fill=True)
        shared = {"backbone": backbone, "features": {}}
        for prompt in annotations.prompts:
            if prompt.frame == index:
                source = annotations.sources[index]
                labels[index] = _with_object(labels[index], frame, prompt, shared, of=source)
    return replace(annotations, labels=labels, prompts=())


def _with_object(
    labels: UInt8[np.ndarray, "height width"],
    frame: UInt8[np.ndarray, "height width 3"],
    prompt: Prompt,
    shared: dict[str, Any],
    *,
    of: str,
) -> UInt8[np.ndarray, "height width"]:
    """A label map with the object that a prompt shows; what the object had before is corrected.

    `shared` holds the backbone and the features of the frame.
    """
    drawn = labels == prompt.label
    is_drawn = bool(drawn.any())
    if prompt.box is None and not is_drawn and not any(point[2] for point in prompt.points):
        raise MaskError(f"{of}: object {prompt.label} has points where it is not, and none where")
    corrects = is_drawn and prompt.box is None  # a box finds the object anew
    try:
        mask = mask_from_prompt(
            frame,
            box=prompt.box,
            points=prompt.points,
            mask=drawn if corrects else None,
            **shared,
        )
    except PromptError as error:
        raise PromptError(f"{of}: {error}") from error
    if not mask.any():
        raise MaskError(f"{of}: no object was found there; draw a mask, or add points")
    labels = labels.copy()
    labels[drawn] = 0
    labels[mask] = prompt.label
    return labels
