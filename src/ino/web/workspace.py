"""A workspace: the folder that holds all that is known of one video of `ino web`.

    workspace.json           the video, its objects with their colors, what the page showed last
    drawings/00000.png       the masks that somebody drew, as indexed PNG
    masks/ settings.json     what `segment_video` writes: the folder is a result folder, too; what
                             it stores of the masks it was given is of the last run, while drawings
                             go on meanwhile
    video.mp4                the video, if it was uploaded

Every change is on disk before it is answered, and files appear whole or not at all, so a server
that is killed continues where it was. Frames are decoded by number when they are asked for; a
video is never held whole.
"""

import csv
import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Annotated, Literal

import cv2
import numpy as np
from cachetools import LRUCache
from pydantic import Field, StringConstraints

from ino.data.images import IMAGE_SUFFIXES, MAX_PIXELS, open_sequence
from ino.data.label_maps import (
    VOID,
    introducing_frames,
    object_areas,
    read_raw_labels,
    write_labels,
)
from ino.data.video import (
    VIDEO_SUFFIXES,
    count_frames,
    frame_names,
    is_video,
    read_clip,
    read_info,
)
from ino.errors import ConfigError, InoError, MaskError, VideoError
from ino.schema import Model, checked, read_json
from ino.system import write_text

MAX_OBJECTS = 254
COLORS = (
    *("#ff5a5f", "#2ec4b6", "#ffbf3f", "#5b8dff", "#c77dff", "#7bd651"),
    *("#ff8fab", "#4cc9f0", "#f4845f", "#b8c0ff", "#e0e04f", "#9d7b5e"),
)
"""Of the objects in turn; they differ in hue and lightness."""

STACK_SUFFIXES = frozenset({".tif", ".tiff", ".png", ".webp"})
"""Images that may hold a page for each frame."""

DOUBTFUL = 0.5
"""Frames whose certainty is lower are marked."""

