"""Images as the frames of a video: a folder of them, a numbered pattern, or the pages of one file.

Frames are uint8 RGB (height, width, 3), upright as EXIF says. A folder is read in natural order; of
several kinds of images in it, the most frequent one holds the frames. Images of more than 8 bits
(microscopes, heat cameras) are scaled by what the values of all frames span, or by a given range.
"""

import io
import logging
import math
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import cv2
import numpy as np
from cachetools import LRUCache, cached
from PIL import Image, ImageOps

from ino.errors import VideoError

Item = TypeVar("Item")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
MAX_PIXELS = 1 << 26
"""Of a frame; a larger one is refused."""

# By content, not by name. Among what else Pillow reads are programs: it hands PostScript to
# Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
_PAGED = frozenset({"TIFF", "WEBP", "PNG", "GIF"})  # a JPEG's second picture is a preview
NOMINAL_FPS = 24.0  # of videos that have no frame rate of their own
_TIMED = frozenset({".webp", ".png"})  # FFmpeg reads GIF
_DESCRIPTION, _SUBFILE_TYPE = 270, 254  # tags of a TIFF's page
_IS_REDUCED = 1  # a bit of the latter: the page is a smaller copy of another one
_PAGED_SUFFIXES = frozenset({".tif", ".tiff", ".webp", ".png"})
_MAX_14_BITS = (1 << 14) - 1
_ALL_OF_16_BITS = (0.0, 65535.0)
_NUMBER_FORMAT = re.compile(r"%(0\d+)?d")
_MAX_CACHED_NAMES = 1 << 18  # of images, of all folders together
_LOG = logging.getLogger("ino")


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image; hidden files are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """The folder's images in natural order: 2.jpg before 10.jpg.

    Where there are several kinds, those of the most frequent one, and a warning names the others.

    Raises:
        VideoError: the folder cannot be read, holds no image, or as many of one kind as of another.
    """
    try:
        images = [path for path in folder.iterdir() if is_image(path)]
    except OSError as error:
        raise VideoError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if not images:
        raise VideoError(
            f"the folder {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}): "
            "give a folder that directly holds a video's frames"
        )
    images.sort(key=lambda path: natural_key(path.name))
    kinds = Counter(_kind(path) for path in images).most_common()
    if len(kinds) > 1:
        (kind, number), (_, second), *_ = kinds
        others = [path.name for path in images if _kind(path) != kind]
        if number == second:
            raise VideoError(
                f"the folder {folder} holds as many {kinds[1][0]} as {kind} images: leave only the "
                "frames of the video in it"
            )
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        _LOG.warning(
            f"{folder} also holds {others[0]}{more}: its frames are the {number} {kind} files"
        )
        images = [path for path in images if _kind(path) == kind]
    return images


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)


def holds_pages(path: Path) -> bool:
    """Whether an image file holds several frames: a TIFF stack or an animation."""
    if path.suffix.lower() not in _PAGED_SUFFIXES:
        return False
    try:
        with _opened(path, path) as image:
            image.seek(1)  # what follows need not be counted
            return image.format in _PAGED
    except (VideoError, OSError):
        return False


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key for names, by which 2.jpg comes before 10.jpg."""
    parts = re.split(r"(\d+)", name)
    # The name itself breaks ties such as 1.jpg and 01.jpg.
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts] + [
        (2, 0, name)
    ]


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, read from its header.

    Raises:
        VideoError: the file is not an image, is broken, or is larger than `MAX_PIXELS`.
    """
    with _opened(path, path) as image:
        is_turned = image.getexif().get(0x0112) in (5, 6, 7, 8)  # EXIF orientation
        return (image.width, image.height) if is_turned else (image.height, image.width)


def read_image(
    path: Path, *, size: tuple[int, int] | None, content: bytes | None = None
) -> np.ndarray:
    """One image of a data set or shard as uint8 RGB (height, width, 3); of 16 bits the upper 8 are
    kept.

    Args:
        path: an image.
        size: height and width that it must have; None for any.
        content: the image's bytes, where they are at hand; `path` then only names them.

    Raises:
        VideoError: the file is not a whole image, is of another size, holds several pages, or uses
            so few of its 16 bits that the upper 8 are nearly black.
    """
    with _opened(path if content is None else io.BytesIO(content), path) as image:
        _check_one_page(image, path)
        if _is_deep(image) and _deep_values(image, path, content, None).max() < 1 << 14:
            raise VideoError(
                f"{path} uses less than 15 of its 16 bits, and how bright its video is as a whole "
                "is not known here: save its frames with 8 bits"
            )
        frame = _upright(image, path, content=content)
    return _of_size(frame, size, path)


