"""Masks in: what `--mask` names or types becomes one label map per annotated frame of a video.

`read_annotations` finds the frame of each mask (by the name of its file, else by number), gives
each object one number in all files, and keeps the names of objects. Files are read by
`ino.data.annotation_formats`. Boxes and points are no masks yet: they are returned as `Prompt`s,
which `ino.tasks.masks.read_masks` turns into masks by looking at the frames.
"""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from ino.data.annotation_formats import MAX_MEMORY, Drawing, read_drawings
from ino.data.label_maps import BACKGROUND, VOID, clean_name, object_areas
from ino.data.rle import Size, check_points, fill_polygons
from ino.data.video import frame_names, read_info, video_name
from ino.errors import MaskError

_LOG = logging.getLogger("ino")


@dataclass(frozen=True)
class Prompt:
    """A box or points that show where an object is in a frame.

    Attributes:
        frame: number of the frame, from 0.
        label: number of the object.
        box: left, top, right and bottom in pixels, right and bottom exclusive; None: points only.
        points: x, y in pixels, and whether the object is there (False: it is not).
    """

    frame: int
    label: int
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float, bool], ...] = ()


@dataclass(frozen=True)
class Annotations:
    """The given masks of a video.

    Attributes:
        labels: label map by number of the frame, from 0.
        names: of objects by their number; objects without a name are missing.
        sources: by number of the frame, the file or text that it comes from.
        prompts: boxes and points that are no masks yet.
    """

    labels: dict[int, UInt8[np.ndarray, "height width"]]
    names: dict[int, str]
    sources: dict[int, str]
    prompts: tuple[Prompt, ...] = ()


def read_annotations(
    given: Sequence[str], video: Path | str, *, resize: bool = False
) -> Annotations:
    """The masks that texts as of `ino segment --mask` name.

    Each is a file, a folder of files named as frames, or typed: `box=x0,y0,x1,y1`,
    `polygon=x0,y0,x1,y1,...` or `points=x,y,...` in pixels, where a minus before x says that the
    object is not there. `FRAME=` before it says for which frame it is. `NAME:` before `box` and so
    on names the object (or is its number); without it, each typed object of a frame is another one.

    Args:
        given: at least one text.
        video: the video that the masks are of.
        resize: fit masks of another size to the video.

    Returns:
        The annotations, by number of the frame.

    Raises:
        MaskError: something cannot be read, belongs to no frame of the video, or two files are for
            one frame; an object is one of more than 254; a mask has another size than the video.
        VideoError: the video cannot be read.
    """
    video = Path(video)
    info = read_info(video)
    frames = _Frames(frame_names(video), info.num_frames, video_name(video))
    found: list[_Placed] = []
    typed: list[_Placed] = []
    for text in given:
        if (drawing := _typed(text, frames)) is not None:
            typed.append(_Placed(text, drawing.frame, drawing))  # type: ignore[arg-type]
        else:
            of_file = _of_file(text, frames)
            _check_twice(found, of_file, frames)
            found += of_file
    numbers = _Numbers()
    for source in dict.fromkeys(one.source for one in found):
        numbers.add_file([one for one in found if one.source == source])
    numbers.add_file(typed)
    return _assembled([*found, *typed], numbers, (info.height, info.width), resize=resize)


@dataclass(frozen=True)
class _Placed:
    """A drawing with the number of its frame."""

    source: str
    frame: int
    drawing: Drawing


# Which frame


class _Frames:
    """The frames of a video, found by name or number."""

    def __init__(self, names: Sequence[str] | None, num_frames: int, video: str) -> None:
        self.names, self.num_frames, self.video = names, num_frames, video
        self._by_name = {name: index for index, name in enumerate(names or ())}
        by_number: dict[int | None, list[int]] = defaultdict(list)
        for index, name in enumerate(names or ()):
            by_number[_last_number(name)].append(index)
        self._by_number = by_number

    def shown(self, index: int) -> str:
        """What a frame is called in messages."""
        return self.names[index] if self.names is not None else str(index)

    def known(self, frame: str) -> bool:
        """Whether a text is a frame's name or a number."""
        return frame.isdecimal() or frame in self._by_name

    def find(self, frame: str, *, of: str) -> int:
        """The position of the frame of that name or number.

        Raises:
            MaskError: there is none.
        """
        if frame in self._by_name:
            return self._by_name[frame]
        number = int(frame) if frame.isdecimal() else _last_number(frame)
        if self.names is None:
            if number is None:
                raise MaskError(
                    f"{of} is for frame {frame}, but the frames of a video file have numbers only: "
                    f"give FRAME={of}"
                )
            return number
        if number is not None and len(self._by_number[number]) == 1:
            index = self._by_number[number][0]
            if not frame.isdecimal():
                _LOG.warning(f"{of}: {frame} is frame {self.names[index]} by its number")
            return index
        raise MaskError(
            f"{of} is for frame {frame}, but the video has no frame of that name: its frames are "
            f"{self.names[0]} to {self.names[-1]}"
        )


