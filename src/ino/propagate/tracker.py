"""Masks of a few frames carried through a whole video, frame by frame.

Reading videos and writing results belong to `ino.data`; which numbers decide the result, to
`protocols`.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ino.errors import MaskError, VideoError
from ino.propagate.features import FeatureBackbone, FeatureExtractor
from ino.propagate.labels import harden_labels, soften_labels
from ino.propagate.mask_size import resize_mask, restore_mask
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import Protocol, get_protocol

BACKGROUND = 0
VOID = 255


class Tracker:
    """Carries masks through videos under one protocol; one video at a time or several in turn."""

    def __init__(
        self,
        backbone: FeatureBackbone,
        *,
        protocol: Protocol | str,
        device: torch.device | str = "cpu",
    ) -> None:
        """A tracker; the backbone is moved to `device` and put into evaluation mode.

        Args:
            backbone: for instance from `ino.models.backbones.load_backbone`.
            protocol: one of `ino.propagate.protocols`, or its name.
            device: where everything is computed.

        Raises:
            ConfigError: the protocol is unknown, or the backbone's stride does not fit it.
        """
        if isinstance(backbone, nn.Module):
            backbone.to(device).eval()
        self.protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
        self._extractor = FeatureExtractor(backbone, protocol=self.protocol, device=device)
        self._device = device

    def track(
        self,
        frames: Iterable[np.ndarray],
        masks: Mapping[int, np.ndarray],
        *,
        num_frames: int | None = None,
    ) -> Iterator[np.ndarray]:
        """One label map a frame, of the frame's size; zeros before the first mask.

        Frames are taken one at a time, as results are asked for; memory does not grow with their
        number. An object enters with the first mask that holds its id; later masks do not correct
        it. The frame of the first mask is returned as given. Pixels that are void (255) count as
        background, in the result too.

        Args:
            frames: uint8 RGB frames, height x width x 3, all of one size.
            masks: frame number, from 0, to label map: uint8, height x width, 0 background, 1 to
                254 objects, 255 void. Ids need not be consecutive.
            num_frames: length of the video where it is known, so that a mask beyond its end is
                found at once.

        Raises:
            MaskError: there is no mask, or one is malformed, without objects, of another size than
                the frames (found when that frame comes), or beyond the end of the video (found at
                the end unless `num_frames` is given).
            VideoError: a frame is not an RGB image, too small, or of another size than the first.
            ConfigError: the backbone has no such layer as the protocol reads (found at the first
                mask).
        """
        entering = _entering_objects(masks)
        if num_frames is not None:
            _check_end(masks, num_frames)
        return self._stream(frames, masks, entering)

    def _stream(
        self,
        frames: Iterable[np.ndarray],
        masks: Mapping[int, np.ndarray],
        entering: Mapping[int, list[int]],
    ) -> Iterator[np.ndarray]:
        propagator = Propagator(self.protocol)
        ids: list[int] = []
        size: tuple[int, int] | None = None
        count = 0
        for index, frame in enumerate(frames):
            size = _check_frame(frame, index, size)
            if index in masks:
                _check_mask_size(masks[index], index, size)
            new_ids = entering.get(index, [])
            if not (ids or new_ids):
                yield np.zeros(size, dtype=np.uint8)
            elif not ids:
                ids = [BACKGROUND, *new_ids]
                mask = _without_void(masks[index])
                labels = self._advance(propagator, frame, mask, ids, ids)
                yield mask if self.protocol.keep_given else labels
            else:
                ids += new_ids
                mask = _without_void(masks[index]) if new_ids else None
                yield self._advance(propagator, frame, mask, new_ids, ids)
            count = index + 1
        _check_end(masks, count)

    def _advance(
        self,
        propagator: Propagator,
        frame: np.ndarray,
        mask: np.ndarray | None,
        new_ids: list[int],
        ids: list[int],
    ) -> np.ndarray:
        """Label map of the next frame, `new_ids` introduced by `mask`; `ids` are all known then."""
        features = self._extractor(frame)
        video = (frame.shape[0], frame.shape[1])
        whole, compared = (video, video)
        if self.protocol.masks_at == "input":
            whole, compared = self._extractor.sizes(video)
        grid = (features.shape[0], features.shape[1])
        hard = self.protocol.feedback == "hard"
        new = None
        if mask is not None:
            mask = resize_mask(mask, whole=whole, size=compared)
            new = self._soften(mask, new_ids, grid)
            # A mask that is fed back gets the new objects pixel by pixel, below.
            new = torch.zeros_like(new) if hard else new
        soft = propagator.step(features, new)
        labels = self._harden(soft, ids, compared)
        if hard:
            if mask is not None:
                labels = np.where(np.isin(mask, new_ids), mask, labels)
            propagator.feed_back(self._soften(labels, ids, grid))
        return restore_mask(labels, whole=whole, size=video)

    def _soften(self, mask: np.ndarray, ids: list[int], grid: tuple[int, int]) -> torch.Tensor:
        method = self.protocol.mask_down
        return soften_labels(mask, ids=ids, grid=grid, method=method, device=self._device)

    def _harden(self, soft: torch.Tensor, ids: list[int], size: tuple[int, int]) -> np.ndarray:
        return harden_labels(
            soft,
            ids=ids,
            stride=self._extractor.stride,
            size=size,
            method=self.protocol.mask_up,
            normalize=self.protocol.normalize_output,
        )


def _entering_objects(masks: Mapping[int, np.ndarray]) -> dict[int, list[int]]:
    """The ids that each mask introduces, ascending; masks that introduce none are left out."""
    if not masks:
        raise MaskError("no mask was given, but at least one frame needs one; draw or give one")
    known: set[int] = set()
    entering = {}
    for index in sorted(masks):
        found = _object_ids(masks[index], index)
        if new_ids := [label for label in found if label not in known]:
            entering[index] = new_ids
            known.update(new_ids)
        else:
            warnings.warn(
                f"the mask of frame {index} holds only objects of earlier masks, so it is not "
                "used: later masks introduce objects but do not correct them",
                stacklevel=3,
            )
    return entering


def _object_ids(mask: np.ndarray, index: int) -> list[int]:
    if index < 0:
        raise MaskError(f"a mask was given for frame {index}, but frames are counted from 0")
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise MaskError(
            f"the mask of frame {index} must be uint8 height x width, one object number a pixel, "
            f"but it is {mask.dtype} of shape {mask.shape}"
        )
    ids = [int(label) for label in np.unique(mask) if label not in (BACKGROUND, VOID)]
    if not ids:
        raise MaskError(
            f"the mask of frame {index} holds no object; mark at least one with a number from 1 "
            "to 254 (255 is void)"
        )
    return ids


def _without_void(mask: np.ndarray) -> np.ndarray:
    return np.where(mask == VOID, np.uint8(BACKGROUND), mask)


def _check_frame(frame: np.ndarray, index: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """The frame's size, which is that of the frames before it."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise VideoError(
            f"frame {index} must be uint8 height x width x 3 (RGB), but it is {frame.dtype} of "
            f"shape {frame.shape}"
        )
    found = (frame.shape[0], frame.shape[1])
    if size is not None and found != size:
        raise VideoError(
            f"frame {index} is {found[0]}x{found[1]} but the frames before it are "
            f"{size[0]}x{size[1]}; give a video of one size"
        )
    return found


def _check_mask_size(mask: np.ndarray, index: int, size: tuple[int, int]) -> None:
    if mask.shape != size:
        raise MaskError(
            f"the mask of frame {index} is {mask.shape[0]}x{mask.shape[1]} but the frames are "
            f"{size[0]}x{size[1]}; give a mask of the video's size"
        )


def _check_end(masks: Mapping[int, np.ndarray], num_frames: int) -> None:
    if (last := max(masks)) >= num_frames:
        raise MaskError(
            f"a mask was given for frame {last}, but the video has {num_frames} frames, counted "
            "from 0; give masks for its frames only"
        )
