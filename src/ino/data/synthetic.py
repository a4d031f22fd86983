"""Generated video with exact instance masks, and its DAVIS and mp4 forms on disk.

Every byte follows from the arguments. The scenes (`ino.data.synthetic_scene`) are made so that raw
colour often mistakes the ground or a distractor for an object, while the patterns on them differ.
It serves the demo, tests and benchmarks; it is no substitute for footage in training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from ino.data.label_png import write_labels
from ino.data.synthetic_scene import Wave, make_scene, render
from ino.data.video import VideoWriter
from ino.errors import ConfigError
from ino.files import atomic_path, new_folder, write_text

BLUR = 0.6  # pixels, standard deviation
NOISE = 0.012  # standard deviation of a sensor whose range is 0..1


@dataclass(frozen=True)
class SyntheticClip:
    """Frames, and for each pixel the id of the object seen there (0: ground or distractor)."""

    frames: UInt8[np.ndarray, "num_frames height width 3"]
    labels: UInt8[np.ndarray, "num_frames height width"]


def generate_clip(
    seed: int, *, num_frames: int = 32, height: int = 128, width: int = 192, num_objects: int = 2
) -> SyntheticClip:
    """A clip that is the same, byte for byte, whenever the arguments are the same.

    Frame t does not depend on `num_frames`: a shorter clip is the beginning of a longer one.

    Args:
        seed: Names the clip; at least 0.
        num_frames: At least 1; objects move by up to about 3 % of the frame's width a frame.
        height: Pixels, at least 32.
        width: Pixels, at least 32.
        num_objects: Labelled objects, 1 to 8, with ids from 1. Each covers at least 1.5 % of the
            first frame; later one may be hidden or partly outside.

    Raises:
        ConfigError: An argument is out of range, or so many objects do not fit in such a long and
            narrow frame.
    """
    _check_range("seed", seed, 0)
    _check_range("num_frames", num_frames, 1)
    _check_range("height", height, 32)
    _check_range("width", width, 32)
    _check_range("num_objects", num_objects, 1, 8)
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, height=height, width=width, num_objects=num_objects)
    tint = Wave(rng, [0.05, 0.05, 0.05, 0.1], period=(60, 120))
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    labels = np.empty((num_frames, height, width), np.uint8)
    for t in range(num_frames):
        image, labels[t] = render(scene, t)
        *colour, light = 1 + tint.at(t)
        frames[t] = _expose(image, rng, gain=light * np.array(colour))
    return SyntheticClip(frames=frames, labels=labels)


def _check_range(name: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name} is {value}; give a whole number {expected}")


def _expose(
    image: Float32[np.ndarray, "height width 3"], rng: np.random.Generator, *, gain: np.ndarray
) -> UInt8[np.ndarray, "height width 3"]:
    """What a slightly soft and noisy camera makes of an ideal image (0..1)."""
    image = cv2.GaussianBlur(image * gain.astype(np.float32), (0, 0), BLUR)
    image += NOISE * rng.standard_normal(image.shape, np.float32)
    return (image * 255 + 0.5).clip(0, 255).astype(np.uint8)


def write_davis_layout(clips: Mapping[str, SyntheticClip], root: Path) -> None:
    """Writes the clips as a data set in the layout of DAVIS-2017, split val.

    Frames are JPEG of quality 95 in JPEGImages/480p/NAME, labels are indexed PNG in
    Annotations/480p/NAME, whatever the clips' size. The list ImageSets/2017/val.txt is written
    last: where it is, all is there.

    Args:
        clips: By name, at least one; a name is a folder's.
        root: A new or empty folder.

    Raises:
        ConfigError: There is no clip.
        OutputError: The folder holds something already or cannot be written to.
    """
    if not clips:
        raise ConfigError("a data set needs at least one clip, and none was given")
    new_folder(root)
    for name, clip in clips.items():
        frames = new_folder(root / "JPEGImages" / "480p" / name)
        annotations = new_folder(root / "Annotations" / "480p" / name)
        for t, (frame, labels) in enumerate(zip(clip.frames, clip.labels, strict=True)):
            with atomic_path(frames / f"{t:05d}.jpg") as temporary:
                Image.fromarray(frame).save(temporary, format="JPEG", quality=95)
            write_labels(annotations / f"{t:05d}.png", labels)
    write_text(
        new_folder(root / "ImageSets" / "2017") / "val.txt", "".join(f"{name}\n" for name in clips)
    )


def write_videos(
    clips: Mapping[str, SyntheticClip], folder: Path, *, fps: int | float = 8
) -> list[Path]:
    """Writes the frames of each clip to `folder`/NAME.mp4 and returns these paths in order.

    Other files in the folder stay; each video appears whole or not at all.

    Args:
        clips: By name; a name is a file's, without suffix.
        folder: Created where it is missing.
        fps: Frames a second.

    Raises:
        OutputError: A file cannot be written.
    """
    new_folder(folder, overwrite=True)
    paths = [folder / f"{name}.mp4" for name in clips]
    for path, clip in zip(paths, clips.values(), strict=True):
        with VideoWriter(path, fps=float(fps)) as writer:
            for frame in clip.frames:
                writer.write(frame)
    return paths
