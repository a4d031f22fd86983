"""A block of the Vision Transformer that computes outputs only at the positions that are read.

Modules and names are those of timm's block. Attention is torch's fused one, but in bf16 on a CPU
where ours takes less time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models import vision_transformer as timm_vit
from torch import Tensor

from ino.models.blockwise_attention import blockwise_attention


class Block(timm_vit.Block):
    """Pre-norm attention and MLP, each added to its input."""

    attn: Any

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        read: Int[Tensor, "batch read"] | None = None,
    ) -> Float[Tensor, "batch read dim"]:
        """The block's output.

        Args:
            tokens: class token and patch tokens.
            read: the positions among `tokens` whose outputs are wanted; all by default. All tokens
                are attended to in either case.
        """
        normed = self.norm1(tokens)
        queries = None
        if read is not None:
            tokens, queries = take(tokens, read), take(normed, read)
        tokens = tokens + self.drop_path1(self.ls1(attend(self.attn, normed, queries)))
        return tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))


def take(
    tokens: Float[Tensor, "batch tokens dim"], positions: Int[Tensor, "batch taken"]
) -> Float[Tensor, "batch taken dim"]:
    """The tokens at these positions of each row, without asking the device how many there are."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def attend(
    attn: Any,
    tokens: Float[Tensor, "batch tokens dim"],
    queries: Float[Tensor, "batch queries dim"] | None = None,
) -> Float[Tensor, "batch queries dim"]:
    """Multi-head attention of the queries to all tokens, by the modules of timm's attention.

    Args:
        attn: timm's Attention, whose `qkv`, `proj` and `num_heads` are used.
        tokens: what is attended to.
        queries: those of `tokens` whose outputs are wanted; all by default.
    """
    if queries is None:
        projected = attn.qkv(tokens).unflatten(-1, (3, attn.num_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (b, h, n, d) each
    else:
        dim = tokens.shape[-1]
        weight, bias = attn.qkv.weight, attn.qkv.bias
        query = F.linear(queries, weight[:dim], bias[:dim])
        query = query.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        key, value = (
            F.linear(tokens, weight[dim:], bias[dim:])
            .unflatten(-1, (2, attn.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        mixed = blockwise_attention(query, key, value)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value)
    return attn.proj(mixed.transpose(1, 2).flatten(2))
