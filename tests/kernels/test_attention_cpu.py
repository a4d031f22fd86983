"""Attention by blocks equals attention as it is written, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from ino.kernels.attention_cpu import blockwise_attention

BLOCKS = [1, 40, 100, 10**6]  # one query at a time, some, whole heads, several heads


def drawn(num_queries, num_tokens, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(2, 3, count, 4) for count in (num_queries, num_tokens, num_tokens)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("num_queries", "num_tokens"), [(9, 9), (4, 11), (1, 7)])
def test_value_and_gradient_are_those_of_the_equation(num_queries, num_tokens, block):
    query, key, value = inputs = drawn(num_queries, num_tokens)
    expected = (query @ key.transpose(-1, -2) / 2).softmax(dim=-1) @ value
    found = blockwise_attention(*inputs, block=block)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_gradients_are_those_of_differences():
    torch.autograd.gradcheck(lambda *x: blockwise_attention(*x, block=20), drawn(3, 5))


def test_heads_may_be_views_of_one_projection():
    """As they are in a block: the gradient goes back into the projection."""
    projected = torch.randn(2, 6, 3 * 3 * 4, dtype=torch.float64, requires_grad=True)
    heads = projected.unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    gradients = [
        torch.autograd.grad(attend(*heads).square().sum(), projected)
        for attend in (blockwise_attention, F.scaled_dot_product_attention)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("num_tokens", [65, 700])
def test_bf16_is_near_to_the_equation(num_tokens):
    """Affinities are rounded to bf16, by up to 2 ** -9 of their size; torch does not do that."""
    inputs = drawn(num_tokens, num_tokens)
    halves = [one.detach().bfloat16().requires_grad_() for one in inputs]
    results = []
    for attend, given in ((blockwise_attention, halves), (F.scaled_dot_product_attention, inputs)):
        found = attend(*given)
        assert found.dtype == given[0].dtype
        results.append((found, *torch.autograd.grad(found.double().square().sum(), given)))
    for ours, exact in zip(*results, strict=True):
        assert (ours - exact).norm() < 0.02 * exact.norm()
