"""Section 3.4 by hand, by a loop over positions and as the released code computes it."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ino.kernels.topk import Window
from ino.propagate.affinity import best_positions, propagate_labels


def unit_maps(count, height, width, *, dim=8):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, height, width, dim, generator=generator, dtype=torch.float64)
    return list(F.normalize(values, dim=-1))


def labels_of(query, keys, labels, *, topk, window, temperature=0.1):
    candidates = best_positions(query, keys, topk=topk, window=window)
    return propagate_labels(candidates, labels, topk=topk, temperature=temperature)


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        (Window(None), lambda dy, dx: True),
        (Window(2), lambda dy, dx: abs(dy) <= 2 and abs(dx) <= 2),
        (Window(2, "circle"), lambda dy, dx: math.hypot(dy, dx) < 2),
        (Window(2, "closed-circle"), lambda dy, dx: math.hypot(dy, dx) <= 2),
    ],
)
def test_position_by_position(window, inside):
    query, *keys = unit_maps(3, 5, 6)
    labels = list(torch.rand(2, 5, 6, 3, dtype=torch.float64))
    positions = list(itertools.product(range(5), range(6)))
    expected = torch.zeros(5, 6, 3, dtype=torch.float64)
    for y, x in positions:
        near = [
            (float(query[y, x] @ key[v, u]), label[v, u])
            for key, label in zip(keys, labels, strict=True)
            for v, u in positions
            if inside(v - y, u - x)
        ]
        best = sorted(near, key=lambda one: -one[0])[:4]
        total = sum(math.exp(similarity / 0.1) for similarity, _ in best)
        for similarity, label in best:
            expected[y, x] += math.exp(similarity / 0.1) / total * label
    found = labels_of(query, keys, labels, topk=4, window=window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_candidates_by_hand():
    """Three positions in a row, radius 1: the first never sees the third, its own double."""
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    found = best_positions(query, [query], topk=2, window=Window(1))
    assert found.similarity.tolist() == [[1, 0], [1, 0], [1, 0]]
    assert found.position[0].tolist() == [0, 1]
    assert found.position[2].tolist() == [2, 1]


def test_labels_by_hand():
    """Similarities 1 and 0 at T = 1: weights e / (e + 1) and 1 / (e + 1)."""
    query = torch.tensor([[[1.0, 0.0]]])
    keys = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])]
    labels = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])]
    result = labels_of(query, keys, labels, topk=2, window=Window(None), temperature=1.0)
    e = torch.e
    torch.testing.assert_close(result, torch.tensor([[[e / (e + 1), 1 / (e + 1)]]]))


def test_large_similarities_do_not_overflow():
    query = torch.full((1, 2, 1), 100.0)
    result = labels_of(query, [query], [torch.ones(1, 2, 1)], topk=2, window=Window(None))
    assert result.flatten().tolist() == [1, 1]


@pytest.mark.parametrize("radius", [0, 2, 40])
def test_labels_that_sum_to_one_stay_so(radius):
    """With 3 positions in the smallest window, 2 of 5 candidates have no weight."""
    query, *keys = [feature_map.float() for feature_map in unit_maps(4, 6, 11)]
    labels = [torch.rand(6, 11, 60).softmax(dim=-1) for _ in keys]
    result = labels_of(query, keys, labels, topk=5, window=Window(radius))
    torch.testing.assert_close(result.sum(dim=-1), torch.ones(6, 11), rtol=0, atol=1e-5)


def test_released_code_single_call(golden):
    """Contexts 0, 1, 2 -> 3 at radius 3; their labels are one mask times 1, 0.9 and 0.5."""
    numbers = golden("prop_random")
    features = torch.from_numpy(numbers["feats_f16"])
    maps = list(F.normalize(features, dim=-1).view(-1, 15, 20, 16))
    mask = torch.from_numpy(numbers["mask0_down"])[0].permute(1, 2, 0).contiguous()
    labels = [mask, mask * 0.9, mask * 0.5]
    result = labels_of(maps[3], maps[:3], labels, topk=5, window=Window(3))
    for name in ("single_call_eff", "single_call_dense"):
        expected = torch.from_numpy(numbers[name])[0].permute(1, 2, 0)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