def _last_number(name: str) -> int | None:
    digits = re.search(r"(\d+)\D*$", name)
    return int(digits[1]) if digits and len(digits[1]) < 19 else None


def _of_file(text: str, frames: _Frames) -> list[_Placed]:
    """The drawings of a file or folder, each at its frame."""
    frame, separator, name = text.rpartition("=")
    if not text or (separator and not name):
        raise MaskError(f"--mask {text!r} names no file: give FILE, FRAME=FILE or a folder")
    if separator and frames.known(frame):
        return _from_frame_on(Path(name), frames.find(frame, of=text), text)
    path = Path(text)
    drawings = read_drawings(path)
    if not drawings:
        raise MaskError(f"{path} holds no object")
    if path.is_dir() and frames.names is None:
        drawings = [one for one in drawings if _stem_of(one.frame).isdecimal()] or drawings
    drawings = _of_this_video(drawings, frames, path)
    is_single = not path.is_dir() and len({one.frame for one in drawings}) == 1
    placed = []
    for one in drawings:
        if isinstance(one.frame, int):
            index = one.frame
            if frames.names is not None and index >= len(frames.names):
                raise MaskError(f"{path} is for frame {index}, but there are {len(frames.names)}")
        elif is_single:
            index = _frame_of_one(one, path, frames)
        else:
            index = frames.find(_stem_of(one.frame), of=f"{path} ({one.frame})")
        placed.append(_Placed(str(path), index, one))
    return placed


def _from_frame_on(path: Path, start: int, text: str) -> list[_Placed]:
    """The drawings of a file for one frame, or of a stack whose first page is for it."""
    drawings = read_drawings(path)
    if not drawings:
        raise MaskError(f"{path} holds no object")
    if len({one.frame for one in drawings}) == 1:
        return [_Placed(str(path), start, one) for one in drawings]
    if not all(isinstance(one.frame, int) for one in drawings):
        raise MaskError(f"{text} is for one frame, but {path} names several: give {path} alone")
    return [_Placed(str(path), start + int(one.frame or 0), one) for one in drawings]


def _stem_of(frame: int | str | None) -> str:
    """The name of a frame without folders and suffix."""
    name = re.split(r"[\\/]", str(frame))[-1]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and stem and not suffix.isdecimal() else name


def _frame_of_one(drawing: Drawing, path: Path, frames: _Frames) -> int:
    """The frame of a file with one frame: the one of its name, else of its number, else the first.

    Numbers inside the name of a picture, such as mask2.png, may mean anything and are not used.
    """
    is_picture = drawing.frame in (None, path.name)
    name = path.stem if drawing.frame is None else _stem_of(drawing.frame)
    if frames.names is not None and (name in frames.names or not is_picture):
        return frames.find(name, of=str(path))
    number = int(name) if name.isdecimal() else None if is_picture else _last_number(name)
    if frames.names is not None or number is None:
        return 0
    if frames.num_frames and number >= frames.num_frames:
        _LOG.warning(
            f"{path} is taken for frame 0, as the video has no frame {number}; give FRAME={path} "
            "for another one"
        )
        return 0
    return number


def _of_this_video(drawings: list[Drawing], frames: _Frames, path: Path) -> list[Drawing]:
    """Without those of other videos, which are told apart by the folders of their frames."""
    folders = defaultdict(list)
    for one in drawings:
        folders[one.folder].append(one)
    if len(folders) == 1:
        return drawings
    if frames.video in folders:
        others = len(folders) - 1
        _LOG.warning(f"{path} also has frames of {others} other videos, which are left out")
        return folders[frames.video]
    few = ", ".join(sorted(folder or "no folder" for folder in folders)[:5])
    raise MaskError(
        f"{path} has frames of several videos ({few}), but none of them is called {frames.video}"
    )


def _check_twice(found: Sequence[_Placed], more: Sequence[_Placed], frames: _Frames) -> None:
    """Refuses a frame that two files are for, or two names in one file."""
    sources = {one.frame: one.source for one in found}
    named: dict[int, int | str | None] = {}
    for one in more:
        first = named.setdefault(one.frame, one.drawing.frame)
        before = sources.get(one.frame) or (f"{first} in {one.source}")
        if one.frame in sources or first != one.drawing.frame:
            now = one.source if one.frame in sources else one.drawing.frame
            raise MaskError(
                f"{before} and {now} are both for frame {frames.shown(one.frame)}; give one"
            )


