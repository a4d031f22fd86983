"""The one interface of backbones: dense features of a batch of images.

What differs between networks is how images are given to them and which layers can be read; a
`Reading` and the strides say so.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import ConfigError, VideoError

Colours = Literal["rgb", "lab", "lab-8bit"]
"""Of the input: RGB in 0..1; OpenCV's float Lab, L in 0..100 and a, b in about -127..127; or its
8-bit Lab, all in 0..255."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a network is read: its input, and the protocol and the layer that its authors chose.

    Attributes:
        mean: of the channels of `colours`.
        std: the same.
        colours: of the input.
        protocol: name of the one in `ino.propagate.protocols` that belongs to the network.
        layer: the sensible one, or the last where there are fewer; None: the last.
    """

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    colours: Colours = "rgb"
    protocol: str = "ino-davis"
    layer: int | None = None


class Backbone(nn.Module, ABC):
    """Dense features of images, layer by layer.

    Attributes:
        strides: pixels of the input a feature, of each layer.
        dims: length of a feature, of each layer.
        stride: of the last layer.
        num_layers: how many layers there are to read.
        layer: the sensible one, for those who choose no protocol.
        side_multiple: what sides of the input are multiples of; None: the stride of the layer. With
            1 sides can have any length, and the last features cover what is left of a stride.
        smallest_side: shortest side of an input, pixels.
        mean: of the input's channels, which `input_channels` gives.
        std: the same.
        colours: of the input.
        protocol: name of the protocol that belongs to the network.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        dims: Sequence[int],
        reading: Reading,
        side_multiple: int | None = None,
        smallest_side: int = 1,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.dims = tuple(dims)
        self.num_layers = len(self.strides)
        self.stride = self.strides[-1]
        self.layer = min(reading.layer or self.num_layers, self.num_layers)
        self.side_multiple = side_multiple
        self.smallest_side = smallest_side
        self.mean = reading.mean
        self.std = reading.std
        self.colours: Colours = reading.colours
        self.protocol = reading.protocol

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], *, layer: int | None
    ) -> Float[Tensor, "batch dim rows columns"]:
        """Features of a layer, counted from 1; what comes after it does not run.

        Args:
            images: normalised by `mean` and `std`; sides are multiples of `side_multiple`.
            layer: 1 to `num_layers`; None for the last.

        Raises:
            ConfigError: there is no such layer.
            VideoError: the images are too small.
        """
        self.check_layer(layer)
        layer = self.num_layers if layer is None else layer
        if min(images.shape[-2:]) < self.smallest_side:
            raise VideoError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels are too small for this "
                f"backbone: each side must be at least {self.smallest_side} pixels; give a larger "
                "video or a larger short_side"
            )
        return self.read(images, layer)

    def check_layer(self, layer: int | None) -> None:
        """Nothing, or a ConfigError where there is no such layer; None stands for the last."""
        if layer is not None and not 1 <= layer <= self.num_layers:
            raise ConfigError(
                f"there is no layer {layer}; this backbone has 1 to {self.num_layers}: choose one "
                f"of them, or its own protocol, {self.protocol}"
            )

    @abstractmethod
    def read(
        self, images: Float[Tensor, "batch 3 height width"], layer: int
    ) -> Float[Tensor, "batch dim rows columns"]:
        """Features of a layer that exists."""


def input_channels(
    frame: UInt8[np.ndarray, "height width 3"], colours: Colours
) -> Float32[np.ndarray, "height width 3"]:
    """The channels that a network sees, before they are normalised.

    Lab is OpenCV's, whose tables differ from the closed formula by up to 0.3.

    Args:
        frame: RGB.
        colours: of the result.

    Raises:
        ConfigError: the colours are unknown.
    """
    if colours == "rgb":
        return frame.astype(np.float32) / 255
    if colours == "lab":
        return cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    if colours == "lab-8bit":
        return cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.float32)
    raise ConfigError(
        f"the colours are {colours!r}; expected one of {', '.join(get_args(Colours))}"
    )
