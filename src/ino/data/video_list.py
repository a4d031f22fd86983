"""Which videos there are: in folders, as single files, and in text files that list them.

No video is opened here: whether one can be read shows when it is.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ino.data.frame_folder import IMAGE_SUFFIXES
from ino.data.frame_sequence import is_pattern
from ino.data.video import VIDEO_SUFFIXES, is_video
from ino.errors import VideoError

_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES))
# A video's name may hold spaces and commas; a label after it is set off by one.
_NAME_AND_LABEL = re.compile(rf"(.+?(?:{_SUFFIXES}))(?:[\s,].*)?", re.IGNORECASE)


def find_videos(roots: Sequence[Path]) -> list[Path]:
    """Every video of the roots, once each, sorted by path.

    A root is one of
    - a folder: its video files and those of its subfolders; a folder that directly holds two or
      more images and no video file is one video (YouTube-VOS: JPEGImages/<video>/*.jpg). Hidden
      files and folders are left out, links are followed;
    - a video file;
    - a pattern of images: shots/frame_%05d.jpg;
    - a text file with a path a line, relative to the text file's folder; what follows the path
      after a space or comma (Kinetics: a label) is left out, and so are lines that begin with #.

    Args:
        roots: folders, video files, patterns and lists.

    Raises:
        VideoError: a root is missing or neither of these, a folder cannot be read, or there is no
            video in all of them.
    """
    return [Path(name) for name in find_names(roots)]


def find_names(roots: Sequence[Path]) -> list[str]:
    """As `find_videos`, as text: a tenth of the memory where there are very many."""
    found: dict[str, str] = {}
    for root in roots:
        for name in _videos_of(root):
            found.setdefault(os.path.abspath(name), name)
    if not found:
        raise VideoError(
            f"no video was found in {', '.join(map(str, roots)) or 'an empty list of roots'}: "
            f"give files with {_listed(VIDEO_SUFFIXES)}, or folders that directly hold images "
            f"({_listed(IMAGE_SUFFIXES)})"
        )
    # Folder by folder, as paths compare.
    return [found[name] for name in sorted(found, key=lambda name: name.split(os.sep))]


def _videos_of(root: Path) -> Iterator[str]:
    if root.is_dir():
        return _walk(root)
    if is_pattern(root):
        return iter([str(root)])
    if not root.exists():
        raise VideoError(f"{root} does not exist: give a folder, a video, or a list of videos")
    if is_video(root):
        return iter([str(root)])
    return map(str, _read_list(root))


def _walk(root: Path) -> Iterator[str]:
    visited: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder above
            subfolders.clear()
            continue
        visited.add(real)
        # Sorted: of a folder that is reached twice, the same path is kept on every machine.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        videos = [file for file in files if _has_suffix(file, VIDEO_SUFFIXES)]
        yield from (os.path.join(folder, file) for file in videos)
        if not videos and sum(_has_suffix(file, IMAGE_SUFFIXES) for file in files) > 1:
            yield folder


def _refuse(error: OSError) -> NoReturn:
    raise VideoError(
        f"the folder {error.filename} cannot be read ({error.strerror}): allow it, or name only "
        "the folders that can be read"
    ) from error


def _has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes


def _read_list(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VideoError(
            f"{path} is neither a video ({_listed(VIDEO_SUFFIXES)}) nor a text file that lists "
            "videos: give one of these or a folder"
        ) from error
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            match = _NAME_AND_LABEL.fullmatch(line)
            yield path.parent / (match[1] if match else re.split(r"[\s,]", line)[0])


def _listed(suffixes: frozenset[str]) -> str:
    return " ".join(sorted(suffixes))
