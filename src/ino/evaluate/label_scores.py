"""J and F of all objects of a frame at once, from two label maps.

The numbers are those of `ino.evaluate.metrics`, object by object. Here the label maps are read
once, whatever the number of objects: J comes from one table of overlaps, and boundaries from the
pixels where labels change, which are few. Nothing is stored for an object but its boundary.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from ino.data.label_png import VOID
from ino.evaluate.boundaries import Points, boundary_f
from ino.evaluate.metrics import boundary_radius

Labels = UInt8[np.ndarray, "height width"]


def score_labels(
    prediction: Labels, truth: Labels, *, num_objects: int
) -> tuple[Float[np.ndarray, " objects"], Float[np.ndarray, " objects"]]:
    """J and F of the objects 1 to `num_objects`, each in 0..1.

    Args:
        prediction: labels 0 to `num_objects`.
        truth: any labels; those above `num_objects` are background, and pixels of 255 do not count.
        num_objects: 1 to 254.
    """
    counted = truth <= num_objects
    if not counted.all():
        if (void := truth == VOID).any():
            prediction = np.where(void, np.uint8(0), prediction)
        truth = np.where(counted, truth, np.uint8(0))
    radius = boundary_radius(*truth.shape)
    prediction, truth = _cropped(prediction, truth)
    theirs = _boundaries(truth, num_objects)
    ours = _boundaries(prediction, num_objects)
    f = [boundary_f(*pair, radius=radius) for pair in zip(ours, theirs, strict=True)]
    return _similarities(prediction, truth, num_objects), np.array(f)


def _cropped(
    prediction: Labels, truth: Labels
) -> tuple[UInt8[np.ndarray, "rows columns"], UInt8[np.ndarray, "rows columns"]]:
    """The box that holds all objects, and a pixel more to each side, for the boundaries there."""
    left, top, width, height = cv2.boundingRect(np.bitwise_or(prediction, truth))
    box = (
        slice(max(top - 1, 0), top + height + 1),
        slice(max(left - 1, 0), left + width + 1),
    )
    return np.ascontiguousarray(prediction[box]), np.ascontiguousarray(truth[box])


def _similarities(
    prediction: Labels, truth: Labels, num_objects: int
) -> Float[np.ndarray, " objects"]:
    """J of each object, from the number of pixels of each pair of labels."""
    num_labels = num_objects + 1
    pairs = (truth.astype(np.uint16) * np.uint16(num_labels) + prediction).ravel()
    # Run lengths: labels change seldom, so far fewer numbers are counted than there are pixels.
    starts = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1])
    lengths = np.diff(starts, append=pairs.size)
    counts = np.bincount(pairs[starts], weights=lengths, minlength=num_labels**2)
    counts = counts.reshape(num_labels, num_labels)  # (truth, prediction)
    intersection = counts.diagonal()[1:]
    union = counts.sum(axis=0)[1:] + counts.sum(axis=1)[1:] - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def _boundaries(labels: Labels, num_objects: int) -> list[Points]:
    """The boundary of each object as `ino.evaluate.metrics.boundary_map` defines it.

    A pixel at which labels change is on the boundary of each label that it or one of its
    neighbours to the right, below and below right has.
    """
    height, width = labels.shape
    changes = np.zeros(labels.shape, dtype=bool)
    np.not_equal(labels[:, :-1], labels[:, 1:], out=changes[:, :-1])
    changes[:-1] |= labels[:-1] != labels[1:]
    changes[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    place = np.flatnonzero(changes)
    row, column = np.divmod(place, width)
    # A neighbour outside the image is replaced by one inside, which brings no label of its own.
    below, right = np.where(row < height - 1, width, 0), column < width - 1
    steps = (0, right, below, below + right)
    corners = [labels.ravel().take(place + step) for step in steps]
    seen, where = [], []
    for number, corner in enumerate(corners):
        is_new = corner > 0
        for earlier in corners[:number]:
            is_new &= corner != earlier
        chosen = np.flatnonzero(is_new)
        seen.append(corner[chosen])
        where.append(chosen)
    label, point = np.concatenate(seen), np.concatenate(where)
    order = np.argsort(label, kind="stable")
    borders = np.searchsorted(label[order], np.arange(2, num_objects + 1, dtype=np.uint8))
    return [Points(row[part], column[part]) for part in np.split(point[order], borders)]
