"""Label maps as indexed PNG files with the DAVIS palette: reading, writing, and the rule for 255.

A label map is uint8 (height, width): 0 is background, 1 to 254 are objects, 255 is void. Of data
sets and results the index counts, and colors are for the eye only. Masks that people draw come with
palettes in any order and as color images; `read_mask` takes these, too, and says what it found.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ino.errors import MaskError
from ino.system import atomic_path

BACKGROUND = 0
VOID = 255
_HOW_TO_SAVE = "save it as an indexed PNG (GIMP: Image > Mode > Indexed) or as 8-bit grey"
_MAX_GUESSED = 20  # objects in a mask of unknown making
_TINY = 1e-3  # of the frame
_LOG = logging.getLogger("ino")


def davis_palette() -> UInt8[np.ndarray, "256 3"]:
    """The color of each label: the color map of PASCAL VOC, which DAVIS uses too.

    The bits of a label are dealt in turn to red, green and blue, from the highest bit down.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            if (source := 3 * bit + channel) < 8:
                palette[:, channel] |= (((labels >> source) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def resolve_void(labels: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """The labels with the meaning of 255 resolved: void beside objects, object 1 if it is alone.

    DAVIS-2016 and most programs that write one object use 0 and 255 only; data sets of several
    objects use 255 for pixels that belong to none and are not scored. Returns the same array if
    nothing changes.
    """
    marked = labels == VOID
    if not marked.any() or ((labels > 0) & ~marked).any():
        return labels
    return marked.astype(np.uint8)


def read_labels(path: Path | str) -> UInt8[np.ndarray, "height width"]:
    """The label map of an indexed or 8-bit grey PNG, 255 resolved by `resolve_void`.

    Raises:
        MaskError: the file is missing, broken, not a PNG, a color image, or holds more than
            254 objects.
    """
    return resolve_void(read_raw_labels(Path(path)))


def read_raw_labels(path: Path) -> UInt8[np.ndarray, "height width"]:
    """The indices of an indexed or 8-bit grey PNG as stored, for callers that know what 255 means.

    Raises:
        MaskError: as `read_labels`.
    """
    image = _open(path)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    labels = np.asarray(image)
    if image.mode == "L" and (depth := _bit_depth(path)) < 8:
        return labels // (255 // (2**depth - 1))  # Pillow spreads 2 and 4 bits over 8
    if image.mode in ("P", "L"):
        return labels
    if labels.ndim == 2:
        return _narrow(labels, path)
    raise MaskError(_explain_colors(image, path))


def read_mask(path: Path) -> UInt8[np.ndarray, "height width"]:
    """The label map of a mask that someone drew.

    Indexed and grey PNGs are read as `read_labels` does. Where a palette has another color than
    black at index 0 and black elsewhere, and in color images, black, or else what is more than half
    transparent, is the background, and each other color is an object: of its number in the DAVIS
    palette if all colors are there, else numbered in the order of the colors. A warning says so,
    and also names objects that look like the soft edge of another one.

    Raises:
        MaskError: as `read_labels`; or a color image has more than 20 objects or no background, or
            a mask has more than 20 objects most of which are tiny: soft edges or a photograph.
    """
    image = _open(path)
    is_color = image.mode in ("RGB", "RGBA", "LA", "PA")
    if is_color or (image.mode == "P" and _is_reordered(image)):
        labels = labels_of_drawing(image, path)
    else:
        labels = read_labels(path)
    areas = object_areas(labels)
    tiny = sum(area < _TINY * labels.size for area in areas.values())
    if len(areas) > _MAX_GUESSED and tiny > len(areas) / 2:
        raise MaskError(
            f"{path} has {len(areas)} objects, {tiny} of them of a few pixels only, as soft edges "
            "make them: draw it without anti-aliasing and with one value per object"
        )
    if edges := _soft_edges(labels, areas):
        named = ", ".join(f"{label} ({areas[label]} pixels)" for label in edges)
        _LOG.warning(
            f"in {path} these objects are no wider than an edge and touch a far larger one: "
            f"{named}; if they are soft edges, draw the mask without anti-aliasing"
        )
    return labels


def object_areas(labels: UInt8[np.ndarray, "height width"]) -> dict[int, int]:
    """The number of pixels of each object, by its label."""
    areas = np.bincount(labels.ravel(), minlength=VOID + 1)[1:VOID]
    return {int(label) + 1: int(areas[label]) for label in np.flatnonzero(areas)}


def introducing_frames(objects: Mapping[int, Collection[int]]) -> set[int]:
    """The numbers of annotated frames that hold nothing but objects that none before them holds.

    They only introduce these objects. The mask of every other frame says of all objects whether
    they are visible there.

    Args:
        objects: of each annotated frame, by its number.
    """
    known: set[int] = set()
    found = set()
    for position, number in enumerate(sorted(objects)):
        if position and objects[number] and known.isdisjoint(objects[number]):
            found.add(number)
        known.update(objects[number])
    return found


def describe_objects(
    labels: UInt8[np.ndarray, "height width"], names: Mapping[int, str] | None = None
) -> str:
    """The objects of a mask with their areas, in words, and with those names that are known."""
    areas, names = object_areas(labels), names or {}
    found = [
        f"object {label}{f' {names[label]}' if names.get(label) else ''} "
        f"({area:,} pixels, {area / labels.size:.1%})"
        for label, area in areas.items()
    ]
    if num_void := int((labels == VOID).sum()):
        found.append(f"void ({num_void:,} pixels of value {VOID}, which belong to no object)")
    return ", ".join(found) or "no object"


def clean_name(name: str) -> str:
    """The name of an object on one line of at most 100 characters that every file can hold."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    visible = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(visible.split())[:100]


def _bit_depth(path: Path) -> int:
    """Of a PNG, from its header."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _is_reordered(image: Image.Image) -> bool:
    """Whether a palette has black among the indices that occur, and another color at 0."""
    palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    return bool(palette[0].any()) and not palette[used[used < len(palette)]].any(axis=1).all()


def labels_of_drawing(image: Image.Image, path: Path) -> UInt8[np.ndarray, "height width"]:
    """The labels of the colors of an image, with a warning that tells which became which.

    Args:
        image: in color; see `read_mask`.
        path: what the image is called in messages.

    Raises:
        MaskError: it has more than 20 objects or no background.
    """
    pixels = np.asarray(image.convert("RGBA")).copy()
    alpha = pixels[..., 3]
    is_clear = alpha < max(1, alpha.max() / 2)
    if is_clear.any() and not pixels[~is_clear, :3].any(axis=1).all():
        raise MaskError(
            f"{path} has both transparent and black pixels, so which of them are the background is "
            "unknown: fill the background with black, or give the object another color"
        )
    num_soft = int(((alpha > 0) & (alpha < alpha.max())).sum())
    pixels[is_clear] = 0
    colors, places = np.unique(pixels[..., :3].reshape(-1, 3), axis=0, return_inverse=True)
    is_object = colors.any(axis=1)
    if is_object.sum() > _MAX_GUESSED:
        raise MaskError(
            f"{path} has {len(colors)} colors, but a mask has one color for each object and no "
            f"soft edges: {_HOW_TO_SAVE}"
        )
    if is_object.all():
        raise MaskError(
            f"{path} has no black or transparent background, so which of its {len(colors)} colors "
            "is no object is unknown: make the background black"
        )
    try:
        numbers = labels_from_colors(colors[None])[0]
    except MaskError:
        numbers = np.cumsum(is_object)
    numbers = np.where(is_object, numbers, 0).astype(np.uint8)
    areas = np.bincount(places.ravel())
    said = ", ".join(
        f"{tuple(color.tolist())} is object {number} ({area} pixels)"
        for color, number, area in zip(colors, numbers, areas, strict=True)
        if number
    )
    soft = f"; {num_soft} pixels are half transparent and cut at the middle" if num_soft else ""
    ground = "what is transparent" if is_clear.any() else "black"
    _LOG.warning(f"{path} is read by its colors: {ground} is background, {said}{soft}")
    return numbers[places].reshape(pixels.shape[:2])


def _soft_edges(labels: np.ndarray, areas: dict[int, int]) -> list[int]:
    """Objects of at most two pixels' width beside one three times as large."""
    found = []
    for label, area in areas.items():
        mask = (labels == label).astype(np.uint8)
        if cv2.erode(mask, np.ones((3, 3), np.uint8)).any():
            continue
        beside = np.unique(labels[cv2.dilate(mask, np.ones((3, 3), np.uint8)) > mask])
        if any(areas.get(int(other), 0) > 3 * area for other in beside):
            found.append(label)
    return found


def is_whole_png(path: Path, *, size: tuple[int, int]) -> bool:
    """Whether a file is a PNG of that height and width with all its bytes, by their checksums.

    Nothing is decoded, so this takes a small part of the time of reading it.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
            return (image.height, image.width) == size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def as_labels(labels: Any, name: str = "the mask") -> UInt8[np.ndarray, "height width"]:
    """A label map given as an array of numpy or a tensor of torch, of bool or any integer type.

    Raises:
        MaskError: it is none, or holds a number that is not 0..255.
    """
    found = labels.detach().cpu().numpy() if hasattr(labels, "detach") else labels
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "bui":
        raise MaskError(
            f"{name} must be uint8 height x width, one object number per pixel, but it is "
            f"{kind_of(labels)}"
        )
    if found.dtype.kind != "b" and found.size and not 0 <= found.min() <= found.max() <= VOID:
        raise MaskError(
            f"{name} holds numbers from {found.min()} to {found.max()}, but objects are numbered "
            "from 1 to 254, 0 is background and 255 void"
        )
    return found.astype(np.uint8, copy=False)


def kind_of(given: Any) -> str:
    """What was given in place of an image, in words."""
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return f"{given.dtype} of shape {tuple(given.shape)}"
    return f"{type(given).__name__} and no array of numpy"


def write_labels(path: Path | str, labels: Any) -> None:
    """Writes an indexed PNG with the DAVIS palette, whole or not at all.

    Args:
        path: where the file will be, in a folder that exists.
        labels: height x width, see `as_labels`.

    Raises:
        MaskError: the labels are of another type or shape.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    labels = as_labels(labels, f"cannot write {path}: a label map")
    if labels.size == 0:
        raise MaskError(f"cannot write {path}: a label map has pixels, but this one has none")
    image = Image.fromarray(labels)
    image.putpalette(davis_palette().tobytes())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def labels_from_colors(
    colors: UInt8[np.ndarray, "height width 3"],
) -> UInt8[np.ndarray, "height width"]:
    """The label of each color of the DAVIS palette.

    Args:
        colors: RGB, for instance a mask that a program saved as a color image.

    Raises:
        MaskError: a color is not in the palette.
    """
    # One integer per color, so that a sorted palette can be searched.
    weights = np.array([1 << 16, 1 << 8, 1])
    palette = davis_palette() @ weights
    wanted = colors @ weights  # (h, w)
    order = np.argsort(palette)
    labels = order[np.searchsorted(palette, wanted, sorter=order).clip(max=255)]
    unknown = palette[labels] != wanted
    if unknown.any():
        found = tuple(int(value) for value in colors[unknown][0])
        raise MaskError(
            f"the color {found} is not in the DAVIS palette, so it names no object: {_HOW_TO_SAVE}"
        )
    return labels.astype(np.uint8)


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise MaskError(f"{path} is not a file; give an indexed PNG")
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.load()
                return image
            found = f"a {image.format} image"
    except Image.UnidentifiedImageError:
        found = "not an image"
    except Image.DecompressionBombError as error:
        raise MaskError(f"{path} is too large for a mask: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise MaskError(f"{path} is broken ({error}); write or copy it again") from error
    raise MaskError(f"{path} is {found}, but a mask is a PNG file: {_HOW_TO_SAVE}")


def _narrow(labels: np.ndarray, path: Path) -> np.ndarray:
    """16-bit and 32-bit grey as uint8."""
    if (highest := int(labels.max())) > VOID:
        raise MaskError(
            f"{path} holds values up to {highest}, but a mask has at most 254 objects, numbered "
            f"1 to 254: {_HOW_TO_SAVE}"
        )
    return labels.astype(np.uint8)


def _explain_colors(image: Image.Image, path: Path) -> str:
    message = (
        f"{path} is an image of mode {image.mode}, but a mask holds one object number per pixel: "
        f"{_HOW_TO_SAVE}"
    )
    try:
        labels = labels_from_colors(np.asarray(image.convert("RGB")))
    except MaskError:
        return message
    objects = ", ".join(str(label) for label in np.unique(labels) if label > 0) or "none"
    return (
        f"{message}; its colors are those of the DAVIS palette (objects: {objects}), so "
        "write_labels(path, labels_from_colors(colors)) in ino.data.label_maps converts it"
    )
