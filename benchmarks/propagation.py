"""Time and peak memory of a propagated frame, stage by stage, beside a plain reference.

    python benchmarks/propagation.py [--quick] [--json FILE] [--threads N]

ViT-S/8 with random weights, a generated video of 480x854 pixels with two objects, protocol
ino-davis: 60x106 positions, block 7, top-k 5, radius 40, the first frame and 10 more as context.
The reference runs all 12 blocks with unfused attention and computes all affinities of all positions
at once. `ino` compares positions in bf16 first and ranks in fp32 where the processor multiplies
bf16 (the default), `ino fp32` never; `ino bf16` also runs the network in bf16, and is left out on a
processor that does not multiply bf16.

What is compared first: the features, and the masks of three frames in float64 from equal features,
of which every pixel is equal. In the timed run, in fp32, a rounding may choose another one of two
equally similar positions; the share of pixels that differ for that reason is printed and bounded.
The masks of `ino bf16` come from other features and are not compared.

Ratios: reference over ino for the propagation alone (`propagation_speedup_fp32` and, as it is by
default, `propagation_speedup`) and for the whole frame (`frame_speedup_fp32`, and
`frame_speedup_bf16` with the network in bf16); GiB that ino's process holds at its peak above one
that only loads the network (`propagation_peak_gib`). In those processes the context is filled with
random features.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ino.demo.synthetic import SyntheticClip, generate_clip
from ino.models.backbone import VitBackbone, computes_in_bf16
from ino.models.load import load_backbone
from ino.propagate.labels import soften_labels
from propagation_sides import IDS, NUM_OBJECTS, OurTracker, PlainTracker, Size, propagate_frame
from report import (
    DifferentResultsError,
    StageTimes,
    add_child,
    build_parser,
    conclude,
    describe_machine,
    peak_bytes,
    peak_memory,
    print_stages,
    print_table,
    require_close,
    without_bf16,
)

BACKBONE = "random:vit_small/8"
FULL = Size(480, 854, num_context=10, repeats=3)
QUICK = Size(160, 288, num_context=2, repeats=2)
NUM_COMPARED = 3
FEATURE_TOLERANCE = 1e-5
LARGEST_SHARE = 1e-3
"""Of the pixels of a frame that may differ in fp32."""

SIDES: dict[str, Callable[[Size, VitBackbone], OurTracker | PlainTracker]] = without_bf16(
    {
        "ino fp32": OurTracker,
        "ino": partial(OurTracker, screening=computes_in_bf16(torch.device("cpu"))),
        "ino bf16": partial(OurTracker, precision="bf16", screening=True),
        "reference fp32": PlainTracker,
    }
)
EQUAL = ("ino fp32", "ino", "reference fp32")
"""Sides whose masks are the same but for rounding."""
WEIGHED = ("ino", "reference fp32")
"""Sides whose memory is measured."""


def load_vit() -> VitBackbone:
    """The network that both sides read, each its own."""
    backbone = load_backbone(BACKBONE)
    assert isinstance(backbone, VitBackbone)
    return backbone


def compare(size: Size, clip: SyntheticClip) -> dict[str, float]:
    """The largest difference of the features, once the masks of the first frames are equal.

    Raises:
        DifferentResultsError: features differ by more than rounding, or masks in float64 at all.
    """
    ours, screened, plain = (SIDES[name](size, load_vit()) for name in EQUAL)
    grid = size.grid(stride=8)
    soft = soften_labels(clip.labels[0], ids=IDS, grid=grid).double()
    difference = 0.0
    for number, frame in enumerate(clip.frames[: 1 + NUM_COMPARED]):
        image = ours.prepare(frame)
        features = ours.features(image)
        if number == 0:
            expected = plain.features(image)
            difference = require_close(
                "the features", features, expected, tolerance=FEATURE_TOLERANCE
            )
            for tracker in (ours, screened, plain):
                tracker.start(features.double(), soft)
            continue
        first, *others = (
            one.harden(one.propagate(features.double())) for one in (ours, screened, plain)
        )
        if different := max(np.count_nonzero(first != other) for other in others):
            raise DifferentResultsError(f"{different} pixels of frame {number} differ in float64")
    return {"features": difference}


def measure_times(size: Size, clip: SyntheticClip) -> tuple[dict[str, dict[str, float]], float]:
    """Median seconds by side and stage, and the largest share of pixels that differ in a frame.

    Raises:
        DifferentResultsError: more pixels differ than by rounding.
    """
    trackers = {name: side(size, load_vit()) for name, side in SIDES.items()}
    ours = trackers["ino fp32"]
    soft = soften_labels(clip.labels[0], ids=IDS, grid=size.grid(stride=8))
    times = {name: StageTimes() for name in SIDES}
    largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, frame in enumerate(clip.frames):
            if number <= size.num_context:
                features = ours.features(ours.prepare(frame))
                propagated = soft if number == 0 else ours.propagate(features)
                for name, tracker in trackers.items():
                    if number == 0:
                        tracker.start(features, soft)
                    elif name != "ino fp32":
                        tracker.remember(features, propagated)
                continue
            labels = {
                name: propagate_frame(tracker, frame, Path(folder) / f"{name}.png", times[name])
                for name, tracker in trackers.items()
            }
            first, *others = (labels[name] for name in EQUAL)
            largest = max(largest, *(float(np.mean(first != other)) for other in others))
            if largest > LARGEST_SHARE:
                raise DifferentResultsError(f"{largest:.1%} of the pixels of frame {number} differ")
    return {name: one.medians() for name, one in times.items()}, largest


def run_child(name: str, size: Size) -> None:
    """Prints the peak memory of a frame with a full context, or of the network (`baseline`)."""
    backbone = load_vit()
    frame = generate_clip(0, num_frames=1, height=size.height, width=size.width).frames[0]
    if name != "baseline":
        grid = size.grid(stride=backbone.stride)
        tracker = SIDES[name](size, backbone)
        for number in range(1 + size.num_context):
            features = F.normalize(torch.randn(*grid, backbone.vit.embed_dim), dim=-1)
            if number == 0:
                tracker.start(features, torch.rand(*grid, len(IDS)).softmax(dim=-1))
            else:
                tracker.propagate(features)
        with tempfile.TemporaryDirectory() as folder:
            propagate_frame(tracker, frame, Path(folder) / "mask.png", StageTimes())
    print(peak_bytes())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    add_child(parser, WEIGHED)
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    torch.set_num_threads(options.threads)
    if options.child:
        run_child(options.child, size)
        return
    machine = describe_machine(precision="fp32")
    memory = peak_memory(__file__, WEIGHED, options)
    num_frames = 1 + size.num_context + size.repeats
    clip = generate_clip(
        0, num_frames=num_frames, height=size.height, width=size.width, num_objects=NUM_OBJECTS
    )
    differences = compare(size, clip)
    seconds, share = measure_times(size, clip)
    what = f"{BACKBONE}, {size.height}x{size.width} pixels, {size.num_context} context frames"
    print_stages(f"A propagated frame, seconds: {what}", seconds)
    print_table(
        "Peak memory above that of the network, GiB",
        ["", *WEIGHED],
        [["one frame", *(f"{value:.2f}" for value in memory.values())]],
    )
    print(f"pixels that differ in fp32: at most {share:.4%} of a frame")
    plain = seconds["reference fp32"]
    ratios = {
        "propagation_speedup_fp32": plain["propagation"] / seconds["ino fp32"]["propagation"],
        "propagation_speedup": plain["propagation"] / seconds["ino"]["propagation"],
        "frame_speedup_fp32": plain["total"] / seconds["ino fp32"]["total"],
        "propagation_peak_gib": memory["ino"],
    }
    if "ino bf16" in seconds:
        ratios["frame_speedup_bf16"] = plain["total"] / seconds["ino bf16"]["total"]
    measured = {
        "what": what,
        "repeats": size.repeats,
        "seconds": seconds,
        "peak_gib": memory,
        "largest_differences": differences | {"pixels of a frame": share},
    }
    conclude("propagation", ratios=ratios, machine=machine, measured=measured, path=options.json)


if __name__ == "__main__":
    main()
