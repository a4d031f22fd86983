"""One mask of a submission: whether it is an indexed PNG of the right size, colours and objects."""

import io
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from ino.data.label_png import davis_palette
from ino.data.ytvos import YtvosVideo
from ino.evaluate.submission_report import SubmissionReport

_YOUTUBE_COLOURS = bytes.fromhex(
    "000000 ec5f67 f99157 fac863 99c794 62b3b2 6699cc c594c5 ab7967 ffffff 65737e"
)
_GREY = bytes(value for value in range(11, 256) for _ in "rgb")
_PALETTES = tuple(
    np.frombuffer(colours, dtype=np.uint8).reshape(256, 3)
    for colours in (davis_palette().tobytes(), _YOUTUBE_COLOURS + _GREY)
)
"""The palette of DAVIS, in which we write, and that of the data set's own annotations."""

_UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError),  # the last: an encrypted entry
    *(zipfile.BadZipFile, zlib.error, Image.DecompressionBombError),
)


def check_mask(
    video: YtvosVideo,
    frame: str,
    read: Callable[[], bytes],
    size: tuple[int, int],
    report: SubmissionReport,
) -> set[int]:
    """The objects of one mask, and at most one fault of it in the report.

    Args:
        video: that the mask belongs to.
        frame: name of the mask's frame.
        read: gives the content of the file.
        size: height and width that the mask must have.
        report: where findings are noted.
    """
    name = f"{video.name}/{frame}.png"
    try:
        with Image.open(io.BytesIO(read())) as image:
            image.load()
    except Image.UnidentifiedImageError:  # its own words name an object of Python, not the file
        report.fault("broken masks", f"{name} is not an image: write it again")
        return set()
    except _UNREADABLE as error:
        report.fault("broken masks", f"{name} cannot be read ({error}): write it again")
        return set()
    found = (image.height, image.width)
    if image.format != "PNG" or image.mode != "P":
        kind = f"a {image.format} image of mode {image.mode}"
        report.fault(
            "not indexed",
            f"{name} is {kind}: expected an indexed PNG (mode P) with an object's number a pixel; "
            "write it with ino.write_labels",
        )
    elif found != size:
        report.fault(
            "another size",
            f"{name} is {found[0]}x{found[1]} (height x width), but the annotation is "
            f"{size[0]}x{size[1]}: resize it by nearest neighbour",
        )
    else:
        return _check_labels(video, frame, image, report)
    return set()


def _check_labels(
    video: YtvosVideo, frame: str, image: Image.Image, report: SubmissionReport
) -> set[int]:
    name = f"{video.name}/{frame}.png"
    labels = [label for label, count in enumerate(image.histogram()) if count]
    objects = [label for label in labels if label > 0]
    if extra := [label for label in objects if label not in video.entries]:
        report.fault(
            "unknown objects",
            f"{name} holds object {extra[0]}, but {video.name} has the objects "
            f"{', '.join(map(str, video.entries))}: leave out all others, void (255) too",
        )
    elif not any(_has_colours(image, labels, palette) for palette in _PALETTES):
        report.fault(
            "another palette",
            f"{name} has neither the palette of DAVIS nor that of YouTube-VOS, so its numbers may "
            "not be those of the objects: write it with ino.write_labels",
        )
    position = video.submitted.index
    early = [label for label in objects if label in video.entries]
    early = [label for label in early if position(frame) < position(video.entries[label])]
    if early:
        report.warn(
            "objects before they enter",
            f"{name} holds object {early[0]}, which enters with frame {video.entries[early[0]]}: "
            "it is not scored before, but its pixels are taken from other objects",
        )
    return set(objects)


def _has_colours(image: Image.Image, labels: list[int], palette: np.ndarray) -> bool:
    """Whether the labels that occur have the colours of the palette."""
    colours = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    return max(labels) < len(colours) and bool((colours[labels] == palette[labels]).all())
