"""Masks hold exactly K positions, blockwise ones hang together, and draws repeat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ino.data.masking import (
    sample_blockwise_mask,
    sample_num_masked,
    sample_random_mask,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 28), st.integers(1, 28), st.floats(0, 1), st.integers(0, 99))
def test_exactly_k_positions(rows, columns, share, seed):
    num_masked = int(share * rows * columns)
    for draw in (sample_blockwise_mask, sample_random_mask):
        mask = draw(np.random.default_rng(seed), rows=rows, columns=columns, num_masked=num_masked)
        assert mask.shape == (rows, columns)
        assert mask.sum() == num_masked


def neighbours(mask: np.ndarray) -> float:
    """Share of masked positions whose right neighbour is masked as well."""
    return (mask[:, :-1] & mask[:, 1:]).sum() / mask.sum()


def test_blocks_hang_together_and_random_positions_do_not():
    draws = [np.random.default_rng(seed) for seed in range(30)]
    blocks = [sample_blockwise_mask(rng, rows=28, columns=28, num_masked=200) for rng in draws]
    scattered = [sample_random_mask(rng, rows=28, columns=28, num_masked=200) for rng in draws]
    assert np.mean([neighbours(mask) for mask in blocks]) > 0.8
    assert np.mean([neighbours(mask) for mask in scattered]) < 0.35


def test_blocks_reach_every_position_and_favour_no_side():
    rng = np.random.default_rng(0)
    count = sum(sample_blockwise_mask(rng, rows=12, columns=12, num_masked=43) for _ in range(3000))
    assert count.min() > 0
    assert count[:6].sum() == pytest.approx(count[6:].sum(), rel=0.05)
    assert count[:, :6].sum() == pytest.approx(count[:, 6:].sum(), rel=0.05)


def test_steps_with_masks_come_with_their_probability():
    rng = np.random.default_rng(0)
    drawn = [
        sample_num_masked(rng, num_tokens=784, probability=0.5, ratio=(0.1, 0.5))
        for _ in range(2000)
    ]
    masked = [count for count in drawn if count]
    assert len(masked) / len(drawn) == pytest.approx(0.5, abs=0.04)
    assert 78 <= min(masked) < 85
    assert 385 < max(masked) <= 392
    assert np.mean(masked) == pytest.approx(784 * 0.3, rel=0.04)
