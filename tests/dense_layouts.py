"""Small data sets in the layouts of JHMDB and VIP, and frames whose content slides."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from ino.data.label_maps import write_labels


def write_pose_video(
    root: Path, action: str, name: str, frames: Sequence[np.ndarray], joints: np.ndarray
) -> None:
    """Frames as PNG from 00001 on, joints (frames, 15, 2; pixels from 0) as MATLAB has them."""
    folder = root / "Rename_Images" / action / name
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / f"{number:05d}.png")
    path = root / "joint_positions" / action / name / "joint_positions.mat"
    path.parent.mkdir(parents=True)
    savemat(path, {"pos_img": joints.transpose(2, 1, 0) + 1.0, "viewpoint": "SW"})


def write_official_list(root: Path, action: str, parts: dict[str, int], *, split: int = 1) -> None:
    path = root / "splits" / f"{action}_test_split{split}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{name}.avi {part} \n" for name, part in parts.items()))


def write_part_video(
    root: Path, name: str, frames: Sequence[np.ndarray], labels: dict[int, np.ndarray]
) -> None:
    """Frames as JPEG, annotations of some of them, and the name at the end of the list."""
    images, annotations = root / "Images" / name, root / "Annotations" / "Category_ids" / name
    for folder in (images, annotations):
        folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(images / f"{number:012d}.jpg", quality=95)
    for number, one in labels.items():
        write_labels(annotations / f"{number:012d}.png", one)
    (root / "lists").mkdir(exist_ok=True)
    with (root / "lists" / "val_videos.txt").open("a") as file:
        file.write(f"/some/where/VIP_Fine/Images/{name}\n")


def sliding(num_frames: int, *, size: int = 80) -> list[np.ndarray]:
    """Blocks of 8x8 pixels in colors of their own that go 8 pixels to the right each frame."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (size // 8, size // 8, 3)).astype(np.uint8)
    image = np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))
    return [np.roll(image, 8 * number, axis=1) for number in range(num_frames)]
