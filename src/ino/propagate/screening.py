"""Similarities in bf16 that rule keys out safely: what rounding can have done is bounded tightly.

A bf16 product of features is quick but loses digits, in the features and in the result. Three
things keep the loss small, none of which changes a similarity:

- Features are centred, q.k = (q - m).(k - m) + m.(k - m) + m.q, and turned to the principal axes of
  the first frame. Along the first axes, which hold most of what is left, each number is split into
  two bf16 numbers that hold it to 2^-16. The others lose at most |q - q'| |k| + |q'| |k - k'|
  (Cauchy-Schwarz), where all lengths are those of the small rest.
- m.(k - m) and what belongs to the query alone are further dimensions of the product.
- A guess of the query's best similarity is subtracted. The result is rounded by a share of its
  size, so it loses least where it decides.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

NUM_SPLIT = 16
"""Axes along which features are held by two numbers."""

_UNIT = 2.0**-8
"""Largest relative error of rounding to bf16."""

_MULTIPLE = 8
"""Rows of a multiple of 16 bytes are multiplied faster."""


class Axes(NamedTuple):
    """The mean of a frame's features and their principal axes, the largest first, as columns."""

    center: Float[Tensor, " dim"]
    rotation: Float[Tensor, "dim dim"]


class Screen(NamedTuple):
    """Rounded features in the dimensions of the product.

    Attributes:
        values: bf16.
        length: of each row of `values` and the feature itself, one behind the other.
        rest: length of what `values` holds of the axes that are not split.
        lost: length of what rounding took there.
    """

    values: Float[Tensor, "tokens padded"]
    length: Float[Tensor, " tokens"]
    rest: Float[Tensor, " tokens"]
    lost: Float[Tensor, " tokens"]


def principal_axes(features: Float[Tensor, "tokens dim"]) -> Axes:
    """Those of the features of a frame; any others would be right but bound less tightly."""
    center = features.mean(dim=0)
    centered = features - center
    rotation = torch.linalg.eigh((centered.T @ centered).double()).eigenvectors
    return Axes(center, rotation.flip(1).to(features.dtype))


def key_screen(exact: Float[Tensor, "tokens dim"], axes: Axes) -> Screen:
    """Features as keys, to be multiplied with a `query_screen` of the same axes.

    The dimensions of a product q k are, of the axes, q k, of those that are split q' k and q k',
    where ' marks what the first number leaves, and then two times two for what is their own.
    """
    centered = exact - axes.center
    rotated = centered @ axes.rotation
    first = rotated.bfloat16()
    split = first[:, :NUM_SPLIT]
    second = (rotated[:, :NUM_SPLIT] - split.float()).bfloat16()
    own = torch.cat([first.new_ones(len(exact), 2), _two_numbers(centered @ axes.center)], dim=1)
    values = _padded([first, split, second, own])
    rest = first[:, NUM_SPLIT:].float()
    return Screen(
        values,
        length=_length(values, exact),
        rest=rest.norm(dim=1),
        lost=(rotated[:, NUM_SPLIT:] - rest).norm(dim=1),
    )


def query_screen(
    exact: Float[Tensor, "tokens dim"],
    key: Screen,
    axes: Axes,
    *,
    guess: Float[Tensor, " tokens"],
) -> Screen:
    """Features as queries: their products with keys are similarities minus `guess`.

    Args:
        exact: features.
        key: the same as keys.
        axes: those of all keys.
        guess: a similarity near the best of each query.
    """
    dim = exact.shape[1]
    num_split = min(NUM_SPLIT, dim)
    first, split, second, _ = key.values.tensor_split(
        [dim, dim + num_split, dim + 2 * num_split], dim=1
    )
    own = torch.cat(
        [_two_numbers(exact @ axes.center - guess), key.values.new_ones(len(exact), 2)], dim=1
    )
    values = _padded([first, second, split, own])
    return key._replace(values=values, length=_length(values, exact))


def least_similarity(
    product: Float[Tensor, " queries"], query: Screen, key: Screen
) -> Float[Tensor, " queries"]:
    """What a similarity, minus the guess, is at least if its product is this."""
    return product - _UNIT * product.abs() - _largest_error(query, key)


def least_product(
    similarity: Float[Tensor, " queries"], query: Screen, key: Screen
) -> Float[Tensor, " queries"]:
    """What a product is at least if the similarity, minus the guess, is this."""
    lowest = similarity - _largest_error(query, key)
    return lowest - _UNIT * lowest.abs()


def _largest_error(query: Screen, key: Screen) -> Float[Tensor, " queries"]:
    """Of the product of each query with any key of the map, before the result is rounded."""
    rounding = query.lost * key.rest.max() + (query.rest + query.lost) * key.lost.max()
    # What two bf16 numbers leave of a number: along a split axis at most _UNIT^2 of each factor and
    # of q' k', three times |q k| in all, where the lengths, which hold what is split twice, count
    # |q k| four times. And sums in fp32: of the product, and of what is rounded to become `values`,
    # which goes by the length of the features.
    unit = 2 * _UNIT**2 + 2.0**-24 * key.values.shape[1]
    return rounding + unit * query.length * key.length.max()


def _length(
    values: Float[Tensor, "tokens padded"], exact: Float[Tensor, "tokens dim"]
) -> Float[Tensor, " tokens"]:
    return torch.hypot(values.float().norm(dim=1).to(exact.dtype), exact.norm(dim=1))


def _padded(parts: list[Tensor]) -> Float[Tensor, "tokens padded"]:
    width = sum(part.shape[1] for part in parts)
    return torch.cat([*parts, parts[0].new_zeros(len(parts[0]), -width % _MULTIPLE)], dim=1)


def _two_numbers(value: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens 2"]:
    """Two bf16 numbers that add up to each value, but for 2^-16 of it."""
    first = value.bfloat16()
    return torch.stack([first, (value - first.float()).bfloat16()], dim=1)
