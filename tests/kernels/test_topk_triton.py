"""The CUDA kernel, in Triton's interpreter where there is no GPU, against the plain definition."""

import pytest
import torch
import torch.nn.functional as F

from ino.kernels.topk import TiledMatcher, Window
from ino.propagate.affinity import best_positions

pytest.importorskip("triton", reason="triton comes with torch for Linux")

from ino.kernels.topk_triton import TritonMatcher


def unit_maps(count, height, width, dim, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(height * width)
    values = torch.randn(count, height, width, dim, generator=generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return list(F.normalize(values, dim=-1).to(device, dtype))


def match(matcher, maps, groups, **options):
    keys = [matcher.prepare(one) for one in maps[1:]]
    return matcher.match(matcher.prepare(maps[0]), keys, groups, **options)


CASES = [
    ((5, 7), 2, 20, 3, Window(2)),  # part of one block of queries
    ((3, 9), 1, 70, 5, Window(None)),  # more dimensions than are multiplied at a time
    ((4, 9), 2, 8, 10, Window(2, "circle")),  # k larger than the window
    ((4, 5), 2, 8, 1, Window(40)),  # window larger than the map
    ((1, 70), 1, 16, 5, Window(40)),  # more keys in a row than are multiplied at a time
    ((3, 4), 1, 8, 2, Window(1, "closed-circle")),
]


def check(found, query, keys, *, topk, window):
    expected = best_positions(query, keys, topk=topk, window=window)
    count = expected.similarity.shape[1]
    assert not found.similarity[:, count:].isfinite().any()
    torch.testing.assert_close(found.similarity[:, :count], expected.similarity, rtol=0, atol=1e-6)
    real = expected.similarity.isfinite()
    assert found.position[:, :count][real].equal(expected.position[real])
    assert found.position.min() >= 0
    assert found.position.max() < len(keys) * query.shape[0] * query.shape[1]


@pytest.mark.parametrize(("size", "num_keys", "dim", "topk", "window"), CASES)
def test_equals_the_plain_definition(size, num_keys, dim, topk, window):
    query, *keys = maps = unit_maps(1 + num_keys, *size, dim)
    groups = [list(range(num_keys)), [num_keys - 1]]
    for found, group in zip(
        match(TritonMatcher(topk=topk, window=window), maps, groups), groups, strict=True
    ):
        check(found, query, [keys[number] for number in group], topk=topk, window=window)


def test_without_window():
    query, key = unit_maps(2, 5, 6, 8)
    matcher = TritonMatcher(topk=3, window=Window(1))
    (found,) = match(matcher, [query, key], [[0]], windowed=False)
    check(found, query, [key], topk=3, window=Window(None))


def test_bf16_features():
    query, key = maps = unit_maps(2, 5, 6, 16, dtype=torch.bfloat16)
    (found,) = match(TritonMatcher(topk=3, window=Window(2)), maps, [[0]])
    check(found, query.float(), [key.float()], topk=3, window=Window(2))


def test_finds_the_best_of_keys_that_fp16_cannot_tell_apart():
    """Cosines that differ by 4e-6, most of which fp16 rounds to the same lower number."""
    cosine = 0.9997 - 4e-6 * torch.randperm(60, generator=torch.Generator().manual_seed(0))
    key = torch.stack([cosine, (1 - cosine.square()).sqrt()], dim=-1).view(6, 10, 2)
    query = torch.tensor([1.0, 0.0]).expand(6, 10, 2).contiguous()
    assert len(key[..., 0].half().unique()) <= 2
    (found,) = match(TritonMatcher(topk=5, window=Window(None)), [query, key], [[0]])
    expected = cosine.topk(5)
    torch.testing.assert_close(found.similarity[0].cpu(), expected.values, rtol=0, atol=2e-7)
    assert (found.position.cpu() == expected.indices).all()


def test_falls_back_to_one_map_at_a_time_where_memory_is_short(monkeypatch, caplog):
    maps = unit_maps(4, 5, 6, 8)
    matcher = TritonMatcher(topk=3, window=Window(2))
    expected = match(matcher, maps, [[0, 1, 2]])[0]
    search = matcher._search

    def short_of_memory(query, keys, window):
        if len(keys) > 1:
            raise torch.OutOfMemoryError
        return search(query, keys, window)

    monkeypatch.setattr(matcher, "_search", short_of_memory)
    found = match(matcher, maps, [[0, 1, 2]])[0]
    assert found.position.equal(expected.position)
    assert "one context frame at a time" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [Window(40), Window(12, "circle"), Window(None)])
def test_a_whole_frame_on_the_gpu(window):
    """480x854 pixels, 11 context frames of 384 dimensions, compiled, beside the tiled matcher."""
    maps = unit_maps(12, 60, 106, 384)
    groups = [list(range(11)), [10]]
    found = match(TritonMatcher(topk=5, window=window), maps, groups)
    expected = match(TiledMatcher(topk=5, window=window), maps, groups)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.similarity, other.similarity, rtol=0, atol=2e-6)
        assert (one.position == other.position).float().mean() > 0.9999  # but for rounding
