"""Label maps to soft labels on the feature grid and back, by the methods of all protocols.

Also resizes masks between the video's size and that of the network's input. Objects are processed
one at a time, so a map of 254 objects needs little more memory than a map of one.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from PIL import Image
from torch import Tensor

from ino.data.label_maps import BACKGROUND
from ino.propagate.peers import Nearest
from ino.propagate.protocols import MaskDown, MaskUp, Size

MIN_SPAN = 1e-5
"""Labels whose range is smaller than this, or than this fraction of the largest, count as constant:
the difference is rounding."""


def resize_mask(
    mask: UInt8[np.ndarray, "height width"],
    *,
    whole: Size,
    size: Size,
    how: Nearest = "nearest-exact",
) -> UInt8[np.ndarray, "rows columns"]:
    """The mask at the size of the network's input: by nearest neighbor, then cropped.

    Args:
        mask: of the video's size.
        whole: of the input before it is cropped at the right and the bottom.
        size: of the input.
        how: see `Nearest`.
    """
    return _resize_nearest(mask, whole, how=how)[: size[0], : size[1]]


def _resize_nearest(
    mask: Shaped[np.ndarray, "rows columns"], size: Size, *, how: Nearest
) -> Shaped[np.ndarray, "height width"]:
    if mask.shape == size:
        return mask
    if how == "nearest":
        return cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    # Pillow's, as versions of OpenCV differ at exact ties.
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def restore_mask(
    mask: Shaped[np.ndarray, "rows columns"],
    *,
    whole: Size,
    size: Size,
    how: Nearest = "nearest",
) -> Shaped[np.ndarray, "height width"]:
    """A mask, or a map of one value per pixel, padded to `whole` and resized to the video's size.

    Padding repeats the edge; resizing takes the nearest neighbor. Rows that were cropped at the
    bottom are padded there. Columns that were cropped at the right are padded half on each side,
    which shifts the mask, as in the released code of CorrFlow: a frame 854 pixels wide gets 3
    columns on each side.

    Args:
        mask: of the network's input.
        whole: of the input before it was cropped.
        size: of the video.
        how: see `Nearest`.
    """
    rows, columns = whole[0] - mask.shape[0], whole[1] - mask.shape[1]
    mask = np.pad(mask, ((0, rows), (columns // 2, columns - columns // 2)), mode="edge")
    return _resize_nearest(mask, size, how=how)


def soften_labels(
    labels: UInt8[np.ndarray, "height width"],
    *,
    ids: Sequence[int],
    grid: tuple[int, int],
    method: MaskDown = "bilinear-align-corners",
    device: torch.device | str = "cpu",
) -> Float[Tensor, "rows columns channel"]:
    """One channel for each id: its one-hot map, reduced to the feature grid.

    Args:
        labels: a label map, of the video's size or, if the protocol's `masks_at` is input, of the
            size of the network's input.
        ids: label of each channel.
        grid: rows and columns of the feature map.
        method: see `MaskDown`.
        device: of the result.

    Returns:
        Soft labels, 0..1. A pixel whose label is not in `ids` is 0 in every channel.
    """
    rows, columns = grid
    if method == "averaged-ids":
        return _average_ids(labels, ids=ids, grid=grid).to(device)
    if method == "strided":
        # The stride: a grid of n features covers n - 1 strides and a part of one, or a whole one.
        row, column = (-(-side // count) for side, count in zip(labels.shape, grid, strict=True))
        labels = labels[::row, ::column]
    if method in ("nearest", "nearest-or-most"):
        # Pillow's own, as in the released codes: it takes the pixel at the center of each feature.
        nearest = np.array(
            Image.fromarray(labels).resize((columns, rows), Image.Resampling.NEAREST)
        )
        if method == "nearest-or-most":
            _keep_small(nearest, labels, ids)
        labels = nearest
    channels = []
    for label in ids:
        one_hot = (labels == label).astype(np.float32)
        if method in ("linear", "area"):
            how = cv2.INTER_LINEAR if method == "linear" else cv2.INTER_AREA
            one_hot = cv2.resize(one_hot, (columns, rows), interpolation=how)
        channel = torch.from_numpy(one_hot).to(device)
        if method == "bilinear-align-corners":
            channel = F.interpolate(
                channel[None, None], size=grid, mode="bilinear", align_corners=True
            )[0, 0]
        channels.append(channel)
    return torch.stack(channels, dim=-1)


def _keep_small(
    reduced: UInt8[np.ndarray, "rows columns"],
    labels: UInt8[np.ndarray, "height width"],
    ids: Sequence[int],
) -> None:
    """Gives each object that is not in the reduced map the feature that holds most of it, unless
    that is the only one of another object."""
    for label in ids:
        if label == BACKGROUND or (reduced == label).any():
            continue
        held = (labels == label).astype(np.float32)
        held = cv2.resize(held, reduced.shape[::-1], interpolation=cv2.INTER_AREA)
        num_features = np.bincount(reduced.ravel(), minlength=256)
        held[(num_features[reduced] == 1) & (reduced != BACKGROUND)] = 0
        if held.any():
            reduced.ravel()[held.argmax()] = label


def _average_ids(
    labels: UInt8[np.ndarray, "height width"], *, ids: Sequence[int], grid: tuple[int, int]
) -> Float[Tensor, "rows columns channel"]:
    """One-hot maps of bilinearly averaged numbers, truncated: between 0 and 2 comes 1.

    Objects are numbered from 1 in the order of `ids`; the background and other pixels are 0.
    """
    places = np.zeros(256, dtype=np.float32)
    objects = [label for label in ids if label]
    places[objects] = np.arange(1, len(objects) + 1)
    image = torch.from_numpy(places[labels])[None, None]
    averaged = F.interpolate(image, size=grid, mode="bilinear", align_corners=False)[0, 0].long()
    return (averaged[..., None] == torch.from_numpy(places[list(ids)])).float()


def stretch_labels(
    soft: Float[Tensor, "rows columns channel"], *, over: Literal["grid", "channels"]
) -> Float[Tensor, "rows columns channel"]:
    """Min-max normalized labels, 0..1; constant ones (up to rounding) stay as they are.

    Args:
        soft: labels of feature positions.
        over: `grid`: each channel, over all positions; `channels`: each position, over its
            channels.
    """
    dims = (0, 1) if over == "grid" else (2,)
    shifted = soft - soft.amin(dim=dims, keepdim=True)
    span = shifted.amax(dim=dims, keepdim=True)
    largest = soft.abs().amax(dim=dims, keepdim=True)
    return torch.where(span > MIN_SPAN * largest, shifted / span, soft)


def harden_labels(
    soft: Float[Tensor, "rows columns channel"],
    *,
    ids: Sequence[int],
    stride: int,
    size: tuple[int, int],
    normalize: bool,
    method: MaskUp = "bilinear-stride",
) -> UInt8[np.ndarray, "height width"]:
    """What `label_pixels` gives, as an array."""
    labels = label_pixels(
        soft, ids=ids, stride=stride, size=size, normalize=normalize, method=method
    )
    return labels.cpu().numpy()


@torch.no_grad()
def label_pixels(
    soft: Float[Tensor, "*frames rows columns channel"],
    *,
    ids: Sequence[int],
    stride: int,
    size: tuple[int, int],
    normalize: bool,
    method: MaskUp = "bilinear-stride",
) -> UInt8[Tensor, "*frames height width"]:
    """The label of the largest channel at each pixel; the smallest label if several are equal.

    Channels are upsampled, min-max normalized if `normalize` is set, and compared, all on the
    device of `soft`, which is not waited for.

    Args:
        soft: soft labels on the feature grid, of one frame or of several.
        ids: label of each channel.
        stride: pixels of the network's input per feature.
        size: height and width of the result, pixels.
        normalize: shift and scale each enlarged channel to 0..1 where its maximum is positive.
        method: see `MaskUp`.
    """
    compared = _compared_size(soft, stride=stride, size=size, method=method)
    shape = (*soft.shape[:-3], *compared)
    best = soft.new_full(shape, -torch.inf)
    labels = torch.zeros(shape, dtype=torch.uint8, device=soft.device)
    for label, channel in sorted(zip(ids, range(len(ids)), strict=True)):
        value = enlarge_channel(
            soft[..., channel], size=compared, method=method, normalize=normalize
        )
        better = value > best
        best = torch.where(better, value, best)
        labels.masked_fill_(better, label)
    for axis, length in zip((-2, -1), size, strict=True):
        if length != labels.shape[axis]:
            chosen = _nearest(labels.shape[axis], length, str(labels.device))
            labels = labels.index_select(axis, chosen)
    return labels


@functools.lru_cache(maxsize=64)
def _nearest(length: int, new_length: int, device: str) -> Int64[Tensor, " new_length"]:
    """Which pixels Pillow's nearest neighbor takes along a side: it decides single pixels of
    published masks."""
    row = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    taken = np.array(row.resize((new_length, 1), Image.Resampling.NEAREST))[0]
    return torch.from_numpy(taken).long().to(device)


def _compared_size(soft: Tensor, *, stride: int, size: Size, method: MaskUp) -> Size:
    """The size at which channels are compared."""
    if method == "bilinear-stride":
        return soft.shape[-3] * stride, soft.shape[-2] * stride
    return size


@torch.no_grad()
def label_confidence(
    soft: Float[Tensor, "rows columns channel"],
    *,
    stride: int,
    size: tuple[int, int],
    method: MaskUp,
) -> Float[np.ndarray, "height width"]:
    """At each pixel the largest channel divided by the sum of all channels, 0..1; 0 if all are 0.

    The arguments are those of `harden_labels`.
    """
    compared = _compared_size(soft, stride=stride, size=size, method=method)
    best, total = soft.new_zeros(compared), soft.new_zeros(compared)
    for channel in soft.unbind(dim=-1):
        value = enlarge_channel(channel, size=compared, method=method, normalize=False)
        best, total = torch.maximum(best, value), total + value
    share = torch.where(total > 0, best / total, 0).clamp(0, 1).float().cpu().numpy()
    return cv2.resize(share, size[::-1], interpolation=cv2.INTER_LINEAR)


def enlarge_channel(
    probability: Float[Tensor, "*frames rows columns"],
    *,
    size: tuple[int, int],
    method: MaskUp = "bilinear-stride",
    normalize: bool,
) -> Float[Tensor, "*frames height width"]:
    """One channel of soft labels, upsampled to `size`.

    Args:
        probability: soft labels of one channel on the feature grid.
        size: height and width of the result, pixels.
        method: see `MaskUp`; corners are aligned only where it says so.
        normalize: min-max normalize the result to 0..1 if its maximum is positive. A constant
            channel stays as it is; the released code divides it by zero, or amplifies rounding
            errors, if one object fills the frame.
    """
    image = probability.reshape(-1, 1, *probability.shape[-2:])
    if method == "nearest":
        value = F.interpolate(image, size=size, mode="nearest")
    else:
        aligned = method == "bilinear-align-corners"
        value = F.interpolate(image, size=size, mode="bilinear", align_corners=aligned)
    value = value.view(*probability.shape[:-2], *size)
    if not normalize:
        return value
    lowest, highest = (find(dim=(-2, -1), keepdim=True) for find in (value.amin, value.amax))
    shifted = value - lowest
    span = shifted.amax(dim=(-2, -1), keepdim=True)
    return torch.where((highest > 0) & (span > MIN_SPAN), shifted / span, value)
