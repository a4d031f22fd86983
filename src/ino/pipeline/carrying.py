"""Masks carried through a folder's images while these are read and results are used."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ino.data.background import in_background
from ino.data.frame_folder import image_size, read_image
from ino.propagate.tracker import Tracker


def carry_masks(
    frames: Sequence[Path], masks: Mapping[int, np.ndarray], *, tracker: Tracker
) -> Generator[tuple[Path, UInt8[np.ndarray, "height width"]]]:
    """Each frame with its label map, in order; a few are read and carried ahead in threads.

    Close the result to end the threads at once.

    Args:
        frames: images of one size.
        masks: label maps by the number of their frame, see `Tracker.track`.
        tracker: carries the masks.

    Raises:
        VideoError: a frame is broken or of another size than the first.
        MaskError: see `Tracker.track`.
    """
    with closing(in_background(_labels(frames, masks, tracker))) as results:
        yield from zip(frames, results, strict=True)


def _labels(
    frames: Sequence[Path], masks: Mapping[int, np.ndarray], tracker: Tracker
) -> Generator[np.ndarray]:
    size = image_size(frames[0])
    with closing(in_background(read_image(path, size=size) for path in frames)) as images:
        yield from tracker.track(images, masks, num_frames=len(frames))
