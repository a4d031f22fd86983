"""Propagation of MAST, CorrFlow, ContCorr and TimeCycle, position by position, in float64 numpy.

Written from the description of their released codes: lists of frames with copies in front, whole
affinities, loops. Frames are (height, width, n).
"""

import itertools

import numpy as np


def window_softmax(query, keys, labels, *, radius, zeros):
    """MAST's near frames (`zeros`: outside counts with logit and labels 0), or CorrFlow.

    CorrFlow repeats labels beyond the border and gives similarities of exactly 0 the logit -1e10.
    """
    height, width, _ = query.shape
    result = np.zeros((height, width, labels[0].shape[2]))
    steps = range(-radius, radius + 1)
    for y, x in np.ndindex(height, width):
        logits, values = [], []
        for (key, label), dy, dx in itertools.product(zip(keys, labels, strict=True), steps, steps):
            row, column = y + dy, x + dx
            inside = 0 <= row < height and 0 <= column < width
            logit = query[y, x] @ key[row, column] if inside else 0.0
            value = np.zeros(label.shape[2])
            if inside or not zeros:
                value = label[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
            logits.append(logit if zeros or logit != 0 else -1e10)
            values.append(value)
        result[y, x] = softmax(np.array(logits)) @ np.stack(values)
    return result


def mast(query, keys, labels, ages, *, radius, search=12, after=15, aligned=True):
    """MAST with frames of long ago; frames in order of time."""
    far = [number for number, age in enumerate(ages) if age > after]
    fields = {
        number: coarse_offsets(
            query, keys[number], radius=search, step=min(4, ages[number] // after + 1)
        )
        for number in far
    }
    height, width, _ = query.shape
    result = np.zeros((height, width, labels[0].shape[2]))
    steps = range(-radius, radius + 1)
    for y, x in np.ndindex(height, width):
        logits, values = [], []
        for number, dy, dx in itertools.product(range(len(keys)), steps, steps):
            here = there = np.zeros(2)
            if number in fields:
                here, there = fields[number][y, x], fields[far[-1]][y, x]
            moved = number in fields
            key, label = (
                sample(image, y + dy + offset[0], x + dx + offset[1], aligned=aligned or not moved)
                for image, offset in ((keys[number], here), (labels[number], there))
            )
            logits.append(query[y, x] @ key)
            values.append(label)
        result[y, x] = softmax(np.array(logits)) @ np.stack(values)
    return result


def coarse_offsets(query, key, *, radius, step):
    height, width, _ = query.shape
    offsets = np.array(list(itertools.product(range(-radius, radius + 1), repeat=2))) * step
    result = np.zeros((height, width, 2))
    for y, x in np.ndindex(height, width):
        logits = np.array([query[y, x] @ sample(key, y + dy, x + dx) for dy, dx in offsets])
        result[y, x] = softmax(logits) @ offsets
    return result


def sample(image, row, column, *, aligned=True):
    """Bilinear value between positions, 0 beyond the frame."""
    height, width, dim = image.shape
    if not aligned:
        row, column = row * height / (height - 1) - 0.5, column * width / (width - 1) - 0.5
    value = np.zeros(dim)
    top, left = int(np.floor(row)), int(np.floor(column))
    for y, x in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= y < height and 0 <= x < width:
            value += (1 - abs(row - y)) * (1 - abs(column - x)) * image[y, x]
    return value


def contcorr(features, first, *, num_context=7, topk=5):
    """Soft labels of every frame, the first included as it was given."""
    results = [first]
    for time in range(1, len(features)):
        context = [0, *range(max(1, time - num_context), time)]
        predictions = [
            _mutual_labels(features[one], features[time], results[one], topk=topk)
            for one in context
        ]
        results.append(sum(predictions) / len(predictions))
    return results


def _mutual_labels(source, target, labels, *, topk):
    shape = (*target.shape[:2], labels.shape[2])
    flat = [image.reshape(-1, image.shape[2]) for image in (source, target, labels)]
    affinity = flat[0] @ flat[1].T  # (source, target)
    of_row = affinity / (affinity.max(axis=1, keepdims=True) + 1e-5)
    of_column = affinity / (affinity.max(axis=0, keepdims=True) + 1e-5)
    affinity = affinity * of_row * of_column
    weights = np.stack([softmax(column) for column in affinity.T])  # (target, source)
    for row in weights:
        row[row < np.sort(row)[-topk]] = 0
    return (weights @ flat[2]).reshape(shape)


def timecycle(features, first, *, num_context=7, topk=5, temperature=512**-0.5):
    """Soft labels of every frame, the first one predicted from copies of itself."""
    num_copies = num_context + 1
    frames = [features[0]] * num_copies + list(features)
    labels = [first] * num_copies
    for target in range(num_copies, len(frames)):
        context = [0, *range(target - num_context, target)]
        total = 0
        for one in context:
            total = total + _best_labels(
                frames[one], frames[target], labels[one], topk=topk, temperature=temperature
            )
        total = total / len(context)
        for channel in range(first.shape[2]):
            values = total[..., channel] - total[..., channel].min()
            if values.max() > 1e-5 * total[..., channel].max():  # else it is rounding
                total[..., channel] = values / values.max()
        labels.append(total)
    return labels[num_copies:]


def _best_labels(source, target, labels, *, topk, temperature):
    table = labels.reshape(-1, labels.shape[2])
    result = np.zeros((*target.shape[:2], labels.shape[2]))
    for y, x in np.ndindex(*target.shape[:2]):
        weights = softmax(source.reshape(-1, source.shape[2]) @ target[y, x] / temperature)
        for index in np.argsort(weights)[-topk:]:
            result[y, x] += weights[index] * table[index]
    return result


def softmax(values):
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()
