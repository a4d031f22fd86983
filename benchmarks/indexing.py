"""The index of a folder of videos: headers a second, and starting with 230,000 of them.

    python benchmarks/indexing.py [--quick] [--json FILE] [--threads N] [--videos FOLDER]

Headers: of --videos, or of drawn ones of 10 seconds; ours is `index_videos` as a user calls it, the
other side reads all packets of each file, one after another, as knowing the times of frames took
before. Starting: 230,000 empty files in 400 folders whose headers are made up, so that all but
reading headers is as it would be; the first start writes the index, the second finds nothing new.

Ratios: headers a second and core, ours over reading all packets (`index_speedup`). Beside them:
minutes that 230,000 take at that rate, seconds of the two starts, and peak memory above that of the
imports, each in a process of its own. Times are of the processor, which other work on the machine
does not change, and a disk that has to be waited for does not show.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ino.data import video_index
from ino.data.decode import VideoFile, _frames_of_packets
from ino.data.video_index import VideoHeader, find_videos, index_videos
from reading import write_drawn
from report import build_parser, conclude, describe_machine, peak_bytes, print_table

NUM_FOLDERS = 400


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = build_parser(__doc__)
    parser.add_argument("--videos", type=Path, help="read the headers of these")
    parser.add_argument("--start", type=Path, nargs=2, help="internal: index FOLDER in FILE")
    options = parser.parse_args(arguments)
    if options.start:
        return start(*options.start)
    torch.set_num_threads(options.threads)
    machine = describe_machine(precision="none")
    num_entries = 4_000 if options.quick else 230_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = options.videos or copies(folder / "videos", 60 if options.quick else 600)
        rates = header_rates(videos)
        starts = measure_starts(folder, num_entries)
    ours, packets = list(rates.values())[:2]
    rows = [[name, f"{value:.4g}"] for name, value in (rates | starts).items()]
    print_table(f"{num_entries} videos", ["", "measured"], rows)
    return conclude(
        "indexing",
        ratios={"index_speedup": ours / packets},
        machine=machine,
        measured=rates | starts | {"entries": num_entries},
        path=options.json,
    )


def copies(folder: Path, num_videos: int) -> Path:
    """A folder of one drawn video under many names."""
    folder.mkdir()
    first = write_drawn(folder / "0.mp4", num_frames=250)
    for number in range(1, num_videos):
        shutil.copyfile(first, folder / f"{number}.mp4")
    return folder


def header_rates(videos: Path) -> dict[str, float]:
    """Files a second, both ways; the files are in memory by then, as each was read once."""
    paths = [Path(name) for name in find_videos([videos])]
    for path in paths:
        path.read_bytes()
    before = time.process_time()
    for path in paths:
        with VideoFile(path, num_threads=1) as file:
            _frames_of_packets(file)
    packets = len(paths) / (time.process_time() - before)
    before, before_wait = time.process_time(), time.perf_counter()
    index_videos([videos], file=None)
    headers = len(paths) / (time.process_time() - before)
    return {
        "headers a second and core": headers,
        "all packets, files a second and core": packets,
        "core minutes for 230,000": 230_000 / headers / 60,
        "headers a second, waited for": len(paths) / (time.perf_counter() - before_wait),
    }


def measure_starts(folder: Path, num_entries: int) -> dict[str, float]:
    """Seconds and MiB of two starts."""
    for number in range(NUM_FOLDERS):
        inner = folder / "many" / f"class_{number:03d}"
        inner.mkdir(parents=True)
        for video in range(num_entries // NUM_FOLDERS):
            (inner / f"video_{video:06d}_000010_000020.mp4").touch()
    measured = {}
    for name in ("first", "second"):
        command = [sys.executable, __file__, "--start", str(folder / "many"), str(folder / "index")]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds, num_bytes = json.loads(result.stdout)
        measured[f"{name} start, seconds"] = seconds
        measured[f"{name} start, MiB"] = num_bytes / 2**20
    return measured


def start(folder: Path, file: Path) -> None:
    """Prints seconds and bytes of one start."""
    video_index.read_header = lambda path: VideoHeader(300, 29.97, 256, 340, 10.01)
    baseline = peak_bytes()
    before = time.process_time()
    index_videos([folder], file=file)
    print(json.dumps([time.process_time() - before, peak_bytes() - baseline]))


if __name__ == "__main__":
    main()
