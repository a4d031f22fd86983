"""Labels carried from each context frame alone, then averaged, as TimeCycle and ContCorr do. Pure.

Every position of a context frame competes for the weights of that frame; there is no window.
Affinities are taken for blocks of queries, so none between all positions of two frames is stored.
Feature maps are channels last.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MUTUAL_EPSILON = 1e-5
"""What ContCorr adds to the largest affinity of a row or column before it divides by it."""

DEFAULT_MAX_BYTES = 64 << 20
"""Bytes for the affinities of one block."""


@torch.no_grad()
def averaged_labels(
    query: Float[Tensor, "height width dim"],
    keys: Sequence[Float[Tensor, "height width dim"]],
    labels: Sequence[Float[Tensor, "height width channel"]],
    *,
    counts: Sequence[int],
    topk: int,
    temperature: float,
    mutual: bool,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Float[Tensor, "height width channel"]:
    """Labels of the query, averaged over context frames.

    Each frame gives the sum over j of w(i, j) p(j), where w(i, j) = softmax_j(a(i, j) / T) for the
    k largest and 0 for others; the k are not normalised again, so the sum of labels stays below 1.

    Args:
        query: features of the frame to label.
        keys: features of the context frames.
        labels: of the context frames.
        counts: how often each frame counts in the average.
        topk: k; all of them where a frame has fewer positions.
        temperature: T; above 0.
        mutual: a is not the dot product s alone but s s / (max_j s + e) s / (max_i s + e), which
            favours pairs that are each other's best. Then all that equal the k-th weight count,
            as in the released code of ContCorr.
        max_bytes: bound on the affinities of a block, which holds at least one query.
    """
    height, width, dim = query.shape
    queries = query.reshape(-1, dim)
    total = queries.new_zeros(len(queries), labels[0].shape[-1])
    size = max(1, max_bytes // (3 * query.element_size() * len(queries)))
    for key, label, count in zip(keys, labels, counts, strict=True):
        flat, table = key.reshape(-1, dim), label.flatten(0, 1)
        largest = _largest_of_keys(queries, flat, size=size) if mutual else None
        for block in _blocks(len(queries), size):
            affinity = queries[block] @ flat.T
            if largest is not None:
                affinity = _mutual(affinity, largest)
            weights = (affinity / temperature).softmax(dim=1)
            summed = _sum_at_least_kth if mutual else _sum_best
            total[block] += count * summed(weights, table, topk=min(topk, len(flat)))
    return (total / sum(counts)).view(height, width, -1)


def _largest_of_keys(
    queries: Float[Tensor, "queries dim"], keys: Float[Tensor, "keys dim"], *, size: int
) -> Float[Tensor, " keys"]:
    """The largest affinity of each key to any query."""
    largest = keys.new_full((len(keys),), -torch.inf)
    for block in _blocks(len(queries), size):
        largest = torch.maximum(largest, (queries[block] @ keys.T).amax(dim=0))
    return largest


def _mutual(
    affinity: Float[Tensor, "queries keys"], largest: Float[Tensor, " keys"]
) -> Float[Tensor, "queries keys"]:
    """Affinities, each multiplied by its shares of the largest of its query and of its key."""
    of_query = affinity / (affinity.amax(dim=1, keepdim=True) + MUTUAL_EPSILON)
    return affinity * of_query * (affinity / (largest + MUTUAL_EPSILON))


def _sum_best(
    weights: Float[Tensor, "queries keys"], table: Float[Tensor, "keys channel"], *, topk: int
) -> Float[Tensor, "queries channel"]:
    best, index = weights.topk(topk, dim=1, sorted=False)
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=best)


def _sum_at_least_kth(
    weights: Float[Tensor, "queries keys"], table: Float[Tensor, "keys channel"], *, topk: int
) -> Float[Tensor, "queries channel"]:
    smallest = weights.topk(topk, dim=1).values[:, -1:]
    return weights.masked_fill(weights < smallest, 0) @ table


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
