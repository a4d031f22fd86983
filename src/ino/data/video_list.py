"""Which videos there are: in folders, as single files, and in text files that list them.

No video is opened here: whether one can be read shows when it is.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ino.data.frame_folder import IMAGE_SUFFIXES, is_image
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
    - a text file with a path a line, relative to the text file's folder; what follows the path
      after a space or comma (Kinetics: a label) is left out, and so are lines that begin with #.

    Args:
        roots: folders, video files and lists.

    Raises:
        VideoError: a root is missing or neither of these, or there is no video in all of them.
    """
    found: dict[Path, Path] = {}
    for root in roots:
        for path in _videos_of(root):
            found.setdefault(path.absolute(), path)
    if not found:
        raise VideoError(
            f"no video was found in {', '.join(map(str, roots)) or 'an empty list of roots'}: "
            f"give files with {_listed(VIDEO_SUFFIXES)}, or folders that directly hold images "
            f"({_listed(IMAGE_SUFFIXES)})"
        )
    return [path for _, path in sorted(found.items())]


def _videos_of(root: Path) -> Iterator[Path]:
    if root.is_dir():
        return _walk(root)
    if not root.exists():
        raise VideoError(f"{root} does not exist: give a folder, a video, or a list of videos")
    if is_video(root):
        return iter([root])
    return _read_list(root)


def _walk(root: Path) -> Iterator[Path]:
    visited: set[str] = set()
    for folder_name, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder_name)
        if real in visited:  # a link to a folder above
            subfolders.clear()
            continue
        visited.add(real)
        # Sorted: of a folder that is reached twice, the same path is kept on every machine.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        folder = Path(folder_name)
        paths = [folder / file for file in files]
        videos = [path for path in paths if _is_video_file(path)]
        yield from videos
        if not videos and sum(map(is_image, paths)) > 1:
            yield folder


def _is_video_file(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


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
