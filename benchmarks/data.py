"""Clips from H.264 to normalised crops on one core, beside torchvision's transforms one by one.

    python benchmarks/data.py [--quick] [--json FILE] [--threads N] [--keyframes N]
        [--data FOLDER]

The paper's views: clips of 4 frames, every 8th, of each frame one global crop of 224 pixels and 8
local crops of 64, all flipped and colored. Generated videos of 256x340 pixels, 10 s at 30 frames a
second, encoded with x264's own settings, a key frame every 250 (--keyframes); or the footage in a
folder (--data). What it costs to find the frames of a video's first clip is counted.

The plain sides open a fresh decoder for each clip, decode from the start of the video to the clip's
last frame, and make one crop at a time: of PIL images, as the released code does, and of tensors of
bytes, as torchvision's v2 does. All sides take the same frames and the same boxes, flips and
changes; first their crops are compared.

Seconds are those of the processor, so a rate is one of a core. Ours is measured as the Kinetics
recipe reads, five clips at one visit of a video (`data.visits`), and a clip at a time. Ratios: PIL
over ino for everything (`data_speedup`, a clip at a time `data_speedup_single`), for decoding
(`decode_speedup`, `decode_speedup_single`) and for crops (`views_speedup`); v2 over ino for crops
and for everything (`views_speedup_uint8`, `data_speedup_uint8`).
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_sides import (
    PAPER,
    SAMPLING,
    BytesSide,
    Job,
    Kind,
    OurSide,
    PlainSide,
    draw_jobs,
    draw_numbers,
    write_h264,
)
from ino.data.video import read_info
from ino.data.video_index import find_videos
from ino.data.views import IMAGENET_STD
from ino.demo.synthetic import generate_clip
from ino.kernels.crops import PLAIN
from report import (
    DifferentResultsError,
    build_parser,
    conclude,
    describe_machine,
    print_stages,
)

FPS = 30
LARGEST_DIFFERENCES = {"resized": 0.2, "colored": 3.0}
"""Means over the pixels of a crop, in levels: PIL rounds after each change, and hue to 1.4 degrees;
tall boxes it resizes along their columns first."""


@dataclass(frozen=True)
class Size:
    """What is measured."""

    num_videos: int
    num_frames: int
    clips_per_video: int
    clips_per_visit: int


FULL = Size(num_videos=6, num_frames=300, clips_per_video=10, clips_per_visit=5)
QUICK = Size(num_videos=2, num_frames=90, clips_per_video=3, clips_per_visit=3)


class ProcessorTimes:
    """Seconds of the processor by stage, summed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

    def a_clip(self, num_clips: int) -> dict[str, float]:
        """Milliseconds a clip of each stage and of all."""
        means = {name: 1000 * value / num_clips for name, value in self.seconds.items()}
        return means | {"total": sum(means.values())}


def make_ours(job: Job, times: ProcessorTimes) -> dict[str, Tensor]:
    """The crops of a clip by kind."""
    side, rng = OurSide(), job.rng()
    with times.stage("decode"):
        clip = side.decode(job)
    crops = {}
    for name, kind in PAPER.items():
        with times.stage(name):
            crops[name] = side.crops(clip, kind, rng)
    return crops


def make_visit(jobs: Sequence[Job], times: ProcessorTimes) -> None:
    """The crops of clips of one video, which are decoded together."""
    side = OurSide()
    with times.stage("decode"):
        frames = side.decode(replace(jobs[0], indices=[i for job in jobs for i in job.indices]))
    for job, clip in zip(jobs, frames.unflatten(0, (len(jobs), -1)), strict=True):
        rng = job.rng()
        for name, kind in PAPER.items():
            with times.stage(name):
                side.crops(clip, kind, rng)


def make_plain(job: Job, side: PlainSide, times: ProcessorTimes) -> dict[str, Tensor]:
    """The same crops."""
    clip, rng = OurSide().decode(job), job.rng()
    numbers = {name: draw_numbers(clip, kind, rng) for name, kind in PAPER.items()}
    with times.stage("decode"):
        frames = side.decode(job)
    crops = {}
    for name, kind in PAPER.items():
        with times.stage(name):
            crops[name] = side.crops(frames, kind, numbers[name])
    return crops


def compare(job: Job) -> dict[str, float]:
    """The largest mean difference of a crop of ours and of a plain side, in levels.

    Raises:
        DifferentResultsError: it is larger than rounding explains, or the frames differ.
    """
    clip = OurSide().decode(job)
    found: dict[str, float] = {}
    for side in (PlainSide(), BytesSide()):
        frames = side.decode(job)
        for name, colored in PAPER.items():
            bare = replace(colored, photometric=replace(PLAIN, flip=0.5))
            for what, kind in (("resized", bare), ("colored", colored)):
                difference = _largest_difference(job, kind, clip, side, frames)
                if difference > LARGEST_DIFFERENCES[what]:
                    raise DifferentResultsError(
                        f"{what} {name} of ino and of {type(side).__name__} differ by "
                        f"{difference:.2f} levels (more than {LARGEST_DIFFERENCES[what]})"
                    )
                found[what] = max(found.get(what, 0.0), difference)
    return found


