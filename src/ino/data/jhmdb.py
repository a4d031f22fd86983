"""Arrays of numbers in MATLAB files of versions 5 to 7.

Only what data sets need is read: real arrays of numbers. Text, cells, structures and complex or
sparse arrays are told by name. Each length is checked against what is there, for files come
damaged, and a reader in C may end the process with them. Files of version 4 and 7.3 are refused.

Source: "MAT-File Format", MathWorks, chapter 1.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ino.data.video import list_images
from ino.errors import DatasetError, VideoError

_HEADER_BYTES = 128
_MAX_BYTES = 1 << 28
"""Of a variable once it is unpacked: a few damaged bytes must not fill the memory."""

_MATRIX, _COMPRESSED = 14, 15
# fmt: off
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8",
            13: "u8"}
# fmt: on
_NUMBER_CLASSES = range(6, 16)  # double to uint64
_COMPLEX = 0x800


def read_arrays(path: Path) -> dict[str, np.ndarray | None]:
    """The variables by name, in the shape that MATLAB shows; None for those that are no numbers.

    Raises:
        ValueError: the file is not of MATLAB 5 to 7, or is damaged.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER_BYTES])
    if order is None:
        raise ValueError("its header is none")
    (version,) = struct.unpack_from(f"{order}H", content, 124)
    if version != 0x100:
        raise ValueError(f"its header states version {version:#x}, not 0x100")
    arrays = {}
    for kind, data in _elements(content[_HEADER_BYTES:], order):
        packed = kind == _COMPRESSED
        for inner, matrix in _elements(_unpacked(data), order) if packed else [(kind, data)]:
            if inner == _MATRIX:
                name, array = _array(matrix, order)
                arrays[name] = array
    return arrays


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and data of each element of a file or an array."""
    place = 0
    while place < len(content):
        if place + 8 > len(content):
            raise ValueError("it ends within an element")
        kind, size = struct.unpack_from(f"{order}II", content, place)
        start, end = place + 8, place + 8 + size
        if small := kind >> 16:  # up to four bytes stand in the tag itself
            kind, start, end, size = kind & 0xFFFF, place + 4, place + 4 + small, small
            if small > 4:
                raise ValueError("an element has a broken tag")
            place += 8
        else:
            place = end if kind == _COMPRESSED else end + -size % 8
        if end > len(content):
            raise ValueError("it ends within an element")
        yield kind, content[start:end]


def _unpacked(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"a variable cannot be unpacked: {error}") from error
    if not stream.eof:
        raise ValueError("a variable cannot be unpacked: it is cut short or too large")
    return content


def _array(matrix: bytes, order: str) -> tuple[str, np.ndarray | None]:
    """Name and numbers of an array: its flags, sides, name and values follow each other."""
    parts = _elements(matrix, order)
    try:
        (_, flags), (_, sides), (_, name) = next(parts), next(parts), next(parts)
        (flag,) = struct.unpack_from(f"{order}I", flags)
        shape = np.frombuffer(sides, f"{order}i4").tolist()
        text = name.decode("latin-1")
        if flag & 0xFF not in _NUMBER_CLASSES or flag & _COMPLEX:
            return text, None
        kind, values = next(parts)
    except (StopIteration, struct.error) as error:
        raise ValueError("a variable ends too early") from error
    if kind not in _NUMBERS:
        raise ValueError(f"the values of {text} are of the unknown type {kind}")
    numbers = np.frombuffer(values, order + _NUMBERS[kind])
    if min(shape, default=-1) < 0 or math.prod(shape) != len(numbers):
        sizes = " x ".join(map(str, shape))
        raise ValueError(f"{text} is {sizes} but holds {len(numbers)} numbers")
    return text, numbers.reshape(shape, order="F")


# Which frames and joints JHMDB holds, from its folders and its files of joints.
#
# Jhuang et al., "Towards understanding action recognition", ICCV 2013: 15 joints of one person in
# every frame of short clips. Puppet masks and action labels are not read.


NUM_JOINTS = 15
_JOINT_FOLDER = "joint_positions"
_FRAME_FOLDER = "Rename_Images"
_TEST = "2"
"""The second word of a line of the official lists, for a video of the test part; 1: training."""


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
        DatasetError: the lists, frames or joints of a video are missing.
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

    Raises:
        DatasetError: the file is no MATLAB file or its `pos_img` is not 2 x 15 x frames.
    """
    try:
        content = read_arrays(path)
    except (ValueError, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read as a MATLAB file of version 5 to 7 ({error}): copy it again"
        ) from error
    if "pos_img" not in content:
        names = ", ".join(content) or "nothing"
        raise DatasetError(f"{path} holds {names}, but `pos_img` is needed: copy it again")
    positions = content["pos_img"]
    if positions is None:
        raise DatasetError(
            f"pos_img of {path} is no array of numbers, but 2 x {NUM_JOINTS} x frames of them are "
            "needed: copy it again"
        )
    if positions.ndim == 2:  # MATLAB drops a last side of 1
        positions = positions[..., None]
    shape = positions.shape
    if len(shape) != 3 or shape[:2] != (2, NUM_JOINTS) or shape[2] == 0:
        raise DatasetError(
            f"pos_img of {path} is {' x '.join(map(str, shape))} of {positions.dtype}, but numbers "
            f"2 x {NUM_JOINTS} x frames are needed: copy it again"
        )
    if not np.isfinite(positions).all():
        raise DatasetError(f"pos_img of {path} holds values that are no numbers: copy it again")
    return positions.transpose(2, 1, 0).astype(np.float64) - 1


def _read_lists(root: Path, split: int) -> list[tuple[str, str]]:
    """Action and name of each test video, each once."""
    official = sorted((root / "splits").glob(f"*_test_split{split}.txt"))
    single = root / f"testlist_split{split}.txt"
    if official:
        pairs = [pair for path in official for pair in _official_list(path, split)]
        source = root / "splits"
    elif single.is_file():
        pairs = [_ends(line, single) for line in _lines(single)]
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
    for line in _lines(path):
        words = line.split()
        if len(words) != 2 or words[1] not in ("1", _TEST):
            raise DatasetError(
                f"{path} has the line {line!r}, but `<video>.avi 1` or `<video>.avi 2` is needed: "
                "copy the lists again"
            )
        if words[1] == _TEST:
            yield action, words[0].removesuffix(".avi")


def _ends(line: str, path: Path) -> tuple[str, str]:
    """The action and the video of the first path of a line that leads to joints or frames."""
    for word in line.split():
        parts = word.replace("\\", "/").strip("/").split("/")
        for folder in (_JOINT_FOLDER, _FRAME_FOLDER):
            if folder in parts[:-2]:
                start = parts.index(folder)
                return parts[start + 1], parts[start + 2]
    raise DatasetError(
        f"{path} has the line {line!r}, but a path with {_JOINT_FOLDER}/<action>/<video> or "
        f"{_FRAME_FOLDER}/<action>/<video> is needed: copy the list again"
    )


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
