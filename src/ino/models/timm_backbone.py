"""Any model of timm that has spatial features, at any of its layers.

Layers are the blocks of ViTs and their like, final norm applied, and the stages of convolutional
and pyramid networks. Feature maps of stride 1 and 2 are those of a stem and no layers.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ino.errors import CheckpointError, ConfigError
from ino.models.checkpoints import load_exactly
from ino.models.dense import Backbone, Reading
from ino.models.vit import interpolate_positions
from ino.models.weight_files import load_plain

_STEM_STRIDE = 2
_STRIDES = (8, 16, 32)
_FLEXIBLE = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""What makes timm's families take inputs of any size, one after the other."""
_DINO_POSITIONS = re.compile(r"vit_\w+_patch(8_224|16_224|14)(_dinov2\.|_dinov2$|\.dino$)")
"""Models whose authors interpolate positions as our ViT does; timm's own resampling differs."""
_EXTRA = re.compile(
    r"(head|fc|classifier|decoder|pre_logits|norm_pix|head_dist)(\.|_).+|mask_token"
)
"""Tensors of known releases that features do not need: classifiers, and MAE's decoder."""


class _Layer(NamedTuple):
    index: int  # among those of the model
    stride: int
    dim: int


class TimmBackbone(Backbone):
    """Layers of a timm model as feature maps."""

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
        found = list(_layers(network, name))
        super().__init__(
            strides=[one.stride for one in found],
            dims=[one.dim for one in found],
            reading=reading,
        )
        self.network = network
        self._indices = [one.index for one in found]
        parameters = inspect.signature(_intermediates_of(network)).parameters
        self._options = {
            key: value
            for key, value in {"norm": True, "stop_early": True}.items()
            if key in parameters
        }
        if min(self.strides) != max(self.strides) and "norm" in self._options:
            self._options["norm"] = False  # a pyramid's final norm fits its last stage alone
        self._dino_positions = dino_positions
        self.side_multiple = self._side_multiple(name)

    def read(
        self, images: Float[Tensor, "batch 3 height width"], layer: int
    ) -> Float[Tensor, "batch dim rows columns"]:
        if self._dino_positions:
            return self._read_dino(images, layer)
        (features,) = _intermediates_of(self.network)(
            images,
            indices=[self._indices[layer - 1]],
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
                f"{name} has no feature maps for images of any size, which carrying masks needs; "
                "take a ViT, a ResNet, a ConvNeXt or a Swin of timm"
            )
        if self._has_patches() or not self._fits(2 * largest + 1, 4 * largest - 1):
            return None
        return 1

    def _has_patches(self) -> bool:
        return len(set(self.strides)) == 1 and len(self.strides) > len(_STRIDES) + 1

    def _fits(self, height: int, width: int) -> bool:
        """Whether features of such an image have the size that the strides say, rounded up."""
        images = torch.zeros(1, 3, height, width)
        for number in (
            {1, self.num_layers} if self._has_patches() else range(1, self.num_layers + 1)
        ):
            stride, dim = self.strides[number - 1], self.dims[number - 1]
            try:
                found = self.read(images, number)
            except (AssertionError, RuntimeError, ValueError, IndexError, TypeError):
                return False  # timm's ways to refuse a size
            if tuple(found.shape) != (1, dim, -(-height // stride), -(-width // stride)):
                return False
        return True


def build_timm(
    name: str,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    stride: int | None = None,
    reading: Reading | None = None,
) -> TimmBackbone:
    """A model of timm, in evaluation mode.

    Args:
        name: as timm knows it, as in vit_small_patch14_dinov2.lvd142m.
        pretrained: fetch its weights from the network; random ones if not.
        weights: a file of weights in place of those.
        stride: that a convolutional network is to have in the end, by dilation; None for its own.
        reading: of the input; None for that of timm's configuration.

    Raises:
        ConfigError: the model is unknown or has no spatial features, or no such stride.
        CheckpointError: the weights cannot be used or fetched.
    """
    _check_name(name, pretrained=pretrained)
    if stride not in (None, *_STRIDES):
        raise ConfigError(f"stride {stride} of {name} is not supported; choose 8, 16 or 32")
    network = _create(name, pretrained=pretrained, stride=stride).eval()
    if weights is not None:
        _load_file(network, weights)
    config = getattr(network, "pretrained_cfg", {})
    if reading is None:
        mean, std = (tuple(config.get(key) or (0.5,) * 3) for key in ("mean", "std"))
        protocol = "dinov3" if "dinov" in name else "dino"
        reading = Reading(mean=mean, std=std, protocol=protocol)
    backbone = TimmBackbone(
        network,
        name=name,
        reading=reading,
        dino_positions=_DINO_POSITIONS.match(name) is not None and hasattr(network, "blocks"),
    )
    return backbone.eval()


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


def _create(name: str, *, pretrained: bool, stride: int | None) -> nn.Module:
    """The model as the first of `_FLEXIBLE` that its family understands makes it."""
    chosen = {} if stride is None else {"output_stride": stride}
    for options in _FLEXIBLE:
        try:
            return timm.create_model(
                name, pretrained=pretrained, num_classes=0, **options, **chosen
            )
        except TypeError as error:  # before anything is built or fetched
            if "unexpected keyword argument" not in str(error):
                raise
        except Exception as error:  # timm's hubs fail in many ways, of several libraries
            if not pretrained:
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise CheckpointError(
                f"the weights of {name} could not be fetched ({reason}): check the network, or "
                f"give a file, timm:{name}@FILE, or take random weights, random:{name}"
            ) from error
    raise ConfigError(
        f"the stride of {name} cannot be chosen; leave /{stride} away, or take a convolutional "
        "model such as resnet50"
    )


def _load_file(network: nn.Module, path: Path) -> None:
    """Loads a file key by key, under timm's names or those that timm's family converts from."""
    content: Any = load_plain(path)
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content.get(key), dict):
            content = content[key]
    weights = {
        key.removeprefix("module."): value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }
    expected = network.state_dict().keys()
    if not expected <= weights.keys():
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        weights = dict(convert(weights, network)) if convert else weights
    weights = {k: v for k, v in weights.items() if k in expected or not _EXTRA.fullmatch(k)}
    load_exactly(network, weights, source=path)


def _layers(network: nn.Module, name: str) -> Iterable[_Layer]:
    described: Any = getattr(network, "feature_info", None)
    if not described or not hasattr(network, "forward_intermediates"):
        raise ConfigError(
            f"{name} has no spatial features that timm gives; take a ViT, a ResNet, a ConvNeXt or "
            "a Swin of timm"
        )
    layers = [
        _Layer(index, int(info["reduction"]), int(info["num_chs"]))
        for index, info in enumerate(described)
        if info["reduction"] > _STEM_STRIDE
    ]
    if not layers:
        raise ConfigError(f"{name} has no features of stride 4 or more; take another model")
    return layers


def _intermediates_of(network: nn.Module) -> Any:
    return network.forward_intermediates
