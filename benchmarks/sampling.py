"""What sampling by motion does to a mixture of collections of video, and how well cuts are found.

    python benchmarks/sampling.py FOLDER FOLDER... [--cuts-of N] [--json FILE]

Measures the motion of every video and prints, for each folder, the mean motion and its share of the
clips under `data.sampling` uniform and motion. Then, of N videos of each folder, how often two
frames of one video count as a cut (footage that was cut into clips should have none), and how often
frames of two different videos do not.

Ratios: `most`, how often the most frequent video is sampled, relative to the mean; `milliseconds`
of the processor per video, for measuring; `found`, share of the pairs of two videos that count as
cuts.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np

from ino.data.clips import crosses_cut, motion_weights
from ino.data.video import read_chosen
from ino.data.video_index import VideoIndex, index_videos, measure_motion
from ino.errors import InoError
from report import build_parser, conclude, describe_machine, print_table

SECONDS = (0.125, 0.375, 1.0)
SIZE = (256, 144)  # width and height of the frames that are compared


def frames_of(path: Path) -> np.ndarray:
    """A frame of the first third, and frames `SECONDS` after it; at most the last one."""

    def choose(num_frames: int, fps: float) -> list[int]:
        first = num_frames // 3
        return [first, *(min(num_frames - 1, first + round(fps * gap)) for gap in SECONDS)]

    frames = read_chosen(path, choose)
    return np.stack([cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA) for frame in frames])


def measure_cuts(folders: list[Path], index: VideoIndex, *, number: int) -> dict[str, float]:
    """Share of pairs that count as cuts: of frames so many seconds apart, and of two videos."""
    rng = np.random.default_rng(0)
    clips = []
    for folder in folders:
        own = [name for name in index.names if Path(name).is_relative_to(folder)]
        chosen = rng.permutation(len(own))[:number]
        clips += [frames_of(Path(own[place])) for place in chosen]
    others = rng.permutation(len(clips))
    shares = {
        f"{gap} s": float(np.mean([crosses_cut(clip[[0, place]]) for clip in clips]))
        for place, gap in enumerate(SECONDS, start=1)
    }
    pairs = [(clips[i], clips[j]) for i, j in enumerate(others.tolist()) if i != j]
    shares["two videos"] = float(np.mean([crosses_cut(np.stack([a[-1], b[0]])) for a, b in pairs]))
    return shares


def main() -> None:
    """Parses the arguments, measures and prints the tables."""
    parser = build_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="collections of videos")
    parser.add_argument("--cuts-of", type=int, default=100, metavar="N", help="videos of each")
    options = parser.parse_args()
    machine = describe_machine(precision="none")
    index = index_videos(options.folders, file=None)
    started = time.process_time()
    index = measure_motion(index, file=None)
    milliseconds = 1000 * (time.process_time() - started) / len(index)
    weights = motion_weights(index.motion.tolist())
    rows, measured = [], {}
    for folder in options.folders:
        own = np.array([Path(name).is_relative_to(folder) for name in index.names])
        mean, share = float(np.nanmean(index.motion[own])), float(weights[own].sum() / len(index))
        rows.append(
            [folder.name, str(own.sum()), f"{mean:.1f}", f"{own.mean():.0%}", f"{share:.0%}"]
        )
        measured[folder.name] = [int(own.sum()), mean, float(own.mean()), share]
    print_table("shares", ["", "videos", "mean motion", "uniform", "motion"], rows)
    cuts = measure_cuts(options.folders, index, number=options.cuts_of)
    rows = [[name, f"{share:.1%}"] for name, share in cuts.items()]
    print_table("pairs that count as cuts", ["frames", "share"], rows)
    conclude(
        "sampling",
        ratios={
            "most": float(weights.max()),
            "milliseconds": milliseconds,
            "found": cuts["two videos"],
        },
        machine=machine,
        measured=measured | {"cuts": cuts},
        path=options.json,
    )


if __name__ == "__main__":
    try:
        main()
    except InoError as error:
        sys.exit(f"sampling: {error}")
