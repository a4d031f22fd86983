"""Clips from anywhere in a video, beside reading all packets first and decoding every frame.

    python benchmarks/reading.py [--quick] [--json FILE] [--threads N] [--videos FOLDER]

Drawn H.264 in MP4, 340x256 at 25 frames a second as x264 makes it by default (a key frame every 250
frames, three B-frames): of 10 seconds as in Kinetics, and one long video. A clip is 4 frames, every
8th; each is read by a process that has not met the video before, one decoder thread. Sides:

- ours: times of frames from the file's header; frames that no other needs are not decoded
- scan: all packets are read first, every frame from the key frame on is decoded
- start: decoding from the file's first frame
- threads: ours with a decoder thread for each core

What is compared first: the frames, exactly. With --videos the clips come from that folder's videos
instead of the short one. Times are of the processor, over all threads: what counts where workers
fill the cores, and what other work on the machine does not change. Ratios: clips a second and core,
ours over scan, for the short videos (`access_speedup_short`) and the long one
(`access_speedup_long`), and one decoder thread over many (`one_thread_speedup`). Until a clip is
there (`wait`), threads can be ahead: they take two cores.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import torch

from ino.data import decode
from ino.data.decode import VideoFile
from ino.data.video_index import find_videos
from report import DifferentResultsError, build_parser, conclude, describe_machine, print_table

LENGTH, STEP = 4, 8
SPAN = (LENGTH - 1) * STEP + 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    parser.add_argument("--videos", type=Path, help="read these in place of the short videos")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    machine = describe_machine(precision="uint8")
    num_clips, seconds = (6, 60) if options.quick else (24, 300)
    with tempfile.TemporaryDirectory() as name:
        short = write_drawn(Path(name) / "short.mp4", num_frames=250)
        long = write_drawn(Path(name) / "long.mp4", num_frames=25 * seconds)
        videos = (
            [Path(name) for name in find_videos([options.videos])] if options.videos else [short]
        )
        places = {"short": videos, "long": [long]}
        measured = {kind: measure(paths, num_clips) for kind, paths in places.items()}
    rows = [
        [
            f"{kind}, {side}",
            f"{1000 * times[side]:.1f}",
            f"{1000 * times[f'{side}, wait']:.1f}",
            f"{times[side] / times['ours']:.2f}",
        ]
        for kind, times in measured.items()
        for side in SIDES
    ]
    print_table("One clip", ["", "processor ms", "wait ms", "over ours"], rows)
    short_times, long_times = measured["short"], measured["long"]
    conclude(
        "reading",
        ratios={
            "access_speedup_short": short_times["scan"] / short_times["ours"],
            "access_speedup_long": long_times["scan"] / long_times["ours"],
            "one_thread_speedup": short_times["threads"] / short_times["ours"],
        },
        machine=machine,
        measured=measured,
        path=options.json,
    )


def write_drawn(path: Path, *, num_frames: int) -> Path:
    """A texture that moves, as a camera's picture does, with some noise."""
    rng = np.random.default_rng(0)
    ground = rng.normal(0, 1, (64, 128, 3)).cumsum(0).cumsum(1)
    ground = np.kron(ground, np.ones((8, 8, 1)))
    ground = (127 + 40 * ground / np.abs(ground).std()).clip(0, 255)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"preset": "veryfast", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for index in range(num_frames):
            left, top = (int(120 * (1 + np.sin(index / 90 + a))) for a in (0, 2))
            picture = ground[top : top + 256, left : left + 340] + rng.normal(0, 3, (256, 340, 1))
            image = picture.clip(0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def measure(videos: Sequence[Path], num_clips: int) -> dict[str, float]:
    """Mean seconds a clip by side, each side with the same clips, one after another.

    Raises:
        DifferentResultsError: a side gives other frames.
    """
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(num_clips):
        path = videos[int(rng.integers(len(videos)))]
        with VideoFile(path, num_threads=1) as file:
            num_frames = file.count_frames()
        start = int(rng.integers(max(1, num_frames - SPAN + 1)))
        indices = [min(start + STEP * k, num_frames - 1) for k in range(LENGTH)]
        expected = None
        for side, read in SIDES.items():
            decode._cached_table.cache.clear()
            before, before_wait = time.process_time(), time.perf_counter()
            found = read(path, indices)
            times.setdefault(f"{side}, wait", []).append(time.perf_counter() - before_wait)
            times[side].append(time.process_time() - before)
            expected = found if expected is None else expected
            if not np.array_equal(found, expected):
                raise DifferentResultsError(f"{side} gives other frames {indices} of {path}")
    return {side: statistics.mean(values) for side, values in times.items()}


def by_header(path: Path, indices: Sequence[int]) -> np.ndarray:
    with VideoFile(path, num_threads=1) as file:
        return file.read_frames_at(indices)


def by_header_in_threads(path: Path, indices: Sequence[int]) -> np.ndarray:
    with VideoFile(path, num_threads=0) as file:
        return file.read_frames_at(indices)


def by_scan(path: Path, indices: Sequence[int]) -> np.ndarray:
    header, marks = decode._frames_of_header, decode._MARKS_UNREFERENCED
    decode._frames_of_header = lambda file: None
    decode._MARKS_UNREFERENCED = frozenset()
    try:
        return by_header(path, indices)
    finally:
        decode._frames_of_header, decode._MARKS_UNREFERENCED = header, marks


def by_start(path: Path, indices: Sequence[int]) -> np.ndarray:
    with VideoFile(path, num_threads=1) as file:
        found = decode._read_through(file, sorted(set(indices)), to_the_end=False, fill=False)
    return np.stack([found[index] for index in indices])


SIDES: dict[str, Callable[[Path, Sequence[int]], np.ndarray]] = {
    "ours": by_header,
    "scan": by_scan,
    "start": by_start,
    "threads": by_header_in_threads,
}

if __name__ == "__main__":
    main()
