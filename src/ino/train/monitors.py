"""Whether a network learns: what its targets and features say, in numbers.

Two collapses keep a loss finite, even low, and teach nothing: targets that are uniform and targets
that are the same for every view. Both show in the information of the targets about their view,
which is then 0. Features that lie along few directions show in their deviation and rank.

These numbers cost more than a term of the loss, so they are taken on some steps only.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ino.models.vit import VisionTransformer

MAX_IMAGES = 16
"""Global crops whose features are looked at."""

MAX_TOKENS = 2048
"""Patch tokens whose rank is taken."""


@torch.no_grad()
def target_numbers(targets: Float[Tensor, "*views classes"], *, name: str) -> dict[str, Tensor]:
    """Entropy and information of target distributions, in nats.

    `entropy_NAME` is the mean entropy H(t) of a target: log of the number of classes where it is
    uniform, 0 where it is one class. `information_NAME` is the entropy of the mean target less
    `entropy_NAME`, the mutual information of view and class: 0 where all views have the same
    target, at most the log of the number of views.

    Args:
        targets: the teacher's distributions, each of sum 1.
        name: `class` or `patch`.
    """
    flat = targets.flatten(0, -2).float()
    entropy = _entropy(flat).mean()
    return {f"entropy_{name}": entropy, f"information_{name}": _entropy(flat.mean(0)) - entropy}


def divergences(numbers: Mapping[str, float]) -> dict[str, float]:
    """Kullback-Leibler divergences of the student from its targets, in nats.

    A term of the loss is a cross-entropy, the entropy of the targets, which the student cannot
    change, and the divergence, which it can: KL = term - entropy. Terms that are off have none.

    Args:
        numbers: terms of the loss and entropies, by name.
    """
    found = {}
    for term, entropy in (("g2g", "class"), ("l2g", "class"), ("masked", "patch")):
        if numbers.get(term) and f"entropy_{entropy}" in numbers:
            found[f"kl_{term}"] = numbers[term] - numbers[f"entropy_{entropy}"]
    return found


@torch.no_grad()
def feature_numbers(
    backbone: VisionTransformer, crops: Float[Tensor, "time batch 3 height width"]
) -> dict[str, Tensor]:
    """Deviation and effective rank of a backbone's tokens.

    `std_class` and `std_patch` are the deviations of L2-normalised tokens, averaged over dimensions
    and multiplied by the root of their number: 1 where tokens point everywhere, 0 where all are the
    same (as in SimSiam, arXiv:2011.10566). `rank_patch` is the exponential of the entropy of the
    normalised singular values of patch tokens (RankMe, arXiv:2210.02885): 1 to the width.

    Args:
        backbone: in evaluation mode.
        crops: normalised; the first of them are used.
    """
    images = crops.transpose(0, 1).flatten(0, 1)[:MAX_IMAGES]
    tokens = backbone(images).float()
    patches = tokens[:, 1:].flatten(0, 1)
    step = math.ceil(len(patches) / MAX_TOKENS)
    return {
        "std_class": _deviation(tokens[:, 0]),
        "std_patch": _deviation(patches),
        "rank_patch": effective_rank(patches[::step]),
    }


def effective_rank(features: Float[Tensor, "sample dim"]) -> Float[Tensor, ""]:
    """The exponential of the entropy of the singular values, normalised to sum 1; NaN of NaN."""
    # By the Gram matrix of the smaller side, in fp64, which not every device has.
    matrix = features.cpu().double()
    if not matrix.isfinite().all():
        return matrix.new_tensor(math.nan)
    gram = matrix.T @ matrix if len(matrix) > matrix.shape[1] else matrix @ matrix.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return _entropy(singular / singular.sum().clamp(min=1e-12)).exp()


def _deviation(tokens: Float[Tensor, "sample dim"]) -> Float[Tensor, ""]:
    directions = F.normalize(tokens, dim=-1)
    return directions.std(dim=0, correction=0).mean() * tokens.shape[-1] ** 0.5


def _entropy(probabilities: Float[Tensor, "*rows classes"]) -> Float[Tensor, "*rows"]:
    return torch.special.entr(probabilities).sum(dim=-1)
