"""Frames to feature maps: resized, fed to the network and normalised as a protocol says."""

import math
import typing
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from ino.data.label_maps import kind_of
from ino.errors import ConfigError, InoError, VideoError
from ino.models.backbone import (
    Colors,
    choose_device,
    computes_in_bf16,
    input_channels,
    warn_of_slow_bf16,
)
from ino.propagate.protocols import Protocol, Size, fit_layer

Precision = Literal["fp32", "bf16"]

Place = tuple[slice, slice]
"""Rows and columns of features."""

COLOR_BASE = 6.0
"""Colors, in the units of the network's input, count the less the larger this is."""


def quick_precision(device: torch.device | str) -> Precision:
    """bf16 where the device computes in it, else fp32."""
    return "bf16" if computes_in_bf16(choose_device(str(device))) else "fp32"


@typing.runtime_checkable
class FeatureBackbone(typing.Protocol):
    """What propagation needs of a network, such as any backbone of `ino.models.load`.

    It is called with normalized images (batch, 3, height, width), whose sides are multiples of the
    stride, and the layer to read (None for the last one). It returns features (batch, dim, rows,
    columns) and raises ConfigError if it has no such layer. It may also have the attributes
    `strides`, `side_multiple`, `smallest_side`, `colors`, `check_layer` and `limits_attention`,
    which are described in `ino.models.backbone.Backbone`; without `colors` the input is RGB.

    Attributes:
        stride: pixels of the input per feature of the last layer.
        mean: mean of each input channel, for RGB in 0..1.
        std: standard deviation of each input channel, for RGB in 0..1.
    """

    stride: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor, *, layer: int | None) -> Tensor: ...


def check_finite(features: Float[Tensor, "rows cols d"], image: str) -> None:
    """Raises InoError that names the image if a feature is not a finite number."""
    if not features.sum().isfinite():  # one number to read, which is not finite if any is not
        raise InoError(
            f"the network's features of {image} hold values that are no finite numbers: the "
            "weights are broken, or too large for the precision; try precision fp32 or others"
        )


def as_frame(frame: object, name: str = "the frame") -> UInt8[np.ndarray, "height width 3"]:
    """An image given as an array of numpy or a tensor of torch.

    Raises:
        VideoError: it is none, or not uint8 height x width x 3.
    """
    found = frame.numpy(force=True) if isinstance(frame, Tensor) else frame
    is_array = isinstance(found, np.ndarray)
    if not is_array or found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8:
        raise VideoError(
            f"{name} must be uint8 height x width x 3 (RGB), but it is {kind_of(frame)}"
        )
    return found


