"""Joints as maps of feature positions, a channel each, and back to joints.

As UVC (Li et al., NeurIPS 2019) and CRW (Jabri et al., NeurIPS 2020) do for JHMDB.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ino.errors import ConfigError


@dataclass(frozen=True)
class JointMaps:
    """How joints become maps and maps become joints.

    Attributes:
        sigma: standard deviation of a joint's Gaussian, feature positions.
        topk: positions whose weighted mean is the joint: 5 in UVC and VFS, 3 in CRW.
    """

    sigma: float = 0.5
    topk: int = 5

    def __post_init__(self) -> None:
        if not self.sigma > 0 or self.topk < 1:
            raise ConfigError(
                f"sigma of joint maps must be above 0 and topk 1 or more, but they are "
                f"{self.sigma} and {self.topk}"
            )


def draw_joints(
    joints: Float[np.ndarray, "joints 2"],
    *,
    image_size: tuple[int, int],
    grid: tuple[int, int],
    maps: JointMaps,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "rows columns channel"]:
    """A Gaussian of height 1 for each joint; the first channel is 1 where all of them are 0.

    It is centred on the nearest position and ends three standard deviations from there (rounded
    up), so the map of a joint outside the image is empty.

    Args:
        joints: column and row in the image, pixels from 0.
        image_size: height and width, pixels.
        grid: rows and columns of the feature map.
        maps: the standard deviation.
        device: where the result will be.
    """
    (height, width), (rows, columns) = image_size, grid
    center = np.floor(joints * [columns / width, rows / height] + 0.5)
    across = np.arange(columns)[None, :] - center[:, :1]  # (joints, columns)
    down = np.arange(rows)[None, :] - center[:, 1:]
    reach = np.ceil(3 * maps.sigma)
    bell = [np.exp(-(d**2) / (2 * maps.sigma**2)) * (abs(d) <= reach) for d in (down, across)]
    drawn = bell[0].T[:, None] * bell[1].T[None]  # (rows, columns, joints)
    empty = (drawn.sum(axis=-1, keepdims=True) == 0).astype(float)
    channels = np.concatenate([empty, drawn], axis=-1)
    return torch.from_numpy(channels.astype(np.float32)).to(device)


def locate_joints(
    soft: Float[Tensor, "rows columns channel"], *, image_size: tuple[int, int], maps: JointMaps
) -> Float[np.ndarray, "joints 2"]:
    """Column and row of each joint, pixels from 0; NaN where its channel is empty.

    The mean of the positions of the highest values, weighted by them. The first channel is the
    background. Position i of n is pixel i / n times the side, the reverse of `draw_joints`.

    Args:
        soft: labels that began as `draw_joints`.
        image_size: height and width, pixels.
        maps: the number of positions.
    """
    rows, columns = soft.shape[:2]
    flat = soft[..., 1:].flatten(0, 1).double()
    value, place = flat.topk(min(maps.topk, len(flat)), dim=0)
    weight = value / value.sum(dim=0)  # 0 / 0 where the channel is empty
    column, row = ((axis * weight).sum(dim=0) for axis in (place % columns, place // columns))
    height, width = image_size
    joints = torch.stack([column * (width / columns), row * (height / rows)], dim=-1)
    return joints.cpu().numpy()