# What is typed


_TYPED = re.compile(r"(?:(?P<frame>[^=]+)=)?(?:(?P<name>[^=:]+):)?(?P<kind>box|polygon|points)=")


def is_typed(text: str) -> bool:
    """Whether a text of --mask types a box, polygon or points, and names no file."""
    return _TYPED.match(text) is not None


def _typed(text: str, frames: _Frames) -> Drawing | None:
    """The drawing that a text such as `40=dog:box=10,20,80,90` types; None if it names a file."""
    match = _TYPED.match(text)
    if match is None or (match["frame"] and not frames.known(match["frame"])):
        return None
    kind, rest = match["kind"], text[match.end() :]
    numbers = [part for part in re.split(r"[,;\s]+", rest) if part]
    try:
        values = [float(part) for part in numbers]
    except ValueError:
        values = []
    least = {"box": 4, "polygon": 6, "points": 2}[kind]
    if (
        len(values) < least
        or len(values) % 2
        or (kind == "box" and len(values) > 4)
        or not all(map(math.isfinite, values))
    ):
        forms = {
            "box": "box=LEFT,TOP,RIGHT,BOTTOM",
            "polygon": "polygon=X,Y,X,Y,X,Y,...",
            "points": "points=X,Y,... (-X,Y where the object is not)",
        }
        raise MaskError(f"--mask {text[:80]!r} is not understood: give {forms[kind]} in pixels")
    name = match["name"] or ""
    number = int(name) if name.isdecimal() and len(name) < 4 else None
    made = partial(
        Drawing,
        frame=0 if match["frame"] is None else frames.find(match["frame"], of=text),
        name=name if number is None else "",
        # A name or number means one object; each object without a name is another one.
        key=("typed", name) if name else None,
        number=number,
    )
    pairs = list(zip(values[::2], values[1::2], strict=True))
    if kind == "polygon":
        return made(draw=partial(fill_polygons, [np.array(pairs)]))
    if kind == "box":
        (x0, y0), (x1, y1) = pairs
        if x0 >= x1 or y0 >= y1:
            raise MaskError(
                f"--mask {text!r} is no box: left must be less than right and top than bottom"
            )
        return made(box=(x0, y0, x1, y1))
    signs = [not part.startswith("-") for part in numbers[::2]]
    return made(
        points=tuple((abs(x), y, is_object) for (x, y), is_object in zip(pairs, signs, strict=True))
    )


# Which object


class _Numbers:
    """One number for each object in all files, 1 to 254, and its name.

    A number that a file has is kept where possible; objects of one name are one object, the second
    of that name in a frame is the second of that name everywhere.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._used: set[int] = set()
        self._of: dict[int, int] = {}

    def of(self, placed: _Placed) -> int:
        """The number of a drawing's object."""
        return self._of[id(placed.drawing)]

    def add_file(self, found: Sequence[_Placed]) -> None:
        """Numbers the objects of a file; those of label maps keep their numbers."""
        for one in found:
            if one.drawing.labels is not None:
                for label in object_areas(one.drawing.labels):
                    self._used.add(label)
                    if name := clean_name(one.drawing.names.get(label, "")):
                        self.names.setdefault(label, name)
        objects = [one for one in found if one.drawing.labels is None]
        wanted = {one.drawing.number for one in objects}
        here: dict[Hashable, int] = {}
        seen: dict[tuple[int, str], int] = defaultdict(int)
        changed: dict[int, int] = {}
        for one in objects:
            drawing, key = one.drawing, one.drawing.key
            if key is None:
                name = clean_name(drawing.name)
                place = (one.frame, name)
                key = ("name", name, seen[place])
                seen[place] += 1
            if key not in here:
                here[key] = self._choose(drawing, here, wanted)
                if drawing.number is not None and drawing.number != here[key]:
                    changed[drawing.number] = here[key]
            self._of[id(drawing)] = here[key]
        if changed:
            few = ", ".join(f"{old} is object {new}" for old, new in list(changed.items())[:5])
            more = " and so on" if len(changed) > 5 else ""
            _LOG.warning(f"{found[0].source} has its own numbers of objects: {few}{more}")

    def _choose(
        self, drawing: Drawing, here: Mapping[Hashable, int], wanted: set[int | None]
    ) -> int:
        name, taken = clean_name(drawing.name), set(here.values())
        same = [number for number in sorted(self._used) if self.names.get(number, "") == name]
        own = [drawing.number] if drawing.number is not None else []
        for number in [*own, *same]:
            fits = not name or self.names.get(number, name) == name
            if BACKGROUND < number < VOID and number not in taken and fits:
                break
        else:
            free = (
                number
                for number in range(1, VOID)
                if number not in self._used and number not in wanted and number not in taken
            )
            number = next(free, None) or next(
                (one for one in range(1, VOID) if one not in self._used | taken), None
            )
            if number is None:
                raise MaskError("there are more than 254 objects, but a mask has at most 254")
        self._used.add(number)
        if name:
            self.names[number] = name
        return number


