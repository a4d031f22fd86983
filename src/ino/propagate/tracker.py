"""Masks of a few frames carried through a whole video, frame by frame.

Reading videos and writing results belong to `ino.data`; which numbers decide the result, to
`protocols`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from ino.errors import ConfigError, MaskError
from ino.models.devices import choose_device, computes_in_bf16
from ino.propagate.features import FeatureBackbone, FeatureExtractor, Precision
from ino.propagate.given_masks import (
    check_end,
    check_frame,
    check_frames,
    check_mask_size,
    check_number,
    entering_objects,
    object_ids,
)
from ino.propagate.protocols import Protocol, get_protocol
from ino.propagate.session import Session


class Tracker:
    """Carries masks through videos under one protocol.

    `track` takes a whole video and all its masks. `start`, `step` and `add` take one frame after
    the other, for programs that show results as they come and let people correct them.
    """

    def __init__(
        self,
        backbone: FeatureBackbone,
        *,
        protocol: Protocol | str,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        screening: bool | None = None,
    ) -> None:
        """A tracker; the backbone is moved to `device` and put into evaluation mode.

        Args:
            backbone: for instance from `ino.models.backbones.load_backbone`.
            protocol: one of `ino.propagate.protocols`, or its name.
            device: where everything is computed; auto: CUDA, MPS or the CPU, what there is.
            precision: of the network; bf16 is quicker where the device multiplies in it, and
                changes features by rounding.
            screening: on a CPU, look for similar positions in bf16 before they are ranked in fp32,
                which changes no result; None: where the CPU multiplies in bf16.

        Raises:
            ConfigError: the protocol, the device or the precision is unknown, or the backbone does
                not fit the protocol.
        """
        self.protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
        if not isinstance(self.protocol, Protocol):
            raise ConfigError(
                f"the protocol is {self.protocol!r}; give a name such as ino-davis, or what "
                "get_protocol gives"
            )
        self.precision: Precision = precision
        self._device = choose_device(str(device))
        self._extractor = FeatureExtractor(
            backbone, protocol=self.protocol, device=self._device, precision=precision
        )
        if isinstance(backbone, nn.Module):
            backbone.to(self._device).eval()
        self._screening = computes_in_bf16(self._device) if screening is None else screening
        self._session: Session | None = None

    def start(self, frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Begins a new video with its first frame and mask; the label map of that frame.

        Args:
            frame: uint8 RGB, height x width x 3.
            mask: uint8, height x width, 0 background, 1 to 254 objects, 255 void.

        Raises:
            MaskError: the mask is malformed, without objects or of another size.
            VideoError: the frame is not an RGB image, or too small.
        """
        session = self._new_session()
        labels = session.step(frame, mask, object_ids(mask, 0))
        self._session = session
        return labels

    def step(self, frame: np.ndarray) -> np.ndarray:
        """The label map of the next frame.

        Raises:
            VideoError: the frame is not an RGB image of the size of those before.
            MaskError: there was no `start`.
        """
        return self._running().step(frame)

    def add(self, mask: np.ndarray, *, frame: int | None = None) -> np.ndarray:
        """The label map of the last frame, once objects are where a mask says.

        Objects that are not known yet enter. A known one is corrected: from here on this frame is
        its reference. Other objects stay where they were predicted, unless the mask covers them. A
        mask that holds all known objects decides the background, too. Masks that are given for one
        frame after the other, by `start` too, count as one, in which a later mask covers the
        earlier ones and replaces the objects that it holds.

        Args:
            mask: as for `start`.
            frame: the number of the mask's frame, from 0 at `start`, to make sure that it is the
                last one.

        Raises:
            MaskError: the mask cannot be used, or belongs to another frame.
        """
        session = self._running()
        if frame is not None:
            check_number(frame)
        if frame is not None and frame != session.frame:
            when = "has passed" if frame < session.frame else "has not come yet"
            raise MaskError(
                f"the mask is for frame {frame}, but the last frame was {session.frame}: frame "
                f"{frame} {when}; add masks when their frame was the last, or give all of them to "
                "track(..., correct=True)"
            )
        return session.add(mask)

    def confidence(self) -> np.ndarray:
        """The share of the largest label among all labels at each pixel of the last frame: float32,
        height x width, 0..1. Taken before the 0..1 step, so it may belong to another label than the
        one that wins."""
        return self._running().confidence()

    def survival(self) -> dict[int, float]:
        """How much of each object survives the way from the last frame back to its reference.

        Its J there, 0..1, between the labels that were given and those of the last frame carried
        back in one step. Low values tell that an object was lost, or is out of sight.
        """
        return self._running().survival()

    def track(
        self,
        frames: Iterable[np.ndarray],
        masks: Mapping[int, np.ndarray],
        *,
        num_frames: int | None = None,
        correct: bool = False,
    ) -> Iterator[np.ndarray]:
        """One label map a frame, of the frame's size; zeros before the first mask.

        Frames are taken one at a time, as results are asked for; memory does not grow with their
        number. `confidence` and `survival` then tell of the last frame. An object enters with the
        first mask that holds its id. The frame of the first mask is returned as given. Pixels that
        are void (255) count as background, in the result too.

        Args:
            frames: uint8 RGB frames, height x width x 3, all of one size.
            masks: frame number, from 0, to label map: uint8, height x width, 0 background, 1 to
                254 objects, 255 void. Ids need not be consecutive.
            num_frames: length of the video where it is known, so that a mask beyond its end is
                found at once.
            correct: later masks also correct the objects of earlier ones, see `add`.

        Raises:
            MaskError: there is no mask, or one is malformed, without objects, of another size than
                the frames (found when that frame comes), or beyond the end of the video (found at
                the end unless `num_frames` is given).
            VideoError: a frame is not an RGB image, too small, or of another size than the first.
            ConfigError: the backbone has no such layer as the protocol reads (found at the first
                mask).
        """
        check_frames(frames, iterator=True)
        entering = entering_objects(masks, correct=correct)
        if num_frames is not None:
            check_end(masks, num_frames)
        return self._stream(frames, masks, entering, correct=correct)

    def track_both_ways(
        self, frames: Sequence[np.ndarray], masks: Mapping[int, np.ndarray]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Number and label map of every frame, carried forward or backward from the nearest mask.

        Each mask holds all objects that are visible in its frame; of two equally near, the earlier
        one counts. Results come in the order in which they are found.

        Args:
            frames: as for `track`, with `len` and access by number.
            masks: as for `track`.

        Raises:
            MaskError: as `track`.
            VideoError: as `track`.
        """
        check_frames(frames, iterator=False)
        entering_objects(masks, correct=True)
        check_end(masks, len(frames))
        numbers = sorted(masks)
        # From each mask to half of the way to the next.
        edges = [0, *((a + b) // 2 + 1 for a, b in itertools.pairwise(numbers)), len(frames)]
        for number, (first, end) in zip(numbers, itertools.pairwise(edges), strict=True):
            check_mask_size(masks[number], number, check_frame(frames[number], number, None))
            for path in (range(number, end), range(number, first - 1, -1)):
                chosen = (frames[index] for index in path)
                results = self.track(chosen, {0: masks[number]})
                for index, labels in zip(path, results, strict=True):
                    if index != number or path.step > 0:
                        yield index, labels

    def _stream(
        self,
        frames: Iterable[np.ndarray],
        masks: Mapping[int, np.ndarray],
        entering: Mapping[int, list[int]],
        *,
        correct: bool,
    ) -> Iterator[np.ndarray]:
        session = self._session = self._new_session()
        for index, frame in enumerate(frames):
            mask, new_ids = masks.get(index), entering.get(index, [])
            corrects = correct and mask is not None and index != min(masks)
            labels = session.step(frame, mask, () if corrects else new_ids)
            yield session.add(masks[index]) if corrects else labels
        check_end(masks, session.frame + 1)

    def _new_session(self) -> Session:
        return Session(
            self._extractor, self.protocol, device=self._device, screening=self._screening
        )

    def _running(self) -> Session:
        if self._session is None:
            raise MaskError("no mask was given yet: call start(frame, mask) first")
        return self._session
