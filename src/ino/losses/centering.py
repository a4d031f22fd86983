"""Centring and sharpening of the teacher's outputs into targets (section 3.1, after DINO).

Paper and released code differ in when the centre moves: once a step, or after each group of outputs
that it centred (a frame pair of class tokens, a frame of patch tokens), so that later groups of a
step see a moved centre.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

CenterUpdate = Literal["step", "group"]


@torch.no_grad()
def centered_targets(
    logits: Float[Tensor, "group *positions classes"],
    center: Float[Tensor, " classes"],
    *,
    temperature: float,
    momentum: float = 0.9,
    update: CenterUpdate = "step",
    reduce_mean: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> tuple[Float[Tensor, "group *positions classes"], Float[Tensor, " classes"]]:
    """Target distributions softmax((logits - centre) / temperature), and the centre afterwards.

    Args:
        logits: the teacher's, in the order in which the losses use them.
        center: moving mean of earlier logits.
        temperature: sharpness of the targets, 0.04 in the paper.
        momentum: weight of the old centre in the new one.
        update: `step` moves the centre once by the mean of all logits (`variant: paper`), `group`
            after each group by that group's mean (`variant: released`).
        reduce_mean: averages a mean over all processes.
    """
    if update == "step":
        targets = torch.softmax((logits - center) / temperature, dim=-1)
        return targets, _moved(center, logits, momentum, reduce_mean)
    targets = torch.empty_like(logits)
    for index, group in enumerate(logits):
        targets[index] = torch.softmax((group - center) / temperature, dim=-1)
        center = _moved(center, group, momentum, reduce_mean)
    return targets, center


def _moved(
    center: Tensor, logits: Tensor, momentum: float, reduce_mean: Callable[[Tensor], Tensor]
) -> Tensor:
    mean = reduce_mean(logits.flatten(0, -2).mean(dim=0))
    return center * momentum + mean * (1.0 - momentum)
