"""Backbones, which give dense features: the interface, our ViT, models of timm, and raw color.

A `Reading` describes the input that a network expects, and the protocol and layer that its authors
use. Released networks of other projects are built in `ino.models.peers`; `ino.models.load` finds a
backbone by its name.
"""

import difflib
import functools
import inspect
import logging
import re
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit
from urllib.request import getproxies

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import CheckpointError, ConfigError, VideoError
from ino.models.files import load_plain
from ino.models.vit import VisionTransformer, interpolate_positions
from ino.models.weights import (
    VIT_ANCHORS,
    NetworkName,
    choose_network,
    load_exactly,
    misfits,
    networks_in,
    prefixes_of,
    split_network,
    take_prefix,
    without_module,
)

_LOG = logging.getLogger("ino")

RELEASED_STD = (0.228, 0.224, 0.225)
"""Standard deviation of RGB used at inference by the released code of INO, DINO and iBOT. In
training, the code of INO uses 0.229 as the first number."""

OUR_LAYER = 7
"""Block whose features the authors of INO read, and ours after them."""

TIMM = "timm:"
"""Prefix of the names of timm models."""

HUBS = ("hf-hub:", "hf_hub:")
"""Prefixes of the names of models on the Hugging Face hub, as timm spells them."""

_STRIDES = (8, 16, 32)
_WITH_STRIDE = re.compile(r"(.+?)(?:/(\d+))?")
_FLEXIBLE = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""What makes timm's families take inputs of any size, one after the other."""
_DINO_POSITIONS = re.compile(r"vit_\w+_patch(8_224|16_224|14)(_dinov2\.|_dinov2$|\.dino$)")
"""Models whose authors interpolate positions as our ViT does; timm's own resampling differs."""
_EXTRA = re.compile(r"(head|fc|classifier|pre_logits|head_dist)\..+|decoder_.+|mask_token")
"""Tensors of known releases that features do not need: classifiers, and MAE's decoder."""

_STEM_STRIDE = 2


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: it is unknown or not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()  # `meta` holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device {name!r} cannot be used here; pass --device cpu") from error
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


@functools.cache
def warn_of_slow_bf16(device: torch.device) -> None:
    """Says, once for a device, that bf16 is slow on it: a CPU without instructions for it."""
    if device.type == "cpu" and not computes_in_bf16(device):
        _LOG.warning(
            "this CPU has no instructions for bf16, which is more than ten times as slow as fp32 "
            "on it"
        )


Colors = Literal["rgb", "lab", "lab-8bit"]
"""Color space of the input. `rgb`: RGB, 0..1. `lab`: OpenCV's float Lab, L in 0..100, a and b in
about -127..127. `lab-8bit`: OpenCV's 8-bit Lab, all in 0..255."""

Triple = tuple[float, float, float]


def std_of_run(variant: str | None) -> Triple:
    """The standard deviation by which the networks of a run of `ino train` are evaluated."""
    return RELEASED_STD if variant == "released" else IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The input that a network expects, and the settings that its authors evaluate it with.

    Attributes:
        mean, std: mean and standard deviation of the input channels, in the units of `colors`.
        colors: color space of the input.
        protocol: name of the authors' protocol (see `ino.propagate.protocols`).
        layer: layer that the authors use, counted from 1; None for the last one.
    """

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    colors: Colors = "rgb"
    protocol: str = "ino-davis"
    layer: int | None = None


class Backbone(nn.Module, ABC):
    """Dense features of images, layer by layer.

    Attributes:
        strides: pixels of the input per feature, for each layer.
        dims: length of a feature, for each layer.
        stride: of the last layer.
        num_layers: how many layers there are to read.
        layer: the layer that the network's authors use. Propagation reads the layer of its
            protocol instead.
        side_multiple: sides of the input must be multiples of this many pixels; None: of the
            layer's stride. With 1, sides can have any length, and the last row and column of
            features cover the remainder.
        smallest_side: minimum length of a side of the input, in pixels.
        mean, std, colors, protocol: see `Reading`.
        limits_attention: whether `attention_side` can be given.
    """

    limits_attention = False

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
        self.colors: Colors = reading.colors
        self.protocol = reading.protocol

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        *,
        layer: int | None,
        attention_side: int | None = None,
        place: tuple[int, int, int, int] | None = None,
    ) -> Float[Tensor, "batch dim rows columns"]:
        """Features of a layer, counted from 1; what comes after it does not run.

        Args:
            images: normalised by `mean` and `std`; sides are multiples of `side_multiple`.
            layer: 1 to `num_layers`; None for the last.
            attention_side, place: see `VisionTransformer`; only where `limits_attention` is true.

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
        if attention_side is None:
            return self.read(images, layer)
        return self.read_locally(images, layer, attention_side, place)

    def check_layer(self, layer: int | None) -> None:
        """Raises a ConfigError if there is no such layer; None stands for the last."""
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

    def read_locally(
        self,
        images: Float[Tensor, "batch 3 height width"],
        layer: int,
        attention_side: int,
        place: tuple[int, int, int, int] | None,
    ) -> Float[Tensor, "batch dim rows columns"]:
        """The same where each patch attends to patches near it, and of a part of an image."""
        raise NotImplementedError


