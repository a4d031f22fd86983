"""Labels carried along the best affinities of each position. Pure tensors.

The work has two halves. A `Matcher` finds, for each query position, the best k positions of a group
of context frames within the window; `propagate_labels` sums their labels. Matchers differ in how
they search and where: `tiled_matcher` anywhere, `triton_matcher` on CUDA.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ino.kernels.topk import Candidates, FeatureMap


@runtime_checkable
class Matcher(Protocol):
    """Finds best positions for the frames of one video.

    `prepare` gives what is kept of a frame, from L2-normalised features, all of one size. `match`
    gives the candidates of each group of maps, given by their numbers in `keys`.
    """

    def prepare(self, features: Float[Tensor, "height width dim"]) -> FeatureMap: ...

    def match(
        self,
        query: FeatureMap,
        keys: Sequence[FeatureMap],
        groups: Sequence[Sequence[int]],
        *,
        windowed: bool = True,
    ) -> list[Candidates]: ...


@torch.no_grad()
def propagate_labels(
    candidates: Candidates,
    labels: Sequence[Float[Tensor, "height width channel"]],
    *,
    topk: int,
    temperature: float,
    copies: Sequence[int] | None = None,
) -> Float[Tensor, "height width channel"]:
    """Labels of the query: those of its best `topk` context positions, weighted.

    The weights are exp(similarity / temperature), normalised over the `topk` to sum 1.

    Args:
        candidates: the best of all maps, best first, at least `topk` where there are so many.
        labels: soft labels of the maps.
        topk: positions that count, over all context frames together.
        temperature: T; above 0.
        copies: how often each map counts; once where None.
    """
    height, width, channel = labels[0].shape
    similarity, position = candidates.similarity, candidates.position
    # The softmax subtracts the maximum; a similarity of -inf gets the weight 0.
    if copies is None:
        similarity, position = similarity[:, :topk], position[:, :topk]
        weights = torch.softmax(similarity / temperature, dim=1)
    else:
        times = torch.tensor(copies, device=position.device)[position // (height * width)]
        before = times.cumsum(dim=1) - times
        times = torch.minimum(times, topk - before).clamp(min=0)
        weights = times * torch.exp((similarity - similarity[:, :1]) / temperature)
        weights = weights / weights.sum(dim=1, keepdim=True)
    table = torch.cat([frame.reshape(height * width, channel) for frame in labels])
    # A weighted sum of table rows that never stores the (tokens, topk, channel) product.
    summed = F.embedding_bag(position, table, mode="sum", per_sample_weights=weights)
    return summed.view(height, width, channel)


def merge_candidates(parts: Sequence[tuple[Candidates, int]], *, tokens: int) -> Candidates:
    """The best of several groups as of one, best first.

    Args:
        parts: candidates of a group, and how many maps it has.
        tokens: positions of a map.
    """
    if len(parts) == 1:
        return parts[0][0]
    first, positions = 0, []
    for candidates, num_maps in parts:
        positions.append(candidates.position + first * tokens)
        first += num_maps
    similarity = torch.cat([candidates.similarity for candidates, _ in parts], dim=1)
    best, place = similarity.sort(dim=1, descending=True)
    return Candidates(best, torch.cat(positions, dim=1).gather(1, place))