# One label map per frame


def _assembled(
    placed: Sequence[_Placed], numbers: _Numbers, size: Size, *, resize: bool
) -> Annotations:
    if len({one.frame for one in placed}) * size[0] * size[1] > MAX_MEMORY:
        raise MaskError(
            f"the masks of all frames need more than {MAX_MEMORY >> 30} GiB: give fewer"
        )
    labels: dict[int, np.ndarray] = {}
    sources: dict[int, str] = {}
    boxes: dict[tuple[int, int], tuple[float, float, float, float]] = {}
    points: dict[tuple[int, int], list[tuple[float, float, bool]]] = defaultdict(list)
    for one in placed:
        drawing = one.drawing
        given = drawing.size or size
        if given != size and not resize:
            raise MaskError(
                f"the mask of frame {one.frame} is {given[0]}x{given[1]} but the frames are "
                f"{size[0]}x{size[1]} (height x width); give a mask of the video's size "
                "(ino segment resizes it with --resize-mask)"
            )
        text = sources.get(one.frame, one.source)
        sources[one.frame] = text if one.source in text.split(" + ") else f"{text} + {one.source}"
        if drawing.labels is not None:
            labels[one.frame] = _fit(drawing.labels, size)
            continue
        label = numbers.of(one)
        if drawing.draw is not None:
            with _telling(one.source):
                mask = drawing.draw(given)
            canvas = labels.setdefault(one.frame, np.zeros(size, dtype=np.uint8))
            canvas[_fit(mask.astype(np.uint8), size) > 0] = label
            continue
        scale = np.array([size[1] / given[1], size[0] / given[0]])
        if drawing.is_relative:
            scale = np.array([size[1], size[0]], dtype=float)
        place = (one.frame, label)
        if drawing.box is not None:
            if place in boxes:
                raise MaskError(f"{one.source}: object {label} has two boxes in frame {one.frame}")
            boxes[place] = _fitted_box(drawing.box, scale, size, of=one.source)
        if drawing.points:
            points[place] += _fitted_points(drawing.points, scale, size, of=one.source)
    prompts = tuple(
        Prompt(*place, boxes.get(place), tuple(points.get(place, ())))
        for place in sorted({*boxes, *points})
    )
    frames = sorted({*labels, *(prompt.frame for prompt in prompts)})
    return Annotations(
        {frame: labels.get(frame, np.zeros(size, dtype=np.uint8)) for frame in frames},
        dict(sorted(numbers.names.items())),
        dict(sorted(sources.items())),
        prompts,
    )


@contextmanager
def _telling(source: str) -> Iterator[None]:
    """Errors inside say where the drawing is from."""
    try:
        yield
    except MaskError as error:
        raise MaskError(f"{source}: {error}") from error


def _fit(labels: np.ndarray, size: Size) -> Any:
    """A copy of a label map of height x width `size`, by nearest neighbor."""
    if labels.shape == size:
        return labels.copy()
    return cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def _fitted_box(
    box: tuple[float, float, float, float], scale: np.ndarray, size: Size, *, of: str
) -> tuple[float, float, float, float]:
    corners = np.array(box, dtype=float).reshape(2, 2) * scale
    with _telling(of):
        check_points(corners, size)
    (x0, y0), (x1, y1) = corners.clip(0, [size[1], size[0]]).tolist()
    if x1 <= x0 or y1 <= y0:
        raise MaskError(f"{of}: the box lies outside of the frame of {size[0]}x{size[1]}")
    return x0, y0, x1, y1


def _fitted_points(
    points: Sequence[tuple[float, float, bool]], scale: np.ndarray, size: Size, *, of: str
) -> list[tuple[float, float, bool]]:
    fitted = []
    for x, y, is_object in points:
        x, y = x * scale[0], y * scale[1]
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise MaskError(
                f"{of}: the point {x:g},{y:g} lies outside of the frame of {size[0]}x{size[1]} "
                "(height x width)"
            )
        fitted.append((x, y, is_object))
    return fitted
