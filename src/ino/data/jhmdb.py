"""JHMDB: its test videos, from its folders and lists, and their joints, from MATLAB files.

Jhuang et al., "Towards understanding action recognition", ICCV 2013: 15 joints of one person in
every frame of short clips. Puppet masks and action labels are not read.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ino.data.images import list_images
from ino.data.names import check_name, read_lines
from ino.errors import ConfigError, DatasetError, VideoError
from ino.system import read_file

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

NUM_JOINTS = 15
_JOINT_FOLDER = "joint_positions"
_FRAME_FOLDER = "Rename_Images"
_TEST = "2"
"""The second word of a line of the official lists, for a test video; 1: training."""
_MAX_BYTES = 1 << 28  # of a file, of what it unpacks to, and of `pos_img` in memory
_COMPRESSED = 15  # MATLAB's number of an element that is packed by zlib
_SECONDS_IDLE = 10  # after which the child process ends


@dataclass(frozen=True)
class PoseVideo:
    """A video of one action: its frames in order, and the file of its joints."""

    action: str
    name: str
    frames: tuple[Path, ...]
    joints: Path


def read_jhmdb(root: Path, *, split: int = 1) -> list[PoseVideo]:
    """The test videos of a split, in the order of its lists.

    Layout: `Rename_Images/<action>/<video>/*.png`, `joint_positions/<action>/<video>/
    joint_positions.mat`, and either the official lists `splits/<action>_test_split<n>.txt`, with
    `<video>.avi 2` for each test video, or `testlist_split<n>.txt`, with the paths of joints and
    frames of a video on each line, as UVC and CRW have it; only the ends of these paths count.

    Args:
        root: the folder that holds Rename_Images.
        split: 1, 2 or 3.

    Raises:
        DatasetError: the lists, frames or joints of a video are missing, or a list holds what is no
            name.
    """
    found = []
    for action, name in _read_lists(root, split):
        folder = root / _FRAME_FOLDER / action / name
        joints = root / _JOINT_FOLDER / action / name / "joint_positions.mat"
        if not joints.is_file():
            raise DatasetError(f"{name} has no joints: expected {joints}; unpack the joints there")
        try:
            frames = list_images(folder)
        except VideoError as error:
            raise DatasetError(
                f"{name} has no frames: expected PNG files in {folder}; unpack the frames there"
            ) from error
        found.append(PoseVideo(action=action, name=name, frames=tuple(frames), joints=joints))
    return found


def read_joints(path: Path) -> Float[np.ndarray, "frames 15 2"]:
    """Column and row of each joint in each frame, pixels from 0, which may lie outside the image.

    scipy reads the file in a child process, which later calls use again: a damaged file can crash
    scipy, which then ends the child alone.

    Raises:
        DatasetError: the file is no MATLAB file or its `pos_img` is not 2 x 15 x frames.
        ConfigError: scipy is not installed.
    """
    try:
        names, positions = _child().submit(_load, path, _MAX_BYTES).result()
    except ImportError as error:
        raise ConfigError(
            "JHMDB needs the library scipy: run `uv sync --extra jhmdb` in the checkout of ino"
        ) from error
    except (ValueError, BrokenProcessPool) as error:
        if isinstance(error, BrokenProcessPool):
            _child.cache_clear()
        reason = error if isinstance(error, ValueError) else "it is damaged"
        raise DatasetError(
            f"{path} cannot be read as a MATLAB file of version 5 to 7 ({reason}): copy it again"
        ) from error
    if positions is None:
        found = ", ".join(names) or "nothing"
        raise DatasetError(f"{path} holds {found}, but `pos_img` is needed: copy it again")
    if positions.ndim == 2:  # MATLAB drops a last side of 1
        positions = positions[..., None]
    shape = positions.shape
    is_numbers = positions.dtype.kind in "iuf"
    if not is_numbers or len(shape) != 3 or shape[:2] != (2, NUM_JOINTS) or shape[2] == 0:
        raise DatasetError(
            f"pos_img of {path} is {' x '.join(map(str, shape))} of {positions.dtype}, but numbers "
            f"2 x {NUM_JOINTS} x frames are needed: copy it again"
        )
    if not np.isfinite(positions).all():
        raise DatasetError(f"pos_img of {path} holds values that are no numbers: copy it again")
    return positions.transpose(2, 1, 0).astype(np.float64) - 1


@cache
def _child() -> "ProcessPoolExecutor":
    from loky import ProcessPoolExecutor  # unlike the standard library's, needs no `__main__` guard

    return ProcessPoolExecutor(1, timeout=_SECONDS_IDLE, initializer=_silence)


def _silence() -> None:
    """Keeps the report of a crash off the screen."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _load(path: Path, max_bytes: int) -> tuple[list[str], np.ndarray | None]:
    """The names of a file's variables, and `pos_img` if it is there; runs in the child process.

    Raises:
        ValueError: the file cannot be read, or more than `max_bytes` would be in memory.
    """
    from scipy.io import loadmat, whosmat

    try:
        content = read_file(path, max_bytes=max_bytes)
        _check_unpacked(content, max_bytes)
        shapes = {name: shape for name, shape, _ in whosmat(io.BytesIO(content))}
        if "pos_img" not in shapes:
            return list(shapes), None
        if 8 * math.prod(shapes["pos_img"]) > max_bytes:  # a few damaged bytes must not fill memory
            raise ValueError("pos_img is too large")
        return list(shapes), loadmat(io.BytesIO(content), variable_names=["pos_img"])["pos_img"]
    except Exception as error:  # scipy raises nearly anything for a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(reason) from None


