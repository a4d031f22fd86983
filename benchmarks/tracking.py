"""Frames a second of a whole tracker, from decoded frames to label maps, on any device.

    python benchmarks/tracking.py [--quick] [--json FILE] [--device DEVICE] [--precision PRECISION]

ViT-S/8 with random weights, protocol ino-davis, a generated video of 480x854 pixels with two
objects. Frames are in memory; results are label maps of the video's size. The first frames, until
the context is full, are not timed. Beside it the device's own peak: the best of a few square
products of bf16 matrices.

Ratios: `frames_a_second`, and `share_of_bf16_peak`: the multiplications of the blocks that are
read and of the similarities within windows, over what the peak would do in that time.
"""

import time
from collections.abc import Sequence

import torch

from ino.demo.synthetic import generate_clip
from ino.models.backbone import VitBackbone, choose_device
from ino.models.load import load_backbone
from ino.propagate.features import input_size
from ino.propagate.protocols import Protocol, get_protocol
from ino.propagate.tracker import Tracker
from report import build_parser, conclude, describe_machine, print_table

BACKBONE = "random:vit_small/8"
FULL = {"height": 480, "width": 854, "num_frames": 61}
QUICK = {"height": 120, "width": 208, "num_frames": 15}


def flops(backbone: VitBackbone, protocol: Protocol, size: tuple[int, int]) -> float:
    """Two for each multiplication that a frame needs: blocks, attention, windows of the context."""
    height, width = (
        side // backbone.stride
        for side in input_size(size, protocol=protocol, stride=backbone.stride)
    )
    tokens, dim = 1 + height * width, backbone.vit.embed_dim
    blocks = (protocol.layer or backbone.num_layers) * (24 * tokens * dim**2 + 4 * tokens**2 * dim)
    reach = protocol.radius if protocol.radius is not None else max(height, width)
    pairs = 1
    for length in (height, width):
        pairs *= sum(
            min(length, place + reach + 1) - max(0, place - reach) for place in range(length)
        )
    return blocks + 2.0 * dim * pairs * (1 + protocol.num_context)


def bf16_peak(device: torch.device, *, size: int) -> float:
    """FLOP a second of the best of five products of square bf16 matrices."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(6):
        synchronize(device)
        started = time.perf_counter()
        torch.matmul(left, right)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    machine = describe_machine(precision=options.precision)
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    size = QUICK if options.quick else FULL
    clip = generate_clip(0, **size, num_objects=2)
    protocol = get_protocol("ino-davis", short_side=size["height"], radius=40)
    backbone = load_backbone(BACKBONE)
    assert isinstance(backbone, VitBackbone)
    tracker = Tracker(backbone, protocol=protocol, device=device, precision=options.precision)
    skipped = 1 + protocol.num_context
    started = 0.0
    for number, _ in enumerate(tracker.track(clip.frames, {0: clip.labels[0]}), start=1):
        if number == skipped:
            started = time.perf_counter()
    seconds = (time.perf_counter() - started) / (len(clip.frames) - skipped)
    peak = bf16_peak(device, size=8192 if device.type == "cuda" else 1024)
    work = flops(backbone, protocol, (size["height"], size["width"]))
    print_table(
        f"{BACKBONE} on {device}, {size['height']}x{size['width']} pixels",
        ["", "value"],
        [
            ["seconds a frame", f"{seconds:.4g}"],
            ["GFLOP a frame", f"{work / 1e9:.0f}"],
            ["peak in bf16, TFLOP/s", f"{peak / 1e12:.3g}"],
        ],
    )
    ratios = {"frames_a_second": 1 / seconds, "share_of_bf16_peak": work / seconds / peak}
    measured = {"seconds": seconds, "flop": work, "bf16_peak": peak, "device": str(device)}
    conclude("tracking", ratios=ratios, machine=machine, measured=measured, path=options.json)


if __name__ == "__main__":
    main()
