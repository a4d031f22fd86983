"""The protocol of CropMAE, SiamMAE and ToBo, one query at a time, in float64 numpy and cv2.

Written from a description of the released code: a list of frames with copies of the first one in
front, whole affinities, loops.
"""

import cv2
import numpy as np
from PIL import Image


def reduced(mask, ids, *, input_size, grid):
    """The given mask as one channel per object: (rows, columns, channel)."""
    enlarged = cv2.resize(mask, input_size[::-1], interpolation=cv2.INTER_NEAREST)
    one_hot = np.stack([enlarged == one for one in ids], axis=-1).astype(np.float32)
    return cv2.resize(one_hot, grid[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float64)


def restored(soft, ids, *, input_size, size, exact=False):
    """The label map of one frame; `exact` is Pillow's way, as for VIP."""
    enlarged = cv2.resize(soft.astype(np.float32), input_size[::-1], interpolation=cv2.INTER_LINEAR)
    labels = np.array(ids, dtype=np.uint8)[enlarged.argmax(axis=-1)]
    if not exact:
        return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def propagated(features, first, *, num_context, radius, topk, temperature):
    """Soft labels of every frame, the first included as it was given.

    The context of frame t is frame 0, which any query sees whole, and the `num_context` frames
    before t; those before the start are copies of frame 0. In all of them, copies included, a query
    sees positions at a distance below `radius`.
    """
    frames = [frame / np.linalg.norm(frame, axis=-1, keepdims=True) for frame in features]
    rows, columns = np.indices(first.shape[:2])
    results = [first]
    for time in range(1, len(frames)):
        slots = [max(0, one) for one in range(time - num_context, time)]
        soft = np.zeros_like(first)
        for y, x in np.ndindex(first.shape[:2]):
            is_near = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            cosines, labels = (
                [(frames[0] @ frames[time][y, x]).ravel()],
                [first.reshape(rows.size, -1)],
            )
            for slot in slots:
                cosines.append((frames[slot][is_near] @ frames[time][y, x]).ravel())
                labels.append(results[slot][is_near])
            similarity = np.concatenate(cosines) / temperature
            best = np.argsort(-similarity, kind="stable")[:topk]
            weight = np.exp(similarity[best] - similarity[best[0]])
            soft[y, x] = weight / weight.sum() @ np.concatenate(labels)[best]
        results.append(soft)
    return results


def network_input(frame, size, *, mean, std):
    """(3, height, width) of an RGB frame in 0..255, interpolated in real numbers."""
    image = frame / 255
    for axis, new in enumerate(size):
        old = image.shape[axis]
        place = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = np.expand_dims(place - low, tuple(range(1, 3 - axis)))
        image = (1 - share) * image.take(low, axis) + share * image.take(high, axis)
    return ((image - mean) / std).transpose(2, 0, 1)
