"""Mask propagation written straight from its equations: all affinities at once, no streaming."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def dense_labels(
    query: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    topk: int,
    radius: int | None,
    shape: str = "square",
    temperature: float = 0.1,
) -> Tensor:
    """(height, width, channel) labels of `query` from context frames (height, width, dim)."""
    height, width, dim = query.shape
    positions = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    offsets = (positions[:, None] - positions[None]).abs()
    distance = offsets.amax(dim=-1) if shape == "square" else offsets.square().sum(dim=-1).sqrt()
    similarity = query.reshape(-1, dim) @ torch.cat([key.reshape(-1, dim) for key in keys]).T
    if radius is not None:
        outside = distance >= radius if shape == "circle" else distance > radius
        similarity[outside.repeat(1, len(keys))] = -torch.inf
    best, index = similarity.topk(min(topk, similarity.shape[1]), dim=1)
    weights = torch.exp((best - best.amax(dim=1, keepdim=True)) / temperature)
    weights = weights / weights.sum(dim=1, keepdim=True)
    table = torch.cat([frame.flatten(0, 1) for frame in labels])
    return torch.einsum("qk,qkc->qc", weights, table[index]).view(height, width, -1)


def dense_propagation(
    features: Tensor,
    given: Mapping[int, Tensor],
    *,
    topk: int,
    num_context: int,
    radius: int | None,
    temperature: float = 0.1,
) -> list[Tensor]:
    """Soft labels (height, width, channel) of every frame of `features` (time, height, width, dim).

    `given` holds, by frame, the soft labels of the channels that this frame introduces; frame 0's
    begin with the background. Channels are ordered by their introduction, and all are present in
    every result.
    """
    num_channels = sum(new.shape[-1] for new in given.values())
    owned: dict[int, slice] = {}
    results: list[Tensor] = []
    first = 0
    for time, query in enumerate(features):
        result = query.new_zeros(*query.shape[:2], num_channels)
        for reference, channels in owned.items():
            previous = [i for i in range(time - num_context, time) if i > reference]
            context = [reference, *previous]
            predicted = dense_labels(
                query,
                [features[i] for i in context],
                [results[i] for i in context],
                topk=topk,
                radius=radius,
                temperature=temperature,
            )
            result[..., channels] = predicted[..., channels]
        if time in given:
            new = given[time]
            owned[time] = slice(first, first + new.shape[-1])
            result *= 1 - new.sum(dim=-1, keepdim=True)
            result[..., owned[time]] = new
            first = owned[time].stop
        results.append(result)
    return results
