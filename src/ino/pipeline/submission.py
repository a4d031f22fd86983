"""Masks packed into the zip file that the server of YouTube-VOS takes."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from ino.data.ytvos import YtvosVideo
from ino.errors import OutputError
from ino.evaluate.submission import TOP
from ino.files import atomic_path

_DATE = (1980, 1, 1, 0, 0, 0)


def pack_submission(predictions: Path, videos: Iterable[YtvosVideo], path: Path) -> int:
    """Writes `Annotations/<video>/<frame>.png` for every frame that is asked for, and counts them.

    The same masks always give the same bytes: order and dates are fixed, and PNG files are stored
    as they are, for they are compressed already. Files that are not asked for stay out.

    Args:
        predictions: folder with a folder a video.
        videos: in the order of the file.
        path: of the zip file, which appears whole or not at all; an older one is replaced.

    Raises:
        OutputError: a mask is missing or the file cannot be written.
    """
    count = 0
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for video in videos:
            for frame in video.submitted:
                mask = predictions / video.name / f"{frame}.png"
                if not mask.is_file():
                    raise OutputError(f"cannot write {path}: {mask} is missing; predict it first")
                entry = zipfile.ZipInfo(f"{TOP}/{video.name}/{frame}.png", date_time=_DATE)
                entry.external_attr = 0o644 << 16
                packed.writestr(entry, mask.read_bytes())
                count += 1
    return count
