"""The images of a folder as the frames of a video, listed once and remembered.

A sequence is all images of a folder, or those that a pattern such as `frame_%05d.jpg` names. Names
that differ in one running number, as nearly all do, are kept as that number's range: a folder then
takes the same few bytes however many frames it has.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from ino.data.frame_folder import image_size, is_image, list_images
from ino.data.remembered import Remembered
from ino.errors import VideoError

_NUMBER_FORMAT = re.compile(r"%(0\d+)?d")
_LAST_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)
_MOST_REMEMBERED = 1 << 18  # names and folders


class FrameSequence(Sequence[Path]):
    """The images of a video in the order shown, all in one folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._numbered = _as_range(names)
        self._names = None if self._numbered else list(names)
        self._length = len(names)
        self._size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first image, which all others must have.

        Raises:
            VideoError: the first image is broken.
        """
        if self._size is None:
            self._size = image_size(self[0])
        return self._size

    @property
    def num_kept(self) -> int:
        """How many names are held in memory."""
        return 1 if self._names is None else len(self._names)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        if self._names is not None:
            return self._folder / self._names[index]
        assert self._numbered is not None
        before, width, after, numbers = self._numbered
        return self._folder / f"{before}{numbers[index]:0{width}d}{after}"


_sequences: Remembered[FrameSequence] = Remembered(
    most=_MOST_REMEMBERED, weigh=lambda sequence: sequence.num_kept
)


def open_sequence(path: Path) -> FrameSequence | None:
    """The frames of a folder or a pattern; None for what is neither, such as a video file.

    Raises:
        VideoError: the folder cannot be read, or holds no image that fits.
    """
    is_folder = path.is_dir()
    if not is_folder and not is_pattern(path):
        return None
    folder = path if is_folder else path.parent
    try:
        key = (path.absolute(), folder.stat().st_mtime_ns)  # moves when a name comes or goes
    except OSError as error:
        raise VideoError(f"the folder {folder} cannot be read: {error.strerror}") from error
    names = _names_in if is_folder else _matching
    return _sequences.get(key, lambda: FrameSequence(folder, names(path)))


def is_pattern(path: Path) -> bool:
    """Whether a path names numbered images, as `shots/frame_%05d.jpg` does."""
    return (
        is_image(path)
        and len(_NUMBER_FORMAT.findall(path.name)) == 1
        and path.parent.is_dir()
        and not path.exists()
    )


def _names_in(folder: Path) -> list[str]:
    return [image.name for image in list_images(folder)]


def _matching(pattern: Path) -> list[str]:
    """The names that a pattern gives, by number.

    Raises:
        VideoError: there are none.
    """
    before, after = (re.escape(part) for part in _NUMBER_FORMAT.split(pattern.name)[::2])
    number_format = _NUMBER_FORMAT.search(pattern.name)
    assert number_format is not None
    found: dict[int, str] = {}
    for image in list_images(pattern.parent):
        match = re.fullmatch(f"{before}(\\d+){after}", image.name)
        if match and number_format[0] % int(match[1]) == match[1]:
            found[int(match[1])] = image.name
    if not found:
        raise VideoError(
            f"{pattern.parent} holds no image named as {pattern.name}: check the pattern, in which "
            "%05d stands for a number of five digits"
        )
    return [name for _, name in sorted(found.items())]


def _as_range(names: Sequence[str]) -> tuple[str, int, str, range] | None:
    """Before, digits, after and the numbers of names that differ in their last number alone."""
    first, last = (_LAST_NUMBER.fullmatch(name) for name in (names[0], names[-1]))
    if first is None or last is None:
        return None
    before, digits, after = first.groups()
    start, stop = int(digits), int(last[2])
    step = (stop - start) // max(len(names) - 1, 1) or 1
    numbers = range(start, start + step * len(names), step)
    width = len(digits) if digits.startswith("0") or len(digits) == len(last[2]) else 1
    given = (f"{before}{number:0{width}d}{after}" for number in numbers)
    if step < 0 or any(name != expected for name, expected in zip(names, given, strict=True)):
        return None
    return before, width, after, numbers
