"""Types and shapes are checked in each call of ino's functions while tests run."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float
from torch import Tensor

from ino.data.label_maps import read_labels
from ino.metrics import region_similarity
from ino.tasks.scoring import FramesToScore
from type_checks import checked


@checked(typechecker=None)
def first_row(
    values: Float[Tensor, "rows columns"], like: Float[Tensor, " columns"], count: int = 3
) -> Float[Tensor, " columns"]:
    assert like.ndim == 1
    return values[0, :count]


@checked(typechecker=None)
def repeated(value: float, *, count: int) -> list[Float[Tensor, " {count}"]]:
    return [torch.full((3,), value)]


@checked(typechecker=None)
@dataclass
class Pair:
    first: Float[Tensor, " length"]
    second: Float[Tensor, " length"]


def test_shapes_hold_from_one_argument_to_the_next_and_for_the_result():
    assert first_row(torch.zeros(2, 3), torch.zeros(3)).shape == (3,)
    with pytest.raises(BeartypeCallHintParamViolation, match="like"):
        first_row(torch.zeros(2, 3), torch.zeros(4))
    with pytest.raises(BeartypeCallHintParamViolation, match="values"):
        first_row(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3))
    with pytest.raises(BeartypeCallHintReturnViolation):
        first_row(torch.zeros(2, 4), torch.zeros(4))
    assert len(repeated(0.5, count=3)) == 1
    with pytest.raises(BeartypeCallHintReturnViolation):
        repeated(0.5, count=4)
    Pair(torch.zeros(2), torch.zeros(2))
    with pytest.raises(BeartypeCallHintParamViolation):
        Pair(torch.zeros(2), torch.zeros(3))


def test_functions_of_ino_are_checked():
    mask = np.zeros((4, 5), dtype=bool)
    with pytest.raises(BeartypeCallHintParamViolation):
        region_similarity(mask, mask[:, 1:])
    with pytest.raises(BeartypeCallHintParamViolation):
        FramesToScore("a", pairs=(), objects=("1",), is_binary=False)
    with pytest.raises(BeartypeCallHintParamViolation):
        read_labels(3)
