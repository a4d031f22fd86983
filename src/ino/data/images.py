"""Images as the frames of a video: a folder of them, a numbered pattern, or the pages of one file.

Frames are uint8 RGB (height, width, 3), upright as EXIF says. A folder is read in natural order; of
several kinds of images in it, the most frequent one holds the frames. Images of more than 8 bits
(microscopes, heat cameras) are scaled by what the values of all frames span.
"""

import io
import logging
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
from cachetools import LRUCache, cached
from PIL import Image, ImageOps

from ino.errors import VideoError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
MAX_PIXELS = 1 << 26
"""Of a frame; a larger one is refused."""

_PAGED = frozenset({"TIFF", "WEBP", "PNG", "GIF"})  # a JPEG's second picture is a preview
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
        is_turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation
        return (image.width, image.height) if is_turned else (image.height, image.width)


def read_image(
    path: Path,
    *,
    size: tuple[int, int] | None,
    content: bytes | None = None,
    page: int | None = None,
    span: tuple[float, float] | None = None,
) -> np.ndarray:
    """The image as uint8 RGB (height, width, 3).

    Args:
        path: an image.
        size: height and width that it must have; None for any.
        content: the image's bytes, where they are at hand; `path` then only names them.
        page: of a file of several, from 0; None for a file with one only.
        span: the values that become 0 and 255 in an image of more than 8 bits; None for all of 16
            bits, of which the upper 8 are kept.

    Raises:
        VideoError: the file is not a whole image, is of another size, or holds several pages and
            none is chosen.
    """
    with _opened(path if content is None else io.BytesIO(content), path) as image:
        if page is None and (num_pages := _count_pages(image)) > 1:
            raise VideoError(
                f"{path} holds {num_pages} pages, of which a frame has one: give the file itself "
                "as the video, or each page as a file"
            )
        image.seek(page or 0)
        if _is_deep(image):
            frame = _scaled(_deep_values(image, path, content, page), span)
        else:
            frame = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if size is not None and frame.shape[:2] != size:
        name = path if page is None else f"page {page} of {path}"
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
    encoded = np.frombuffer(path.read_bytes() if content is None else content, np.uint8)
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
        with Image.open(source) as image:
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
    """The images of a video in the order shown: files of one folder, or the pages of one file."""

    def __init__(self, folder: Path, names: Sequence[str], *, num_pages: int = 0) -> None:
        self.names = names
        self._folder = folder
        self._num_pages = num_pages

    def __len__(self) -> int:
        return self._num_pages or len(self.names)

    def __getitem__(self, index: int) -> Path:
        return self._folder / self.names[0 if self._num_pages else index]

    def _page(self, index: int) -> int | None:
        return index if self._num_pages else None

    def read(self, index: int) -> np.ndarray:
        """A frame by number, uint8 RGB (height, width, 3).

        Raises:
            VideoError: it is broken or differs in size from the first one.
        """
        return read_image(self[index], size=self.size, page=self._page(index), span=self.span)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the first image, which all others must have.

        Raises:
            VideoError: the first image is broken.
        """
        return image_size(self[0])

    @cached_property
    def span(self) -> tuple[float, float] | None:
        """The values that become 0 and 255 where the first image has more than 8 bits: what all
        frames span where that is within 14 bits or not whole numbers, else all of 16 bits.

        Raises:
            VideoError: an image is broken.
        """
        low, high, is_real = np.inf, -np.inf, False
        for index in range(len(self)):
            path, page = self[index], self._page(index)
            with _opened(path, path) as image:
                image.seek(page or 0)
                if not _is_deep(image):
                    if index == 0:
                        return None
                    continue
                values = _deep_values(image, path, None, page)
            is_real = is_real or values.dtype.kind == "f"
            finite = values[np.isfinite(values)]
            if len(finite):
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if not is_real and high > _MAX_14_BITS:
            return _ALL_OF_16_BITS
        if not low < high:  # all alike, or nothing finite
            return (0.0, 1.0)
        place = self[0] if self._num_pages else self._folder
        _LOG.warning(
            f"the images of {place} have more than 8 bits; their values from {low:g} to {high:g} "
            "become 0 to 255 in every frame"
        )
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
            return ImageSequence(path.parent, [path.name], num_pages=_count_pages(image))
    if path == place:
        return ImageSequence(path, [image.name for image in list_images(path)])
    return ImageSequence(place, _matching(path))


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
