"""What the networks see, as a picture: crops with their masks, for people to check."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.files import atomic_path

FOLDER = "pictures"
MAX_CLIPS = 4
MIN_SIDE = 160
GAP = 4
_PAPER, _MASKED = 255, 128


def contact_sheet(
    global_crops: Float[Tensor, "time batch 3 height width"],
    local_crops: Float[Tensor, "time crop batch 3 local_height local_width"] | None,
    masked: Int[Tensor, "batch masked"] | None,
    *,
    patch_size: int,
) -> UInt8[np.ndarray, "rows columns 3"]:
    """A sheet of the first clips of a batch: a block a clip, a column a frame.

    A column holds the global crop, its masked patches grey, and below it the frame's local crops.
    Small crops are enlarged pixel by pixel.

    Args:
        global_crops: normalised.
        local_crops: normalised; None where there are none.
        masked: patches that the student does not see, counted row by row; None where it sees all.
        patch_size: pixels a side of a patch.
    """
    num_frames, num_clips, _, height, width = global_crops.shape
    scale = max(1, round(MIN_SIDE / height))
    blocks = []
    for clip in range(min(num_clips, MAX_CLIPS)):
        columns = []
        for frame in range(num_frames):
            crop = _pixels(global_crops[frame, clip])
            if masked is not None:
                hidden = np.zeros((height // patch_size, width // patch_size), dtype=bool)
                hidden.flat[masked[clip].cpu().numpy()] = True
                crop[_enlarged(hidden, patch_size)] = _MASKED
            parts = [_enlarged(crop, scale)]
            if local_crops is not None:
                small = [_enlarged(_pixels(one), scale) for one in local_crops[frame, :, clip]]
                parts.append(_grid(small, width=parts[0].shape[1]))
            columns.append(_joined(parts, axis=0))
        blocks.append(_joined(columns, axis=1))
    sheet = _joined(blocks, axis=0, gap=4 * GAP)
    return np.pad(sheet, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=_PAPER)


def write_sheet(sheet: UInt8[np.ndarray, "rows columns 3"], *, out: Path, step: int) -> Path:
    """Writes the sheet of a step into the folder of a run.

    Raises:
        OutputError: it cannot be written.
    """
    path = out / FOLDER / f"step_{step:08d}.png"
    with contextlib.suppress(OSError):  # what is wrong shows when the file is written
        path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary)
    return path


def _pixels(crop: Float[Tensor, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    mean, std = (crop.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    levels = ((crop * std + mean) * 255).round().clamp(0, 255)
    return np.ascontiguousarray(levels.to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _grid(crops: list[np.ndarray], *, width: int) -> np.ndarray:
    """Crops in rows of about `width` pixels."""
    columns = max(1, round((width + GAP) / (crops[0].shape[1] + GAP)))
    rows = [crops[start : start + columns] for start in range(0, len(crops), columns)]
    return _joined([_joined(row, axis=1) for row in rows], axis=0)


def _joined(images: list[np.ndarray], *, axis: int, gap: int = GAP) -> np.ndarray:
    """Images beside or below each other on white, with a gap."""
    across = 1 - axis
    size = max(image.shape[across] for image in images)
    parts: list[np.ndarray] = []
    for index, image in enumerate(images):
        padding = [(0, 0), (0, 0), (0, 0)]
        padding[across] = (0, size - image.shape[across])
        padding[axis] = (gap if index else 0, 0)
        parts.append(np.pad(image, padding, constant_values=_PAPER))
    return np.concatenate(parts, axis=axis)
