"""Areas of cells over time, from a microscopy stack and a mask of its first frame.

    python examples/stack_to_areas.py STACK.tif FIRST.png AREAS.csv --pixel 0.325 --minutes 5

FIRST.png has the number of a cell at each of its pixels and 0 elsewhere, as Fiji's and napari's
label images. AREAS.csv gets a line per frame and cell: minutes, cell, area in square micrometers,
row and column of the center in micrometers, and how sure the program is (0 to 1).
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from ino import Tracker, read_frames, read_masks


def main() -> None:
    """Writes the table while the stack is read, frame by frame."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stack", type=Path)
    parser.add_argument("first")
    parser.add_argument("areas", type=Path)
    parser.add_argument("--pixel", type=float, default=1.0, help="micrometers per pixel")
    parser.add_argument("--minutes", type=float, default=1.0, help="from frame to frame")
    options = parser.parse_args()
    masks = read_masks([f"0={options.first}"], options.stack).labels
    tracker = Tracker("ino_vitt8")
    with options.areas.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["minutes", "cell", "area_um2", "row_um", "column_um", "confidence"])
        for number, labels in enumerate(tracker.track(read_frames(options.stack), masks)):
            confidence = tracker.confidence()
            for cell in np.unique(labels[labels > 0]):
                rows, columns = np.nonzero(labels == cell)
                table.writerow(
                    [
                        f"{number * options.minutes:g}",
                        cell,
                        f"{len(rows) * options.pixel**2:.2f}",
                        f"{rows.mean() * options.pixel:.2f}",
                        f"{columns.mean() * options.pixel:.2f}",
                        f"{confidence[labels == cell].mean():.3f}",
                    ]
                )


if __name__ == "__main__":
    main()