_STATE = "workspace.json"
_JPEG_QUALITY = 90
_CACHE_BYTES = 96 << 20
_BLOCK_PIXELS = 16 * 480 * 854
"""Frames decoded together have about so many pixels."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]


class VideoObject(Model):
    """An object that is followed."""

    id: int = Field(ge=1, le=MAX_OBJECTS)
    name: Text
    color: str = Field(pattern="^#[0-9a-f]{6}$")


class View(Model):
    """What the page showed last."""

    frame: Annotated[int, Field(ge=0)] = 0
    opacity: Annotated[float, Field(ge=0, le=1)] = 0.5
    quality: Annotated[str, Field(max_length=20)] = ""  # what the server proposes
    first: Annotated[int, Field(ge=0)] = 0
    last: Annotated[int, Field(ge=0)] | None = None  # to the end


class State(Model):
    """What stands in workspace.json.

    Attributes:
        video: the file or folder; relative to the workspace if it lies in it.
        title: what the page calls it.
        run: how the last run ended; "running" if it did not.
        is_changed: whether masks were drawn after the last run began.
    """

    video: str
    title: Text
    num_frames: int = Field(ge=1)
    fps: float = Field(gt=0)
    height: int
    width: int
    objects: list[VideoObject]
    view: View = View()
    run: Literal["never", "running", "done", "stopped", "failed"] = "never"
    is_changed: bool = False


class Workspace:
    """One folder; see the module. Safe for several threads."""

    def __init__(self, folder: Path) -> None:
        """Opens a workspace.

        Raises:
            ConfigError: the folder holds none.
        """
        self.folder = folder
        self._lock = Lock()
        self._state = self._read()
        self._names = frame_names(self.video) if self.video.is_dir() else None
        self._objects_of: dict[int, tuple[int, frozenset[int]]] = {}
        self._numbers = {self.file_name(n): n for n in range(self._state.num_frames)}

    @property
    def id(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def state(self) -> State:
        """What is on disk."""
        return self._state

    @property
    def video(self) -> Path:
        """The video file or the folder of images."""
        return self.folder / self._state.video  # an absolute path stays as it is

    def change(self, **fields: object) -> None:
        """Replaces fields of the state, on disk first."""
        with self._lock:
            state = self._state.model_copy(update=fields)
            write_text(self.folder / _STATE, state.model_dump_json(indent=2) + "\n")
            self._state = state

    def file_name(self, number: int) -> str:
        """The name of a frame's mask, as `segment_video` calls it."""
        return f"{number:05d}.png" if self._names is None else f"{self._names[number]}.png"

    def annotated(self) -> list[int]:
        """The numbers of the frames that somebody drew on, ascending."""
        return self._numbers_in("drawings")

    def followed(self) -> list[int]:
        """The numbers of the frames whose masks were propagated, ascending."""
        return self._numbers_in("masks")

    def _numbers_in(self, folder: str) -> list[int]:
        try:
            names = os.listdir(self.folder / folder)  # noqa: PTH208 - ten thousand names
        except FileNotFoundError:
            return []
        return sorted(self._numbers[name] for name in names if name in self._numbers)

    def check_number(self, number: int) -> None:
        """Raises a VideoError if the video has no frame of this number."""
        last = self._state.num_frames - 1
        if not 0 <= number <= last:
            raise VideoError(f"the video has frames 0 to {last}, but frame {number} was asked for")

    def labels(self, number: int) -> tuple[np.ndarray, str]:
        """The label map of a frame, and where it is from: drawn, followed or none.

        Where a drawing only introduces objects, the others are as followed.
        """
        self.check_number(number)
        drawn, followed = self._labels_in("drawings", number), self._labels_in("masks", number)
        if drawn is not None:
            drawings = self._drawn_objects()
            if followed is not None and number in introducing_frames(drawings):
                others = np.where(np.isin(followed, list(drawings[number])), np.uint8(0), followed)
                drawn = np.where(drawn > 0, drawn, others)
            return drawn, "drawn"
        if followed is not None:
            return followed, "followed"
        return np.zeros((self._state.height, self._state.width), dtype=np.uint8), "none"

    def _labels_in(self, folder: str, number: int) -> np.ndarray | None:
        path, size = self.folder / folder / self.file_name(number), self._state
        if not path.is_file():
            return None
        labels = read_raw_labels(path)
        if labels.shape != (size.height, size.width):
            raise MaskError(
                f"{path} is {labels.shape[0]}x{labels.shape[1]}, but the frames are "
                f"{size.height}x{size.width}: delete it"
            )
        return np.where(labels == VOID, np.uint8(0), labels)

    def drawings(self) -> dict[int, np.ndarray]:
        """The drawn label maps by the numbers of their frames."""
        found = {number: self._labels_in("drawings", number) for number in self.annotated()}
        return {number: labels for number, labels in found.items() if labels is not None}

    def absent(self) -> dict[int, list[int]]:
        """The objects that count as not visible in a drawn frame, because they are drawn elsewhere
        and not there; by the number of the frame."""
        drawings = self._drawn_objects()
        everywhere = set().union(*drawings.values())
        return {
            number: sorted(missing)
            for number in sorted(drawings.keys() - introducing_frames(drawings))
            if (missing := everywhere - drawings[number])
        }

    def _drawn_objects(self) -> dict[int, frozenset[int]]:
        """The objects of each drawing; a file is read again where it changed."""
        kept, found = self._objects_of, {}
        for number in self.annotated():
            path = self.folder / "drawings" / self.file_name(number)
            with suppress(FileNotFoundError):
                time = path.stat().st_mtime_ns
                if number not in kept or kept[number][0] != time:
                    kept[number] = (time, frozenset(object_areas(read_raw_labels(path))))
                found[number] = kept[number][1]
        return found

    def draw(self, number: int, content: bytes | None) -> None:
        """Stores what was drawn on a frame; None or an empty drawing takes it away.

        Args:
            number: of the frame.
            content: one byte per pixel, row by row: the number of its object, 0 for none.

        Raises:
            MaskError: it is of another size, or holds an object that the workspace has not.
            VideoError: there is no such frame.
        """
        self.check_number(number)
        state = self._state
        path = self.folder / "drawings" / self.file_name(number)
        if content is not None:
            if len(content) != state.height * state.width:
                raise MaskError(
                    f"a drawing of this video has {state.height * state.width} bytes, one for each "
                    f"pixel, but {len(content)} came"
                )
            labels = np.frombuffer(content, dtype=np.uint8).reshape(state.height, state.width)
            known = {0, *(one.id for one in state.objects)}
            if unknown := set(np.flatnonzero(np.bincount(labels.ravel()))) - known:
                raise MaskError(
                    f"the drawing holds object {min(unknown)}, which is not in the list"
                )
            if labels.any():
                path.parent.mkdir(exist_ok=True)
                write_labels(path, labels)
                self.change(is_changed=True)
                return
        if path.exists():
            path.unlink()
            self.change(is_changed=True)

    def set_objects(self, objects: Sequence[VideoObject]) -> None:
        """Replaces the list of objects; what was drawn of those that are gone goes, too.

        Raises:
            ConfigError: there is none, or a number occurs twice.
        """
        numbers = [one.id for one in objects]
        if not numbers or len(set(numbers)) != len(numbers):
            raise ConfigError("there must be at least one object, and each number once")
        gone = {one.id for one in self._state.objects} - set(numbers)
        for folder in ("drawings", "masks") if gone else ():
            for number in self._numbers_in(folder):
                path = self.folder / folder / self.file_name(number)
                labels = read_raw_labels(path)
                if (places := np.isin(labels, list(gone))).any():
                    left = np.where(places, np.uint8(0), labels)
                    if left.any() or folder == "masks":
                        write_labels(path, left)
                    else:
                        path.unlink()
        self.change(objects=list(objects))
        self._write_names()

    def names(self) -> dict[str, str]:
        """The names of the objects by their numbers, as settings.json holds them."""
        return {str(one.id): one.name for one in self._state.objects}

    def _write_names(self) -> None:
        """Tells the other commands of new names."""
        path = self.folder / "settings.json"
        if path.is_file():
            settings = {**read_json(path), "objects": self.names()}
            write_text(path, json.dumps(settings, indent=2) + "\n")

    def certainty(self) -> dict[int, float]:
        """How sure the masks are, 0 to 1, by frame: of several objects the least sure one.

        Empty where the result does not tell.
        """
        found: dict[int, float] = {}
        try:
            with (self.folder / "frames.csv").open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    value = row.get("survival") or row.get("confidence")
                    if value:
                        number = int(row["frame"])
                        found[number] = min(found.get(number, 1.0), float(value))
        except (OSError, ValueError, KeyError):
            return {}
        return found

    def next_frames(self) -> list[int]:
        """The frames that are worth drawing next, the best first; empty where nobody knows."""
        try:
            found = [int(one["frame"]) for one in read_json(self.folder / "next.json")]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        drawn = {*self.annotated()}
        return [one for one in found if 0 <= one < self._state.num_frames and one not in drawn]

    def _read(self) -> State:
        try:
            return checked(State, read_json(self.folder / _STATE))
        except (OSError, ValueError, ConfigError) as error:
            raise ConfigError(f"{self.folder} holds no workspace that can be read") from error


