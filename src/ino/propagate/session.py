"""One video being tracked: frames in, label maps out, masks added on the way."""

from collections.abc import Sequence

import numpy as np
import torch

from ino.errors import MaskError
from ino.propagate.features import FeatureExtractor, check_finite
from ino.propagate.given_masks import (
    BACKGROUND,
    check_frame,
    check_mask_size,
    object_ids,
    without_void,
)
from ino.propagate.labels import harden_labels, label_confidence, soften_labels
from ino.propagate.mask_size import resize_mask, restore_mask
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import Protocol, Size


class Session:
    """The state of one video; frames are counted from the first that was given."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        protocol: Protocol,
        *,
        device: torch.device | str,
        screening: bool,
    ) -> None:
        """A session that has seen no frame, see `Tracker` for the options."""
        self._extractor = extractor
        self._protocol = protocol
        self._device = device
        self._propagator = Propagator(protocol, screening=screening)
        self._ids: list[int] = []
        self._num_frames = 0
        self._size: Size | None = None
        # Of the input before it is cropped, and the size at which labels are compared.
        self._whole: Size = (0, 0)
        self._compared: Size = (0, 0)
        # Of the last frame.
        self._soft = torch.empty(0, 0, 0)
        self._predicted = np.empty((0, 0), dtype=np.uint8)
        self._given = np.empty((0, 0), dtype=np.uint8)
        self._given_ids: list[int] = []

    @property
    def frame(self) -> int:
        """Number of the last frame."""
        return self._num_frames - 1

    def step(
        self, frame: np.ndarray, mask: np.ndarray | None = None, new_ids: Sequence[int] = ()
    ) -> np.ndarray:
        """The label map of the next frame; zeros before the first mask.

        Args:
            frame: uint8 RGB, of the size of those before.
            mask: a label map of its size that introduces `new_ids`.
            new_ids: those of its objects that are not known yet.

        Raises:
            VideoError: the frame is not such an image.
            MaskError: the mask has another size.
            InoError: the network's features of it are no numbers.
        """
        size = check_frame(frame, self._num_frames, self._size)
        if mask is not None:
            check_mask_size(mask, self._num_frames, size)
            mask = without_void(mask)
        features = None
        if self._ids or new_ids:
            # Before anything is changed: a frame that is refused leaves no trace.
            features = self._extractor(frame)
            check_finite(features, f"frame {self._num_frames}")
        self._size = size
        self._num_frames += 1
        if features is None:
            return np.zeros(size, dtype=np.uint8)
        is_first = not self._ids
        entering = [BACKGROUND, *new_ids] if is_first else list(new_ids)
        self._ids += entering
        labels = self._advance(features, mask if new_ids else None, entering)
        if is_first and self._protocol.keep_given:
            assert mask is not None
            return mask
        return labels

    def add(self, mask: np.ndarray) -> np.ndarray:
        """The label map of the last frame once the objects of a mask are where it says.

        Objects that are not known yet enter. A known one is corrected: from here on this frame is
        its reference. Other objects stay where they were predicted, unless the mask covers them.
        A mask that holds all known objects decides the background, too. Masks that are given for
        one frame after the other count as one, in which a later mask covers the earlier ones and
        replaces the objects that it holds.

        Args:
            mask: a label map of the frame's size.

        Raises:
            MaskError: the mask is malformed, of another size, or there is no frame yet.
        """
        if self._size is None:
            raise MaskError("a mask was given before any frame: call start(frame, mask) first")
        if not self._ids:
            raise MaskError(
                f"a mask was added to frame {self.frame}, but no mask came before it: give the "
                "first one to start(frame, mask), or to track with its frame's number"
            )
        found = object_ids(mask, self.frame)
        check_mask_size(mask, self.frame, self._size)
        self._ids += [label for label in found if label not in self._ids]
        mask = without_void(mask)
        earlier = _without(self._given, found)
        mask = self._given = np.where(mask == BACKGROUND, earlier, mask)
        objects = self._given_ids = sorted({*self._given_ids, *found})
        given = [BACKGROUND, *objects] if {BACKGROUND, *objects} >= set(self._ids) else objects
        channels = [self._ids.index(label) for label in given]
        resized = resize_mask(mask, whole=self._whole, size=self._compared)
        self._soft = self._propagator.add(self._soften(resized, given), channels=channels)
        if self._protocol.feedback == "hard":
            # Soft labels are those of the reduced mask now, which would change other objects.
            labels = _without(self._predicted, given)
        else:
            labels = self._harden()
        labels = self._settle(labels, resized, given)
        if not self._protocol.keep_given:
            return labels
        # What was drawn stays as it was drawn.
        return np.where(np.isin(mask, given), mask, _without(labels, objects))

    def confidence(self) -> np.ndarray:
        """The share of the largest label among all labels at each pixel of the last frame, 0..1;
        0 before the first mask."""
        assert self._size is not None
        if not self._ids:
            return np.zeros(self._size, dtype=np.float32)
        confidence = label_confidence(
            self._soft,
            stride=self._extractor.stride,
            size=self._compared,
            method=self._protocol.mask_up,
        )
        return restore_mask(confidence, whole=self._whole, size=self._size)

    def survival(self) -> dict[int, float]:
        """J of each object between its reference and the last frame's labels carried back there.

        The way back is one step over all frames between, without a window. An object that is out of
        sight in the last frame does not find back.
        """
        if not self._ids:
            return {}
        found = self._propagator.survival()
        return {self._ids[channel]: value for channel, value in found.items() if channel}

    def _advance(
        self, features: torch.Tensor, mask: np.ndarray | None, entering: Sequence[int]
    ) -> np.ndarray:
        """Label map of the next frame, objects introduced by `mask`."""
        assert self._size is not None
        self._whole = self._compared = self._size
        if self._protocol.masks_at == "input":
            self._whole, self._compared = self._extractor.sizes(self._size)
        new = None
        self._given_ids = [label for label in entering if label != BACKGROUND]
        self._given = np.zeros(self._size, dtype=np.uint8)
        if mask is not None:
            self._given = np.where(np.isin(mask, entering), mask, self._given)
            mask = resize_mask(mask, whole=self._whole, size=self._compared)
            new = self._soften(mask, entering, grid=(features.shape[0], features.shape[1]))
            if self._protocol.feedback == "hard":
                new = torch.zeros_like(new)  # they come pixel by pixel, in `_settle`
        self._soft = self._propagator.step(features, new)
        self._predicted = self._harden()
        return self._settle(self._predicted, mask, entering)

    def _harden(self) -> np.ndarray:
        return harden_labels(
            self._soft,
            ids=self._ids,
            stride=self._extractor.stride,
            size=self._compared,
            method=self._protocol.mask_up,
            normalize=self._protocol.normalize_output,
        )

    def _settle(
        self, labels: np.ndarray, mask: np.ndarray | None, given: Sequence[int]
    ) -> np.ndarray:
        """The label map; where labels are fed back hard, with `given` ones as the mask says."""
        if self._protocol.feedback == "hard":
            if mask is not None:
                labels = np.where(np.isin(mask, given), mask, labels)
            self._propagator.feed_back(self._soften(labels, self._ids))
        return restore_mask(labels, whole=self._whole, size=self._size or labels.shape)

    def _soften(
        self, mask: np.ndarray, ids: Sequence[int], *, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        return soften_labels(
            mask,
            ids=list(ids),
            grid=grid or (self._soft.shape[0], self._soft.shape[1]),
            method=self._protocol.mask_down,
            device=self._device,
        )


def _without(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The labels with background in place of these."""
    return np.where(np.isin(labels, ids), np.uint8(BACKGROUND), labels)
