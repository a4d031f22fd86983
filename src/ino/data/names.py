"""The lists of data sets, and the gate for every name that comes out of a file.

A name in a list, a meta.json, a zip or a tar file becomes part of a path that is read and written.
"""

import os
import unicodedata
from functools import lru_cache
from pathlib import Path

from ino.errors import DatasetError
from ino.system import read_file

_MAX_BYTES = 255  # of a name, on every common file system
_CONTROL = ("Cc", "Zl", "Zp")  # Unicode's categories of control characters and line separators


def check_name(name: str, *, source: Path | str) -> str:
    """The name, if it is one: of one file or folder, which lies directly in the folder it is for.

    Args:
        name: what stands in the file.
        source: the file that it comes from, for the message.

    Raises:
        DatasetError: it is empty, `.`, `..`, a path, too long, no text, or holds a separator or a
            control character.
    """
    if not _is_name(name):
        shown = repr(name) if len(name) <= 80 else f"{name[:80]!r}..."
        raise DatasetError(
            f"{source} holds {shown}, which is not the name of one file or folder: names hold no "
            "path, no / or \\, no control character and at most 255 bytes"
        )
    return name


@lru_cache(1 << 14)  # frames of many videos bear the same names
def _is_name(name: str) -> bool:
    try:
        num_bytes = len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    return (
        name not in ("", "..")
        and name == Path(name).name
        and "\\" not in name
        and num_bytes <= _MAX_BYTES
        and not any(unicodedata.category(letter) in _CONTROL for letter in name)
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a list that hold something, without spaces around them.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        text = read_file(path).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DatasetError(f"the list {path} cannot be read: {error.strerror}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
