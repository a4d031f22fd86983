import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ino.kernels.topk import DEFAULT_MAX_BYTES, TiledMatcher, Window, choose_layout
from ino.propagate.affinity import merge_candidates, propagate_labels
from oracles.dense_propagation import dense_labels


def unit_maps(count, height, width, *, dim=8, seed=0):
    """Random L2-normalised maps; float64, so that no two similarities are equal by rounding."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, height, width, dim, generator=generator, dtype=torch.float64)
    return list(F.normalize(values, dim=-1))


def find(
    query,
    keys,
    *,
    topk,
    radius,
    shape="square",
    groups=None,
    screening=False,
    max_bytes=DEFAULT_MAX_BYTES,
):
    """The candidates of each group of maps; of all maps where None."""
    matcher = TiledMatcher(
        topk=topk, window=Window(radius, shape), screening=screening, max_bytes=max_bytes
    )
    maps = [matcher.prepare(key) for key in keys]
    return matcher.match(matcher.prepare(query), maps, groups or [range(len(keys))])


def streamed_labels(query, keys, labels, *, topk, **options):
    (candidates,) = find(query, keys, topk=topk, **options)
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
    screening=st.booleans(),
    seed=st.integers(0, 99),
)
def test_streamed_equals_dense(
    height, width, num_keys, num_channels, topk, radius, shape, max_bytes, screening, seed
):
    """Any grid and block size: top-k above the window's size, windows larger than the frame."""
    assume(radius != 0 or shape != "circle")
    query, *keys = unit_maps(1 + num_keys, height, width, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    labels = list(
        torch.rand(num_keys, height, width, num_channels, generator=generator, dtype=torch.float64)
    )
    window = {"radius": radius, "shape": shape}
    streamed = streamed_labels(
        query, keys, labels, topk=topk, max_bytes=max_bytes, screening=screening, **window
    )
    dense = dense_labels(query, keys, labels, topk=topk, **window)
    torch.testing.assert_close(streamed, dense, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    radius=st.none() | st.integers(0, 40),
    max_pairs=st.integers(1, 20_000),
)
def test_tiles_hold_each_query_once_and_reach_their_windows(height, width, radius, max_pairs):
    layout = choose_layout(height, width, radius=radius, max_pairs=max_pairs)
    positions = layout.positions()
    assert positions.sort().values.equal(torch.arange(height * width))
    places = torch.arange(height * width)
    reach = max(height, width) if radius is None else radius
    tiles = layout.tiles(radius=radius, max_pairs=max_pairs)
    covered = torch.cat([places[tile.queries] for tile in tiles])
    assert covered.sort().values.equal(places)
    for tile in tiles:
        queries = positions[tile.queries]
        keys = torch.cat([positions[keys] for keys in tile.keys])
        assert keys.unique().numel() == keys.numel()
        row, column = (
            (part(queries)[:, None] - part(positions)).abs()
            for part in (lambda one: one // width, lambda one: one % width)
        )
        wanted = positions[((row <= reach) & (column <= reach)).any(dim=0)]
        assert torch.isin(wanted, keys).all()
        assert len(queries) * len(keys) <= max_pairs or len(queries) == 1


@settings(max_examples=20, deadline=None)
@given(
    radius=st.none() | st.integers(1, 6),
    topk=st.integers(1, 7),
    groups=st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=4),
    screening=st.booleans(),
)
def test_groups_are_found_as_if_each_were_alone(radius, topk, groups, screening):
    query, *keys = unit_maps(6, 7, 9)
    groups = [sorted(group) for group in groups]
    used = sorted(set().union(*groups))
    numbers = [[used.index(number) for number in group] for group in groups]
    maps = [keys[number] for number in used]
    options = {"topk": topk, "radius": radius, "screening": screening}
    together = find(query, maps, groups=numbers, **options)
    for group, found in zip(groups, together, strict=True):
        (alone,) = find(query, [keys[number] for number in group], topk=topk, radius=radius)
        torch.testing.assert_close(found.similarity, alone.similarity, rtol=0, atol=1e-12)
        real = found.similarity.isfinite()
        assert found.position[real].equal(alone.position[real])


@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("frames", ["alike", "cut"])
def test_screening_loses_nothing(spread, frames):
    """Features so alike that bf16 cannot tell them apart, with axes of other features, or not."""
    generator = torch.Generator().manual_seed(0)
    height, width, dim = 12, 17, 48
    base = torch.randn(dim, generator=generator)
    values = base + spread * torch.randn(4, height, width, dim, generator=generator)
    if frames == "cut":
        values[1:] = values[1:].flip(-1)
    *keys, query = F.normalize(values, dim=-1)
    (screened,), (plain,) = (
        find(query, keys, topk=5, radius=4, screening=screening) for screening in (True, False)
    )
    torch.testing.assert_close(screened.similarity, plain.similarity, rtol=0, atol=1e-6)


def test_screening_rules_most_keys_out(monkeypatch):
    """The fp32 products that are left, in maps that are smooth as those of images are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 64, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, size=(48, 48), mode="bicubic")[0].permute(1, 2, 0)
    noise = 0.1 * torch.randn(4, 48, 48, 64, generator=generator)
    *keys, query = F.normalize(smooth + noise, dim=-1)
    seen = []
    multiply = torch.Tensor.__matmul__

    def spy(one, other):
        seen.append(one.shape[0] * other.shape[-1])
        return multiply(one, other)

    matcher = TiledMatcher(topk=5, window=Window(None), screening=True)
    maps = [matcher.prepare(key) for key in keys]
    prepared = matcher.prepare(query)
    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    matcher.match(prepared, maps, [range(3)])
    assert sum(seen) < 0.3 * 3 * 2304**2


def test_takes_smaller_blocks_where_memory_is_short(monkeypatch, caplog):
    query, *keys = unit_maps(3, 9, 9)
    (expected,) = find(query, keys, topk=3, radius=None)
    compute = TiledMatcher._match

    def short_of_memory(self, *arguments):
        if self._max_pairs > 1000:
            raise torch.OutOfMemoryError
        return compute(self, *arguments)

    monkeypatch.setattr(TiledMatcher, "_match", short_of_memory)
    (found,) = find(query, keys, topk=3, radius=None)
    assert found.position.equal(expected.position)
    assert "smaller blocks" in caplog.text


def test_candidates_of_parts_are_merged():
    """Best first, positions counted on over the maps of the parts before."""
    query, *keys = unit_maps(4, 3, 4)
    (whole,) = find(query, keys, topk=6, radius=None)
    parts = [
        (find(query, maps, topk=6, radius=None)[0], len(maps)) for maps in (keys[:2], keys[2:])
    ]
    merged = merge_candidates(parts, tokens=12)
    torch.testing.assert_close(merged.similarity[:, :6], whole.similarity)
    assert merged.position[:, :6].equal(whole.position)


def test_copies_count_as_often_as_they_are():
    """As if the maps were given so often."""
    query, *keys = unit_maps(3, 4, 5)
    labels = [torch.rand(4, 5, 3, dtype=torch.float64) for _ in keys]
    (candidates,) = find(query, keys, topk=5, radius=2)
    options = {"topk": 5, "temperature": 0.1}
    counted = propagate_labels(candidates, labels, copies=[3, 1], **options)
    repeated = streamed_labels(
        query, [keys[0]] * 3 + keys[1:], [labels[0]] * 3 + labels[1:], topk=5, radius=2
    )
    torch.testing.assert_close(counted, repeated)


def test_candidates_by_hand():
    """Three positions in a row, radius 1: the first never sees the third, its own double."""
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    (found,) = find(query, [query], topk=2, radius=1)
    assert found.similarity.tolist() == [[1, 0], [1, 0], [1, 0]]
    assert found.position[0].sort().values.tolist() == [0, 1]
    assert found.position[2].sort().values.tolist() == [1, 2]


def test_labels_by_hand():
    """Similarities 1 and 0 at T = 1: weights e / (e + 1) and 1 / (e + 1)."""
    query = torch.tensor([[[1.0, 0.0]]])
    keys = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])]
    labels = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])]
    (candidates,) = find(query, keys, topk=2, radius=None)
    result = propagate_labels(candidates, labels, topk=2, temperature=1.0)
    e = torch.e
    torch.testing.assert_close(result, torch.tensor([[[e / (e + 1), 1 / (e + 1)]]]))


def test_fewer_positions_than_topk_leave_no_weight_for_the_missing():
    query, key = unit_maps(2, 1, 1)
    (found,) = find(query, [key], topk=5, radius=0)
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
        find(query, keys, topk=5, radius=radius, shape=shape, max_bytes=50_000)
    assert largest.num_bytes <= 50_000