def create(parent: Path, video: Path, *, title: str, moves: bool = False) -> Workspace:
    """A new workspace for a video.

    Args:
        parent: the folder of the workspaces; created if missing.
        video: file or folder of images.
        title: what the page calls it.
        moves: take the file itself into the workspace.

    Raises:
        VideoError: the video cannot be used.
    """
    num_frames, fps, height, width = check_video(video)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:30] or "video"
    folder = parent / f"{slug}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        place = str(video.resolve())
        if moves:
            place = f"video{video.suffix}"
            video.rename(folder / place)
        state = State(
            video=place,
            title=title[:60].strip() or "video",
            num_frames=num_frames,
            fps=fps,
            height=height,
            width=width,
            objects=[VideoObject(id=1, name="object 1", color=COLORS[0])],
        )
        write_text(folder / _STATE, state.model_dump_json(indent=2) + "\n")
        return Workspace(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_video(video: Path) -> tuple[int, float, int, int]:
    """Number of frames, frames per second, height and width of a video that can be worked on.

    Raises:
        VideoError: it cannot be read, breaks off, or is a playlist.
    """
    if not is_video(video) and video.suffix.lower() not in STACK_SUFFIXES:
        raise VideoError(
            f"{video.name} is no video by its name: give a file such as .mp4, .mov, .avi, .mkv, "
            ".webm or .tif, or a folder of images"
        )
    try:
        info, num_frames = read_info(video), count_frames(video)
        read_clip(video, [num_frames - 1], fill=True)  # what cannot be decoded shows now
    except VideoError as error:  # where an upload lies is nobody's business
        raise VideoError(str(error).replace(str(video), video.name)) from error
    return num_frames, info.fps, info.height, info.width


def find(parent: Path, identity: str) -> Workspace:
    """The workspace of that name in a folder.

    Raises:
        ConfigError: there is none.
    """
    if re.fullmatch(r"[A-Za-z0-9-]{1,40}", identity) and (parent / identity).is_dir():
        return Workspace(parent / identity)
    raise ConfigError("there is no such workspace of yours: open its video again")


def find_all(parent: Path) -> list[Workspace]:
    """The workspaces in a folder, the one that was changed last first; broken ones are left out."""
    found: list[tuple[float, Workspace]] = []
    for path in parent.glob(f"*/{_STATE}"):
        try:
            found.append((path.stat().st_mtime, Workspace(path.parent)))
        except (InoError, OSError):
            continue
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]


