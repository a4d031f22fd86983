"""The plain side of the scoring benchmark: J and F frame by frame and object by object.

Straight from the definitions, as the official evaluation of DAVIS-2017 goes about it: one-hot
volumes of both label maps, and for each object boundary maps and dilations of the whole frame.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def plain_scores(pairs: Sequence[tuple[Path, Path]], *, num_objects: int) -> np.ndarray:
    """J and F (2, objects, frames) of pairs of an annotation and a prediction."""
    scores = np.empty((2, num_objects, len(pairs)))
    for frame, paths in enumerate(pairs):
        truth, prediction = (one_hot(path, num_objects) for path in paths)
        for index in range(num_objects):
            scores[0, index, frame] = plain_j(prediction[index], truth[index])
            scores[1, index, frame] = plain_f(prediction[index], truth[index])
    return scores


def one_hot(path: Path, num_objects: int) -> np.ndarray:
    """A mask (objects, height, width) for each object of a label map."""
    labels = np.array(Image.open(path))
    return labels[None] == np.arange(1, num_objects + 1)[:, None, None]


def plain_j(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union; 1 where both are empty."""
    union = np.sum(prediction | truth)
    return float(np.sum(prediction & truth) / union) if union else 1.0


def plain_f(prediction: np.ndarray, truth: np.ndarray) -> float:
    """F of the boundaries, matched by dilating with a disk."""
    radius = math.ceil(0.008 * np.linalg.norm(truth.shape))
    offsets = np.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)
    ours, theirs = plain_boundary(prediction), plain_boundary(truth)
    ours_wide = cv2.dilate(ours.astype(np.uint8), disk)
    theirs_wide = cv2.dilate(theirs.astype(np.uint8), disk)
    num_ours, num_theirs = np.sum(ours), np.sum(theirs)
    if num_ours == 0 or num_theirs == 0:
        return float(num_ours == num_theirs)
    precision = np.sum(ours * theirs_wide) / num_ours
    recall = np.sum(theirs * ours_wide) / num_theirs
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the right, the lower or the lower right one."""
    east, south, south_east = (np.zeros_like(mask) for _ in range(3))
    east[:, :-1] = mask[:, 1:]
    south[:-1] = mask[1:]
    south_east[:-1, :-1] = mask[1:, 1:]
    boundary = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
    boundary[-1] = mask[-1] ^ east[-1]
    boundary[:, -1] = mask[:, -1] ^ south[:, -1]
    boundary[-1, -1] = False
    return boundary
