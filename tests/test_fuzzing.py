"""Damaged files of every kind are read, warned of or refused: no traceback, no hang, no bomb.

Each kind of file is damaged in 60 ways and read in a process of its own, so that a crash and the
peak of memory are seen.
"""

import json
import logging
import os
import resource
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat
from video_files import moving_frames, write_video

from ino.data.decode import VideoFile
from ino.data.jhmdb import read_joints
from ino.data.label_maps import read_labels, read_mask, write_labels
from ino.data.shards import read_shard
from ino.data.video import read_clip, read_frames, read_info
from ino.data.video_index import read_header
from ino.data.ytvos import read_ytvos_split
from ino.demo.synthetic import generate_clip
from ino.errors import InoError
from ino.models.vit import build_vit
from ino.tasks.submission import check_submission
from ino.train.config import load_recipe
from synthetic_ytvos import write_ytvos_layout
from tiny_run import read_weights

NUM_FILES = 60
MAX_GIB = 2
MAX_SECONDS = 20
FRAMES = moving_frames(24)


class Recording(logging.Handler):
    """What was warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


WARNED = Recording()


def damaged(content: bytes, number: int) -> bytes:
    """One of many kinds of damage, by number."""
    rng = np.random.default_rng(number)
    data = np.frombuffer(content, np.uint8).copy()
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 1 + len(data) // 8))
    match number % 6:
        case 0:  # single bits
            places = rng.integers(0, len(data), 1 + number // 6)
            data[places] ^= 1 << rng.integers(0, 8, len(places)).astype(np.uint8)
        case 1:  # cut short
            data = data[:start]
        case 2:  # a hole of zeros
            data[start : start + length] = 0
        case 3:  # a part twice
            data = np.insert(data, start, data[start : start + length])
        case 4:  # a part lost
            data = np.delete(data, slice(start, start + length))
        case _:  # garbage, more often where headers are
            start = start % 256 if number % 2 else start
            data[start : start + 16] = rng.integers(0, 256, len(data[start : start + 16]))
    return data.tobytes()


def read_video(path: Path) -> None:
    """All ways to read it; where fewer frames come than the header tells, something is said."""
    read_header(path)
    with VideoFile(path, num_threads=1) as file:
        is_told = file.has_frame_per_packet and "mp4" in file.formats
        stated = file.stated_num_frames() if is_told else 0
    read_info(path)
    num_frames = sum(1 for _ in read_frames(path))
    assert num_frames >= stated or WARNED.messages, f"{num_frames} of {stated} frames, no word"
    read_clip(path, [0, num_frames // 2])


def read_images(path: Path) -> None:
    for _ in read_frames(path):
        pass


def read_mask_both_ways(path: Path) -> None:
    read_mask(path)
    read_labels(path)


def read_tar(path: Path) -> None:
    for video in read_shard(str(path)):
        video.read_chosen(lambda num_frames, fps: [0, num_frames - 1])


def read_zip(path: Path) -> None:
    check_submission(path, read_ytvos_split(path.parent.parent / "ytvos"))


def read_meta(path: Path) -> None:
    content = path.read_bytes()
    root = path.parent.parent / "ytvos"
    (root / "valid" / "meta.json").write_bytes(content)
    read_ytvos_split(root)


def make_video(path: Path) -> None:
    kinds = {
        ".avi": {"codec": "mpeg4", "options": {}},
        ".webm": {"codec": "libvpx", "options": {}},
        ".gif": {"codec": "gif", "pixels": "rgb8", "options": {}},
    }
    write_video(path, FRAMES, **kinds.get(path.suffix, {}))


def make_image(path: Path) -> None:
    Image.fromarray(FRAMES[0]).save(path)


def make_stack(path: Path) -> None:
    first, *others = [Image.fromarray(frame[..., 0].astype(np.uint16) * 9) for frame in FRAMES[:5]]
    first.save(path, save_all=True, append_images=others)


def make_animation(path: Path) -> None:
    first, *others = [Image.fromarray(frame) for frame in FRAMES[:5]]
    first.save(path, save_all=True, append_images=others)


def make_mask(path: Path) -> None:
    write_labels(path, np.random.default_rng(0).integers(0, 4, (48, 64)).astype(np.uint8))


def make_checkpoint(path: Path) -> None:
    torch.save({"teacher": build_vit("vit_nano").state_dict()}, path)


def make_safetensors(path: Path) -> None:
    save_file(build_vit("vit_nano").state_dict(), path)


def make_recipe(path: Path) -> None:
    path.write_text("base: tiny\ndata:\n  batch_size: 4\noptim: {epochs: 3, lr: 1.0e-3}\n")


def make_tar(path: Path) -> None:
    write_video(path.parent / "part.mp4", FRAMES[:6])
    with tarfile.open(path, "w") as archive:
        for name in ("0.mp4", "1.mp4"):
            archive.add(path.parent / "part.mp4", name)


def make_matlab(path: Path) -> None:
    savemat(path, {"pos_img": np.random.default_rng(0).normal(size=(2, 15, 20))})


def make_ytvos(path: Path) -> Path:
    root = path.parent.parent / "ytvos"
    clip = generate_clip(5, num_frames=16, height=48, width=64, num_objects=2)
    write_ytvos_layout({"a1": clip}, root)
    return root


def make_zip(path: Path) -> None:
    root = make_ytvos(path)
    with zipfile.ZipFile(path, "w") as archive:
        for mask in sorted((root / "valid" / "Annotations").rglob("*.png")):
            archive.write(mask, str(Path("Annotations") / mask.parent.name / mask.name))


def make_meta(path: Path) -> None:
    path.write_bytes((make_ytvos(path) / "valid" / "meta.json").read_bytes())


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "h264.mp4": (make_video, read_video),
    "h264.mov": (make_video, read_video),
    "h264.mkv": (make_video, read_video),
    "h264.ts": (make_video, read_video),
    "vp8.webm": (make_video, read_video),
    "mpeg4.avi": (make_video, read_video),
    "image.png": (make_image, read_images),
    "image.jpg": (make_image, read_images),
    "stack.tif": (make_stack, read_images),
    "animation.webp": (make_animation, read_images),
    "mask.png": (make_mask, read_mask_both_ways),
    "checkpoint.pth": (make_checkpoint, lambda path: read_weights(path) and None),
    "vit.safetensors": (make_safetensors, lambda path: read_weights(path) and None),
    "recipe.yaml": (make_recipe, lambda path: load_recipe(str(path), {}) and None),
    "videos.tar": (make_tar, read_tar),
    "joints.mat": (make_matlab, lambda path: read_joints(path) is None or None),
    "submission.zip": (make_zip, read_zip),
    "meta.json": (make_meta, read_meta),
}


def read_all(name: str, folder: Path) -> None:
    """Reads all damaged files of a kind, in a process of its own, and prints what went wrong."""
    logging.getLogger("ino").addHandler(WARNED)
    make, read = KINDS[name]
    whole = folder / "whole" / name
    whole.parent.mkdir()
    make(whole)
    read(whole)  # it must be right as it is made
    outcomes = {"right": 0, "refused": 0, "wrong": []}
    (folder / "damaged").mkdir()
    for number in range(NUM_FILES):
        path = folder / "damaged" / f"{number}_{name}"
        path.write_bytes(damaged(whole.read_bytes(), number))
        print(path.name, flush=True)
        WARNED.messages.clear()
        start = time.monotonic()
        try:
            read(path)
            outcomes["right"] += 1
        except InoError as error:
            outcomes["refused"] += 1
            if "\n" in str(error) or not str(error):
                outcomes["wrong"].append(f"{path.name}: {error!r}")
        except Exception as error:
            outcomes["wrong"].append(f"{path.name}: {type(error).__name__}: {error}")
        if (taken := time.monotonic() - start) > MAX_SECONDS:
            outcomes["wrong"].append(f"{path.name}: {taken:.0f} s")
        path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**outcomes, "gib": peak}))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory")
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_refused(name, tmp_path):
    command = [sys.executable, __file__, name, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    last = (result.stdout.splitlines() or ["nothing"])[-1]
    assert result.returncode == 0, f"{last}: {result.stderr[-2000:]}"
    outcomes = json.loads(last)
    assert not outcomes["wrong"]
    assert outcomes["right"] + outcomes["refused"] == NUM_FILES
    assert outcomes["gib"] < MAX_GIB


if __name__ == "__main__":
    read_all(sys.argv[1], Path(sys.argv[2]))