class FeatureExtractor:
    """Computes the feature maps of frames as a protocol defines them.

    Attributes:
        protocol: the one that was given, its layer fitted to the backbone (`fit_layer`).
        device: where features are computed.
        stride: pixels of the input per feature.
    """

    def __init__(
        self,
        backbone: FeatureBackbone,
        *,
        protocol: Protocol,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        """Creates an extractor; moves the backbone to `device` and puts it into evaluation mode.

        Args:
            backbone: computes the features.
            protocol: decides the layer and the size of the input.
            device: where features are computed; "auto" takes CUDA, else MPS, else the CPU.
            precision: of the network.

        Raises:
            ConfigError: `backbone` is not a FeatureBackbone, its stride does not fit the protocol,
                it lacks the layer, or the device or the precision is unknown.
        """
        self.device = choose_device(str(device))
        if not isinstance(backbone, FeatureBackbone):
            raise ConfigError(
                f"the backbone is {type(backbone).__name__}, but a network with a stride, a mean "
                "and a std is needed, such as load_backbone gives"
            )
        if precision not in get_args(Precision):
            raise ConfigError(
                f"the precision is {precision!r}; give {' or '.join(get_args(Precision))}"
            )
        if precision == "bf16":
            warn_of_slow_bf16(self.device)
        strides = getattr(backbone, "strides", ())
        self.protocol = protocol = fit_layer(protocol, strides)
        if check_layer := getattr(backbone, "check_layer", None):
            check_layer(protocol.layer)
        layer = protocol.layer
        self._options: dict[str, int] = {}
        if protocol.attention_side is not None:
            if not getattr(backbone, "limits_attention", False):
                raise ConfigError(
                    f"protocol {protocol.name} limits attention to {protocol.attention_side} "
                    "patches, which only ino's own ViTs and color do; choose another protocol"
                )
            self._options = {"attention_side": protocol.attention_side}
        self.stride = strides[layer - 1] if layer and layer <= len(strides) else backbone.stride
        self._side_multiple = getattr(backbone, "side_multiple", None) or self.stride
        self._colors: Colors = getattr(backbone, "colors", "rgb")
        multiple = protocol.size_multiple or self.stride
        if multiple % self._side_multiple:
            raise ConfigError(
                f"protocol {protocol.name} rounds sizes to multiples of {multiple} pixels "
                f"but this backbone's stride is {self.stride}; set the protocol's size_multiple "
                "to a multiple of it"
            )
        if isinstance(backbone, nn.Module):
            backbone.to(self.device).eval()
        self._backbone = backbone
        self._precision = precision
        self._mean = torch.tensor(backbone.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(backbone.std, device=self.device).view(3, 1, 1)

    @torch.no_grad()
    def __call__(
        self, frame: np.ndarray | Tensor, place: Place | None = None
    ) -> Float[Tensor, "rows cols d"]:
        """Features, channels last, L2-normalised unless the protocol takes them as they are.

        Args:
            frame: uint8 RGB, height x width x 3.
            place: where they are computed; they are 0 elsewhere. Only with `attention_side`. None:
                everywhere.

        Raises:
            ConfigError: the backbone has no such layer as the protocol reads, or gives something
                else than features (batch, dim, rows, columns).
            VideoError: the frame is no RGB image, or too small.
        """
        image = self.prepare(as_frame(frame))
        if place is None:
            return self.read(image)
        rows, columns = (side // self.stride for side in image.shape[-2:])
        top, left = place[0].start, place[1].start
        pixels = [slice(one.start * self.stride, one.stop * self.stride) for one in place]
        found = self.read(image[..., pixels[0], pixels[1]], place=(rows, columns, top, left))
        features = found.new_zeros(rows, columns, found.shape[-1])
        features[place] = found
        return features

    def grid(self, size: Size) -> Size:
        """Rows and columns of the features of frames of this size."""
        height, width = self.sizes(size)[1]
        return height // self.stride, width // self.stride

    def read(
        self, image: Float[Tensor, "1 3 height width"], **options: Any
    ) -> Float[Tensor, "rows cols d"]:
        """Features of an image that `prepare` gave; options are the backbone's."""
        return self.read_batch(image, **options)[0]

    @torch.no_grad()
    def read_batch(
        self, images: Float[Tensor, "batch 3 height width"], **options: Any
    ) -> Float[Tensor, "batch rows cols d"]:
        """Features of images of one size, as `read` gives them for one."""
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16"
        ):
            features = self._backbone(images, layer=self.protocol.layer, **self._options, **options)
        if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != len(images):
            raise ConfigError(
                "a backbone must give features of shape 1 x dim x rows x columns for an image, but "
                f"this one gave {kind_of(features)}"
            )
        features = features.float().permute(0, 2, 3, 1)
        if self.protocol.normalize_features:
            features = F.normalize(features, dim=-1)
        if share := self.protocol.color_share:
            colors = color_features(images, (features.shape[1], features.shape[2]))
            features = torch.cat([features * (1 - share) ** 0.5, colors * share**0.5], dim=-1)
        return features.contiguous()

    def mask_sizes(self, size: Size) -> tuple[Size, Size]:
        """Sizes at which masks of videos of this size are reduced and compared, before and after
        cropping.

        Raises:
            VideoError: the frames are too small.
        """
        rule = self.protocol
        if rule.masks_at == "video":
            size = rule.data_size or size
        elif rule.short_side is None and (rule.input_size or rule.long_side):
            # Before sides are rounded down to the backbone's patches.
            size = input_size(rule.data_size or size, protocol=rule, stride=1)
        else:
            return self.sizes(size)
        return size, size

    def prepare(
        self, frame: UInt8[np.ndarray, "height width 3"]
    ) -> Float[Tensor, "1 3 height_in width_in"]:
        """The network's input: resized as the protocol says, then normalised."""
        return self.prepare_batch([frame])

    def prepare_batch(
        self, frames: Sequence[UInt8[np.ndarray, "height width 3"]]
    ) -> Float[Tensor, "batch 3 height_in width_in"]:
        """`prepare` for frames of one size; a GPU is not waited for."""
        whole, (height, width) = self.sizes((frames[0].shape[0], frames[0].shape[1]))
        how, size = self.protocol.input_resize, self.protocol.data_size
        resized = np.stack(
            [
                _resized(prepare_frame(frame, size=size), whole, how=how)[:height, :width]
                for frame in frames
            ]
        )
        if self._colors != "rgb":
            if resized.dtype == np.float32:  # Lab is read from whole numbers
                resized = np.rint(resized * 255).astype(np.uint8)
            resized = np.stack([input_channels(frame, self._colors) for frame in resized])
        pixels = torch.from_numpy(resized)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if self._colors == "rgb":
            images = images.float() if resized.dtype == np.float32 else images.float() / 255
        return (images - self._mean) / self._std

    def sizes(self, size: Size) -> tuple[Size, Size]:
        """Sizes of the network's input before and after cropping, for frames of this size, or of
        `data_size` where the protocol has one.

        They differ only if the protocol's `rounding` is crop.

        Raises:
            VideoError: the frames are too small.
        """
        rule = self.protocol
        size = rule.data_size or size
        multiple = self._side_multiple
        cropped = input_size(size, protocol=rule, stride=self.stride, side_multiple=multiple)
        if rule.rounding != "crop":
            return cropped, cropped
        height, width = (round(side) for side in _scaled_sides(size, protocol=rule))
        return (height, width), cropped


def prepare_frame(
    frame: UInt8[np.ndarray, "height width 3"], *, size: Size | None
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The frame at the size of a prepared data set, by nearest neighbor; as it is where None."""
    if size is None or frame.shape[:2] == size:
        return frame
    return np.array(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _resized(frame: UInt8[np.ndarray, "height width 3"], size: Size, *, how: str) -> np.ndarray:
    """The frame at that size, 0..255 in whole numbers or, where `how` is linear-float, 0..1."""
    if how == "lanczos":
        return np.array(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS))
    if how == "linear-float":
        frame = frame.astype(np.float32) / 255
    method = cv2.INTER_AREA if how == "area" else cv2.INTER_LINEAR
    return cv2.resize(frame, size[::-1], interpolation=method)


def color_features(
    images: Float[Tensor, "batch 3 height width"], grid: Size
) -> Float[Tensor, "batch rows columns 13"]:
    """Color of each feature's area, as vectors of length 1.

    The mean color of each quarter of the area and the constant COLOR_BASE, divided by their length:
    the product of two vectors falls with the distance of their colors.

    Args:
        images: the network's input.
        grid: rows and columns of the features.
    """
    rows, columns = grid
    quarters = F.adaptive_avg_pool2d(images, (2 * rows, 2 * columns))
    colors = F.pixel_unshuffle(quarters, 2).permute(0, 2, 3, 1) / 2
    return F.normalize(F.pad(colors, (0, 1), value=COLOR_BASE), dim=-1)


def input_size(
    size: Size, *, protocol: Protocol, stride: int, side_multiple: int | None = None
) -> Size:
    """Height and width of the network's input for frames of this size, pixels.

    If the protocol has a `short_side`, the frame is scaled so that its shorter side has that many
    pixels; otherwise it goes to `input_size`, is scaled by its `long_side`, or keeps its size,
    except for the sizes in `fixed_sizes`. Then the sides are rounded by the protocol's `rounding`
    (`square` makes both sides `short_side`) and finally rounded down to multiples of
    `side_multiple`.

    Args:
        size: height and width of the frames.
        protocol: decides the rule.
        stride: of the backbone, pixels.
        side_multiple: what the backbone needs sides to be multiples of; None: the stride. With 1
            it takes sides of any length, and its last feature covers what is left of a stride.

    Raises:
        VideoError: less than one stride is left of a side.
    """
    multiple = protocol.size_multiple or stride
    side_multiple = side_multiple or stride
    sides = _scaled_sides(size, protocol=protocol)
    long = 0 if size[0] > size[1] else 1
    if protocol.rounding == "long-side-up":
        sides[long] = Fraction(math.ceil(sides[long] / multiple) * multiple)
    elif protocol.rounding == "long-side-down":
        sides[long] = Fraction(sides[long] // multiple * multiple)
    elif protocol.rounding == "short-side-down":
        short = 0 if size[0] < size[1] else 1  # the width of a square
        sides[short] = Fraction(sides[short] // multiple * multiple)
    elif protocol.rounding == "width-down":
        sides[1] = Fraction(math.ceil(sides[1]) // multiple * multiple)
    elif protocol.rounding in ("down", "crop"):
        sides = [Fraction(side // multiple * multiple) for side in sides]
    if side_multiple == 1:
        sides = [side + Fraction(1, 2) for side in sides]  # to the nearest pixel, as VFS does
    height, width = (int(side // side_multiple * side_multiple) for side in sides)
    if min(height, width) < stride:
        raise VideoError(
            f"frames of {size[0]}x{size[1]} pixels are too small: each side must be at least "
            f"{multiple} pixels when the network sees it; give a larger video"
            + ("" if protocol.short_side is None else " or a larger short_side")
        )
    return height, width


def _scaled_sides(size: Size, *, protocol: Protocol) -> list[Fraction]:
    """Height and width of the input before they are rounded, pixels."""
    rule = protocol
    if rule.short_side is None and rule.input_size is not None:
        return [Fraction(side) for side in rule.input_size]
    if rule.short_side is None and rule.long_side is not None:
        return [Fraction(rule.long_side * side, max(1, *size)) for side in size]
    if rule.short_side is None:
        return [Fraction(side) for side in dict(rule.fixed_sizes).get(size, size)]
    if rule.rounding == "square":
        return [Fraction(rule.short_side)] * 2
    scaled = size[0] if rule.rounding == "width-down" else min(size)
    return [Fraction(rule.short_side * side, max(1, scaled)) for side in size]
