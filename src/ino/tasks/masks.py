"""Masks for `ino segment` from files, and from boxes and points by looking at the frames."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from ino.data.annotations import Annotations, Prompt, read_annotations
from ino.data.video import count_frames, read_clip
from ino.errors import MaskError


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
    labels = dict(annotations.labels)
    for index in wanted:
        (frame,) = read_clip(video, [index])
        for prompt in annotations.prompts:
            if prompt.frame == index:
                source = annotations.sources[index]
                labels[index] = _with_object(labels[index], frame, prompt, of=source)
    return replace(annotations, labels=labels, prompts=())


def _with_object(
    labels: UInt8[np.ndarray, "height width"],
    frame: UInt8[np.ndarray, "height width 3"],
    prompt: Prompt,
    *,
    of: str,
) -> UInt8[np.ndarray, "height width"]:
    """A label map with the object that a prompt shows; what the object had before is corrected."""
    drawn = labels == prompt.label
    is_drawn = bool(drawn.any())
    if prompt.box is None and not is_drawn and not any(point[2] for point in prompt.points):
        raise MaskError(f"{of}: object {prompt.label} has points where it is not, and none where")
    corrects = is_drawn and prompt.box is None  # a box finds the object anew
    mask = mask_from_prompt(
        frame, box=prompt.box, points=prompt.points, mask=drawn if corrects else None
    )
    if not mask.any():
        raise MaskError(f"{of}: no object was found there; draw a mask, or add points")
    labels = labels.copy()
    labels[drawn] = 0
    labels[mask] = prompt.label
    return labels


def mask_from_prompt(
    frame: UInt8[np.ndarray, "height width 3"],
    *,
    box: tuple[float, float, float, float] | None = None,
    points: Sequence[tuple[float, float, bool]] = (),
    mask: Bool[np.ndarray, "height width"] | None = None,
) -> Bool[np.ndarray, "height width"]:
    """The mask of the object in a box or at points, by color alone (OpenCV's grabCut)."""
    height, width = frame.shape[:2]
    states = np.full((height, width), cv2.GC_PR_BGD, dtype=np.uint8)
    if box is not None:
        x0, y0, x1, y1 = (round(value) for value in box)
        states[:] = cv2.GC_BGD
        states[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if mask is not None:
        states[mask] = cv2.GC_PR_FGD
    radius = max(2, min(height, width) // 60)
    if box is None and mask is None:
        for x, y, is_object in points:
            if is_object:
                cv2.circle(states, (int(x), int(y)), 6 * radius, cv2.GC_PR_FGD, -1)
    for x, y, is_object in points:
        sure = cv2.GC_FGD if is_object else cv2.GC_BGD
        cv2.circle(states, (int(x), int(y)), radius, sure, -1)
    is_object = np.isin(states, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if is_object.all() or not is_object.any():
        return is_object
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(frame[..., ::-1].copy(), states, None, *models, 5, cv2.GC_INIT_WITH_MASK)  # type: ignore[arg-type]
    return np.isin(states, (cv2.GC_FGD, cv2.GC_PR_FGD))
