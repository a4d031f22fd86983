"""The bounds of similarities in bf16 hold for every pair, whatever the features look like."""

import pytest
import torch
import torch.nn.functional as F

from ino.kernels.topk import (
    key_screen,
    least_product,
    least_similarity,
    principal_axes,
    query_screen,
)


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 384])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-3])
def test_bounds_hold(scale, spread, dim):
    """Scales other than 1 are features that are not L2-normalised."""
    generator = torch.Generator().manual_seed(dim)
    base = torch.randn(dim, generator=generator)
    values = base + spread * torch.randn(3, 100, dim, generator=generator)
    first, query, keys = scale * F.normalize(values, dim=-1)
    axes = principal_axes(first)
    guess = (query @ keys.T).amax(dim=1)
    key = key_screen(keys, axes)
    screen = query_screen(query, key_screen(query, axes), axes, guess=guess)
    products = (key.values @ screen.values.T).float()  # (keys, queries)
    similarities = keys.double() @ query.double().T - guess.double()
    for product, similarity in zip(products, similarities, strict=True):
        assert (least_similarity(product, screen, key) <= similarity).all()
        assert (least_product(similarity, screen, key) <= product).all()
