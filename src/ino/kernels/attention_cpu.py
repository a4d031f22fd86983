"""Attention by blocks of queries on a CPU: faster than torch's fused kernel in bf16.

A block of affinities is small enough to stay in a processor's cache, and is computed again for the
gradients, so that the memory of attention does not grow with the square of the tokens. All blocks
share the memory of the first. docs/benchmarks.md has the times of both.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1 << 20
"""Affinities of a block for each thread: 2 MiB in bf16."""


def blockwise_attention(
    query: Float[Tensor, "batch head queries dim"],
    key: Float[Tensor, "batch head tokens dim"],
    value: Float[Tensor, "batch head tokens dim"],
    *,
    block: int = BLOCK,
) -> Float[Tensor, "batch head queries dim"]:
    """softmax(Q K^T / sqrt(dim)) V for each head, in the precision of its inputs.

    Args:
        query: one row for each output.
        key: what queries are compared with.
        value: what is mixed.
        block: affinities computed at a time, for each thread.
    """
    scaled = query * query.shape[-1] ** -0.5
    heads = (part.flatten(0, 1).contiguous() for part in (scaled, key, value))
    with torch.autocast(query.device.type, enabled=False):
        mixed = cast(Tensor, _Blockwise.apply(*heads, block))
    return mixed.unflatten(0, query.shape[:2])


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, block: int) -> Tensor:
        mixed = torch.empty_like(query)
        room = query.new_empty(0)
        for heads, rows in _blocks(query, key, block):
            weights = _weights(query[heads, rows], key[heads], room)
            torch.bmm(weights, value[heads], out=mixed[heads, rows])
        ctx.save_for_backward(query, key, value, mixed)
        ctx.block = block
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, mixed = ctx.saved_tensors
        (gradient,) = gradients
        # Of a row of the softmax: the mean of its gradient by its weights.
        exact = torch.promote_types(query.dtype, torch.float32)
        mean = (gradient * mixed).sum(dim=-1, keepdim=True, dtype=exact).to(query)
        query_gradient = torch.empty_like(query)
        blocks = list(_blocks(query, key, ctx.block))
        whole_heads = all(rows.start == 0 for _, rows in blocks)
        key_gradient = torch.zeros_like(key, dtype=key.dtype if whole_heads else exact)
        value_gradient = torch.zeros_like(key_gradient)
        room, second_room = query.new_empty(0), query.new_empty(0)
        for heads, rows in blocks:
            weights = _weights(query[heads, rows], key[heads], room)
            value_gradient[heads] += torch.bmm(weights.transpose(1, 2), gradient[heads, rows])
            inner = second_room.resize_(weights.shape)
            torch.bmm(gradient[heads, rows], value[heads].transpose(1, 2), out=inner)
            inner.sub_(mean[heads, rows]).mul_(weights)
            torch.bmm(inner, key[heads], out=query_gradient[heads, rows])
            key_gradient[heads] += torch.bmm(inner.transpose(1, 2), query[heads, rows])
        return query_gradient, key_gradient.to(key), value_gradient.to(value), None


def _blocks(query: Tensor, key: Tensor, block: int) -> Iterator[tuple[slice, slice]]:
    """Heads and queries of each block; as many heads for one thread as for another."""
    num_heads, num_queries, _ = query.shape
    num_tokens, num_threads = key.shape[1], torch.get_num_threads()
    num_rows = min(num_queries, max(1, block * num_threads // num_tokens))
    heads_at_once = max(1, block * num_threads // (num_rows * num_tokens))
    if heads_at_once > num_threads:
        heads_at_once -= heads_at_once % num_threads
    for head in range(0, num_heads, heads_at_once):
        for row in range(0, num_queries, num_rows):
            yield slice(head, head + heads_at_once), slice(row, row + num_rows)


def _weights(query: Tensor, key: Tensor, room: Tensor) -> Tensor:
    """Softmax of the affinities, in the memory of `room`."""
    affinities = room.resize_(*query.shape[:2], key.shape[1])
    torch.bmm(query, key.transpose(1, 2), out=affinities)
    return torch.softmax(affinities, dim=-1, out=affinities)
