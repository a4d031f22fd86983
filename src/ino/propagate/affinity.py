"""Label propagation by top-k affinity, the definition (section 3.4, inference).

With f(i) the L2-normalised feature of position i of the frame to label (the query), f(j) and p(j)
feature and soft label of position j of its context frames:

    s(i, j) = f(i) . f(j)                            cosine similarity
    N(i)    = the k positions j with the largest s(i, j), over all context frames together and
              within the window around i
    w(i, j) = exp(s(i, j) / T) / sum over j' in N(i) of exp(s(i, j') / T)
    p(i)    = sum over j in N(i) of w(i, j) p(j)

`best_positions` computes s and N in the plainest way, and only tests call it: it stores the
similarities of all pairs, which is too slow and takes too much memory for real frames.
`ino.kernels.topk` and `ino.kernels.topk_triton` find the same candidates without storing them.
`propagate_labels` computes w and p from the candidates, whichever way they were found.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ino.kernels.topk import Candidates, Window


def best_positions(
    query: Float[Tensor, "height width dim"],
    keys: Sequence[Float[Tensor, "height width dim"]],
    *,
    topk: int,
    window: Window,
) -> Candidates:
    """N and s: the `topk` most similar positions of all context frames together, best first.

    Args:
        query: L2-normalized features of the frame to label.
        keys: L2-normalized features of its context frames, at least one.
        topk: k, at least 1; fewer are returned if the context frames have fewer positions.
        window: the neighborhood of a query position in each context frame.
    """
    height, width, dim = query.shape
    similarity = query.reshape(-1, dim) @ torch.stack(list(keys)).reshape(-1, dim).T
    inside = inside_window(height, width, window).repeat(1, len(keys)).to(query.device)
    similarity = similarity.masked_fill(~inside, -torch.inf)
    return Candidates(*similarity.topk(min(topk, similarity.shape[1]), dim=1))


def inside_window(height: int, width: int, window: Window) -> Bool[Tensor, "tokens tokens"]:
    """True where the key position (column) lies in the window of the query position (row)."""
    row, column = torch.cartesian_prod(torch.arange(height), torch.arange(width)).T
    dy, dx = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    if window.radius is None:
        return torch.ones_like(dy, dtype=torch.bool)
    if window.shape == "square":
        return torch.maximum(dy, dx) <= window.radius
    squared = dy**2 + dx**2
    if window.shape == "circle":
        return squared < window.radius**2
    return squared <= window.radius**2  # closed-circle


@torch.no_grad()
def propagate_labels(
    candidates: Candidates,
    labels: Sequence[Float[Tensor, "height width channel"]],
    *,
    topk: int,
    temperature: float,
    copies: Sequence[int] | None = None,
) -> Float[Tensor, "height width channel"]:
    """w and p: the labels of the `topk` best candidates, weighted.

    Args:
        candidates: most similar context positions of each query position, best first; at least
            `topk` of them if the context frames have that many.
        labels: soft labels of the context frames, 0..1, in the order of `keys`.
        topk: k.
        temperature: T, above 0.
        copies: how often each context frame counts; None for once each. A frame that counts twice
            takes two of the k places for each of its candidates.
    """
    height, width, channel = labels[0].shape
    similarity, position = (part[:, :topk] for part in candidates)
    weights = torch.exp((similarity - similarity[:, :1]) / temperature)
    if copies is not None and any(count != 1 for count in copies):
        counts = torch.tensor(copies, device=position.device)[position // (height * width)]
        # Copies of a position take a place among the k each.
        weights = weights * torch.minimum(counts, topk - (counts.cumsum(dim=1) - counts)).clamp(0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    table = torch.cat([frame.reshape(-1, channel) for frame in labels])
    # A weighted sum of rows of the table that never stores the (tokens, k, channel) product.
    summed = F.embedding_bag(position, table, mode="sum", per_sample_weights=weights)
    return summed.view(height, width, channel)
