import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ino.propagate.affinity import _plan_tiles, find_candidates, propagate_labels
from oracles.dense_propagation import dense_labels


def unit_maps(count, height, width, *, dim=8, seed=0):
    """Random L2-normalised maps; float64, so that no two similarities are equal by rounding."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, height, width, dim, generator=generator, dtype=torch.float64)
    return list(F.normalize(values, dim=-1))


def streamed_labels(query, keys, labels, *, topk, **window):
    candidates = find_candidates(query, keys, topk=topk, **window)
    return propagate_labels(candidates, labels, topk=topk, temperature=0.1)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    num_keys=st.integers(1, 4),
    num_channels=st.integers(1, 3),
    topk=st.integers(1, 12),
    radius=st.none() | st.integers(0, 10),
    shape=st.sampled_from(["square", "circle", "closed-circle"]),
    max_bytes=st.integers(1, 40_000),
    seed=st.integers(0, 99),
)
def test_streamed_equals_dense(
    height, width, num_keys, num_channels, topk, radius, shape, max_bytes, seed
):
    """Any grid and block size: top-k above the window's size, windows larger than the frame."""
    assume(radius != 0 or shape != "circle")
    query, *keys = unit_maps(1 + num_keys, height, width, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    labels = list(
        torch.rand(num_keys, height, width, num_channels, generator=generator, dtype=torch.float64)
    )
    window = {"radius": radius, "shape": shape}
    streamed = streamed_labels(query, keys, labels, topk=topk, max_bytes=max_bytes, **window)
    dense = dense_labels(query, keys, labels, topk=topk, **window)
    torch.testing.assert_close(streamed, dense, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    radius=st.none() | st.integers(0, 40),
    max_bytes=st.integers(1, 200_000),
)
def test_tiles_cover_each_query_once_and_reach_their_windows(height, width, radius, max_bytes):
    covered = np.zeros((height, width), dtype=int)
    reach = max(height, width) if radius is None else radius
    tiles = _plan_tiles(height, width, radius, max_bytes)
    for rows, columns in tiles:
        covered[rows.start : rows.stop, columns.start : columns.stop] += 1
        for span, length in ((rows, height), (columns, width)):
            assert span.key_start == max(0, span.start - reach)
            assert span.key_stop == min(length, span.stop + reach)
        pairs = rows.size * columns.size * rows.num_keys * columns.num_keys
        assert pairs * 8 <= max_bytes or rows.size == columns.size == 1
    assert (covered == 1).all()


def test_candidates_by_hand():
    """Three positions in a row, radius 1: the first never sees the third, its own double."""
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    (found,) = find_candidates(query, [query], topk=2, radius=1)
    assert found.similarity.sort(dim=1).values.tolist() == [[0, 1], [0, 1], [0, 1]]
    assert found.position[0].sort().values.tolist() == [0, 1]
    assert found.position[2].sort().values.tolist() == [1, 2]


def test_labels_by_hand():
    """Similarities 1 and 0 at T = 1: weights e / (e + 1) and 1 / (e + 1)."""
    query = torch.tensor([[[1.0, 0.0]]])
    keys = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])]
    labels = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])]
    candidates = find_candidates(query, keys, topk=2, radius=None)
    result = propagate_labels(candidates, labels, topk=2, temperature=1.0)
    e = torch.e
    torch.testing.assert_close(result, torch.tensor([[[e / (e + 1), 1 / (e + 1)]]]))


def test_fewer_positions_than_topk_leave_no_weight_for_the_missing():
    query, key = unit_maps(2, 1, 1)
    (found,) = find_candidates(query, [key], topk=5, radius=0)
    assert found.similarity.isfinite().sum() == 1
    labels = torch.ones(1, 1, 2, dtype=torch.float64)
    assert streamed_labels(query, [key], [labels], topk=5, radius=0).tolist() == [[[1, 1]]]


def test_large_similarities_do_not_overflow():
    query = torch.full((1, 2, 1), 100.0)
    result = streamed_labels(query, [query], [torch.ones(1, 2, 1)], topk=2, radius=None)
    assert result.flatten().tolist() == [1, 1]


@pytest.mark.parametrize("radius", [2, 40])
def test_labels_that_sum_to_one_stay_so(radius):
    query, *keys = [feature_map.float() for feature_map in unit_maps(4, 6, 11)]
    labels = [torch.rand(6, 11, 60).softmax(dim=-1) for _ in keys]
    result = streamed_labels(query, keys, labels, topk=5, radius=radius)
    torch.testing.assert_close(result.sum(dim=-1), torch.ones(6, 11), rtol=0, atol=1e-5)


def test_released_code_single_call(golden):
    """Contexts 0, 1, 2 -> 3 at radius 3; their labels are one mask times 1, 0.9 and 0.5."""
    numbers = golden("prop_random")
    features = torch.from_numpy(numbers["feats_f16"])
    maps = list(F.normalize(features, dim=-1).view(-1, 15, 20, 16))
    mask = torch.from_numpy(numbers["mask0_down"])[0].permute(1, 2, 0).contiguous()
    result = streamed_labels(maps[3], maps[:3], [mask, mask * 0.9, mask * 0.5], topk=5, radius=3)
    for name in ("single_call_eff", "single_call_dense"):
        expected = torch.from_numpy(numbers[name])[0].permute(1, 2, 0)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Records the largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.num_bytes = max(self.num_bytes, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("shape", ["square", "circle"])
@pytest.mark.parametrize("radius", [None, 4, 12])
def test_nothing_larger_than_the_byte_budget_is_stored(radius, shape):
    """All affinities of this grid would take 640 kB."""
    query, *keys = [feature_map.float() for feature_map in unit_maps(2, 16, 25)]
    with LargestTensor() as largest:
        find_candidates(query, keys, topk=5, radius=radius, shape=shape, max_bytes=50_000)
    assert largest.num_bytes <= 50_000
