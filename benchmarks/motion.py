"""What sampling by motion does to a mixture of collections of video.

    python benchmarks/motion.py FOLDER FOLDER... [--json FILE]

Measures the motion of every video and prints, for each folder, the mean motion and its share of the
clips under `data.sampling` uniform and motion.

Ratios: `most`, how often the most frequent video is sampled, relative to the mean; `milliseconds`
of the processor per video, for measuring.
"""

import time
from pathlib import Path

import numpy as np

from ino.data.clips import motion_weights
from ino.data.video_index import index_videos, measure_motion
from report import build_parser, conclude, describe_machine, print_table


def main() -> None:
    """Parses the arguments, measures and prints the table."""
    parser = build_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="collections of videos")
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
    conclude(
        "motion",
        ratios={"most": float(weights.max()), "milliseconds": milliseconds},
        machine=machine,
        measured=measured,
        path=options.json,
    )


if __name__ == "__main__":
    main()
