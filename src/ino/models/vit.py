"""The Vision Transformer with a mask token, its block, and the projection head (section 3.1).

Modules and names of parameters are those of timm, DINO, iBOT and INO. It differs from timm's ViT in
the mask token, in blocks that compute outputs only where they are read, and in how position
embeddings follow the size of the input: bicubically, by the factors of DINO's and INO's released
code, which timm's own resampling does not equal (features change by 1 to 4% of their maximum).
"""

import math
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import trunc_normal_
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ino.errors import ConfigError
from ino.kernels.attention_cpu import blockwise_attention

POSITION_GRID_PIXELS = 64
"""Side of the square input, in pixels, for which position embeddings are created."""

POSITION_AMPLITUDE = 1.0
"""Of the sines and cosines that position embeddings may start from."""

Positions = Literal["learned", "sincos"]

NUM_BLOCKS = 12
PATCH_SIZES = (8, 16)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit_nano": {"embed_dim": 96, "num_heads": 3},
    "vit_tiny": {"embed_dim": 192, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "num_heads": 12},
}


def build_vit(
    arch: str,
    *,
    patch_size: int = 8,
    depth: int = NUM_BLOCKS,
    drop_path: float = 0.0,
    position_grid_side: int | None = None,
    positions: Positions = "learned",
) -> "VisionTransformer":
    """A ViT of a named width with random weights.

    Args:
        arch: `vit_nano`, `vit_tiny`, `vit_small` or `vit_base`.
        patch_size: side of a patch in pixels, 8 or 16.
        depth: number of blocks.
        drop_path: stochastic depth: probability, 0..1, of dropping a branch of the last block; it
            grows linearly from 0 at the first block.
        position_grid_side: side of the grid of position embeddings, in positions; None for the
            grid of a 64 x 64 input. Weights trained with another grid (DINO's with 224 x 224)
            keep it: the embeddings are interpolated only when an input needs it, so features do
            not change.
        positions: what the position embeddings, which are learned, start from: `learned` is noise
            of deviation 0.02, `sincos` is `sincos_positions`.

    Raises:
        ConfigError: the name or the patch size is unknown.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(
            f"unknown architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}"
        )
    if patch_size not in PATCH_SIZES:
        raise ConfigError(f"patch size {patch_size} is not supported; choose 8 or 16")
    sizes = ARCHITECTURES[arch]
    vit = VisionTransformer(
        embed_dim=sizes["embed_dim"],
        num_heads=sizes["num_heads"],
        patch_size=patch_size,
        depth=depth,
        drop_path=drop_path,
        position_grid_side=position_grid_side,
    )
    if positions == "sincos":
        side = math.isqrt(vit.pos_embed.shape[1] - 1)
        with torch.no_grad():
            vit.pos_embed[0, 1:] = sincos_positions(side, dim=vit.embed_dim)
    return vit


class VisionTransformer(timm_vit.VisionTransformer):
    """The original ViT, for inputs of any size that is a multiple of the patch."""

    cls_token: nn.Parameter
    pos_embed: nn.Parameter
    blocks: nn.Sequential

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        depth: int = NUM_BLOCKS,
        patch_size: int = 8,
        drop_path: float = 0.0,
        position_grid_side: int | None = None,
        layer_scale: bool = False,
        has_map: bool = False,
    ) -> None:
        """Args:
        depth: number of blocks.
        layer_scale: branches are scaled by one learned factor per channel, as in DINOv2.
        has_map: a linear map, which timm calls the head, follows the final norm.

        For the others see `build_vit`.
        """
        super().__init__(
            img_size=position_grid_side * patch_size
            if position_grid_side
            else POSITION_GRID_PIXELS,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=embed_dim if has_map else 0,
            drop_path_rate=drop_path,
            dynamic_img_size=True,
            init_values=1e-5 if layer_scale else None,  # DINOv2's
            block_fn=Block,
        )
        self.depth = depth
        self.patch_size = patch_size
        self._kept_positions: tuple[object, Tensor] | None = None
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        trunc_normal_(self.mask_token, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Float[Tensor, "batch 3 height width"],
        mask: Bool[Tensor, "batch tokens"] | None = None,
        *,
        num_blocks: int | None = None,
        read: Int[Tensor, "batch read"] | None = None,
        attention_side: int | None = None,
        place: tuple[int, int, int, int] | None = None,
    ) -> Float[Tensor, "batch class_and_read dim"]:
        """The class token and the patch tokens of a block, final norm and linear map applied.

        Args:
            images: normalised images whose sides are multiples of the patch size.
            mask: positions, row by row, whose patch embedding the mask token replaces before the
                position embedding is added (section 3.3).
            num_blocks: run only this many blocks; all of them by default.
            read: positions of the patch tokens to return, counted from 0; all by default. If given,
                the last block computes only these and the class token, which is faster.
            attention_side: side, in patches, of the square around it that a patch attends to
                beside the class token; None: all of the image. Not together with `read`.
            place: where the images were cut out of larger ones, whose position embeddings they
                keep: rows and columns of the whole grid, and the first row and column; None: they
                are whole.
        """
        patches = self.patch_embed(images)  # (b, h, w, d)
        if mask is not None:
            token = self.mask_token.to(patches.dtype)
            patches = torch.where(mask.reshape(*patches.shape[:3], 1), token, patches)
        tokens = self._pos_embed(patches, place)
        if attention_side is not None:
            assert read is None, "all positions are computed"
            rows, columns = patches.shape[1:3]
            near = Neighborhoods.of(rows, columns, attention_side, tokens.device)
            for block in cast(list[Block], list(self.blocks)[:num_blocks]):
                tokens = block(tokens, near=near)
            return self.head(self.norm(tokens))
        *earlier, last = cast(list[Block], list(self.blocks)[:num_blocks])
        for block in earlier:
            tokens = self._run(block, tokens)
        if read is not None:
            read = F.pad(read + 1, (1, 0))  # the class token, at 0, and those after it
        return self.head(self.norm(self._run(last, tokens, read)))

    def _run(self, block: "Block", *inputs: Tensor | None) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _pos_embed(
        self,
        x: Float[Tensor, "batch rows columns dim"],
        place: tuple[int, int, int, int] | None = None,
    ) -> Tensor:
        """Adds the class token and the position embeddings; timm's own methods call it as well."""
        batch, rows, columns, dim = x.shape
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), x.reshape(batch, -1, dim)], dim=1)
        if place is None:
            return tokens + self._positions(rows, columns)
        whole_rows, whole_columns, top, left = place
        whole = self._positions(whole_rows, whole_columns)
        grid = whole[:, 1:].unflatten(1, (whole_rows, whole_columns))
        cut = grid[:, top : top + rows, left : left + columns].flatten(1, 2)
        return tokens + torch.cat([whole[:, :1], cut], dim=1)

    def _positions(self, rows: int, columns: int) -> Float[Tensor, "1 class_and_tokens dim"]:
        """Position embeddings of a grid; those of the last one are kept, as videos keep their size,
        until the parameter changes."""
        stored = self.pos_embed
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or stored.is_inference():
            return interpolate_positions(stored, rows=rows, columns=columns)
        key = (rows, columns, stored.data_ptr(), stored._version, stored.dtype)
        if self._kept_positions is None or self._kept_positions[0] != key:
            found = interpolate_positions(stored, rows=rows, columns=columns)
            self._kept_positions = (key, found)
        return self._kept_positions[1]