def input_channels(
    frame: UInt8[np.ndarray, "height width 3"], colors: Colors
) -> Float32[np.ndarray, "height width 3"]:
    """The channels that a network sees of an RGB frame, before they are normalised.

    Lab is OpenCV's, whose tables differ from the closed formula by up to 0.3.

    Raises:
        ConfigError: the colors are unknown.
    """
    if colors == "rgb":
        return frame.astype(np.float32) / 255
    if colors == "lab":
        return cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    if colors == "lab-8bit":
        return cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.float32)
    raise ConfigError(f"the colors are {colors!r}; expected one of {', '.join(get_args(Colors))}")


class VitBackbone(Backbone):
    """Patch tokens of a ViT's block, final norm applied; layer n is block n."""

    limits_attention = True

    def __init__(
        self, vit: VisionTransformer, *, std: Triple = IMAGENET_STD, reading: Reading | None = None
    ) -> None:
        """`reading` is by default that of our runs, whose images are normalised by `std`."""
        super().__init__(
            strides=[vit.patch_size] * vit.depth,
            dims=[vit.embed_dim] * vit.depth,
            reading=reading or Reading(std=std, layer=OUR_LAYER),
        )
        self.vit = vit

    def read(
        self, images: Float[Tensor, "batch 3 height width"], layer: int
    ) -> Float[Tensor, "batch dim rows columns"]:
        return self._features(images, num_blocks=layer)

    def read_locally(
        self,
        images: Float[Tensor, "batch 3 height width"],
        layer: int,
        attention_side: int,
        place: tuple[int, int, int, int] | None,
    ) -> Float[Tensor, "batch dim rows columns"]:
        return self._features(images, num_blocks=layer, attention_side=attention_side, place=place)

    def _features(self, images: Tensor, **options: Any) -> Tensor:
        tokens = self.vit(images, **options)[:, 1:]
        rows, columns = (side // self.stride for side in images.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))


class ColorBackbone(Backbone):
    """Raw color: each feature holds the normalized pixels of a patch of stride x stride pixels.

    A baseline for learned features. It has one layer and accepts any layer number.
    """

    limits_attention = True  # there is none: each patch stands alone

    def __init__(self, stride: int = 8) -> None:
        super().__init__(strides=[stride], dims=[3 * stride**2], reading=Reading())

    def check_layer(self, layer: int | None) -> None:
        """Accepts any number, as there is only one layer."""

    def read(
        self, images: Float[Tensor, "batch 3 height width"], layer: int
    ) -> Float[Tensor, "batch dim rows columns"]:
        """The pixels of each patch, 3 x stride x stride numbers."""
        return F.pixel_unshuffle(images, self.stride)

    def read_locally(
        self,
        images: Float[Tensor, "batch 3 height width"],
        layer: int,
        attention_side: int,
        place: tuple[int, int, int, int] | None,
    ) -> Float[Tensor, "batch dim rows columns"]:
        return self.read(images, layer)


class TimmBackbone(Backbone):
    """Layers of a timm model as feature maps.

    These are the blocks of ViTs and their like, final norm applied, and the stages of convolutional
    and pyramid networks whose stride is above 2.
    """

    def __init__(
        self, network: nn.Module, *, name: str, reading: Reading, dino_positions: bool = False
    ) -> None:
        """Tries the network on two small images to see what sizes it takes.

        Args:
            network: a model of timm, in evaluation mode.
            name: for messages.
            reading: of the input.
            dino_positions: a ViT's position embeddings follow the input's size as in DINO.

        Raises:
            ConfigError: the model has no spatial features.
        """
        described: Any = getattr(network, "feature_info", None)
        if not described or not hasattr(network, "forward_intermediates"):
            raise ConfigError(
                f"{name} has no spatial features that timm gives; take a ViT, a ResNet, a ConvNeXt "
                "or a Swin of timm"
            )
        layers = [place for place, info in enumerate(described) if info["reduction"] > _STEM_STRIDE]
        if not layers:
            raise ConfigError(f"{name} has no features of stride 4 or more; take another model")
        super().__init__(
            strides=[int(described[place]["reduction"]) for place in layers],
            dims=[int(described[place]["num_chs"]) for place in layers],
            reading=reading,
        )
        self.network = network
        self._places = layers
        self._intermediates: Any = network.forward_intermediates
        # Whether all layers are blocks of one size, as in a ViT.
        self._has_patches = len(set(self.strides)) == 1
        # A pyramid's final norm fits its last stage alone.
        options = {"norm": self._has_patches, "stop_early": True}
        known = inspect.signature(self._intermediates).parameters
        self._options = {key: value for key, value in options.items() if key in known}
        self._dino_positions = dino_positions
        self.side_multiple = self._side_multiple(name)

    def read(
        self, images: Float[Tensor, "batch 3 height width"], layer: int
    ) -> Float[Tensor, "batch dim rows columns"]:
        if self._dino_positions:
            return self._read_dino(images, layer)
        (features,) = self._intermediates(
            images,
            indices=[self._places[layer - 1]],
            intermediates_only=True,
            output_fmt="NCHW",
            **self._options,
        )
        return features

    def _read_dino(self, images: Tensor, layer: int) -> Tensor:
        vit: Any = self.network
        patches = vit.patch_embed(images)  # (b, h, w, d)
        rows, columns = patches.shape[1:3]
        tokens = torch.cat([vit.cls_token.expand(len(images), -1, -1), patches.flatten(1, 2)], 1)
        tokens = tokens + interpolate_positions(vit.pos_embed, rows=rows, columns=columns)
        for block in vit.blocks[:layer]:
            tokens = block(tokens)
        return vit.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))

    @torch.no_grad()
    def _side_multiple(self, name: str) -> int | None:
        """1 where the model takes sides of any length and rounds the number of features up."""
        largest = max(self.strides)
        if not self._fits(2 * largest, 3 * largest) and not self._fits(8 * largest, 12 * largest):
            raise ConfigError(
                f"{name} has no feature maps for images of any size, which mask propagation needs; "
                "take a ViT, a ResNet, a ConvNeXt or a Swin of timm"
            )
        is_any = not self._has_patches and self._fits(2 * largest + 1, 4 * largest - 1)
        return 1 if is_any else None

    def _fits(self, height: int, width: int) -> bool:
        """Whether features of such an image have the size that the strides say, rounded up."""
        images = torch.zeros(1, 3, height, width)
        last = self.num_layers
        for number in {1, last} if self._has_patches else range(1, last + 1):
            stride, dim = self.strides[number - 1], self.dims[number - 1]
            try:
                found = self.read(images, number)
            except (AssertionError, RuntimeError, ValueError, IndexError, TypeError):
                return False  # timm's ways to refuse a size
            if tuple(found.shape) != (1, dim, -(-height // stride), -(-width // stride)):
                return False
        return True


def split_weights(text: str) -> tuple[str, Path | None]:
    """Splits "timm:MODEL@FILE" into "timm:MODEL" and the file; other names have no file (None)."""
    named, separator, file = text.partition("@")
    if not (separator and text.startswith(TIMM)):
        return text, None
    return named, Path(file)


def build_timm(
    name: str,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    network: NetworkName | None = None,
    stride: int | None = None,
    reading: Reading | None = None,
) -> TimmBackbone:
    """A model of timm, in evaluation mode.

    Args:
        name: as timm knows it, as in vit_small_patch14_dinov2.lvd142m.
        pretrained: download its weights; random weights otherwise.
        weights: a file of weights to load instead.
        network: which network of a file that has two; None for the teacher. A file with a single
            network logs a warning if this is given.
        stride: output stride of a convolutional network, 8, 16 or 32, by dilation; None for its
            own.
        reading: of the network; None takes mean and std from timm's configuration.

    Raises:
        ConfigError: the model is unknown or has no spatial features, or no such stride.
        CheckpointError: the weights cannot be used or fetched.
    """
    model = create_timm(name, pretrained=pretrained, stride=stride).eval()
    if weights is not None:
        _load_file(model, weights, name=name, network=network)
    config = getattr(model, "pretrained_cfg", {})
    if reading is None:
        reading = Reading(
            mean=config.get("mean") or IMAGENET_MEAN,
            std=config.get("std") or IMAGENET_STD,
            protocol="dinov3" if "dinov" in name else "dino",
        )
    backbone = TimmBackbone(
        model,
        name=name,
        reading=reading,
        dino_positions=_DINO_POSITIONS.match(name) is not None and hasattr(model, "blocks"),
    )
    return backbone.eval()


def create_timm(
    name: str,
    *,
    pretrained: bool = False,
    stride: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A model of timm without classifier that takes images of any size, if its family can.

    Args:
        name, pretrained, stride: see `build_timm`.
        options: others of timm's.

    Raises:
        ConfigError: the model is unknown, or there is no such stride or option.
        CheckpointError: the weights cannot be fetched.
    """
    _check_name(name, pretrained=pretrained)
    if stride not in (None, *_STRIDES):
        raise ConfigError(f"stride {stride} of {name} is not supported; choose 8, 16 or 32")
    return _create(name, pretrained=pretrained, stride=stride, more=options or {})


def flexible_arguments(name: str, *, stride: int | None = None) -> dict[str, Any]:
    """The arguments of timm's that make a known model take images of any size, and its stride."""
    chosen: dict[str, Any] = {} if stride is None else {"output_stride": stride}
    for options in _FLEXIBLE:
        with suppress(TypeError), torch.device("meta"):
            timm.create_model(name, num_classes=0, **options, **chosen)
            return {**options, **chosen}
    return chosen


def split_stride(text: str) -> tuple[str, int | None]:
    """A model's name and the number behind its last slash: resnet50/8."""
    if match := _WITH_STRIDE.fullmatch(text):
        return match[1], int(match[2]) if match[2] else None
    return text, None


def _check_name(name: str, *, pretrained: bool) -> None:
    if ":" in name:  # a model that its hub describes, such as hf-hub:timm/resnet18.a1_in1k
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ConfigError(
            f"timm has no model {architecture!r}"
            + (f"; near to it are {', '.join(near)}" if near else "; see timm.list_models()")
        )
    tags = [one.partition(".")[2] for one in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise ConfigError(
            f"timm has no weights {tag!r} of {architecture}; it has {', '.join(tags) or 'none'}"
        )
    if pretrained and not tags:
        raise ConfigError(
            f"timm has no weights of {architecture}; give a file, timm:{architecture}@FILE, or "
            f"take random ones, random:{architecture}"
        )


def _create(
    name: str, *, pretrained: bool, stride: int | None, more: Mapping[str, Any]
) -> nn.Module:
    """The model as the first of `_FLEXIBLE` that its family understands makes it."""
    chosen: dict[str, Any] = dict(more) if stride is None else {"output_stride": stride, **more}
    needs_hub = pretrained or ":" in name
    with _hub_or_its_cache() if needs_hub else nullcontext():
        for options in _FLEXIBLE:
            try:
                return timm.create_model(
                    name, pretrained=pretrained, num_classes=0, **options, **chosen
                )
            except TypeError as error:  # before anything is built or fetched
                if "unexpected keyword argument" not in str(error):
                    raise
            except Exception as error:  # timm's hubs fail in many ways, of several libraries
                if stride is not None and isinstance(error, AssertionError | NotImplementedError):
                    break  # families that have the option for their own stride alone
                if not needs_hub:
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                if not pretrained:
                    raise ConfigError(
                        f"the description of {name} could not be fetched ({reason}): check the "
                        "network, or take a model that timm itself knows"
                    ) from error
                raise CheckpointError(
                    f"the weights of {name} could not be fetched ({reason}): check the network, or "
                    f"give a file, timm:{name}@FILE, or take random weights, random:{name}"
                ) from error
    if stride is None:
        raise ConfigError(
            f"{name} does not take {', '.join(more) or 'what every model of timm takes'}; set "
            "model.drop_path to 0, or take another model"
        )
    raise ConfigError(
        f"the stride of {name} cannot be chosen; leave /{stride} away, or take a convolutional "
        "model such as resnet50"
    )


def _load_file(model: nn.Module, path: Path, *, name: str, network: NetworkName | None) -> None:
    """Loads a file key by key, under timm's names or those that timm's family converts from."""
    content = load_plain(path)
    networks = {key: held for key, held in networks_in(content).items() if isinstance(held, dict)}
    held = choose_network(networks or {"": content}, network=network, usual="teacher", source=path)
    weights = {
        key: value
        for key, value in held.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    load_exactly(model, timm_tensors(model, weights, name=name, path=path), source=path)


def timm_tensors(
    model: nn.Module, weights: dict[str, Tensor], *, name: str, path: Path
) -> dict[str, Tensor]:
    """Weights under timm's names, without what is known to be of no use for features.

    The names in the file may have any one prefix under which all names of the model are found, and
    may be those that timm's family of models converts from. Neither is checked to fit.

    Args:
        model: of timm.
        weights: under the names in the file.
        name: of the model, for messages.
        path: the file, for messages.

    Raises:
        CheckpointError: they are of another family, or fit under several prefixes.
    """
    weights = without_module(weights)
    expected = model.state_dict().keys()
    found = prefixes_of([max(expected, key=len)], weights)
    found = [one for one in found if all(f"{one}{key}" in weights for key in expected)]
    if len(found) > 1 and "" not in found:
        raise CheckpointError(
            f"{path} holds several networks, under the names {', '.join(found[:4])}: save the "
            "tensors of one of them alone"
        )
    if found and "" not in found:
        return take_prefix(weights, found[0], source=path)
    if found:
        return _without_extra(weights, expected)
    first = _converted(model, weights)
    prefixes = prefixes_of(VIT_ANCHORS, weights)
    if (first is None or misfits(model, first)) and len(prefixes) == 1 and prefixes[0]:
        first = _converted(model, split_network(weights, path).backbone) or first
    if first is None:
        raise CheckpointError(
            f"{path} holds no weights of {name}: the first of its tensors are "
            f"{', '.join(list(weights)[:3]) or 'none'}, expected such as "
            f"{', '.join(list(expected)[:3])}; give a file of this model, or the model of this file"
        )
    return first


def _converted(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights as the conversion of timm's family makes them; None if it finds none of its own."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    with suppress(  # what the conversions end in that look for tensors of their family
        LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError
    ):
        found = weights if convert is None else dict(convert(dict(weights), model))
        return _without_extra(found, model.state_dict().keys())
    return None


def _without_extra(weights: dict[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if k in expected or not _EXTRA.fullmatch(k)}


@contextmanager
def _hub_or_its_cache() -> Iterator[None]:
    """Where no way leads to the hub, its library looks into its cache only: at once, in silence."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable(address: str) -> bool:
    if getproxies():  # they know names that this machine does not
        return True
    try:
        socket.getaddrinfo(urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True
