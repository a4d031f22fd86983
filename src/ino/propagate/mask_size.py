"""Masks between the video's size and that of the network's input, as protocols do either."""

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from ino.propagate.protocols import Size


def resize_mask(
    mask: UInt8[np.ndarray, "height width"], *, whole: Size, size: Size
) -> UInt8[np.ndarray, "rows columns"]:
    """The mask at the size of the network's input: by nearest neighbour, then cropped.

    Args:
        mask: of the video's size.
        whole: of the input before it is cropped at the right and the bottom.
        size: of the input.
    """
    if mask.shape != whole:
        # Pillow's takes the pixel at the centre of each, as the released code of TimeCycle does.
        mask = np.asarray(
            Image.fromarray(mask).resize((whole[1], whole[0]), Image.Resampling.NEAREST)
        )
    return mask[: size[0], : size[1]]


def restore_mask(
    mask: Shaped[np.ndarray, "rows columns"], *, whole: Size, size: Size
) -> Shaped[np.ndarray, "height width"]:
    """A mask, or a value a pixel, at the video's size, by repeated edges and nearest neighbours.

    What was cropped at the bottom comes back there. What was cropped at the right comes back half
    at the left, which shifts the mask, as the released code of CorrFlow does: a frame 854 wide gets
    3 columns on each side.

    Args:
        mask: of the network's input.
        whole: of the input before it was cropped.
        size: of the video.
    """
    rows, columns = whole[0] - mask.shape[0], whole[1] - mask.shape[1]
    mask = np.pad(mask, ((0, rows), (columns // 2, columns - columns // 2)), mode="edge")
    if mask.shape == size:
        return mask
    # OpenCV's takes the pixel at the top left of each, as the released code of TimeCycle does.
    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
