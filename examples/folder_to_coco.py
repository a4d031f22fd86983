"""Follows boxes through a folder of videos and writes COCO files.

    python examples/folder_to_coco.py VIDEOS BOXES.csv OUT

BOXES.csv has a line per object with its video (a file name in VIDEOS), frame, name and box in
pixels:

    video,frame,name,x0,y0,x1,y1
    barn.mp4,0,cow,120,60,310,400

OUT/barn/coco.json then has the masks of the cow in all frames as compressed RLE.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

from ino import InoError, Tracker, convert_result, read_masks, segment_video


def main(videos: str, boxes: str, out: str) -> int:
    """Works on each video of the list; the exit status is 1 if one of them failed."""
    given = defaultdict(list)
    with Path(boxes).open(newline="") as file:
        for row in csv.DictReader(file):
            corners = ",".join(row[corner] for corner in ("x0", "y0", "x1", "y1"))
            given[row["video"]].append(f"{row['frame']}={row['name']}:box={corners}")
    tracker, status = Tracker("ino_vitt8", quality="fast"), 0
    for name, masks in given.items():
        video, folder = Path(videos, name), Path(out, Path(name).stem)
        if (folder / "coco.json").is_file():
            continue  # done by an earlier call
        try:
            read = read_masks(masks, video)
            segment_video(
                video, read.labels, out=folder, tracker=tracker, objects=read.names,
                settings={"video": str(video)}, overlay=False, overwrite=True,
            )  # fmt: skip
            (coco,) = convert_result(folder, ["coco"], out=folder, overwrite=True)
            print(coco)
        except InoError as error:  # says what is wrong with this video; the others go on
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
