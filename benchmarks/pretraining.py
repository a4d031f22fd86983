"""Time and peak memory of a training iteration, stage by stage, beside a plain reference.

    python benchmarks/pretraining.py [--quick] [--json FILE] [--threads N]

One clip of 4 frames, 8 local crops of 64 pixels a frame, 30% of the positions masked, a head of
2048/256/4096, and `variant: released`, whose loss and gradients both sides compute alike: this is
checked before anything is timed. Both sides take the same crops, in turns. Drawing the crops is
timed as well but is no part of a ratio, as the reference has no code for it.

Ratios: seconds of the reference in fp32 over those of ino in fp32 (`step_speedup_fp32`) and in bf16
(`step_speedup_bf16`), and with both in bf16 (`step_speedup_bf16_both`); the peak of resident memory
of ino over that of the reference, in fp32 (`step_memory_ratio`). On a processor without arithmetic
in bf16 the sides in bf16 are left out. A peak is that of a process that
does two steps, less that of one that only imports everything, draws crops and builds the networks.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ino.demo.synthetic import generate_clip
from ino.models.student_teacher import Views
from ino.train.config import (
    DataConfig,
    MaskingConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    ViewsConfig,
    resolve,
)
from ino.train.data import sample_views
from ino.train.distributed import build_fabric
from ino.train.run import build_model
from report import (
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
from training_sides import OurStep, PlainStep, require_equal_gradients

CLIP_LENGTH = 4
BF16_TOLERANCE = 0.01


@dataclass(frozen=True)
class Size:
    """What is measured, and how often."""

    arch: str
    global_size: int
    repeats: int


FULL = Size("vit_small", 224, repeats=5)
QUICK = Size("vit_tiny", 112, repeats=3)

SIDES: dict[str, tuple[type[OurStep] | type[PlainStep], bool]] = without_bf16(
    {
        "ino fp32": (OurStep, False),
        "reference fp32": (PlainStep, False),
        "ino bf16": (OurStep, True),
        "reference bf16": (PlainStep, True),
    }
)


def build_config(size: Size) -> TrainConfig:
    """The paper's networks, on the CPU, and nothing random but the crops and the mask."""
    return resolve(
        TrainConfig(
            variant="released",
            model=ModelConfig(arch=size.arch, drop_path=0.0),
            data=DataConfig(clip_length=CLIP_LENGTH, batch_size=1),
            views=ViewsConfig(global_size=size.global_size),
            masking=MaskingConfig(probability=1.0, ratio=(0.3, 0.3)),
            run=RunConfig(accelerator="cpu", precision="32-true"),
        )
    )


class CropSource:
    """The crops and the mask of a step, drawn from a generated clip as training draws them."""

    def __init__(self, config: TrainConfig) -> None:
        clip = generate_clip(0, num_frames=config.data.clip_length, height=256, width=340)
        self._clips = [torch.from_numpy(clip.frames)]
        self._config = config
        self._fabric = build_fabric(config.run)

    def draw(self, step: int) -> Views:
        return sample_views(self._config, self._clips, step=step, device=self._fabric.device)


def measure_times(size: Size) -> tuple[dict[str, dict[str, float]], float, dict[str, float]]:
    """Median seconds by side and stage, those of the crops, and the sides' largest differences."""
    config = build_config(size)
    torch.manual_seed(0)
    model = build_model(config.model)
    source = CropSource(config)
    sides = {
        name: kind(copy.deepcopy(model), config.loss, num_local=config.views.num_local, bf16=bf16)
        for name, (kind, bf16) in SIDES.items()
    }
    differences = warm_up(sides, source.draw(0))
    times = {name: StageTimes() for name in SIDES}
    crops = StageTimes()
    for repeat in range(1, 1 + size.repeats):
        with crops.stage("crops"):
            views = source.draw(repeat)
        for name, side in sides.items():
            side.to_gradients(views, times[name])
            side.update(times[name])
    medians = {name: one.medians() for name, one in times.items()}
    return medians, crops.medians()["crops"], differences


def warm_up(sides: dict[str, OurStep | PlainStep], views: Views) -> dict[str, float]:
    """Takes one step with each side and gives the largest differences between them.

    Raises:
        DifferentResultsError: they are larger than rounding.
    """
    ours, plain = sides["ino fp32"], sides["reference fp32"]
    assert isinstance(ours, OurStep)
    assert isinstance(plain, PlainStep)
    differences = require_equal_gradients(ours, plain, views)
    if "ino bf16" in sides:
        losses = [
            sides[f"{name} bf16"].to_gradients(views, StageTimes()) for name in ("ino", "reference")
        ]
        differences["loss in bf16"] = require_close(
            "the loss in bf16", *losses, tolerance=BF16_TOLERANCE
        )
    for side in sides.values():
        side.update(StageTimes())
    return differences


def run_child(name: str, size: Size) -> None:
    """Prints the peak memory of two steps of a side, or of none (`baseline`)."""
    config = build_config(size)
    model = build_model(config.model)
    source = CropSource(config)
    views = [source.draw(step) for step in range(2)]
    if name != "baseline":
        kind, bf16 = SIDES[name]
        side = kind(model, config.loss, num_local=config.views.num_local, bf16=bf16)
        for step in range(2):
            side.to_gradients(views[step], StageTimes())
            side.update(StageTimes())
    print(peak_bytes())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    add_child(parser, SIDES)
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    torch.set_num_threads(options.threads)
    if options.child:
        run_child(options.child, size)
        return
    machine = describe_machine(precision="fp32 and bf16 autocast")
    memory = peak_memory(__file__, SIDES, options)
    seconds, crops, differences = measure_times(size)
    what = f"{size.arch}/8, {CLIP_LENGTH} frames of {size.global_size} pixels"
    print_stages(f"A training iteration, seconds: {what}", seconds)
    print(f"crops, the same for both sides: {crops:.3g} s\n")
    print_table(
        "Peak memory above that of the networks, GiB",
        ["", *SIDES],
        [["two steps", *(f"{value:.2f}" for value in memory.values())]],
    )
    total = {side: seconds[side]["total"] for side in SIDES}
    ratios = {
        "step_speedup_fp32": total["reference fp32"] / total["ino fp32"],
        "step_memory_ratio": memory["ino fp32"] / memory["reference fp32"],
    }
    if "ino bf16" in SIDES:
        ratios["step_speedup_bf16"] = total["reference fp32"] / total["ino bf16"]
        ratios["step_speedup_bf16_both"] = total["reference bf16"] / total["ino bf16"]
    measured = {
        "what": what,
        "repeats": size.repeats,
        "seconds": seconds,
        "seconds_crops": crops,
        "peak_gib": memory,
        "largest_differences": differences,
    }
    conclude("pretraining", ratios=ratios, machine=machine, measured=measured, path=options.json)


if __name__ == "__main__":
    main()