class Allowed:
    """The folders below which videos may be opened, and nothing else."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [Path(os.path.realpath(one)) for one in folders]

    def holds(self, path: Path) -> bool:
        """Whether a path, all its links followed, is in one of the folders."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(one) for one in self.folders)

    def check(self, text: str, *, opens: bool = True) -> Path:
        """The real path of what somebody typed.

        Args:
            text: absolute, or relative to one of the folders.
            opens: what is in a folder will be read, too.

        Raises:
            VideoError: it is nowhere in the folders, whether it exists or not.
        """
        for one in self.folders if text and "\0" not in text else ():
            path = Path(os.path.realpath(one / text))
            # A folder of images may hold links, which are followed when they are read.
            with suppress(OSError):
                if not self.holds(path) or not (path.is_file() or path.is_dir()):
                    continue
                if path.is_file() or not opens or all(map(self.holds, path.iterdir())):
                    return path
        raise VideoError(
            f"{text[:200]!r} is not in the folders that this page may open "
            f"({', '.join(map(str, self.folders))}): start ino web with --folder to allow another"
        )

    def listing(self, text: str) -> dict[str, object]:
        """What there is to open in a folder; the folders themselves for an empty text."""
        if not text:
            here = [{"name": str(one), "path": str(one)} for one in self.folders]
            return {"path": "", "parent": None, "folders": here, "videos": []}
        folder = self.check(text, opens=False)
        if not folder.is_dir():
            raise VideoError(f"{folder.name} is not a folder")
        folders: list[dict[str, str]] = []
        videos: list[dict[str, str]] = []
        has_images = False
        for entry in sorted(folder.iterdir(), key=lambda one: one.name.lower()):
            if entry.name.startswith(".") or not self.holds(entry):
                continue
            suffix, shown = entry.suffix.lower(), {"name": entry.name, "path": str(entry)}
            if entry.is_dir():
                folders.append(shown)
            elif suffix in VIDEO_SUFFIXES or suffix in (".tif", ".tiff"):
                videos.append(shown)
            has_images |= suffix in IMAGE_SUFFIXES
        if has_images:
            videos.insert(
                0, {"name": "the images of this folder, as one video", "path": str(folder)}
            )
        parent = "" if len(self.folders) > 1 else None  # where the folders themselves are listed
        parent = str(folder.parent) if self.holds(folder.parent) else parent
        return {"path": str(folder), "parent": parent, "folders": folders, "videos": videos}


class Frames:
    """Frames of all workspaces as JPEG, a few neighbors decoded at once and the last ones kept."""

    def __init__(self) -> None:
        self._kept: LRUCache[tuple[Path, int], bytes] = LRUCache(_CACHE_BYTES, len)
        self._lock = Lock()
        self._decoding: dict[Path, Lock] = {}

    def jpeg(self, workspace: Workspace, number: int) -> bytes:
        """A frame as JPEG.

        Raises:
            VideoError: there is no such frame, or the video is gone.
        """
        workspace.check_number(number)
        key = (workspace.folder, number)
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            decoding = self._decoding.setdefault(workspace.folder, Lock())
        with decoding:
            with self._lock:
                if key in self._kept:  # another request decoded it meanwhile
                    return self._kept[key]
            state = workspace.state
            at_once = min(16, max(1, _BLOCK_PIXELS // (state.height * state.width)))
            if open_sequence(workspace.video) is not None:
                at_once = 1  # images are read one by one
            first = number // at_once * at_once
            numbers = range(first, min(first + at_once, state.num_frames))
            clip = read_clip(workspace.video, numbers, fill=True)
            pictures = {n: _as_jpeg(one) for n, one in zip(numbers, clip, strict=True)}
            with self._lock:
                for n, picture in pictures.items():
                    if len(picture) <= _CACHE_BYTES:
                        self._kept[workspace.folder, n] = picture
            return pictures[number]

    def forget(self, workspace: Workspace) -> None:
        """Drops what is kept of a workspace."""
        with self._lock:
            self._decoding.pop(workspace.folder, None)
            for key in [key for key in self._kept if key[0] == workspace.folder]:
                del self._kept[key]


def _as_jpeg(frame: np.ndarray) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    done, content = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    if not done or frame.shape[0] * frame.shape[1] > MAX_PIXELS:
        raise VideoError("a frame of this video cannot be shown")
    return content.tobytes()
