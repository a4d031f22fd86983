"""Backbones: one small interface to dense features, and the baselines that cost nothing.

Known so far: our own runs, random weights (`random:vit_tiny/8`) and raw colour (`color`). Other
projects' checkpoints and timm's models are not read yet.
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ino.data.views import IMAGENET_MEAN, IMAGENET_STD
from ino.errors import CheckpointError, ConfigError
from ino.models.checkpoints import NetworkName, load_vit
from ino.models.exported import is_exported, read_exported
from ino.models.vit import VisionTransformer, build_vit

RELEASED_STD = (0.228, 0.224, 0.225)
"""By which the authors' code normalises at inference; in training its first number is 0.229."""

RANDOM_NAME = re.compile(r"random:(?P<arch>\w+)/(?P<patch>\d+)")


class VitBackbone(nn.Module):
    """Patch tokens of a ViT's block as a feature map."""

    def __init__(
        self, vit: VisionTransformer, *, std: tuple[float, float, float] = IMAGENET_STD
    ) -> None:
        """Args:
        vit: the network.
        std: deviation by which images are normalised.
        """
        super().__init__()
        self.vit = vit
        self.stride = vit.patch_size
        self.num_layers = vit.depth
        self.mean = IMAGENET_MEAN
        self.std = std

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], *, layer: int | None
    ) -> Float[Tensor, "batch dim rows columns"]:
        """Features of block `layer`, counted from 1, final norm applied; later blocks do not run.

        Args:
            images: normalised by `mean` and `std`; sides are multiples of `stride`.
            layer: 1 to `num_layers`; None for the last.

        Raises:
            ConfigError: there is no such layer.
        """
        layer = self.num_layers if layer is None else layer
        if not 1 <= layer <= self.num_layers:
            raise ConfigError(
                f"there is no layer {layer}; this backbone has 1 to {self.num_layers}"
            )
        tokens = self.vit(images, num_blocks=layer)[:, 1:]
        rows, columns = (side // self.stride for side in images.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))


class ColorBackbone(nn.Module):
    """Raw colour: each feature holds the normalised pixels of an 8x8 patch.

    The baseline that any learned feature has to beat. It has one layer and ignores its number.
    """

    def __init__(self, stride: int = 8) -> None:
        super().__init__()
        self.stride = stride
        self.num_layers = 1
        self.mean = IMAGENET_MEAN
        self.std = IMAGENET_STD

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], *, layer: int | None
    ) -> Float[Tensor, "batch dim rows columns"]:
        """The pixels of each patch, 3 x stride x stride numbers."""
        return F.pixel_unshuffle(images, self.stride)


Backbone = VitBackbone | ColorBackbone


def load_backbone(name: str | Path, *, network: NetworkName = "student", seed: int = 0) -> Backbone:
    """A backbone by name or from a file, in evaluation mode.

    Args:
        name: `color`, `random:ARCH/PATCH`, or the path of a checkpoint, of a run's folder or of
            what `ino export` wrote.
        network: which of a run's two networks; the authors evaluate the student. An export has one.
        seed: of random weights.

    Raises:
        CheckpointError: the file cannot be used.
        ConfigError: the architecture is unknown.
    """
    if str(name) == "color":
        return ColorBackbone()
    if match := RANDOM_NAME.fullmatch(str(name)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vit = build_vit(match["arch"], patch_size=int(match["patch"]))
        return VitBackbone(vit).eval()
    path = Path(name)
    if not path.exists():
        raise CheckpointError(
            f"{name} is neither a file or folder nor a known name; give a checkpoint, the folder "
            "of a run, color or random:vit_tiny/8"
        )
    if is_exported(path):
        exported = read_exported(path)
        return VitBackbone(exported.vit, std=exported.std).eval()
    vit, config = load_vit(path, network=network)
    std = RELEASED_STD if config.get("variant") == "released" else IMAGENET_STD
    return VitBackbone(vit, std=std).eval()
