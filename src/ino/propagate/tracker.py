"""`Tracker`: propagates the masks of one or a few frames through a whole video, frame by frame.

Videos are read and written in `ino.data`; the numbers that decide the result are in `protocols`.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from ino.data.label_maps import BACKGROUND, VOID, as_labels
from ino.errors import ConfigError, InoError, MaskError, VideoError
from ino.kernels.topk import SMALL_RADIUS
from ino.models.backbone import computes_in_bf16
from ino.models.load import load_backbone
from ino.propagate.features import (
    FeatureBackbone,
    FeatureExtractor,
    Place,
    Precision,
    as_frame,
    check_finite,
    quick_precision,
)
from ino.propagate.labels import (
    label_confidence,
    label_pixels,
    resize_mask,
    restore_mask,
    soften_labels,
)
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import Protocol, Quality, Size, get_protocol, protocol_for
from ino.propagate.references import Metric, Moments, ReferencePropagation, TrackedFrame
from ino.propagate.refine import Motion, RefinedLabels, estimate_motion, refine_labels

Image = np.ndarray | torch.Tensor

_LOG = logging.getLogger("ino")

GPU_BATCH = 8
"""Frames that a GPU computes together. The features of one of 480x854 pixels fill it, but each
kernel is started once for all."""

ZOOM_STEP = 8
"""What is computed of a frame begins and ends at multiples of this many features."""

HALF = 0.5
"""An object with a smaller share of every feature has none of its own."""


class Tracker:
    """Propagates masks through videos under one protocol.

    `track` takes a video in one pass; `track_references` keeps all annotated frames as references,
    forward and backward in time. `start`, `step` and `add` take one frame after
    the other, for programs that show results as they come and let people correct them:

        tracker = Tracker("ino_vitt8")
        labels = tracker.start(first_frame, mask)
        for frame in other_frames:
            labels = tracker.step(frame)

    Frames are uint8 RGB, height x width x 3, and masks are label maps of bool or any integer type;
    both may be arrays of numpy or tensors of torch. A tracker works for one thread at a time and
    raises InoError where another one calls it meanwhile. Threads that work side by side need a
    tracker each, which may share a backbone.
    """

    def __init__(
        self,
        backbone: FeatureBackbone | str | Path,
        *,
        protocol: Protocol | str | None = None,
        quality: Quality | None = None,
        device: torch.device | str = "cpu",
        precision: Precision | None = None,
        screening: bool | None = None,
        warns: bool = True,
    ) -> None:
        """Creates a tracker; moves the backbone to `device` and puts it into evaluation mode.

        Args:
            backbone: for instance from `ino.models.load.load_backbone`, or what that takes.
            protocol: a Protocol (see `get_protocol`), or the name of one, such as "ino-davis"; None
                for the one that quality default takes with the weights.
            quality: in place of a protocol, see `protocol_for`; None is default.
            device: where everything is computed; "auto" takes CUDA, else MPS, else the CPU.
            precision: of the network; bf16 is faster on hardware that supports it, but rounds the
                features; None is fp32 where a protocol is given, else bf16 where the device
                computes in it.
            screening: on a CPU, preselect similar positions in bf16 and rank only these in fp32,
                which gives the same result; None does so if the CPU supports bf16 and windows are
                large.
            warns: name objects that are too small for the features, vanish or fill a frame; off
                where scores tell.

        Raises:
            ConfigError: both a protocol and a quality are given; one of these, the device or the
                precision is unknown; or the backbone does not fit the protocol.
            CheckpointError: see `load_backbone`.
        """
        if isinstance(backbone, str | Path):
            backbone = load_backbone(backbone)
        if protocol is not None and quality is not None:
            raise ConfigError(
                "both a protocol and a quality are given: a protocol is exact, and a quality "
                "chooses one; give either"
            )
        if protocol is None:
            quality = quality or "default"
            protocol = getattr(backbone, "protocol", None)
            if isinstance(protocol, str):
                protocol = protocol_for(protocol, quality)
        if isinstance(protocol, str):
            protocol = get_protocol(protocol)
        if not isinstance(protocol, Protocol):
            raise ConfigError(
                f"the protocol is {protocol!r}; give a name such as ino-davis, or what "
                "get_protocol gives"
            )
        self.precision: Precision = precision or usual_precision(quality, device)
        self._extractor = FeatureExtractor(
            backbone, protocol=protocol, device=device, precision=self.precision
        )
        self.protocol = self._extractor.protocol
        if screening is None:
            is_large = protocol.radius is None or protocol.radius > SMALL_RADIUS
            screening = is_large and computes_in_bf16(self._extractor.device)
        self._screening = screening
        self._warns = warns
        self._session: Session | None = None
        self._busy = threading.Lock()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Raises InoError where another thread is within."""
        if not self._busy.acquire(blocking=False):
            raise InoError(
                "two threads use this tracker at once: make a Tracker for each of them, over the "
                "same backbone"
            )
        try:
            yield
        finally:
            self._busy.release()

    def start(self, frame: Image, mask: Image) -> np.ndarray:
        """Starts a new video with its first frame and mask, and returns that frame's label map.

        Args:
            frame: uint8 RGB, height x width x 3.
            mask: height x width, 0 background, 1 to 254 objects, 255 void.

        Raises:
            MaskError: the mask is malformed, without objects or of another size.
            VideoError: the frame is not an RGB image, or too small.
            InoError: the network's features of it are no finite numbers.
        """
        mask = _as_mask(mask, 0)
        with self._alone():
            session = self._new_session()
            labels = session.step(frame, mask, object_ids(mask, 0))
            self._session = session
        return labels

    def step(self, frame: Image) -> np.ndarray:
        """The label map of the next frame.

        Raises:
            VideoError: the frame is not an RGB image of the size of those before.
            MaskError: there was no `start`.
            InoError: the network's features of it are no finite numbers.
        """
        with self._alone():
            return self._running().step(frame)

    def add(self, mask: Image, *, frame: int | None = None) -> np.ndarray:
        """Adds or corrects objects in the last frame by a mask, and returns its new label map.

        Objects that are not known yet are added. A known object is corrected: from now on this
        frame is its reference. All other objects stay as predicted, except where the mask covers
        them. A mask that contains all known objects also defines the background. Several masks for
        the same frame, the one of `start` included, are merged: a later mask replaces its own
        objects and covers the earlier masks.

        Args:
            mask: as for `start`.
            frame: the number of the mask's frame, from 0 at `start`, to make sure that it is the
                last one.

        Raises:
            MaskError: the mask cannot be used, or belongs to another frame.
        """
        session = self._running()
        if frame is not None:
            _check_number(frame)
            if frame != session.frame:
                when = "has passed" if frame < session.frame else "has not come yet"
                raise MaskError(
                    f"the mask is for frame {frame}, but the last frame was {session.frame}: frame "
                    f"{frame} {when}; add masks when their frame was the last, or give all of them "
                    "to track_references"
                )
        with self._alone():
            return session.add(_as_mask(mask, session.frame))

    def remove(self, label: int) -> np.ndarray:
        """Removes an object, and returns the last label map without it.

        Where it was, and where it would be in later frames, is background. A mask that holds the
        number again, given to `add`, introduces another object.

        Raises:
            MaskError: there is no object of that number.
        """
        with self._alone():
            return self._running().remove(label)

    def confidence(self) -> np.ndarray:
        """The confidence of the last frame's label map: largest soft label / sum, at each pixel.

        Float32, height x width, 0..1; 0 before the first mask. It is computed before
        `normalize_output` rescales the channels, so at some pixels it may be the confidence of
        another label than that of the label map.
        """
        with self._alone():
            return self._running().confidence()

    def survival(self) -> dict[int, float]:
        """Cycle consistency of each object, by its id: J, 0..1.

        The labels of the last frame are propagated back to the object's reference frame in one
        step and compared with the mask that was given there. A low value means that the object was
        lost or is not visible; it is 0 where the last label map has no pixel of the object.
        """
        with self._alone():
            return self._running().survival()

    def state(self) -> dict[str, Any]:
        """What `track` needs to go on after the last frame: see its `state`.

        It consists of lists, numbers and tensors, which `torch.save` writes and `torch.load` reads
        with `weights_only`. Nothing is copied, and what comes later does not change it.
        """
        with self._alone():
            return self._running().state()

    def track(
        self,
        frames: Iterable[Image],
        masks: Mapping[int, Image],
        *,
        num_frames: int | None = None,
        name: str = "",
        state: Mapping[str, Any] | None = None,
        batch: int = 1,
        ahead: bool = False,
    ) -> Iterator[np.ndarray]:
        """One label map per frame, of the frame's size; zeros before the first mask.

        Frames are taken one at a time, as results are asked for; memory does not grow with their
        number. After each result, `confidence` and `survival` describe that frame. An object enters
        with the first mask that contains its id. The first mask is returned unchanged if the
        protocol's `keep_given` is set, which it is not in crw and dul. Void pixels (255) become
        background, also in the result. A warning names the first object that is too small for the
        features, vanishes or fills a frame, once per object.

        Args:
            frames: uint8 RGB frames, height x width x 3, all of one size.
            masks: frame number, from 0, to label map: height x width, 0 background, 1 to 254
                objects, 255 void. Ids need not be consecutive.
            num_frames: length of the video where it is known, so that a mask beyond its end is
                found at once.
            name: of the video, for warnings.
            state: goes on from what `state` gave after some frame; `frames` begin with the next
                one. On the same device, label maps equal those of a call that was not cut.
            batch: frames that are computed together, 1 or more; see `best_batch`. Above 1, up to
                twice as many frames are taken in advance, and `confidence`, `survival` and `state`
                are those of the last frame that was taken. Protocols whose features follow from
                the labels before, such as ino-fast, go frame by frame in any case.
            ahead: on a CPU, a second thread computes the features of the next frame, which is taken
                in advance; label maps are the same, and come up to twice as fast on two cores.

        Raises:
            MaskError: there is no mask, or one is malformed, without objects, of another size than
                the frames (found when that frame comes), or beyond the end of the video (found at
                the end unless `num_frames` is given).
            VideoError: a frame is not an RGB image, too small, or of another size than the first.
            ConfigError: the backbone has no such layer as the protocol reads (found at the first
                mask).
        """
        if not isinstance(frames, Iterable):
            raise VideoError(
                f"frames are {type(frames).__name__}, but something to iterate over is needed"
            )
        masks = _as_masks(masks)
        entering = _entering_objects(masks)
        if num_frames is not None:
            _check_end(masks, num_frames)
        if batch < 1:
            raise ConfigError(f"batch is {batch}, but at least one frame is computed at a time")
        return self._stream(
            frames, masks, entering, name=name, state=state, batch=batch, ahead=ahead
        )

    @property
    def best_batch(self) -> int:
        """The `batch` of `track` by which masks come fastest: 1 except on a GPU."""
        return GPU_BATCH if self._extractor.device.type == "cuda" else 1

    def track_references(
        self,
        frames: Sequence[Image] | Image,
        masks: Mapping[int, Image],
        *,
        folder: Path | None = None,
        check_every: int = 0,
        on_step: Callable[[], None] = lambda: None,
    ) -> Iterator[TrackedFrame]:
        """Every frame of a video, where all annotated frames stay references.

        Masks are propagated forward and backward in time. Between two annotated frames, the results
        of both are blended by distance and by how well each of them recovers the mask of the other
        (`ino.propagate.references`). With one mask, on frame 0, label maps equal those of `track`.

        An annotated frame comes out as its mask says; void pixels (255) say nothing. **An object
        that is not drawn in an annotated frame counts as not visible there**: between a frame that
        holds it and one that does not, it is shown up to half of the way, or until it is lost. Only
        a mask of nothing but new objects says nothing of the others: its objects enter with it.

        Args:
            frames: as for `track`, with `len` and access by number; read twice between two
                annotated frames.
            masks: as for `track`; all but one may be without objects.
            folder: where soft labels between two annotated frames are kept, in a file that has no
                name and goes away; None: the system's folder for temporary files.
            check_every: frames between two checks of survival where no pass in the other direction
                tells it; 0: never.
            on_step: called `num_steps(masks, len(frames))` times, also before the first result.

        Returns:
            Frames in the order in which they are finished: those before the first mask in reversed
            order, then that mask's frame and all others in order.

        Raises:
            MaskError: as `track`.
            VideoError: as `track`.
        """
        steps = self.reference_steps(frames, masks, folder=folder, check_every=check_every)

        def tracked() -> Iterator[TrackedFrame]:
            for found in steps:
                if isinstance(found, TrackedFrame):
                    yield found
                elif found["is_step"]:
                    on_step()

        return tracked()

    def reference_steps(
        self,
        frames: Sequence[Image] | Image,
        masks: Mapping[int, Image],
        *,
        folder: Path | None = None,
        check_every: int = 0,
        kept: Path | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Iterator[TrackedFrame | dict[str, Any]]:
        """`track_references` for programs that are stopped and go on later.

        Args:
            frames, masks, folder, check_every: see `track_references`.
            kept: a file in which soft labels are kept in place of one without a name; its folder
                may be made later, but must exist after the first item. The caller removes it.
            state: goes on from a state that this method gave; `kept` must be as it was left.

        Returns:
            Frames, and between them a state after each step of work (see `Tracker.state` for what
            it consists of).

        Raises:
            MaskError, VideoError: see `track_references`.
        """
        if not isinstance(frames, Sequence | np.ndarray | torch.Tensor):
            raise VideoError(
                f"frames are {type(frames).__name__}, but a sequence, such as a list, is needed"
            )
        masks = _as_masks(masks)
        _check_order(masks)
        _check_end(masks, len(frames))
        if not any(_has_object(mask) for mask in masks.values()):
            object_ids(masks[min(masks)], min(masks))  # raises
        size = None
        for number in sorted(masks):
            size = _frame_size(as_frame(frames[number], f"frame {number}"), number, size)
            _check_mask_size(masks[number], number, size)
        propagation = ReferencePropagation(
            frames,
            masks,
            self._new_session,
            folder=folder,
            check_every=check_every,
            kept=kept,
        )
        return self._each_step(propagation, state)

    def _each_step(
        self, propagation: ReferencePropagation, state: Mapping[str, Any] | None
    ) -> Iterator[TrackedFrame | dict[str, Any]]:
        """Its steps; another thread may not use the tracker while one of them is computed."""
        results = propagation.run(state)
        while True:
            with self._alone():
                found = next(results, None)
            if found is None:
                return
            yield found

    def _stream(
        self,
        frames: Iterable[Image],
        masks: Mapping[int, np.ndarray],
        entering: Mapping[int, list[int]],
        *,
        name: str,
        state: Mapping[str, Any] | None,
        batch: int,
        ahead: bool,
    ) -> Iterator[np.ndarray]:
        session = self._session = self._new_session(name)
        if state is not None:
            session.restore(state)
        if batch > 1 and session.can_wait:
            yield from self._stream_batches(session, frames, masks, entering, batch)
        elif ahead and self._extractor.device.type == "cpu":
            yield from self._stream_ahead(session, frames, masks, entering)
        else:
            for index, frame in enumerate(frames, start=session.frame + 1):
                with self._alone():
                    labels = session.step(frame, masks.get(index), entering.get(index, []))
                yield labels
        _check_end(masks, session.frame + 1)

    def _stream_ahead(
        self,
        session: "Session",
        frames: Iterable[Image],
        masks: Mapping[int, np.ndarray],
        entering: Mapping[int, list[int]],
    ) -> Iterator[np.ndarray]:
        """The features of a frame are computed while the one before it is labeled."""
        remaining = iter(frames)
        frame, failure = _next_frame(remaining)
        begun: Begun | None = None
        with _helper() as helper:
            while frame is not None:
                index = session.frame + 1
                mask, new_ids = masks.get(index), entering.get(index, [])
                after, failure = _next_frame(remaining)
                begun_after = None
                if after is not None and session.ids and not new_ids:
                    enters = bool(entering.get(index + 1))
                    begun_after = session.begin_reading(frame, after, helper, enters=enters)
                with self._alone():
                    labels = session.step(frame, mask, new_ids, begun=begun)
                yield labels
                frame, begun = after, begun_after
        if failure is not None:
            raise failure

    def _stream_batches(
        self,
        session: "Session",
        frames: Iterable[Image],
        masks: Mapping[int, np.ndarray],
        entering: Mapping[int, list[int]],
        batch: int,
    ) -> Iterator[np.ndarray]:
        """A batch is read when the one after it has begun, so that the device always has work.

        What is wrong with a frame is raised where its label map would come.
        """
        begun: Waiting | None = None
        checked = session.checked(frames)
        for part in _batches(checked, masks, start=session.frame + 1, batch=batch):
            with self._alone():
                after = session.begin(part.frames) if part.is_together else None
                read = [] if begun is None else list(session.finish(begun))
            yield from read
            begun = after
            if part.failure is not None:
                raise part.failure
            if not part.is_together:
                index = part.first
                with self._alone():
                    labels = session.step(part.frames[0], masks.get(index), entering.get(index, []))
                yield labels
        if begun is not None:
            with self._alone():
                read = list(session.finish(begun))
            yield from read

    def _new_session(self, name: str = "", **choices: Any) -> "Session":
        choices = {"warns": self._warns} | choices
        return Session(
            self._extractor, self.protocol, screening=self._screening, name=name, **choices
        )

    def _running(self) -> "Session":
        if self._session is None:
            raise MaskError("no mask was given yet: call start(frame, mask) first")
        return self._session


def usual_precision(quality: Quality | None, device: torch.device | str) -> Precision:
    """The precision of the network where none is chosen: of a quality, or of a protocol (None)."""
    return "fp32" if quality is None else quick_precision(device)


class Session:
    """The state of a `Tracker` in one video; the first frame is number 0.

    It is apart from the tracker, so that a `start` that is refused leaves the video before it as it
    was, and a result of `track` that is not used up goes on after another `start`.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        protocol: Protocol,
        *,
        screening: bool,
        name: str,
        first: int = 0,
        direction: int = 1,
        void: bool = False,
        warns: bool = True,
    ) -> None:
        """A session that has seen no frame.

        Args:
            extractor: of the tracker.
            protocol: of the tracker.
            screening: see `Tracker`.
            name: of the video, for warnings.
            first: number of the first frame in the video, for messages.
            direction: 1, or -1 where the video is seen backward.
            void: void pixels say nothing; otherwise they are background.
            warns: of objects that are lost or fill the frame.
        """
        self._name = name
        self._warns = warns
        self._first, self._direction = first, direction
        self._unsaid = [] if void else [VOID]
        self._warned: set[int] = set()
        self._extractor = extractor
        self._protocol = protocol
        self._propagator = Propagator(protocol, screening=screening)
        self._metric: Metric | None = None
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
        self._labels = np.empty((0, 0), dtype=np.uint8)
        # By which the next frame's features are chosen: that of the frame before the last one, so
        # that they can be computed while that one is labeled, or of the last one after a mask.
        self._seen = self._labels
        # Where labels follow the optical flow: the last frame, and what they were before it.
        self._frame: np.ndarray | None = None
        self._place: Place | None = None
        self._motion: Motion | None = None
        self._before = np.empty((0, 0), dtype=np.uint8)
        self._certain: np.ndarray | None = None  # the confidence, where it is known already
        self._num_pixels = np.zeros(256)  # of each label

    @property
    def frame(self) -> int:
        """Number of the last frame."""
        return self._num_frames - 1

    @property
    def ids(self) -> list[int]:
        """The label of each channel."""
        return list(self._ids)

    @property
    def soft(self) -> torch.Tensor:
        """Soft labels of the last frame, rows x columns x channels, as its features say."""
        return self._soft

    @property
    def protocol(self) -> Protocol:
        """The tracker's."""
        return self._protocol

    def soft_mask(
        self, mask: np.ndarray, ids: Sequence[int], *, features: torch.Tensor
    ) -> torch.Tensor:
        """Labels of a mask on the grid of its frame's features."""
        whole, compared = self._extractor.mask_sizes((mask.shape[0], mask.shape[1]))
        how = self._protocol.mask_to_input
        mask = resize_mask(mask, whole=whole, size=compared, how=how)
        return self._soften(mask, ids, grid=(features.shape[0], features.shape[1]))

    @property
    def labels(self) -> np.ndarray:
        """The label map of the last frame."""
        return self._labels

    def label_map(self, soft: torch.Tensor, ids: Sequence[int]) -> np.ndarray:
        """Other soft labels of the last frame's grid as a label map."""
        return self._restore(self._harden(soft, ids))

    def state(self) -> dict[str, Any]:
        """See `Tracker.state`."""
        place = self._place
        return {
            "propagator": self._propagator.state(),
            "warned": sorted(self._warned),
            "ids": list(self._ids),
            "num_frames": self._num_frames,
            "sizes": [self._size, self._whole, self._compared],
            "soft": self._soft,
            "given_ids": list(self._given_ids),
            "arrays": {
                name: torch.from_numpy(getattr(self, f"_{name}"))
                for name in ("predicted", "given", "labels", "seen", "before")
            },
            "frame": None if self._frame is None else torch.from_numpy(self._frame),
            "place": None if place is None else [(one.start, one.stop) for one in place],
            "motion": None if self._motion is None else [*map(torch.from_numpy, self._motion)],
            "num_pixels": torch.from_numpy(self._num_pixels),
            "metric": None if self._metric is None else list(self._metric),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        state = _moved(state, self._extractor.device)
        self._propagator.restore(state["propagator"])
        self._warned = set(state["warned"])
        self._ids, self._given_ids = list(state["ids"]), list(state["given_ids"])
        self._num_frames = state["num_frames"]
        self._size, self._whole, self._compared = state["sizes"]
        self._soft = state["soft"]
        for name, value in state["arrays"].items():
            setattr(self, f"_{name}", value.cpu().numpy())
        self._frame = None if state["frame"] is None else state["frame"].cpu().numpy()
        if state["place"] is not None:
            rows, columns = (slice(*ends) for ends in state["place"])
            self._place = (rows, columns)
        if state["motion"] is not None:
            self._motion = Motion(*(one.cpu().numpy() for one in state["motion"]))
        self._num_pixels = state["num_pixels"].cpu().numpy()
        self._metric = None if state["metric"] is None else Metric(*state["metric"])

    def step(
        self,
        frame: Image,
        mask: np.ndarray | None = None,
        new_ids: Sequence[int] = (),
        *,
        features: torch.Tensor | None = None,
        begun: "Begun | None" = None,
    ) -> np.ndarray:
        """The label map of the next frame; zeros before the first mask.

        Args:
            frame: as for `Tracker.start`.
            mask: a label map of the frame's size that introduces `new_ids`; None if none enter.
            new_ids: the objects of the mask that are not known yet.
            features: of the frame, where they are known.
            begun: the same and more, where another thread computes them.
        """
        number = self._first + self._direction * self._num_frames
        frame = as_frame(frame, f"frame {number}")
        size = _frame_size(frame, number, self._size)
        if mask is not None:
            _check_mask_size(mask, number, size)
            mask = _without(mask, self._unsaid)
        if features is None and (self._ids or mask is not None):
            # Before anything is changed: a frame that is refused leaves no trace.
            place = None if new_ids else self._near_objects(self._seen, size)
            if begun is not None and begun.place == place:
                features = begun.features.result()
            else:
                features = self.read(frame, number, place)
            self._place = place
            if not self._ids and mask is not None and self._protocol.learned_metric:
                self._metric = self._learn_metric(features, mask, [BACKGROUND, *new_ids])
                features = self._metric(features)
        self._size = size
        self._num_frames += 1
        if features is None:
            return np.zeros(size, dtype=np.uint8)
        is_first = not self._ids
        before = self._labels
        if self._protocol.flow_share or self._protocol.zoom_margin is not None:
            if self._frame is not None and self._protocol.flow_share:
                known = None if begun is None else begun.motion
                self._motion = known.result() if known else estimate_motion(self._frame, frame)
                self._before = before
            self._frame = frame.copy()
        entering = [BACKGROUND, *new_ids] if is_first else list(new_ids)
        self._ids += entering
        labels = self._advance(features, mask if entering else None, entering)
        if is_first and self._protocol.keep_given:
            assert mask is not None
            labels = mask
        self._inspect(labels)
        if not entering:
            self._seen = before
        return labels

    def begin_reading(
        self, frame: Image, after: Image, helper: Executor, *, enters: bool
    ) -> "Begun":
        """Has what `step` needs of the frame after the next one computed.

        Args:
            frame: the next one, as for `Tracker.start`; no objects enter in it.
            after: the one after it.
            helper: computes.
            enters: whether objects enter in `after`.
        """
        number = self._first + self._direction * (self._num_frames + 1)
        assert self._size is not None
        place = None if enters else self._near_objects(self._labels, self._size)

        def checked() -> np.ndarray:
            array = as_frame(after, f"frame {number}")
            _frame_size(array, number, self._size)
            return array

        return Begun(
            place,
            helper.submit(lambda: self.read(checked(), number, place)),
            helper.submit(lambda: estimate_motion(as_frame(frame), checked()))
            if self._protocol.flow_share
            else None,
        )

    @property
    def can_wait(self) -> bool:
        """Whether label maps need not be known before the next frame is computed."""
        rule = self._protocol
        follows_labels = rule.zoom_margin is not None or rule.flow_share > 0
        return rule.feedback == "soft" and rule.masks_at == "video" and not follows_labels

    def checked(self, frames: Iterable[Image]) -> Iterator[np.ndarray]:
        """The next frames as arrays; raises VideoError where one is unfit, see `step`."""
        size = self._size
        for number, frame in enumerate(frames, start=self._num_frames):
            number = self._first + self._direction * number
            array = as_frame(frame, f"frame {number}")
            size = _frame_size(array, number, size)
            yield array

    def begin(self, frames: Sequence[np.ndarray]) -> "Waiting":
        """Starts to compute the next frames without waiting for them.

        Args:
            frames: as `checked` gives them; no object enters in them.
        """
        first, size = self._num_frames, self._size
        assert size is not None
        features = self._extractor.read_batch(self._extractor.prepare_batch(frames))
        checks = features.sum(dim=(1, 2, 3))  # not finite where a feature is not
        if self._metric is not None:
            features = torch.stack([self._metric(one) for one in features])
        self._given_ids, self._given = [], np.zeros(size, dtype=np.uint8)
        self._whole = self._compared = size
        soft = torch.stack([self._propagator.step(one) for one in features])
        self._soft = soft[-1]
        self._num_frames += len(frames)
        labels = self._label_pixels(soft, self._ids)
        return Waiting(first, _to_host(labels), _to_host(checks))

    def finish(self, waiting: "Waiting") -> Iterator[np.ndarray]:
        """Waits for the frames that were begun, and gives their label maps."""
        for one in (waiting.labels, waiting.checks):
            one.wait()
        for place, labels in enumerate(waiting.labels.tensor.numpy().copy()):
            number = self._first + self._direction * (waiting.first + place)
            check_finite(waiting.checks.tensor[place].view(1, 1, 1), f"frame {number}")
            self._predicted = labels
            self._inspect(labels, waiting.first + place)
            yield labels

    def read(self, frame: Image, number: int, place: Place | None = None) -> torch.Tensor:
        """The features of the frame of that number; all of them, or those of a place."""
        features = self._extractor(frame, place)
        check_finite(features, f"frame {number}")
        if self._metric is None:
            return features
        if place is None:
            return self._metric(features)
        part = self._metric(features[place])
        transformed = part.new_zeros(*features.shape[:2], part.shape[-1])
        transformed[place] = part
        return transformed

    def _learn_metric(self, features: torch.Tensor, mask: np.ndarray, ids: Sequence[int]) -> Metric:
        """Of the first mask."""
        labels = self.soft_mask(mask, ids, features=features).argmax(dim=-1).flatten()
        moments = Moments(torch.bincount(labels.cpu(), minlength=len(ids)), features.shape[-1])
        moments.add(features.flatten(0, 1), labels)
        return moments.metric()

    def add(self, mask: np.ndarray) -> np.ndarray:
        """See `Tracker.add`."""
        if self._size is None:
            raise MaskError("a mask was given before any frame: call start(frame, mask) first")
        if not self._ids:
            raise MaskError(
                f"a mask was added to frame {self.frame}, but no mask came before it: give the "
                "first one to start(frame, mask), or to track with its frame's number"
            )
        found = object_ids(mask, self.frame)
        _check_mask_size(mask, self.frame, self._size)
        self._ids += [label for label in found if label not in self._ids]
        mask = _without(mask, [VOID])
        mask = self._given = np.where(mask == BACKGROUND, _without(self._given, found), mask)
        objects = self._given_ids = sorted({*self._given_ids, *found})
        given = [BACKGROUND, *objects] if {BACKGROUND, *objects} >= set(self._ids) else objects
        channels = [self._ids.index(label) for label in given]
        how = self._protocol.mask_to_input
        resized = resize_mask(mask, whole=self._whole, size=self._compared, how=how)
        grid = (self._soft.shape[0], self._soft.shape[1])
        if self._place is not None:  # what is drawn may lie where nothing was computed
            assert self._frame is not None
            self._propagator.replace_features(self.read(self._frame, self.frame))
            self._place = None
        soft = self._soften_given(resized, given, grid=grid)
        self._soft = self._propagator.add(soft, channels=channels)
        self._certain = None
        if self._protocol.feedback != "soft":
            # Soft labels are those of the reduced mask now, which would change other objects.
            labels = _without(self._predicted, given)
        else:
            labels = self._harden()
        labels = self._settle(labels, resized, given)
        if self._protocol.keep_given:  # what was drawn stays as it was drawn
            labels = np.where(np.isin(mask, given), mask, _without(labels, objects))
        self._inspect(labels)
        return labels

    def remove(self, label: int) -> np.ndarray:
        """See `Tracker.remove`. The object's channel stays, as one more of the background."""
        if label == BACKGROUND or label not in self._ids:
            objects = ", ".join(str(one) for one in sorted(self._ids) if one) or "none"
            raise MaskError(f"there is no object {label!r} to remove; the objects are {objects}")
        self._ids[self._ids.index(label)] = BACKGROUND
        self._certain = None
        self._given_ids = [one for one in self._given_ids if one != label]
        self._given, self._predicted, self._labels, self._before = (
            _without(one, [label])
            for one in (self._given, self._predicted, self._labels, self._before)
        )
        self._seen = self._labels
        return self._labels

    def confidence(self, soft: torch.Tensor | None = None) -> np.ndarray:
        """See `Tracker.confidence`; also of other soft labels of the last frame's grid."""
        assert self._size is not None
        if not self._ids:
            return np.zeros(self._size, dtype=np.float32)
        if soft is None and self._motion is not None:
            return self._refine(self._motion).confidence if self._certain is None else self._certain
        confidence = label_confidence(
            self._soft if soft is None else soft,
            stride=self._extractor.stride,
            size=self._compared,
            method=self._protocol.mask_up,
        )
        return self._restore(confidence)

    def survival(self) -> dict[int, float]:
        """See `Tracker.survival`."""
        if not self._ids:
            return {}
        found = self._propagator.survival()
        return {
            self._ids[channel]: value if self._num_pixels[self._ids[channel]] else 0.0
            for channel, value in found.items()
            if self._ids[channel] != BACKGROUND
        }

    def _advance(
        self, features: torch.Tensor, mask: np.ndarray | None, entering: Sequence[int]
    ) -> np.ndarray:
        """Label map of the next frame, objects introduced by `mask`."""
        assert self._size is not None
        self._whole, self._compared = self._extractor.mask_sizes(self._size)
        new = None
        self._given_ids = [label for label in entering if label != BACKGROUND]
        self._given = np.zeros(self._size, dtype=np.uint8)
        if mask is not None:
            self._given = np.where(np.isin(mask, entering), mask, self._given)
            how = self._protocol.mask_to_input
            mask = resize_mask(mask, whole=self._whole, size=self._compared, how=how)
            new = self._soften_given(mask, entering, grid=(features.shape[0], features.shape[1]))
            if self._protocol.feedback != "soft":
                new = torch.zeros_like(new)  # they come pixel by pixel, in `_settle`
        self._soft = self._propagator.step(features, new, place=self._place)
        passed_on = None
        if self._motion is None:
            self._predicted = self._harden()
        else:
            refined = self._refine(self._motion)
            self._predicted, self._certain = refined.labels, refined.confidence
            if self._protocol.feedback == "refined" and mask is None:
                passed_on = refined.soft
        return self._settle(self._predicted, mask, entering, passed_on)

    def _near_objects(self, labels: np.ndarray, size: Size) -> Place | None:
        """The features near the objects of a label map; None: all of them."""
        margin = self._protocol.zoom_margin
        if margin is None or labels.shape != size or not labels.any():
            return None
        grid = self._extractor.grid(size)
        least = self._protocol.attention_side or 1
        spans = []
        for axis, count in enumerate(grid):
            marked = np.flatnonzero(labels.any(axis=1 - axis)) * count // size[axis]
            start, stop = int(marked[0]) - margin, int(marked[-1]) + 1 + margin
            # Few different sizes, none below what a patch attends to.
            start = max(0, min(start, count - least) // ZOOM_STEP * ZOOM_STEP)
            stop = max(stop, start + least)
            spans.append(slice(start, min(count, -(-stop // ZOOM_STEP) * ZOOM_STEP)))
        return (spans[0], spans[1])

    def _inspect(self, labels: np.ndarray, frame: int | None = None) -> None:
        """Keeps a label map, of the last frame if None, and warns of objects that it has lost, or
        that fill it."""
        self._labels = self._seen = labels
        self._num_pixels = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()
        for label in self._ids:
            if label == BACKGROUND:
                continue
            if not self._num_pixels[label]:
                self._warn(
                    label,
                    "has no pixel: it left the view or was lost; mark it again where it is seen",
                    frame,
                )
            elif self._num_pixels[label] == labels.size:
                self._warn(label, "fills the frame, and the background has no pixel", frame)

    def _warn(self, label: int, what: str, frame: int | None = None) -> None:
        """Once per object; in the last frame if None."""
        if self._warns and label not in self._warned:
            self._warned.add(label)
            video = f"{self._name}: " if self._name else ""
            number = self._first + self._direction * (self.frame if frame is None else frame)
            _LOG.warning("%sobject %d in frame %d %s", video, label, number, what)

    def _refine(self, motion: Motion) -> RefinedLabels:
        return refine_labels(
            self._soft,
            motion,
            self._before,
            ids=self._ids,
            share=self._protocol.flow_share,
            method=self._protocol.mask_up,
            normalize=self._protocol.normalize_output,
        )

    def _harden(
        self, soft: torch.Tensor | None = None, ids: Sequence[int] | None = None
    ) -> np.ndarray:
        if soft is None and self._motion is not None:
            return self._refine(self._motion).labels
        labels = self._label_pixels(
            self._soft if soft is None else soft, self._ids if ids is None else ids
        )
        return labels.cpu().numpy()

    def _label_pixels(self, soft: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        return label_pixels(
            soft,
            ids=ids,
            stride=self._extractor.stride,
            size=self._compared,
            method=self._protocol.mask_up,
            normalize=self._protocol.normalize_output,
        )

    def _settle(
        self,
        labels: np.ndarray,
        mask: np.ndarray | None,
        given: Sequence[int],
        passed_on: torch.Tensor | None = None,
    ) -> np.ndarray:
        """The label map; where it is fed back or follows the optical flow, with `given` labels as
        the mask says. `passed_on` is fed back in its place."""
        if mask is not None and (self._protocol.feedback != "soft" or self._protocol.flow_share):
            labels = np.where(np.isin(mask, given), mask, labels)
        if self._protocol.feedback != "soft":
            self._propagator.feed_back(
                self._soften(labels, self._ids) if passed_on is None else passed_on
            )
        return self._restore(labels)

    def _restore(self, labels: np.ndarray) -> np.ndarray:
        """A label map at the video's size."""
        how, size = self._protocol.mask_from_input, self._size or labels.shape
        return restore_mask(labels, whole=self._whole, size=size, how=how)

    def _soften(
        self, mask: np.ndarray, ids: Sequence[int], *, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        return soften_labels(
            mask,
            ids=list(ids),
            grid=grid or (self._soft.shape[0], self._soft.shape[1]),
            method=self._protocol.mask_down,
            device=self._extractor.device,
        )

    def _soften_given(
        self, mask: np.ndarray, ids: Sequence[int], *, grid: tuple[int, int]
    ) -> torch.Tensor:
        """Labels of a given mask; warns of objects that have less than half of every feature."""
        soft = self._soften(mask, ids, grid=grid)
        for label, largest in zip(ids, soft.amax(dim=(0, 1)).tolist(), strict=True):
            if label != BACKGROUND and largest < HALF:
                self._warn(
                    label,
                    "is too small for the features, so it is likely to be lost: a larger "
                    "short_side helps (--set short_side=...)",
                )
        return soft


class Begun(NamedTuple):
    """What another thread computes of a frame.

    Attributes:
        place: where features are computed; None: everywhere.
        features: of the frame.
        motion: from the frame before it, where labels follow the optical flow.
    """

    place: Place | None
    features: Future[torch.Tensor]
    motion: Future[Motion] | None


class OnHost(NamedTuple):
    """A copy of a tensor on the CPU, which is whole after `wait`."""

    tensor: torch.Tensor
    copied: torch.cuda.Event | None

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()


def _to_host(tensor: torch.Tensor) -> OnHost:
    """Starts to copy a tensor to the CPU."""
    if tensor.device.type != "cuda":
        return OnHost(tensor.cpu(), None)
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return OnHost(copy, event)


class Waiting(NamedTuple):
    """Frames that were begun, see `Session.begin`.

    Attributes:
        first: number of the first.
        labels: frames x height x width.
        checks: of each frame, a number that is finite if all its features are.
    """

    first: int
    labels: OnHost
    checks: OnHost


class _Batch(NamedTuple):
    """Frames, the first of that number, or why there are no more of them.

    One that is not together stands alone: none after it can be computed before it is known.
    """

    first: int
    frames: list[np.ndarray]
    is_together: bool
    failure: Exception | None = None


@contextmanager
def _helper() -> Iterator[Executor]:
    """One more thread; it and the calling thread share the processors meanwhile."""
    threads = torch.get_num_threads()
    share = max(1, threads // 2)
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(share,)) as helper:
        torch.set_num_threads(share)
        try:
            yield helper
        finally:
            torch.set_num_threads(threads)


def _next_frame(frames: Iterator[Any]) -> tuple[Any | None, Exception | None]:
    """The next frame, or None and why there is none, unless they have ended."""
    try:
        return next(frames, None), None
    except Exception as error:
        return None, error


def _batches(
    frames: Iterator[np.ndarray], masks: Collection[int], *, start: int, batch: int
) -> Iterator[_Batch]:
    """Frames in batches; those up to the first mask, and those that have a mask, alone."""
    held: list[np.ndarray] = []
    first = min(masks)
    for index in itertools.count(start):
        frame, failure = _next_frame(frames)
        alone = index <= first or index in masks
        if held and (frame is None or alone or len(held) == batch):
            yield _Batch(index - len(held), held, is_together=True)
            held = []
        if frame is None:
            if failure is not None:
                yield _Batch(index, [], is_together=False, failure=failure)
            return
        if alone:
            yield _Batch(index, [frame], is_together=False)
        else:
            held.append(frame)


def _moved(value: Any, device: torch.device) -> Any:
    """A state with its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(one, device) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(one, device) for one in value)
    return value


def object_ids(mask: np.ndarray, index: int) -> list[int]:
    """The ids of the objects in the mask of frame `index`, ascending, without background and void.

    Raises:
        MaskError: it holds no object.
    """
    counts = np.bincount(mask.ravel(), minlength=256)
    ids = [int(label) for label in np.flatnonzero(counts) if label not in (BACKGROUND, VOID)]
    if not ids:
        raise MaskError(
            f"the mask of frame {index} holds no object; mark at least one with a number from 1 "
            "to 254 (255 is void)"
        )
    return ids


def _has_object(mask: np.ndarray) -> bool:
    return bool(((mask != BACKGROUND) & (mask != VOID)).any())


def _as_mask(mask: object, index: int) -> np.ndarray:
    return as_labels(mask, f"the mask of frame {index}")


def _as_masks(masks: Mapping[int, Image]) -> dict[int, np.ndarray]:
    """The masks as label maps, by the numbers of their frames."""
    if not isinstance(masks, Mapping):
        raise MaskError(
            f"masks are {type(masks).__name__}, but they must be given by the number of their "
            "frame, as in {0: mask}"
        )
    for index in masks:
        _check_number(index)
    return {index: _as_mask(mask, index) for index, mask in masks.items()}


def _check_order(masks: Mapping[int, np.ndarray]) -> None:
    """Raises MaskError if there is no mask, or one of a negative frame."""
    if not masks:
        raise MaskError("no mask was given, but at least one frame needs one; draw or give one")
    if min(masks) < 0:
        raise MaskError(f"a mask was given for frame {min(masks)}, but frames are counted from 0")


def _entering_objects(masks: Mapping[int, np.ndarray]) -> dict[int, list[int]]:
    """The ids that each mask introduces, ascending, by the number of its frame.

    A mask that introduces none gives a warning.
    """
    _check_order(masks)
    known: set[int] = set()
    entering = {}
    for index in sorted(masks):
        found = object_ids(masks[index], index)
        entering[index] = [label for label in found if label not in known]
        known.update(found)
        if not entering[index]:
            _LOG.warning(
                "the mask of frame %d holds only objects of earlier masks, so it is not used: "
                "later masks introduce objects but do not correct them; track_references uses all",
                index,
            )
    return entering


def _check_number(index: object) -> None:
    if not isinstance(index, Integral) or isinstance(index, bool):
        raise MaskError(
            f"a mask was given for frame {index!r}, but frames are whole numbers, counted from 0"
        )


def _check_end(masks: Mapping[int, np.ndarray], num_frames: int) -> None:
    if (last := max(masks)) >= num_frames:
        raise MaskError(
            f"a mask was given for frame {last}, but the video has {num_frames} frames, counted "
            "from 0; give masks for its frames only"
        )


def _check_mask_size(mask: np.ndarray, index: int, size: Size) -> None:
    if mask.shape != size:
        raise MaskError(
            f"the mask of frame {index} is {mask.shape[0]}x{mask.shape[1]} but the frames are "
            f"{size[0]}x{size[1]}; give a mask of the video's size"
        )


def _frame_size(frame: np.ndarray, index: int, size: Size | None) -> Size:
    """The frame's height and width, which must be `size` unless that is None."""
    found = (frame.shape[0], frame.shape[1])
    if size is not None and found != size:
        raise VideoError(
            f"frame {index} is {found[0]}x{found[1]} but the frames before it are "
            f"{size[0]}x{size[1]}; give a video of one size"
        )
    return found


def _without(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The labels with background in place of these."""
    return np.where(np.isin(labels, ids), np.uint8(BACKGROUND), labels)
