"""Projection head shared by class and patch tokens (sections 3.1 and 3.3)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Linear-GELU-Linear-GELU-Linear, L2 normalisation, linear layer with rows of unit length.

    The logits are cosine similarities in -1..1. The rows' gain is fixed at 1, so only their
    directions are parameters (the released code's `weight_v`).
    """

    def __init__(
        self, dim: int, *, out_dim: int = 4096, hidden_dim: int = 2048, bottleneck_dim: int = 256
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.last_layer = nn.Linear(bottleneck_dim, out_dim, bias=False)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch classes"]:
        """Logits in -1..1.

        The last layer runs in full precision: its outputs are divided by temperatures down to
        0.04, which would turn the rounding of bf16 into errors of 0.1 in the exponent.
        """
        projected = self.mlp(tokens)
        with torch.autocast(projected.device.type, enabled=False):
            dtype = torch.promote_types(projected.dtype, self.last_layer.weight.dtype)
            directions = F.normalize(projected.to(dtype), dim=-1)
            return F.linear(directions, F.normalize(self.last_layer.weight.to(dtype), dim=-1))