def sincos_positions(side: int, *, dim: int) -> Float[Tensor, "positions dim"]:
    """Sines and cosines of the column, then of the row, of each position of a square grid.

    Frequencies fall from 1 to 1/10000 per position, as in MAE and MoCo v3.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, dim / 2)
    columns, rows = waves.expand(side, -1, -1), waves[:, None].expand(-1, side, -1)
    return POSITION_AMPLITUDE * torch.cat([columns, rows], dim=-1).flatten(0, 1)


def interpolate_positions(
    pos_embed: Float[Tensor, "1 positions dim"], *, rows: int, columns: int
) -> Float[Tensor, "1 class_and_tokens dim"]:
    """Position embeddings of a grid of rows x columns tokens, the class token's first and as it is.

    Bicubic, without antialiasing, by the factors (rows + 0.1) / side and (columns + 0.1) / side as
    in DINO's released code; unchanged where the grid is that of the stored embeddings.
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if rows == columns == side:
        return pos_embed
    grid = pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(
        grid, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic"
    )
    assert resized.shape[-2:] == (rows, columns)
    return torch.cat([pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


class Block(timm_vit.Block):
    """Pre-norm attention and MLP, each added to its input."""

    attn: Any

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        read: Int[Tensor, "batch read"] | None = None,
        *,
        near: "Neighborhoods | None" = None,
    ) -> Float[Tensor, "batch read dim"]:
        """The block's output.

        Args:
            tokens: class token and patch tokens.
            read: the positions among `tokens` whose outputs are wanted; all by default. All tokens
                are attended to in either case.
            near: what each patch attends to, for all positions; None: all tokens.
        """
        normed = self.norm1(tokens)
        if near is not None:
            tokens = tokens + self.ls1(local_attention(self.attn, normed, near))
            return tokens + self.ls2(self.mlp(self.norm2(tokens)))
        queries = None
        if read is not None:
            tokens, queries = gather_tokens(tokens, read), gather_tokens(normed, read)
        tokens = tokens + self.drop_path1(self.ls1(attention(self.attn, normed, queries)))
        return tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))


