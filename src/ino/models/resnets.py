"""ResNets that keep their resolution: dense features of the methods that came before ViTs.

The networks are timm's ResNet-18 and -50 with stages whose stride is 1 and whose convolutions are
not dilated, as the releases have them, and the ResNet-18 without max-pooling of MAST and CorrFlow.
"""

from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ino.models.dense import Backbone, Reading


def build_resnet(depth: int, *, unit_stages: Sequence[int], reflect: bool = False) -> ResNet:
    """A ResNet without classifier and with random weights.

    Args:
        depth: 18 or 50.
        unit_stages: stages, of 1 to 4, all of whose convolutions get stride 1.
        reflect: padded convolutions reflect the image at its border; zeros if not. The max-pooling
            stays as it is.
    """
    resnet = timm.create_model(f"resnet{depth}", num_classes=0)
    assert isinstance(resnet, ResNet)
    for number in unit_stages:
        for module in stage(resnet, number).modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
    for module in resnet.modules():
        if reflect and isinstance(module, nn.Conv2d) and any(module.padding):
            module.padding_mode = "reflect"
    return resnet


def stage(resnet: ResNet, number: int) -> nn.Module:
    """Stage 1, 2, 3 or 4."""
    return resnet.get_submodule(f"layer{number}")


class ResNetBackbone(Backbone):
    """Stages of a ResNet as feature maps; inputs have any size of at least a stride.

    Layer n is stage n. The last one that can be read is where its authors read it, so it goes
    through what they put behind it.
    """

    def __init__(
        self,
        resnet: ResNet,
        *,
        num_stages: int,
        strides: Sequence[int],
        reading: Reading,
        opening: nn.Module | None = None,
        closing: nn.Module | None = None,
        closing_dim: int | None = None,
        normalize: bool = False,
    ) -> None:
        """Args:
        resnet: whose stages after `num_stages` are dropped.
        num_stages: stages that can be read.
        strides: of each of them.
        reading: of the input.
        opening: what images go through first.
        closing: what the last stage's output goes through.
        closing_dim: channels that come out of `closing`.
        normalize: features have length 1.
        """
        dims = [int(info["num_chs"]) for info in resnet.feature_info[1 : num_stages + 1]]
        if closing_dim is not None:
            dims[-1] = closing_dim
        reflects = resnet.conv1.padding_mode == "reflect"  # which needs two features at least
        super().__init__(
            strides=strides,
            dims=dims,
            reading=reading,
            side_multiple=1,
            smallest_side=strides[-1] + reflects,
        )
        self.opening = opening or nn.Identity()
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool)
        self.stages = nn.ModuleList(stage(resnet, number + 1) for number in range(num_stages))
        self.closing = closing or nn.Identity()
        self.normalize = normalize

    def read(
        self, images: Float[Tensor, "batch 3 height width"], layer: int
    ) -> Float[Tensor, "batch dim rows columns"]:
        features = self.stem(self.opening(images))
        for one in self.stages[:layer]:
            features = one(features)
        if layer == self.num_layers:
            features = self.closing(features)
        return F.normalize(features, dim=1) if self.normalize else features


class Renormalize(nn.Module):
    """Images of -1..1 normalised by a mean and a deviation of values 0..1."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        return ((images + 1) / 2 - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)


class RectifiedConv(nn.Conv2d):
    """A 1x1 convolution without bias, then ReLU."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__(dim_in, dim, 1, bias=False)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, features: Float[Tensor, "batch dim_in rows columns"]
    ) -> Float[Tensor, "batch dim rows columns"]:
        return F.relu(super().forward(features))


class _TwoConvolutions(nn.Module):
    """A residual block under the names of MAST's weights."""

    def __init__(self, dim_in: int, dim: int, stride: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            nn.Conv2d(dim_in, dim, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
        )
        self.shortcut = nn.Sequential()
        if dim_in != dim or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(dim_in, dim, 1, stride, bias=False), nn.BatchNorm2d(dim)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.left(x) + self.shortcut(x))


class MastNetwork(nn.Module):
    """The network of MAST and CorrFlow under the names of its weights: 64 channels at stride 4."""

    widths = (64, 128, 256, 256)
    stage_strides = (1, 2, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        extraction = nn.Module()
        extraction.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        dim_in = 64
        for number, (dim, stride) in enumerate(zip(self.widths, self.stage_strides, strict=True)):
            blocks = [_TwoConvolutions(dim_in, dim, stride), _TwoConvolutions(dim, dim, 1)]
            extraction.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            dim_in = dim
        self.feature_extraction = extraction
        self.post_convolution = nn.Conv2d(dim_in, 64, 3, padding=1)


class MastBackbone(Backbone):
    """Stages of MAST's network, the last one through its closing convolution; never normalised."""

    def __init__(self, network: MastNetwork, *, reading: Reading) -> None:
        super().__init__(
            strides=(2, 4, 4, 4), dims=(64, 128, 256, 64), reading=reading, side_multiple=1
        )
        self.network = network

    def read(
        self, images: Float[Tensor, "batch 3 height width"], layer: int
    ) -> Float[Tensor, "batch dim rows columns"]:
        extraction = self.network.feature_extraction
        features = extraction.get_submodule("conv1")(images)
        for number in range(layer):
            features = extraction.get_submodule(f"layer{number + 1}")(features)
        return self.network.post_convolution(features) if layer == self.num_layers else features