def _check_one_page(image: Image.Image, path: Path) -> None:
    if (num_pages := _count_pages(image)) > 1:
        raise VideoError(
            f"{path} holds {num_pages} pages, of which a frame has one: give the file itself as "
            "the video, or each page as a file"
        )


def _upright(
    image: Image.Image,
    path: Path,
    *,
    content: bytes | None = None,
    page: int | None = None,
    span: tuple[float, float] | None = None,
) -> np.ndarray:
    """The open image, at that page, as uint8 RGB; `span` becomes 0 to 255 where it is deep."""
    if _is_deep(image):
        return _scaled(_deep_values(image, path, content, page), span)
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _of_size(frame: np.ndarray, size: tuple[int, int] | None, name: Path | str) -> np.ndarray:
    if size is not None and frame.shape[:2] != size:
        raise VideoError(
            f"{name} is {frame.shape[0]}x{frame.shape[1]}, but the first image is "
            f"{size[0]}x{size[1]}: give images of one size (height x width)"
        )
    return frame


def _count_pages(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in _PAGED else 1


def _is_deep(image: Image.Image) -> bool:
    """Whether an image has more than 8 bits, or real numbers."""
    tiles = getattr(image, "tile", ())
    modes = [image.mode, *(str(tile[3]) for tile in tiles)]
    return image.mode == "F" or image.mode == "I" or any("16" in mode for mode in modes)


def _deep_values(
    image: Image.Image, path: Path, content: bytes | None, page: int | None
) -> np.ndarray:
    """The values as stored, (height, width, 1 or 3), upright."""
    if image.mode != "RGB":
        values = np.asarray(ImageOps.exif_transpose(image))
        return values[..., None] if values.ndim == 2 else values[..., :1]
    # Of colors Pillow reads 8 bits only.
    # Mapped, as a stack of colors may be larger than the memory.
    encoded = (
        np.memmap(path, np.uint8, "r") if content is None else np.frombuffer(content, np.uint8)
    )
    depth = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR
    if page is None:
        values = cv2.imdecode(encoded, depth)
    else:
        _, pages = cv2.imdecodemulti(encoded, depth, range=(page, page + 1))
        values = pages[0]
    if values is None:
        raise ValueError("its colors cannot be decoded")
    return values[..., ::-1]


def _scaled(values: np.ndarray, span: tuple[float, float] | None) -> np.ndarray:
    """Values as uint8 RGB."""
    low, high = span or _ALL_OF_16_BITS
    if (low, high) == _ALL_OF_16_BITS and values.dtype.kind in "ui":
        frame = (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
    else:
        shares = (values.astype(np.float64) - low) / max(high - low, 1e-12)
        frame = np.rint(255 * np.nan_to_num(shares).clip(0, 1)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(frame, (*frame.shape[:2], 3)))


@contextmanager
def _opened(source: Path | io.BytesIO, path: Path) -> Iterator[Image.Image]:
    """An open image. What goes wrong inside, too, is told as a VideoError: on damaged files Pillow
    raises whatever its parsers do."""
    is_open = False
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise VideoError(f"{path} is not a regular file: give an image")
        with Image.open(source, formats=_FORMATS) as image:
            is_open = True
            if image.width * image.height > MAX_PIXELS:
                raise VideoError(
                    f"{path} has {image.height}x{image.width} pixels, more than can be worked on "
                    f"({MAX_PIXELS}): make it smaller"
                )
            yield image
    except VideoError:
        raise
    except OSError as error:
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise  # a fault of the machine, not of the file
        raise _broken(path, error, is_open=is_open) from error
    except Exception as error:
        raise _broken(path, error, is_open=is_open) from error


def _broken(path: Path, error: Exception, *, is_open: bool) -> VideoError:
    reason = " ".join(str(error).split()) or type(error).__name__
    what = "is broken" if is_open else "cannot be read as an image"
    return VideoError(f"{path} {what} ({reason}): copy it again or remove it")


class ImageSequence:
    """The images of a video in the order shown: files of one folder, or the pages of one file.

    Args:
        folder: that holds the files.
        names: of the files.
        pages: the numbers of the pages that are frames, if the video is one file of several.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, pages: Sequence[int] = ()) -> None:
        self.names = names
        self._folder = folder
        self._pages = pages
        self._is_told = False

    def __len__(self) -> int:
        return len(self._pages or self.names)

    def __getitem__(self, index: int) -> Path:
        return self._folder / self.names[0 if self._pages else index]

    def read(
        self, indices: Iterable[int], *, value_range: tuple[float, float] | None = None
    ) -> Iterator[np.ndarray]:
        """Frames by number, uint8 RGB (height, width, 3). A file of pages is opened once, so ask in
        ascending order: animations are decoded from their start.

        Args:
            indices: of the frames.
            value_range: the values that become 0 and 255 in images of more than 8 bits; None for
                `span`.

        Raises:
            VideoError: one is broken or differs in size from the first one.
        """
        span = self.span if value_range is None else value_range
        size = self.size

        def read(image: Image.Image, path: Path, page: int | None) -> np.ndarray:
            frame = _upright(image, path, page=page, span=span)
            return _of_size(frame, size, path if page is None else f"page {page} of {path}")

        return self._each(indices, read)

    def _each(
        self,
        indices: Iterable[int],
        read: Callable[[Image.Image, Path, int | None], Item],
    ) -> Iterator[Item]:
        """What is read of each open image: called with the image, its path and its page."""
        if self._pages:
            with _opened(self[0], self[0]) as image:
                for index in indices:
                    image.seek(self._pages[index])
                    yield read(image, self[0], self._pages[index])
            return
        for index in indices:
            with _opened(self[index], self[index]) as image:
                _check_one_page(image, self[index])
                found = read(image, self[index], None)
            yield found

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the first image, which all others must have.

        Raises:
            VideoError: the first image is broken.
        """
        return image_size(self[0])

    @cached_property
    def fps(self) -> float:
        """Mean frames per second of an animation; 24 of other images, which have no times.

        Raises:
            VideoError: an image is broken.
        """

        def milliseconds(image: Image.Image, path: Path, page: int | None) -> float:
            image.load()
            return float(image.info.get("duration") or 0)

        if self[0].suffix.lower() not in _TIMED or len(self._pages) < 2:
            return NOMINAL_FPS
        total = sum(self._each(range(len(self)), milliseconds))
        return 1000 * len(self) / total if total > 0 else NOMINAL_FPS

    @cached_property
    def is_deep(self) -> bool:
        """Whether the first image has more than 8 bits.

        Raises:
            VideoError: it is broken.
        """
        return any(self._each([0], lambda image, path, page: _is_deep(image)))

    def tell_span(self) -> None:
        """Warns, once, where values are scaled by what all frames span."""
        if not self._is_told and self.span not in (None, _ALL_OF_16_BITS):
            place = self[0] if self._pages else self._folder
            low, high = self.span or _ALL_OF_16_BITS
            _LOG.warning(
                f"the images of {place} have more than 8 bits; their values from {low:g} to "
                f"{high:g} become 0 to 255 in every frame"
            )
        self._is_told = True

    @cached_property
    def span(self) -> tuple[float, float] | None:
        """The values that become 0 and 255 where the first image has more than 8 bits: all of 16
        bits where whole numbers need more than 14 of them and not more than 16, else what the
        values of all frames span.

        Raises:
            VideoError: an image is broken.
        """

        def extremes(
            image: Image.Image, path: Path, page: int | None
        ) -> tuple[float, float, bool] | None:
            if not _is_deep(image):
                return None
            values = _deep_values(image, path, None, page)
            finite = values[np.isfinite(values)]
            if not len(finite):
                return None
            return float(finite.min()), float(finite.max()), values.dtype.kind == "f"

        if not self.is_deep:
            return None
        found = [one for one in self._each(range(len(self)), extremes) if one is not None]
        low = min((low for low, _, _ in found), default=0.0)
        high = max((high for _, high, _ in found), default=0.0)
        is_real = any(is_real for _, _, is_real in found)
        if not is_real and low >= 0 and _MAX_14_BITS < high <= _ALL_OF_16_BITS[1]:
            return _ALL_OF_16_BITS
        if not low < high:  # all alike, or nothing finite
            return (0.0, 1.0)
        return (low, high)


def open_sequence(path: Path) -> ImageSequence | None:
    """The images of a folder, those that a pattern such as `frame_%05d.jpg` names, or the pages of
    a TIFF stack or an animated image; None for anything else, such as a video file. A folder is
    listed again only after it changed.

    Raises:
        VideoError: the folder cannot be read, or holds no image that fits; an image is broken.
    """
    is_folder = path.is_dir()
    is_file = not is_folder and is_image(path) and path.is_file()
    if not (is_folder or is_file or is_pattern(path)):
        return None
    place = path if is_folder or is_file else path.parent
    try:
        changed = place.stat().st_mtime_ns  # moves when a name comes or goes
    except OSError as error:
        raise VideoError(f"the folder {place} cannot be read: {error.strerror}") from error
    return _list_sequence(path, place, changed)


@cached(
    LRUCache(_MAX_CACHED_NAMES, lambda sequence: min(len(sequence), _MAX_CACHED_NAMES)),
    key=lambda path, place, changed: (path.absolute(), changed),
    lock=Lock(),
)
def _list_sequence(path: Path, place: Path, changed: int) -> ImageSequence:
    if path == place and not path.is_dir():
        with _opened(path, path) as image:
            return ImageSequence(path.parent, [path.name], pages=_pages(image, path))
    if path == place:
        return ImageSequence(path, [image.name for image in list_images(path)])
    return ImageSequence(place, _matching(path))


def _pages(image: Image.Image, path: Path) -> list[int]:
    """The numbers of the pages that are frames; smaller copies in a TIFF are none.

    Raises:
        VideoError: the pages are no sequence of frames, by what the file says of itself.
    """
    num_pages = _count_pages(image)
    if image.format != "TIFF":
        return list(range(num_pages))
    tags: Any = image
    _check_stack(str(tags.tag_v2.get(_DESCRIPTION, "")), num_pages, path)
    pages = []
    for page in range(num_pages):
        image.seek(page)
        if not int(tags.tag_v2.get(_SUBFILE_TYPE, 0)) & _IS_REDUCED:
            pages.append(page)
    if num_reduced := num_pages - len(pages):
        _LOG.warning(
            f"{path}: {num_reduced} of its {num_pages} pages are marked as smaller copies of "
            "others and are passed over"
        )
    return pages or [0]


def _check_stack(description: str, num_pages: int, path: Path) -> None:
    """Raises a VideoError where ImageJ or OME tells of pages that are no sequence of frames."""
    sizes: dict[str, str] = {}
    if description.startswith("ImageJ="):
        line = r"^(images|channels|slices|frames)=(\d{1,9})\s*$"
        sizes = dict(re.findall(line, description, re.MULTILINE))
        if (num_images := int(sizes.pop("images", 1))) > num_pages:
            raise VideoError(
                f"{path} tells of {num_images} images but has {num_pages} pages, as ImageJ writes "
                "large stacks: save it as an image sequence (File > Save As > Image Sequence)"
            )
    elif "<OME" in description:
        names = {"C": "channels", "Z": "slices", "T": "frames"}
        found = re.findall(r"""\bSize([CZT])=["'](\d{1,9})["']""", description)[:3]
        sizes = {names[letter]: number for letter, number in found}
    axes = {name: int(number) for name, number in sizes.items() if int(number) > 1}
    if len(axes) > 1 and math.prod(axes.values()) == num_pages:
        told = " and ".join(f"{number} {name}" for name, number in axes.items())
        raise VideoError(
            f"{path} holds {told} in turn, but a video is one image after the other: save a stack "
            "of one channel and one slice"
        )


def is_pattern(path: Path) -> bool:
    """Whether a path names numbered images, as `shots/frame_%05d.jpg` does."""
    return (
        is_image(path)
        and len(_NUMBER_FORMAT.findall(path.name)) == 1
        and path.parent.is_dir()
        and not path.exists()
    )


def _matching(pattern: Path) -> list[str]:
    """The names that a pattern stands for, by number.

    Raises:
        VideoError: there are none.
    """
    number_format = _NUMBER_FORMAT.search(pattern.name)
    assert number_format is not None
    before, after = pattern.name[: number_format.start()], pattern.name[number_format.end() :]
    found: dict[int, str] = {}
    for path in pattern.parent.iterdir():
        match = re.fullmatch(f"{re.escape(before)}(\\d+){re.escape(after)}", path.name)
        if match and number_format[0] % int(match[1]) == match[1]:
            found[int(match[1])] = path.name
    if not found:
        raise VideoError(
            f"{pattern.parent} holds no image named as {pattern.name}: check the pattern, in which "
            "%05d stands for a number of five digits"
        )
    return [name for _, name in sorted(found.items())]
