"""Label maps to soft labels of feature positions, and back to label maps of the video's size.

Object by object, so that a map of 254 objects needs little more memory than a map of one.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

MIN_SPAN = 1e-5
"""A channel whose values differ by less is constant but for rounding."""


def soften_labels(
    labels: UInt8[np.ndarray, "height width"],
    *,
    ids: Sequence[int],
    grid: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Float[Tensor, "rows columns channel"]:
    """One channel for each id: its one-hot map, resized bilinearly with corners aligned.

    Args:
        labels: a label map of the video's size.
        ids: labels in the order of the channels.
        grid: rows and columns of the feature map.
        device: where the result will be.
    """
    source = torch.from_numpy(labels).to(device)
    channels = [
        F.interpolate(
            (source == label).float()[None, None], size=grid, mode="bilinear", align_corners=True
        )[0, 0]
        for label in ids
    ]
    return torch.stack(channels, dim=-1)


@torch.no_grad()
def harden_labels(
    soft: Float[Tensor, "rows columns channel"],
    *,
    ids: Sequence[int],
    stride: int,
    size: tuple[int, int],
    normalize: bool,
) -> UInt8[np.ndarray, "height width"]:
    """The most probable label of each pixel; of equals, the smallest.

    Channels are enlarged `stride` times bilinearly, stretched to 0..1 if asked for, compared, and
    the winners are taken to `size` by nearest neighbours, as the official scripts do with Pillow.

    Args:
        soft: probabilities of feature positions.
        ids: labels in the order of the channels.
        stride: pixels of the network's input a feature.
        size: height and width of the result, pixels.
        normalize: shift and scale each enlarged channel to 0..1 where its maximum is positive.
    """
    rows, columns, _ = soft.shape
    grid = (rows * stride, columns * stride)
    best = soft.new_full(grid, -torch.inf)
    labels = torch.zeros(grid, dtype=torch.uint8, device=soft.device)
    for label, channel in sorted(zip(ids, range(len(ids)), strict=True)):
        value = enlarge_channel(soft[..., channel], stride=stride, normalize=normalize)
        better = value > best
        best = torch.where(better, value, best)
        labels.masked_fill_(better, label)
    image = Image.fromarray(labels.cpu().numpy())
    return np.array(image.resize((size[1], size[0]), Image.Resampling.NEAREST))


def enlarge_channel(
    probability: Float[Tensor, "rows columns"], *, stride: int, normalize: bool
) -> Float[Tensor, "height width"]:
    """One channel, `stride` times as large, bilinearly (corners not aligned).

    Args:
        probability: of feature positions.
        stride: pixels a feature.
        normalize: then shift and scale to 0..1 where the maximum is positive. A constant channel
            stays as it is: the released code divides it by zero, or stretches what rounding left
            of it, where one object fills the frame.
    """
    size = (probability.shape[0] * stride, probability.shape[1] * stride)
    value = F.interpolate(probability[None, None], size=size, mode="bilinear")[0, 0]
    if not normalize:
        return value
    lowest, highest = torch.aminmax(value)
    shifted = value - lowest
    span = shifted.max()
    return torch.where((highest > 0) & (span > MIN_SPAN), shifted / span, value)
