"""Layers of a model of timm as feature maps, for any that has some.

Layers are the blocks of ViTs and their like, final norm applied, and the stages of convolutional
and pyramid networks. Feature maps of stride 1 and 2 are those of a stem and no layers.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ino.errors import ConfigError
from ino.models.dense import Backbone, Reading
from ino.models.vit import interpolate_positions

_STEM_STRIDE = 2


class _Layer(NamedTuple):
    place: int  # among those of the model
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
        found = _layers(network, name)
        super().__init__(
            strides=[one.stride for one in found],
            dims=[one.dim for one in found],
            reading=reading,
        )
        self.network = network
        self._indices = [one.place for one in found]
        parameters = inspect.signature(_intermediates_of(network)).parameters
        self._options = {
            key: value
            for key, value in {"norm": True, "stop_early": True}.items()
            if key in parameters
        }
        if not self._has_patches() and "norm" in self._options:
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
        """Whether all layers are blocks of one size, as in a ViT."""
        return len(set(self.strides)) == 1

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


def _layers(network: nn.Module, name: str) -> Sequence[_Layer]:
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
