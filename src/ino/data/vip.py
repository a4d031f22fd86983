"""Which frames and annotations VIP (Video Instance-level Parsing) holds, from its folders.

Zhou et al., "Adaptive temporal encoding network for video instance-level human parsing", ACM MM
2018. Categories of parts are read; instances are not.
"""

from pathlib import Path

from ino.data.davis import VideoSequence, read_sequence
from ino.data.names import check_name, read_lines
from ino.errors import DatasetError

PARTS = (
    *("background", "hat", "hair", "sun-glasses", "upper-clothes", "dress", "coat", "socks"),
    *("pants", "gloves", "scarf", "skirt", "torso-skin", "face", "right-arm", "left-arm"),
    *("right-leg", "left-leg", "right-shoe", "left-shoe"),
)
"""The names of the labels 0 to 19."""


def read_vip(root: Path, *, split: str = "val") -> list[VideoSequence]:
    """The videos of a split of VIP, in the order of its list.

    Layout: `Images/<video>/*.jpg`, `Annotations/Category_ids/<video>/*.png` and
    `lists/<split>_videos.txt` with one video per line, all in `root` or in `root`/VIP_Fine.

    Args:
        root: the folder that holds Images, or the one above it.
        split: name of the list.

    Raises:
        DatasetError: the list, the frames of a video or the annotation of its first frame are
            missing, an annotation belongs to no frame, or the list holds what is no name.
    """
    folder = root / "VIP_Fine" if (root / "VIP_Fine").is_dir() else root
    path = folder / "lists" / f"{split}_videos.txt"
    if not path.is_file():
        raise DatasetError(
            f"{path} does not exist: expected the list of the {split} videos; give the folder "
            "that holds Images, Annotations and lists"
        )
    words = [word for line in read_lines(path) for word in line.split()]
    names = dict.fromkeys(word.rstrip("/").split("/")[-1] for word in words)
    if not names:
        raise DatasetError(f"{path} is empty: expected the name of a video on each line")
    frames, annotations = folder / "Images", folder / "Annotations" / "Category_ids"
    return [
        read_sequence(name, frames / name, annotations / name, needs_first=True)
        for name in [check_name(name, source=path) for name in names]
    ]
