"""What a pretraining costs: operations of a clip, clips a second here, and what follows from them.

    python benchmarks/scaling.py --threads 1

Measured on this machine, ViT-S/8 with the paper's clips (4 frames, one crop of 224 pixels and 8 of
64 each), in CPU seconds of all threads, which other work on the machine lengthens less than it does
those of a clock: a training step of one clip, decoding a clip of generated video of 340 x 256
pixels, and cutting its crops. Counted: floating-point operations of a clip (a
multiplication and an addition are two). Estimated, and named so: GPUs that compute at 40% of their
peak, wait for nothing and lose nothing to their number. Times are quotients: clips of a training
/ clips a second.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ino.data.clips import ClipDataset
from ino.data.video import VideoWriter
from ino.demo.synthetic import generate_clip
from ino.models.backbone import computes_in_bf16
from ino.models.student_teacher import Views
from ino.train.config import DataConfig, MaskingConfig, ModelConfig, RunConfig, TrainConfig, resolve
from ino.train.data import sample_views, sampling_of
from ino.train.run import build_model
from report import StageTimes, build_parser, conclude, describe_machine, print_table
from training_sides import OurStep

MASKED_SHARE = 0.15  # masks of 0.1 to 0.5 of the positions, in half of the steps
CPU = torch.device("cpu")


class Training(NamedTuple):
    """A data set and how often it is gone through."""

    name: str
    num_videos: int
    clips_per_video: int
    epochs: int

    @property
    def num_clips(self) -> int:
        return self.num_videos * self.clips_per_video * self.epochs


TRAININGS = (
    Training("Kinetics 400", 240_000, 5, 25),
    Training("Kinetics 700", 545_000, 5, 25),
    Training("100 million clips", 20_000_000, 5, 1),
)


class Machine(NamedTuple):
    """Clips a second of a machine, and how that is known."""

    name: str
    clips_a_second: float
    source: str


H100_PEAK = 989e12
"""Operations a second of an H100 SXM in bf16 without sparsity, by its data sheet."""

ASSUMED_SHARE = 0.4


def count_operations(config: TrainConfig) -> float:
    """Floating-point operations of one clip: student forward and backward, teacher forward."""
    length, views = config.data.clip_length, config.views
    positions = (views.global_size // config.model.patch_size) ** 2
    model = build_model(config.model)
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes alone: nothing is computed
        seen = Views(
            torch.empty(length, 1, 3, views.global_size, views.global_size),
            torch.empty(length, views.num_local, 1, 3, views.local_size, views.local_size),
            torch.empty(1, round(MASKED_SHARE * positions), dtype=torch.int64),
        )
        # torch counts the attention that stores its matrix; a fused one multiplies as much.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(seen, role="teacher")
            outputs = model(seen, role="student")
            torch.stack([part.sum() for part in outputs]).sum().backward()
    return counter.get_total_flops()


def measure_step(config: TrainConfig, *, repeats: int) -> float:
    """CPU seconds of a training step of one clip, crops not counted; the median."""
    torch.manual_seed(0)
    side = OurStep(
        build_model(config.model),
        config.loss,
        num_local=config.views.num_local,
        bf16=computes_in_bf16(CPU),
    )
    clip = torch.from_numpy(generate_clip(0, num_frames=4, height=256, width=340).frames)
    seconds = []
    for step in range(repeats + 1):
        views = sample_views(config, [clip], step=step, device=CPU)
        start = time.process_time()
        side.to_gradients(views, StageTimes())
        side.update(StageTimes())
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])  # the first warms up


def measure_data(config: TrainConfig, *, num_clips: int) -> tuple[float, float]:
    """CPU seconds to decode a clip from a file, and to cut its crops; means."""
    sampling = sampling_of(config.data)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.mp4" for index in range(4)]
        for index, path in enumerate(paths):
            frames = generate_clip(index, num_frames=150, height=256, width=340).frames
            with VideoWriter(path, fps=30.0) as writer:
                for frame in frames:
                    writer.write(frame)
        dataset = ClipDataset(paths, sampling=sampling, seed=0, quarantine=None)
        dataset[0, 0]
        start = time.process_time()
        clips = [dataset[epoch, epoch % len(paths)] for epoch in range(1, num_clips + 1)]
        decode = (time.process_time() - start) / num_clips
    start = time.process_time()
    for step, clip in enumerate(clips):
        sample_views(config, [clip], step=step, device=CPU)
    crops = (time.process_time() - start) / num_clips
    return decode, crops


def duration(seconds: float) -> str:
    """Seconds in words."""
    hours = seconds / 3600
    return f"{hours:,.1f} h" if hours < 72 else f"{hours / 24:,.0f} d"


def print_costs(machines: list[Machine]) -> None:
    """A row a machine and a column a training."""
    rows = [["clips", "", "", *(f"{one.num_clips / 1e6:.1f} M" for one in TRAININGS)]]
    for machine in machines:
        cells = [machine.name, machine.source, f"{machine.clips_a_second:,.2f}"]
        for training in TRAININGS:
            seconds = training.num_clips / machine.clips_a_second
            cells.append(duration(seconds))
        rows.append(cells)
    names = [one.name for one in TRAININGS]
    print_table("Wall time", ["machine", "known by", "clips a second", *names], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, counts and prints."""
    options: argparse.Namespace = build_parser(__doc__).parse_args(arguments)
    torch.set_num_threads(options.threads)
    precision = "bf16" if computes_in_bf16(CPU) else "fp32"
    machine = describe_machine(precision=precision)
    config = resolve(
        TrainConfig(
            model=ModelConfig(arch="vit_tiny" if options.quick else "vit_small"),
            data=DataConfig(batch_size=1),
            masking=MaskingConfig(probability=1.0, ratio=(MASKED_SHARE, MASKED_SHARE)),
            run=RunConfig(accelerator="cpu"),
        )
    )
    operations = count_operations(config)
    seconds = measure_step(config, repeats=1 if options.quick else 5)
    decode, crops = measure_data(config, num_clips=4 if options.quick else 40)
    estimate = ASSUMED_SHARE * H100_PEAK / operations
    machines = [Machine("a core of this CPU", 1 / seconds, "measured")]
    machines += [Machine(f"{count} x H100", estimate * count, "estimate") for count in (1, 8, 64)]
    print_costs(machines)
    rows = [
        ["operations of a clip", f"{operations / 1e12:.2f} T"],
        ["step of a clip, one core", f"{seconds:.2f} s"],
        ["its operations a second", f"{operations / seconds / 1e9:.0f} G"],
        ["decoding a clip, one core", f"{1000 * decode:.1f} ms"],
        ["crops of a clip, one core", f"{1000 * crops:.1f} ms"],
        ["cores that decode for one H100", f"{estimate * decode:.1f}"],
        ["cores that decode and crop for it", f"{estimate * (decode + crops):.1f}"],
    ]
    print_table("Where the bottleneck is", ["what", "how much"], rows)
    ratios = {
        "clip_teraoperations": operations / 1e12,
        "cpu_clips_a_second": 1 / seconds,
        "decode_clips_a_second_and_core": 1 / decode,
        "crop_clips_a_second_and_core": 1 / crops,
    }
    measured = {"step_seconds": seconds, "decode_seconds": decode, "crop_seconds": crops}
    conclude("scaling", ratios=ratios, machine=machine, measured=measured, path=options.json)


if __name__ == "__main__":
    main()
