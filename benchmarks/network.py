"""Seconds of the network for a frame, as it is and with what might make it faster.

    python benchmarks/network.py [--quick] [--json FILE] [--threads N] [--device DEVICE]

The seven blocks that ino-davis reads of a ViT-S/8 with random weights, for a frame of 480x854
pixels, in fp32 and in bf16: as inference runs them; with images and patch embedding in
channels-last order; with blocks compiled by torch; two and four frames at once; and with torch's
fused attention also in bf16 on a CPU, where ours goes by blocks of queries. All take turns; a time
is the least of all turns. Compiling needs a C++ compiler on a CPU and is left out without one.

Ratios: seconds a frame as it is over those of each, `channels_last_fp32` and so on.
"""

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from ino.models.backbone import choose_device
from ino.models.vit import VisionTransformer, build_vit
from report import build_parser, conclude, describe_machine, print_table, without_bf16

NUM_BLOCKS = 7
FULL = {"arch": "vit_small", "size": (480, 856), "turns": 3}
QUICK = {"arch": "vit_tiny", "size": (64, 96), "turns": 2}


def compiled(vit: VisionTransformer) -> VisionTransformer:
    """A copy whose blocks torch compiles at their first call."""
    vit = copy.deepcopy(vit)
    for block in vit.blocks:
        block.compile()
    return vit


def torch_s_attention() -> AbstractContextManager:
    """Has blocks use torch's fused attention in every precision."""
    return patch("ino.models.vit.blockwise_attention", F.scaled_dot_product_attention)


def sides_of(vit: VisionTransformer, image: Tensor) -> dict[str, Callable[[], float]]:
    """Seconds a frame of one call, by the name of what is tried."""

    def run(
        network: VisionTransformer,
        images: Tensor,
        around: Callable[[], AbstractContextManager] = nullcontext,
    ) -> float:
        with around(), torch.no_grad():
            started = time.perf_counter()
            network(images, num_blocks=NUM_BLOCKS)
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() - started) / len(images)

    last = torch.channels_last
    channels_last = copy.deepcopy(vit).to(memory_format=last)  # pyright: ignore[reportCallIssue]
    sides = {
        "as it is": lambda: run(vit, image),
        "channels last": lambda: run(channels_last, image.contiguous(memory_format=last)),
        "two at once": lambda: run(vit, image.expand(2, -1, -1, -1)),
        "four at once": lambda: run(vit, image.expand(4, -1, -1, -1)),
    }
    on_cpu = image.device.type == "cpu"
    if not on_cpu or shutil.which("g++"):
        network = compiled(vit)
        sides["compiled"] = lambda: run(network, image)
    if on_cpu:
        sides["torch attention"] = lambda: run(vit, image, torch_s_attention)
    return sides


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    machine = describe_machine(precision="fp32 and bf16 autocast")
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    size = QUICK if options.quick else FULL
    torch.manual_seed(0)
    vit = build_vit(size["arch"]).to(device).eval()
    image = torch.randn(1, 3, *size["size"], device=device)
    seconds: dict[str, dict[str, float]] = {}
    for precision in without_bf16({"fp32": 0, "bf16": 1}):
        sides = sides_of(vit, image)
        best = dict.fromkeys(sides, float("inf"))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for turn in range(1 + size["turns"]):
                for name, side in sides.items():
                    taken = side()
                    if turn:  # the first warms up, and compiles
                        best[name] = min(best[name], taken)
        seconds[precision] = best
    print_table(
        f"Seconds a frame: {NUM_BLOCKS} blocks of {size['arch']}/8 on {device}, "
        f"{size['size'][0]}x{size['size'][1]} pixels",
        ["", *seconds],
        [[name, *(f"{times[name]:.3g}" for times in seconds.values())] for name in seconds["fp32"]],
    )
    ratios = {
        f"{name.replace(' ', '_')}_{precision}": times["as it is"] / taken
        for precision, times in seconds.items()
        for name, taken in times.items()
        if name != "as it is"
    }
    measured = {"seconds": seconds, "device": str(device)}
    conclude("network", ratios=ratios, machine=machine, measured=measured, path=options.json)


if __name__ == "__main__":
    main()
