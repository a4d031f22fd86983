"""The two sides of the propagation benchmark: as `ino.propagate.tracker` does it, and plain.

Both have the same methods, one a stage, so that one loop can time either.
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ino.data.label_maps import write_labels
from ino.models.backbone import VitBackbone
from ino.propagate.features import FeatureExtractor, Precision, input_size
from ino.propagate.labels import harden_labels
from ino.propagate.propagator import Propagator
from ino.propagate.protocols import Protocol, get_protocol
from reference import (
    plain_features,
    plain_hardening,
    plain_propagation,
    plain_writing,
    square_window,
)
from report import StageTimes

NUM_OBJECTS = 2
IDS = list(range(NUM_OBJECTS + 1))


@dataclass(frozen=True)
class Size:
    """What is measured, and how often."""

    height: int
    width: int
    num_context: int
    repeats: int

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.height, self.width

    def protocol(self) -> Protocol:
        """ino-davis, at the size of the frames."""
        return get_protocol(
            "ino-davis", short_side=min(self.frame), radius=40, num_context=self.num_context
        )

    def grid(self, *, stride: int) -> tuple[int, int]:
        """Rows and columns of the feature map."""
        height, width = input_size(self.frame, protocol=self.protocol(), stride=stride)
        return height // stride, width // stride


class OurTracker:
    """The stages of `ino.propagate.tracker`."""

    def __init__(
        self,
        size: Size,
        backbone: VitBackbone,
        *,
        precision: Precision = "fp32",
        screening: bool = False,
    ) -> None:
        self._frame = size.frame
        self._protocol = size.protocol()
        self._backbone = backbone
        self._extractor = FeatureExtractor(backbone, protocol=self._protocol, precision=precision)
        self._propagator = Propagator(self._protocol, screening=screening)

    def prepare(self, frame: np.ndarray) -> Tensor:
        return self._extractor.prepare(frame)

    def features(self, image: Tensor) -> Tensor:
        return self._extractor.read(image)

    def remember(self, features: Tensor, soft: Tensor) -> None:
        self._propagator.step(features)  # no quicker way is public

    def start(self, features: Tensor, soft: Tensor) -> None:
        self._propagator.step(features, soft)

    def propagate(self, features: Tensor) -> Tensor:
        return self._propagator.step(features)

    def harden(self, soft: Tensor) -> np.ndarray:
        return harden_labels(
            soft,
            ids=IDS,
            stride=self._backbone.stride,
            size=self._frame,
            normalize=self._protocol.normalize_output,
        )

    def write(self, path: Path, labels: np.ndarray) -> None:
        write_labels(path, labels)


class PlainTracker:
    """The same by `reference`."""

    def __init__(self, size: Size, backbone: VitBackbone) -> None:
        self._frame = size.frame
        self._protocol = size.protocol()
        self._backbone = backbone
        self._extractor = FeatureExtractor(backbone, protocol=self._protocol)
        rows, columns = size.grid(stride=backbone.stride)
        self._window = square_window(rows, columns, radius=self._protocol.radius or 0)
        self._first: list[tuple[Tensor, Tensor]] = []
        self._recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=size.num_context)

    def prepare(self, frame: np.ndarray) -> Tensor:
        return self._extractor.prepare(frame)

    def features(self, image: Tensor) -> Tensor:
        assert self._protocol.layer is not None
        return plain_features(self._backbone.vit, image, layer=self._protocol.layer)

    def remember(self, features: Tensor, soft: Tensor) -> None:
        self._recent.append((features, soft))

    def start(self, features: Tensor, soft: Tensor) -> None:
        self._first = [(features, soft)]

    def propagate(self, features: Tensor) -> Tensor:
        keys, labels = zip(*self._first, *self._recent, strict=True)
        soft = plain_propagation(
            features,
            keys,
            labels,
            self._window,
            topk=self._protocol.topk,
            temperature=self._protocol.temperature,
        )
        self._recent.append((features, soft))
        return soft

    def harden(self, soft: Tensor) -> np.ndarray:
        return plain_hardening(soft, stride=self._backbone.stride, size=self._frame)

    def write(self, path: Path, labels: np.ndarray) -> None:
        plain_writing(path, labels)


def propagate_frame(
    tracker: OurTracker | PlainTracker, frame: np.ndarray, path: Path, times: StageTimes
) -> np.ndarray:
    """The mask of the next frame, which is written, too."""
    with times.stage("resize, normalise"):
        image = tracker.prepare(frame)
    with times.stage("features"):
        features = tracker.features(image)
    with times.stage("propagation"):
        soft = tracker.propagate(features)
    with times.stage("enlarge, argmax"):
        labels = tracker.harden(soft)
    with times.stage("write"):
        tracker.write(path, labels)
    return labels
