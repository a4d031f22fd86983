"""Masks as run lengths (COCO, CVAT, Label Studio), and polygons filled as COCO does.

pycocotools encodes and fills. Decoding is done here, because pycocotools returns memory that it
never wrote for runs that end before the last pixel.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from ino.errors import MaskError

MAX_PIXELS = 1 << 26
"""Of a mask; a larger one is refused before memory is taken."""

_MAX_OUTLINE = 2_000_000  # pixels; pycocotools keeps some hundred bytes for each
_MAX_BEYOND = 10  # times the longer side of the frame

Size = tuple[int, int]
"""Height and width in pixels."""


def check_size(size: Size) -> Size:
    """The size itself.

    Raises:
        MaskError: a side is not positive, or there are more than `MAX_PIXELS` pixels.
    """
    height, width = size
    if height <= 0 or width <= 0 or height * width > MAX_PIXELS:
        raise MaskError(f"a mask of {height}x{width} pixels is not possible (height x width)")
    return size


def encode_coco(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """A mask as COCO has it: `size` and `counts`, a text that JSON can hold."""
    from pycocotools import mask as coco

    found = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(map(int, found["size"])), "counts": _text(found)}


def _text(stored: Any) -> str:
    """The run lengths of pycocotools, which are bytes."""
    return stored["counts"].decode("ascii")


def decode_coco(counts: str | Sequence[Any], size: Size) -> Bool[np.ndarray, "height width"]:
    """The mask of COCO's run lengths, compressed (text) or not (numbers), column by column.

    Raises:
        MaskError: the runs do not fill exactly `size`.
    """
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    height, width = check_size(size)
    return _fill_runs(runs, height * width).reshape(width, height).T


def _uncompressed(text: str) -> list[int]:
    """Run lengths of COCO's text: 5 bits per character from 48 on, lowest first, the sixth bit says
    that more follow; from the fourth run on each is the difference to the one two before it."""
    runs: list[int] = []
    value = shift = 0
    for char in text:
        code = ord(char) - 48
        if not 0 <= code < 64 or shift > 60:
            raise MaskError("its run lengths hold characters that COCO does not use")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise MaskError("its run lengths break off")
    return runs


def encode_rows(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """Run lengths row by row, background first, as CVAT has them."""
    flat = np.concatenate([[False], mask.ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def decode_rows(runs: Sequence[Any], size: Size) -> Bool[np.ndarray, "height width"]:
    """The inverse of `encode_rows`.

    Raises:
        MaskError: the runs do not fill exactly `size`.
    """
    height, width = check_size(size)
    return _fill_runs(runs, height * width).reshape(height, width)


def _fill_runs(runs: Sequence[Any], num_pixels: int) -> np.ndarray:
    try:
        lengths = np.asarray(runs)
    except ValueError:  # lists of several lengths in one another
        lengths = np.array(["?"])
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind != "i"):
        raise MaskError("its run lengths are no list of whole numbers")
    if lengths.size and (lengths.min() < 0 or lengths.max() > num_pixels):
        raise MaskError(f"it has a run below 0 or beyond its {num_pixels} pixels")
    if (total := int(lengths.sum())) != num_pixels:
        raise MaskError(f"its runs cover {total} pixels, but the mask has {num_pixels}")
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths)


def decode_brush(content: Sequence[Any], size: Size) -> Bool[np.ndarray, "height width"]:
    """The mask that a brush of Label Studio painted: where its RGBA picture is not transparent.

    The bits are: 32 for the number of values, 5 for the bits of a value (minus 1), 4 times 4 for
    the bits of a length (minus 1); then blocks of 1 bit (whether one value repeats), 2 bits (which
    of the 4 kinds of length), the length minus 1, and one value or as many as the length says.

    Raises:
        MaskError: the bits end early or do not hold a picture of `size`.
    """
    height, width = check_size(size)
    if not all(isinstance(byte, int) and 0 <= byte < 256 for byte in content):
        raise MaskError("its brush is no list of bytes")
    bits = (np.unpackbits(np.array(content, dtype=np.uint8)) + ord("0")).tobytes().decode("ascii")
    place = 0

    def read(num: int) -> int:
        nonlocal place
        if place + num > len(bits):
            raise MaskError("its brush breaks off")
        place += num
        return int(bits[place - num : place], 2)

    if (num_values := read(32)) != height * width * 4:
        raise MaskError(f"its brush has {num_values} values, but {height}x{width} pixels have 4")
    num_bits = read(5) + 1
    kinds = [read(4) + 1 for _ in range(4)]
    values = np.zeros(num_values, dtype=np.uint32)
    done = 0
    while done < num_values:
        repeats = read(1)
        length = read(kinds[read(2)]) + 1
        length = min(length, num_values - done)
        values[done : done + length] = (
            read(num_bits) if repeats else [read(num_bits) for _ in range(length)]
        )
        done += length
    return values.reshape(height, width, 4)[..., 3] > 0


def fill_polygons(polygons: Sequence[np.ndarray], size: Size) -> Bool[np.ndarray, "height width"]:
    """The pixels inside any of the polygons, by the rule of pycocotools.

    Args:
        polygons: points x, y each, in pixels from the upper left corner of the frame.
        size: of the frame.

    Raises:
        MaskError: a polygon has fewer than three points, leads far outside of the frame, or is
            longer than 2 million pixels.
    """
    from pycocotools import mask as coco

    height, width = check_size(size)
    for polygon in polygons:
        if len(polygon) < 3:
            raise MaskError(f"a polygon has three or more points, but one has {len(polygon)}")
        check_points(polygon, size)
        steps = np.diff(polygon, axis=0, append=polygon[:1])
        if (length := np.hypot(*steps.T).sum()) > _MAX_OUTLINE:
            raise MaskError(f"a polygon is {length:.0f} pixels long, more than {_MAX_OUTLINE}")
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    found = coco.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    return decode_coco(_text(coco.merge(found)), size)


def check_points(points: np.ndarray, size: Size) -> None:
    """Refuses points (x, y) that are no finite numbers or lie far outside of a frame.

    Raises:
        MaskError: says which.
    """
    height, width = size
    limit = _MAX_BEYOND * max(size)
    far = ~(np.abs(points) <= limit).all(axis=1)
    if far.any():
        x, y = points[far][0]
        raise MaskError(f"the point {x:g},{y:g} is not near the frame of {height}x{width}")


def fill_ellipse(
    center: tuple[float, float], radii: tuple[float, float], angle: float, size: Size
) -> Bool[np.ndarray, "height width"]:
    """The pixels inside an ellipse; `angle` in degrees, clockwise."""
    turns = np.linspace(0, 2 * np.pi, 361)[:-1]
    x, y = radii[0] * np.cos(turns), radii[1] * np.sin(turns)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    outline = np.stack([center[0] + cosine * x - sine * y, center[1] + sine * x + cosine * y], 1)
    return fill_polygons([outline], size)


def box_of(mask: Any) -> tuple[int, int, int, int]:
    """Left, top, width and height of what a mask marks, in pixels; zeros if it marks nothing."""
    import cv2

    left, top, width, height = cv2.boundingRect(np.asarray(mask, dtype=np.uint8))
    return int(left), int(top), int(width), int(height)


def paste(part: Bool[np.ndarray, "h w"], left: int, top: int, size: Size) -> Any:
    """A mask of `size` that holds `part` with its upper left corner at `left`, `top`; what lies
    outside is cut off."""
    height, width = check_size(size)
    whole = np.zeros(size, dtype=bool)
    rows = slice(max(top, 0), min(top + part.shape[0], height))
    columns = slice(max(left, 0), min(left + part.shape[1], width))
    if rows.start < rows.stop and columns.start < columns.stop:
        whole[rows, columns] = part[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
    return whole