def _check_unpacked(content: bytes, max_bytes: int) -> None:
    """Unpacks the elements of a MATLAB file piece by piece, and counts their bytes.

    Raises:
        ValueError: they are more than `max_bytes`.
    """
    order, place, num_bytes = "<" if content[126:128] == b"IM" else ">", 128, 0
    while place + 8 <= len(content):
        kind, size = struct.unpack(f"{order}II", content[place : place + 8])
        place += 8
        packed, unpacker = content[place : place + size], zlib.decompressobj()
        while kind == _COMPRESSED and packed and not unpacker.eof:
            num_bytes += len(unpacker.decompress(packed, 1 << 20))
            packed = unpacker.unconsumed_tail
            if num_bytes > max_bytes:
                raise ValueError(f"it unpacks to more than {max_bytes} bytes")
        place += size


def _read_lists(root: Path, split: int) -> list[tuple[str, str]]:
    """Action and name of each test video, each once."""
    official = sorted((root / "splits").glob(f"*_test_split{split}.txt"))
    single = root / f"testlist_split{split}.txt"
    if official:
        pairs = [pair for path in official for pair in _official_list(path, split)]
        source = root / "splits"
    elif single.is_file():
        pairs = [_ends(line, single) for line in read_lines(single)]
        source = single
    else:
        raise DatasetError(
            f"{root} has no list of test videos: expected splits/<action>_test_split{split}.txt "
            f"or {single.name} in it"
        )
    if not pairs:
        raise DatasetError(f"{source} names no test video: copy the lists again")
    return list(dict.fromkeys(pairs))


def _official_list(path: Path, split: int) -> Iterator[tuple[str, str]]:
    action = path.name.removesuffix(f"_test_split{split}.txt")
    for line in read_lines(path):
        words = line.split()
        if len(words) != 2 or words[1] not in ("1", _TEST):
            raise DatasetError(
                f"{path} has the line {line!r}, but `<video>.avi 1` or `<video>.avi 2` is needed: "
                "copy the lists again"
            )
        if words[1] == _TEST:
            name = words[0].removesuffix(".avi")
            yield check_name(action, source=path), check_name(name, source=path)


def _ends(line: str, path: Path) -> tuple[str, str]:
    """The action and the video of the first path of a line that leads to joints or frames."""
    for word in line.split():
        parts = word.replace("\\", "/").strip("/").split("/")
        for folder in (_JOINT_FOLDER, _FRAME_FOLDER):
            if folder in parts[:-2]:
                start = parts.index(folder)
                action, name, *_ = parts[start + 1 :]
                return check_name(action, source=path), check_name(name, source=path)
    raise DatasetError(
        f"{path} has the line {line!r}, but a path with {_JOINT_FOLDER}/<action>/<video> or "
        f"{_FRAME_FOLDER}/<action>/<video> is needed: copy the list again"
    )
