"""A mask from a box or a few clicks, by color and edges (OpenCV's grabCut)."""

from collections.abc import Sequence

import cv2
import numpy as np

from ino.errors import MaskError

_LONG_SIDE = 480
_ROUNDS = 4


def mask_from_prompt(
    frame: np.ndarray,
    *,
    box: tuple[float, float, float, float] | None = None,
    points: Sequence[tuple[float, float, bool]] = (),
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """The object in a box or at the clicks, bool, height x width.

    Args:
        frame: uint8 RGB, height x width x 3.
        box: x0, y0, x1, y1 in pixels; x1 and y1 are exclusive.
        points: x and y in pixels, and whether the object is there.
        mask: bool, height x width: of the object so far, which the points correct.

    Raises:
        MaskError: nothing is given, or the box holds no pixel.
    """
    height, width = frame.shape[:2]
    scale = min(1.0, _LONG_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    if box is None:
        inside = [(x, y) for x, y, is_object in points if is_object]
        if mask is not None:
            rows, columns = np.nonzero(mask)
            inside += [(columns.min(), rows.min()), (columns.max(), rows.max())]
        if not inside:
            raise MaskError("click on the object first, and then on what is not part of it")
        reach = max(height, width) / 5
        xs, ys = zip(*inside, strict=True)
        box = (min(xs) - reach, min(ys) - reach, max(xs) + reach, max(ys) + reach)
    x0, x1 = (round(min(max(x, 0), width) * scale) for x in (box[0], box[2]))
    y0, y1 = (round(min(max(y, 0), height) * scale) for y in (box[1], box[3]))
    if x1 - x0 < 2 or y1 - y0 < 2:
        raise MaskError("the box is too small: drag it around the whole object")
    known = np.full((size[1], size[0]), cv2.GC_BGD, np.uint8)
    known[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if mask is not None:
        so_far = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        known[~so_far & (known == cv2.GC_PR_FGD)] = cv2.GC_PR_BGD
    radius = max(2, max(size) // 80)
    for x, y, is_object in points:
        place = (round(x * scale), round(y * scale))
        cv2.circle(known, place, radius, cv2.GC_FGD if is_object else cv2.GC_BGD, -1)
    models = np.zeros((2, 1, 65))
    if (known != cv2.GC_BGD).all():  # there must be something that is not the object
        known[[0, -1]] = known[:, [0, -1]] = cv2.GC_BGD
    cv2.grabCut(small, known, (0, 0, 0, 0), models[0], models[1], _ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(known, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    if not found.any():  # nothing differs from what is around it: the box is a beginning
        found[y0:y1, x0:x1] = 1
    return cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
