"""What bounds a step in bf16 on a CPU: matrix products in both precisions, and attention.

    python benchmarks/kernels.py [--quick] [--json FILE] [--threads N]

The products of a block of ViT-S/8 for four frames of 224 pixels, forward and for the gradients of
inputs and weights, in fp32 and in bf16. Then attention in bf16 by blocks of queries, as our
networks have it on a CPU, beside torch's fused kernel: the heads of four frames of 224 pixels and
those of 32 local crops of 64 pixels, without and with gradients, and those of a frame of 480x854
pixels. All take turns; a time is the median.

Ratios: seconds of all products in fp32 over bf16 (`products_bf16`), and seconds of torch's
attention over ours (`attention_frames` and so on).
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ino.kernels.attention_cpu import blockwise_attention
from ino.models.backbone import computes_in_bf16
from report import build_parser, conclude, describe_machine, print_table

FULL = {"dim": 384, "images": 4, "side": 28, "crops": 32, "frame": 60 * 106, "turns": 15}
QUICK = {"dim": 192, "images": 2, "side": 8, "crops": 4, "frame": 8 * 12, "turns": 3}
CROP_SIDE = 8
HEAD_DIM = 64


def products(dim: int, num_tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """The products of the four linear layers of a block, by layer and pass."""
    calls = {}
    for name, (inputs, outputs) in {
        "qkv": (dim, 3 * dim),
        "proj": (dim, dim),
        "fc1": (dim, 4 * dim),
        "fc2": (4 * dim, dim),
    }.items():
        tokens, gradient = (
            torch.randn(num_tokens, width, dtype=dtype) for width in (inputs, outputs)
        )
        weight, bias = torch.randn(outputs, inputs, dtype=dtype), torch.randn(outputs, dtype=dtype)
        calls[f"{name} forward"] = lambda x=tokens, w=weight, b=bias: F.linear(x, w, b)
        calls[f"{name} to inputs"] = lambda g=gradient, w=weight: g @ w
        calls[f"{name} to weights"] = lambda g=gradient, x=tokens: g.t() @ x
    return calls


def attentions(size: dict[str, int]) -> dict[str, dict[str, Callable[[], object]]]:
    """Attention of each kind, by ours and by torch's kernel."""
    heads = size["dim"] // HEAD_DIM
    frames, crops = (size["images"], size["side"] ** 2), (size["crops"], CROP_SIDE**2)
    kinds = {
        "frames": (*frames, False),
        "frames with gradients": (*frames, True),
        "crops": (*crops, False),
        "crops with gradients": (*crops, True),
        "large frame": (1, size["frame"], False),
    }
    calls: dict[str, dict[str, Callable[[], object]]] = {}
    for kind, (batch, num_patches, gradients) in kinds.items():
        query, key, value, weights = torch.randn(
            4, batch, heads, 1 + num_patches, HEAD_DIM, dtype=torch.bfloat16
        )
        inputs = tuple(part.requires_grad_(gradients) for part in (query, key, value))
        calls[kind] = {}
        for side, attend in (
            ("ino", blockwise_attention),
            ("torch", F.scaled_dot_product_attention),
        ):

            def call(attend=attend, inputs=inputs, weights=weights) -> object:
                mixed = attend(*inputs)
                return torch.autograd.grad(mixed, inputs, weights) if mixed.requires_grad else mixed

            calls[kind][side] = call
    return calls


def median_seconds(
    calls: Mapping[str, Mapping[str, Callable[[], object]]], *, turns: int
) -> dict[str, dict[str, float]]:
    """Seconds by name and side; the sides of a name take turns, and the first turn warms up."""
    medians = {}
    for name, sides in calls.items():
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(1 + turns):
            for side, call in sides.items():
                started = time.perf_counter()
                call()
                if turn:
                    seconds[side].append(time.perf_counter() - started)
        medians[name] = {side: statistics.median(taken) for side, taken in seconds.items()}
    return medians


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not computes_in_bf16(torch.device("cpu")):
        parser.error("this processor has no arithmetic in bf16, which is what this measures")
    machine = describe_machine(precision="fp32 and bf16")
    size = QUICK if options.quick else FULL
    torch.manual_seed(0)
    num_tokens = size["images"] * (1 + size["side"] ** 2)
    by_precision = {
        name: products(size["dim"], num_tokens, dtype)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    pairs = {
        name: {precision: calls[name] for precision, calls in by_precision.items()}
        for name in by_precision["fp32"]
    }
    of_products = median_seconds(pairs, turns=size["turns"])
    of_attention = median_seconds(attentions(size), turns=size["turns"])
    for title, seconds in (
        (f"Products of a block, {num_tokens} tokens, milliseconds", of_products),
        ("Attention in bf16, milliseconds", of_attention),
    ):
        sides = list(next(iter(seconds.values())))
        rows = [
            [name, *(f"{1000 * times[side]:.3g}" for side in sides)]
            for name, times in seconds.items()
        ]
        print_table(title, ["", *sides], rows)
    total = {
        precision: sum(times[precision] for times in of_products.values())
        for precision in by_precision
    }
    # A product of each layer and pass multiplies every token with its weights once.
    operations = 3 * 2 * 12 * size["dim"] ** 2 * num_tokens
    rates = {precision: operations / seconds / 1e9 for precision, seconds in total.items()}
    print(", ".join(f"{name}: {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    ratios = {"products_bf16": total["fp32"] / total["bf16"]} | {
        f"attention_{name.replace(' ', '_')}": times["torch"] / times["ino"]
        for name, times in of_attention.items()
    }
    measured = {"products": of_products, "gflop_a_second": rates, "attention": of_attention}
    conclude("kernels", ratios=ratios, machine=machine, measured=measured, path=options.json)


if __name__ == "__main__":
    main()
