"""Section 3.4 of the paper: labels follow the best affinities of a frame with its context. Pure.

With f(i) the L2-normalised feature of position i of the frame to label (the query), f(j) and p(j)
feature and soft label of position j of its context frames:

    s(i, j) = f(i) . f(j)                            cosine similarity
    N(i)    = the k positions j with the largest s(i, j), over all context frames together and
              within the window around i
    w(i, j) = exp(s(i, j) / T) / sum over j' in N(i) of exp(s(i, j') / T)
    p(i)    = sum over j in N(i) of w(i, j) p(j)

`best_positions` is the definition of N, and too slow and large for real frames: it holds all
similarities at once. `ino.kernels.topk` and `ino.kernels.topk_triton` find the same candidates
without that; tests compare them with it. `propagate_labels` is the rest, for all of them.
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
        query: L2-normalised features of the frame to label.
        keys: those of its context frames.
        topk: k; fewer where the frames have fewer positions.
        window: where in each context frame a query position looks.
    """
    height, width, dim = query.shape
    similarity = query.reshape(-1, dim) @ torch.stack(list(keys)).reshape(-1, dim).T
    inside = inside_window(height, width, window).repeat(1, len(keys)).to(query.device)
    similarity = similarity.masked_fill(~inside, -torch.inf)
    return Candidates(*similarity.topk(min(topk, similarity.shape[1]), dim=1))


def inside_window(height: int, width: int, window: Window) -> Bool[Tensor, "tokens tokens"]:
    """Whether each position of a map looks at each position of another."""
    row, column = torch.cartesian_prod(torch.arange(height), torch.arange(width)).T
    dy, dx = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    if window.radius is None:
        return torch.ones_like(dy, dtype=torch.bool)
    if window.shape == "square":
        return torch.maximum(dy, dx) <= window.radius
    squared = dy**2 + dx**2
    if window.shape == "circle":
        return squared < window.radius**2
    return squared <= window.radius**2


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
        candidates: the best of all context frames, at least `topk` where there are so many.
        labels: soft labels of the context frames.
        topk: k.
        temperature: T; above 0.
        copies: how many times each context frame is in the context; once each where None.
    """
    height, width, channel = labels[0].shape
    similarity, position = candidates
    counts = torch.tensor(copies or [1] * len(labels), device=position.device)
    counts = counts[position // (height * width)]
    # Copies of a position take a place among the k each.
    counts = torch.minimum(counts, topk - (counts.cumsum(dim=1) - counts)).clamp(min=0)
    weights = counts * torch.exp((similarity - similarity[:, :1]) / temperature)
    weights = weights / weights.sum(dim=1, keepdim=True)
    table = torch.cat([frame.reshape(-1, channel) for frame in labels])
    # A weighted sum of rows of the table that never stores the (tokens, k, channel) product.
    summed = F.embedding_bag(position, table, mode="sum", per_sample_weights=weights)
    return summed.view(height, width, channel)