def _largest_difference(
    job: Job, kind: Kind, clip: Tensor, side: PlainSide, frames: Sequence
) -> float:
    ours = OurSide().crops(clip, kind, job.rng())
    theirs = side.crops(frames, kind, draw_numbers(clip, kind, job.rng()))
    levels = 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    return ((ours - theirs).abs() * levels).mean((-3, -2, -1)).max().item()


def measure(jobs: Sequence[Job], *, clips_per_visit: int) -> dict[str, dict[str, float]]:
    """Milliseconds a clip by side and stage; the sides take turns."""
    plain = {"PIL": PlainSide(), "bytes": BytesSide()}
    times = {name: ProcessorTimes() for name in ("ino", "ino single", *plain)}
    waiting: dict[Path, list[Job]] = {}
    for job in jobs:
        visit = waiting.setdefault(job.video, [])
        visit.append(job)
        if len(visit) == clips_per_visit:
            make_visit(waiting.pop(job.video), times["ino"])
        make_ours(job, times["ino single"])
        for name, side in plain.items():
            make_plain(job, side, times[name])
    return {name: one.a_clip(len(jobs)) for name, one in times.items()}


def write_generated(folder: Path, size: Size, *, keyframes: int) -> list[Path]:
    """Videos of generated scenes."""
    paths = [folder / f"{seed}.mp4" for seed in range(size.num_videos)]
    for seed, path in enumerate(paths):
        clip = generate_clip(seed, num_frames=size.num_frames, height=256, width=340)
        write_h264(clip.frames, path, fps=FPS, keyframes=keyframes)
    return paths


def choose_footage(folder: Path, size: Size) -> list[Path]:
    """Videos of a folder that are long enough for a clip, spread over the list of them."""
    span = (SAMPLING.length - 1) * (SAMPLING.frame_step or 1) + 1
    found = map(Path, find_videos([folder]))
    videos = [path for path in found if read_info(path).num_frames >= span]
    if not videos:
        raise SystemExit(f"no video in {folder} has {span} frames")
    chosen = np.linspace(0, len(videos) - 1, min(len(videos), 4 * size.num_videos))
    return [videos[round(index)] for index in chosen]


def conclude_with(
    times: dict[str, dict[str, float]],
    *,
    differences: dict[str, float],
    machine: dict,
    what: str,
    options: argparse.Namespace,
) -> None:
    """Prints the times and ratios, and writes them."""
    ours, pillow, of_bytes = times["ino"], times["PIL"], times["bytes"]
    single = times["ino single"]
    views = {side: sum(stages[kind] for kind in PAPER) for side, stages in times.items()}
    print_stages(f"A clip, milliseconds of a core: {what}", times)
    ratios = {
        "data_speedup": pillow["total"] / ours["total"],
        "data_speedup_single": pillow["total"] / single["total"],
        "decode_speedup": pillow["decode"] / ours["decode"],
        "decode_speedup_single": pillow["decode"] / single["decode"],
        "views_speedup": views["PIL"] / views["ino"],
        "views_speedup_uint8": views["bytes"] / views["ino"],
        "data_speedup_uint8": of_bytes["total"] / ours["total"],
    }
    measured = {
        "what": what,
        "milliseconds": times,
        "clips_a_second_and_core": {side: 1000 / value["total"] for side, value in times.items()},
        "largest_mean_differences": differences,
    }
    conclude("data", ratios=ratios, machine=machine, measured=measured, path=options.json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--keyframes", type=int, default=250, metavar="N", help="frames apart")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="videos to read")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    torch.set_num_threads(options.threads)
    machine = describe_machine(precision="bytes and fp32")
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            videos = write_generated(Path(folder), size, keyframes=options.keyframes)
            what = f"{len(videos)} generated videos, key frames {options.keyframes} apart"
            jobs = draw_jobs(videos, clips_per_video=size.clips_per_video)
        else:
            videos = choose_footage(options.data, size)
            what = f"{len(videos)} given videos"
            jobs = draw_jobs(videos, clips_per_video=size.clips_per_visit)
        differences = compare(jobs[-1])
        times = measure(jobs, clips_per_visit=size.clips_per_visit)
    what += f", {len(jobs)} clips"
    conclude_with(times, differences=differences, machine=machine, what=what, options=options)


if __name__ == "__main__":
    main()
