"""A folder that directly holds images, read as a video: one frame an image, sorted naturally.

Its frame rate is nominal: images carry no time.
"""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ino.errors import VideoError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image; hidden files are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """The folder's images in natural order: 2.jpg before 10.jpg.

    Raises:
        VideoError: the folder cannot be read or holds no image.
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
    return sorted(images, key=lambda path: natural_key(path.name))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, read from its header.

    Raises:
        VideoError: the file is not an image, or is broken.
    """
    with _open(path, path) as image:
        try:
            is_turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation
        except (OSError, SyntaxError, ValueError) as error:  # a PNG is read to its end for it
            raise _broken(path, error) from error
        return (image.width, image.height) if is_turned else (image.height, image.width)


def read_image(
    path: Path, *, size: tuple[int, int] | None, content: bytes | None = None
) -> np.ndarray:
    """The image as uint8 RGB (height, width, 3); 16-bit images keep their upper 8 bits.

    Args:
        path: an image.
        size: height and width that it must have; None for any.
        content: the image's bytes, where they are at hand; `path` then only names them.

    Raises:
        VideoError: the file is not a whole image or is of another size.
    """
    with _open(path if content is None else io.BytesIO(content), path) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # `convert` would saturate it
                grey = (np.asarray(upright) >> 8).astype(np.uint8)
                frame = np.repeat(grey[..., None], 3, axis=2)
            else:
                frame = np.array(upright.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _broken(path, error) from error
    if size is not None and frame.shape[:2] != size:
        raise VideoError(
            f"{path} is {frame.shape[0]}x{frame.shape[1]}, but the folder's first image is "
            f"{size[0]}x{size[1]}: give images of one size (height x width)"
        )
    return frame


def _broken(path: Path, error: Exception) -> VideoError:
    return VideoError(f"{path} is broken ({error}): copy the image again")


def _open(source: Path | io.BytesIO, path: Path) -> Image.Image:
    try:
        return Image.open(source)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"{path} cannot be read as an image: copy it again or remove it"
        ) from error


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """What to sort names by so that 2.jpg comes before 10.jpg."""
    parts = re.split(r"(\d+)", name)
    # The name itself breaks ties such as 1.jpg and 01.jpg.
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts] + [
        (2, 0, name)
    ]
