"""Dense features as an ONNX graph: pixels in, normalised feature maps out. Needs the extra `onnx`.

The graph is for images of one size, of which the position embeddings are part, and for batches of
any size. It takes pixels as videos give them, so that nobody has to know mean and deviation.
"""

import io
import warnings
from contextlib import redirect_stdout
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ino.data.views import IMAGENET_MEAN
from ino.errors import ConfigError
from ino.models.export_files import ImageSize, check_size
from ino.models.vit import VisionTransformer, interpolate_positions

NEEDED = ("onnx", "onnxscript")
"""Modules that writing ONNX takes; onnxruntime runs it."""


def check_onnx() -> None:
    """Raises ConfigError where ONNX cannot be written."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--onnx needs {' and '.join(missing)}, which is not installed: install ino[onnx] or "
            "leave --onnx out"
        )


class FeatureGraph(nn.Module):
    """Features of the last block of a network, for images of one size."""

    mean: Tensor
    std: Tensor
    positions: Tensor

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        std: tuple[float, float, float],
        image_size: ImageSize,
        normalize: bool,
    ) -> None:
        """Args:
        vit: the network.
        std: deviation by which images are normalised.
        image_size: multiples of the patch.
        normalize: divide features by their length.

        Raises:
            ConfigError: the size is no multiple of the patch.
        """
        super().__init__()
        check_size(image_size, patch_size=vit.patch_size)
        self.vit = vit
        self.grid = tuple(side // vit.patch_size for side in image_size)
        self.normalize = normalize
        rows, columns = self.grid
        positions = interpolate_positions(vit.pos_embed.detach(), rows=rows, columns=columns)
        self.register_buffer("positions", positions.clone())
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(std))

    def forward(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch rows columns dim"]:
        """Feature maps.

        Args:
            images: RGB.
        """
        pixels = (images.float() / 255 - self.mean) / self.std
        patches = self.vit.patch_embed(pixels.permute(0, 3, 1, 2)).flatten(1, 2)
        first = self.vit.cls_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.positions
        features = self.vit.norm(self.vit.blocks(tokens))[:, 1:]
        if self.normalize:
            features = F.normalize(features, dim=-1)
        return features.unflatten(1, self.grid)


def features_onnx(
    vit: VisionTransformer,
    *,
    std: tuple[float, float, float],
    image_size: ImageSize,
    normalize: bool = True,
) -> bytes:
    """The ONNX file of a network's last block: `images` -> `features`, see `FeatureGraph`.

    Args:
        vit: the network.
        std: deviation by which images are normalised.
        image_size: multiples of the patch.
        normalize: divide features by their length.

    Raises:
        ConfigError: the size is no multiple of the patch, or the extra `onnx` is not installed.
    """
    graph = FeatureGraph(vit, std=std, image_size=image_size, normalize=normalize).eval()
    check_onnx()
    example = torch.zeros(2, *image_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None, "dynamo=True gives a program"
    return program.model_proto.SerializeToString()
