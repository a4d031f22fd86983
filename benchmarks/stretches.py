"""Which share of the stretches of keys the CUDA kernel must multiply exactly, counted on a CPU.

    python benchmarks/stretches.py FRAME FRAME [--weights WEIGHTS] [--blocks N]

Follows the rule of `ino.kernels.topk_triton` on the features of two frames of a video, the second
as the query, for some blocks of queries: a stretch is multiplied exactly if a product of rounded
numbers plus what it may miss beats the k-th best of a query. Printed for several sizes of blocks,
for rows from the top down and from the middle outwards, and for fp16 and bf16.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ino.data.images import read_image
from ino.models.load import load_backbone
from ino.propagate.features import FeatureExtractor
from ino.propagate.protocols import get_protocol

CASES = (
    (8, 8, 64, "top down", torch.float16),
    (8, 8, 64, "outwards", torch.float16),
    (8, 8, 64, "outwards", torch.bfloat16),
    (16, 8, 64, "outwards", torch.float16),
    (4, 16, 64, "outwards", torch.float16),
    (8, 8, 32, "outwards", torch.float16),
)
"""Rows and columns of a block, keys of a stretch, order of rows, numbers."""


def exact_share(
    query: Tensor,
    key: Tensor,
    case: tuple[int, int, int, str, torch.dtype],
    *,
    radius: int,
    topk: int,
    num_blocks: int,
) -> float:
    """The share of stretches that are multiplied exactly."""
    num_rows, num_columns, num_keys, order, dtype = case
    height, width, dim = query.shape
    lost_query, lost_key = ((one - one.to(dtype).float()).norm(dim=-1) for one in (query, key))
    rng = np.random.default_rng(0)
    total = exact = 0
    for _ in range(num_blocks):
        top = int(rng.integers(-(-height // num_rows))) * num_rows
        left = int(rng.integers(-(-width // num_columns))) * num_columns
        block = slice(top, top + num_rows), slice(left, left + num_columns)
        queries, rounded = query[block].flatten(0, 1), query.to(dtype).float()[block].flatten(0, 1)
        missed = lost_query[block].flatten() + lost_key.max() + dim * 2.0**-22
        row, column = torch.meshgrid(
            torch.arange(height)[block[0]], torch.arange(width)[block[1]], indexing="ij"
        )
        row, column = row.flatten()[:, None], column.flatten()[:, None]
        best = torch.full((len(queries), topk), -torch.inf)
        rows = range(max(top - radius, 0), min(top + num_rows + radius, height))
        if order == "outwards":
            rows = sorted(rows, key=lambda one: abs(one - top - num_rows // 2))
        end = min(left + num_columns + radius, width)
        for key_row in rows:
            for start in range(max(left - radius, 0), end, num_keys):
                columns = torch.arange(start, min(start + num_keys, end))
                within = (column - columns).abs() <= radius
                within &= (row - key_row).abs() <= radius
                keys = key[key_row, columns]
                products = rounded @ keys.to(dtype).float().T + missed[:, None]
                total += 1
                if (within & (products > best.amin(dim=1, keepdim=True))).any():
                    exact += 1
                    found = torch.where(within, queries @ keys.T, -torch.inf)
                    best = torch.cat([best, found], dim=1).topk(topk, dim=1).values
    return exact / total


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("frames", type=Path, nargs=2, metavar="FRAME", help="images")
    parser.add_argument("--weights", default="ino_vitt8")
    parser.add_argument("--blocks", type=int, default=24, metavar="N")
    options = parser.parse_args(arguments)
    protocol = get_protocol("ino-davis")
    assert protocol.radius is not None
    extractor = FeatureExtractor(load_backbone(options.weights), protocol=protocol)
    key, query = (extractor(read_image(path, size=None)) for path in options.frames)
    for case in CASES:
        share = exact_share(
            query,
            key,
            case,
            radius=protocol.radius,
            topk=protocol.topk,
            num_blocks=options.blocks,
        )
        rows, columns, keys, order, dtype = case
        name = f"{rows}x{columns} queries, {keys} keys, {order}, {str(dtype).split('.')[-1]}"
        print(f"{name}: {share:.2f}")


if __name__ == "__main__":
    main()
