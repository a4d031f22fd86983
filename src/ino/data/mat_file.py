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
from pathlib import Path

import numpy as np

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
