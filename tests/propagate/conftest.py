"""A network for propagation that needs no training: colours of a patch, mixed at random."""

import pytest
import torch
from torch import Tensor, nn

from propagate.moving_squares import moving_squares


class PatchBackbone(nn.Module):
    """Two layers of random features of 8 x 8 patches, each of its patch alone."""

    stride = 8
    limits_attention = True
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weights = nn.Parameter(torch.randn(2, 24, 3, 8, 8, generator=generator))
        self.calls: list[tuple[tuple[int, ...], int, bool]] = []

    def forward(self, images: Tensor, *, layer: int, **_: object) -> Tensor:
        self.calls.append((tuple(images.shape), layer, self.training))
        return nn.functional.conv2d(images, self.weights[layer - 1], stride=8)


@pytest.fixture
def backbone() -> PatchBackbone:
    return PatchBackbone()


@pytest.fixture
def video():
    frames, labels = zip(*moving_squares(8), strict=True)
    return list(frames), list(labels)
