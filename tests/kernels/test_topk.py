"""The tiled matcher against the plain definition in `ino.propagate.affinity`."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ino.kernels.topk import (
    DEFAULT_MAX_BYTES,
    TiledMatcher,
    Window,
    choose_layout,
    key_screen,
    least_product,
    least_similarity,
    principal_axes,
    query_screen,
)
from ino.propagate.affinity import best_positions, propagate_labels

SHAPES = ["square", "circle", "closed-circle"]


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
    window,
    groups=None,
    screening=False,
    max_bytes=DEFAULT_MAX_BYTES,
    **options,
):
    """The candidates of each group of maps; of all maps where None."""
    matcher = TiledMatcher(topk=topk, window=window, screening=screening, max_bytes=max_bytes)
    maps = [matcher.prepare(key) for key in keys]
    groups = [range(len(keys))] if groups is None else groups
    return matcher.match(matcher.prepare(query), maps, groups, **options)


def assert_same(found, expected, *, atol=1e-12):
    """Not one position differs, wherever a window holds so many."""
    count = expected.similarity.shape[1]  # fewer than k where there are fewer positions
    assert not found.similarity[:, count:].isfinite().any()
    similarity, position = (part[:, :count] for part in found)
    torch.testing.assert_close(similarity, expected.similarity, rtol=0, atol=atol)
    real = expected.similarity.isfinite()
    assert position[real].equal(expected.position[real])


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    copies=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    topk=st.integers(1, 12),
    radius=st.none() | st.integers(0, 10),
    shape=st.sampled_from(SHAPES),
    max_bytes=st.integers(1, 40_000),
    screening=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_definition(
    height, width, copies, topk, radius, shape, max_bytes, screening, seed
):
    """Any grid and block size: top-k above the window's size, windows larger than the frame."""
    assume(radius != 0 or shape != "circle")
    query, *keys = unit_maps(1 + len(copies), height, width, seed=seed)
    labels = list(torch.rand(len(keys), height, width, 3, dtype=torch.float64))
    search = {"topk": topk, "window": Window(radius, shape)}
    (found,) = find(query, keys, max_bytes=max_bytes, screening=screening, **search)
    assert_same(found, best_positions(query, keys, **search))
    # Copies count as if their map were given so often.
    weigh = {"topk": topk, "temperature": 0.1}
    repeated = [
        [one for one, count in zip(maps, copies, strict=True) for _ in range(count)]
        for maps in (keys, labels)
    ]
    expected = propagate_labels(best_positions(query, repeated[0], **search), repeated[1], **weigh)
    summed = propagate_labels(found, labels, copies=copies, **weigh)
    torch.testing.assert_close(summed, expected, rtol=0, atol=1e-12)


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
    search = {"topk": topk, "window": Window(radius)}
    for found, group in zip(
        find(query, keys, groups=groups, screening=screening, **search), groups, strict=True
    ):
        assert_same(found, best_positions(query, [keys[number] for number in group], **search))


def test_without_the_window():
    query, key = unit_maps(2, 6, 7)
    (found,) = find(query, [key], topk=4, window=Window(1), windowed=False)
    assert_same(found, best_positions(query, [key], topk=4, window=Window(None)))


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
    search = {"topk": 5, "window": Window(4)}
    (found,) = find(query, keys, screening=True, **search)
    expected = best_positions(query, keys, **search)
    torch.testing.assert_close(found.similarity, expected.similarity, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 384])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-3])
def test_the_bounds_of_screening_hold(scale, spread, dim):
    """For every pair; scales other than 1 are features that are not L2-normalised."""
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
    compute = TiledMatcher._match

    def short_of_memory(self, *arguments):
        if self._max_pairs > 1000:
            raise torch.OutOfMemoryError
        return compute(self, *arguments)

    monkeypatch.setattr(TiledMatcher, "_match", short_of_memory)
    search = {"topk": 3, "window": Window(None)}
    (found,) = find(query, keys, **search)
    assert_same(found, best_positions(query, keys, **search))
    assert "smaller blocks" in caplog.text


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
        find(query, keys, topk=5, window=Window(radius, shape), max_bytes=50_000)
    assert largest.num_bytes <= 50_000