def gather_tokens(
    tokens: Float[Tensor, "batch tokens dim"], positions: Int[Tensor, "batch taken"]
) -> Float[Tensor, "batch taken dim"]:
    """The tokens at the given positions of each batch element; does not synchronize the device."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def attention(
    attn: Any,
    tokens: Float[Tensor, "batch tokens dim"],
    queries: Float[Tensor, "batch queries dim"] | None = None,
) -> Float[Tensor, "batch queries dim"]:
    """Multi-head attention of the queries (all tokens by default) to all tokens.

    Uses the weights of timm's attention module and torch's fused attention, or, in bf16 on a CPU,
    `blockwise_attention`, which is faster there.
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


class Neighborhoods(NamedTuple):
    """Squares of patches that attend to larger squares around them.

    Along each side of the grid the squares of queries begin at every half of `attention_side`, the
    last ones so that they end with the grid; the squares of keys are moved into the grid. Patches
    are counted row by row from 0.
    """

    queries: Int[Tensor, "squares queries"]
    keys: Int[Tensor, "squares keys"]

    @staticmethod
    def of(rows: int, columns: int, attention_side: int, device: torch.device) -> "Neighborhoods":
        """Those of a grid; `attention_side` is at least 2."""
        (top, height), (key_top, key_height) = _spans(rows, attention_side)
        (left, width), (key_left, key_width) = _spans(columns, attention_side)

        def squares(tops: list[int], lefts: list[int], height: int, width: int) -> Tensor:
            inner = torch.arange(height)[:, None] * columns + torch.arange(width)
            corners = torch.tensor([row * columns + column for row in tops for column in lefts])
            return (corners[:, None] + inner.flatten()).to(device)

        return Neighborhoods(
            squares(top, left, height, width), squares(key_top, key_left, key_height, key_width)
        )


def _spans(length: int, attention_side: int) -> tuple[tuple[list[int], int], ...]:
    """Starts and length of the queries' spans along one side, then those of their keys."""
    size, reach = min(attention_side // 2, length), min(attention_side, length)
    starts = [min(start, length - size) for start in range(0, length, size)]
    margin = (reach - size) // 2
    return (starts, size), (
        [min(max(start - margin, 0), length - reach) for start in starts],
        reach,
    )


def local_attention(
    attn: Any, tokens: Float[Tensor, "batch tokens dim"], near: Neighborhoods
) -> Float[Tensor, "batch tokens dim"]:
    """Multi-head attention of each patch to the class token and the patches around it, and of the
    class token to all tokens, with the weights of timm's attention module."""
    projected = attn.qkv(tokens)
    dim = tokens.shape[-1]
    keys = F.pad(near.keys + 1, (1, 0))  # the class token, at 0, and patches after it

    def gathered(rows: Tensor, places: Tensor) -> Tensor:
        """(parts, b * squares, h, places, d): whole rows are copied, which is faster."""
        found = rows.index_select(1, places.flatten()).unflatten(1, places.shape).flatten(0, 1)
        return found.unflatten(-1, (-1, attn.num_heads, dim // attn.num_heads)).permute(
            2, 0, 3, 1, 4
        )

    (query,) = gathered(projected[..., :dim], near.queries + 1)
    key, value = gathered(projected[..., dim:], keys)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    whole = torch.empty_like(projected[..., :dim])
    whole[:, near.queries.flatten() + 1] = mixed.unflatten(0, (len(tokens), -1)).flatten(1, 2)
    query, key, value = projected.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    class_token = F.scaled_dot_product_attention(query[:, :, :1], key, value)
    whole[:, :1] = class_token.transpose(1, 2).flatten(2)
    return attn.proj(whole)


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
