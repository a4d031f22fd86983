"""What can be taken home from a workspace, each as one file, made in the background."""

import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ino.data.label_maps import davis_palette
from ino.data.video import VideoWriter, read_frames
from ino.errors import InoError, MaskError
from ino.overlay import draw_overlay
from ino.web.workspace import Workspace


@dataclass(frozen=True)
class Export:
    """A format.

    Attributes:
        title: for the page.
        hint: what it is good for, for the page.
        suffix: of the file.
        write: called with the workspace and the path to write.
    """

    title: str
    hint: str
    suffix: str
    write: Callable[[Workspace, Path], None]


def _write_zip(workspace: Workspace, path: Path) -> None:
    """All masks, the drawings, and what made them."""
    folder = workspace.folder
    with zipfile.ZipFile(path, "w") as packed:
        for number in workspace.followed():
            packed.write(folder / "masks" / (name := workspace.file_name(number)), f"masks/{name}")
        for number in workspace.annotated():
            name = workspace.file_name(number)
            packed.write(folder / "drawings" / name, f"drawings/{name}")
        for name in ("settings.json", "frames.csv"):
            if (folder / name).is_file():
                packed.write(folder / name, name)


def _write_overlay(workspace: Workspace, path: Path) -> None:
    """The frames from the first mask to the last, with masks in the colors of the page."""
    followed = workspace.followed()
    first, last = followed[0], followed[-1]
    state, palette = workspace.state, davis_palette()
    for one in state.objects:
        palette[one.id] = np.frombuffer(bytes.fromhex(one.color[1:]), np.uint8)
    with VideoWriter(path, fps=state.fps) as writer:
        frames = read_frames(workspace.video, first=first)
        for number, frame in zip(range(first, last + 1), frames, strict=False):
            labels = workspace.labels(number)[0]
            writer.write(draw_overlay(frame, labels, opacity=0.5, palette=palette))


def _converted(name: str) -> Callable[[Workspace, Path], None]:
    """Writes what `ino convert --to NAME` gives; a folder becomes a ZIP."""

    def write(workspace: Workspace, path: Path) -> None:
        from ino.tasks.convert import convert_result

        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            (made,) = convert_result(
                workspace.folder, [name], out=Path(folder) / "out", video=workspace.video
            )
            if made.is_file():
                made.replace(path)
                return
            with zipfile.ZipFile(path, "w") as packed:
                for one in sorted(made.rglob("*")):
                    if one.is_file():
                        packed.write(one, one.relative_to(made))

    return write


EXPORTS = {
    "masks": Export("Masks", "one picture per frame, as a ZIP", ".zip", _write_zip),
    "overlay": Export("Video with masks", "to look at and to show, MP4", ".mp4", _write_overlay),
    **{
        name: Export(title, hint, suffix, _converted(name))
        for name, title, hint, suffix in (
            ("csv", "Table", "area, center and box per frame, CSV", ".csv"),
            ("tiff", "TIFF stack", "for Fiji and napari", ".tiff"),
            ("cutout-video", "Cut-out video", "transparent background, WebM", ".webm"),
            ("cutout-png", "Cut-out pictures", "transparent background, PNG in a ZIP", ".zip"),
            ("png-per-object", "One mask per object", "black and white PNG in a ZIP", ".zip"),
            ("mask-video", "Video of the masks", "without loss, MKV", ".mkv"),
            ("npz", "NumPy", "all masks as one array, NPZ", ".npz"),
            ("coco", "COCO", "to train detectors, JSON", ".json"),
            ("coco-images", "COCO with frames", "for datumaro and others, ZIP", ".zip"),
            ("ytvis", "YouTube-VIS", "to train trackers, JSON", ".json"),
            ("mots", "MOTS", "to score trackers, text", ".txt"),
            ("cvat", "CVAT", "to go on in CVAT, XML", ".xml"),
        )
    },
}


class Exporter:
    """Makes files in the background, in a folder of its own that goes away with `close`."""

    def __init__(self, parent: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=".export-", dir=parent))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ino-export")
        self._made: dict[tuple[str, str], Future[Path]] = {}
        self._lock = threading.Lock()

    def start(self, workspace: Workspace, kind: str) -> None:
        """Begins to make a file, unless that is being done.

        Raises:
            InoError: there is no such format.
            MaskError: there are no masks yet.
        """
        if kind not in EXPORTS:
            raise InoError(f"there is no format {kind[:40]!r}; there are {', '.join(EXPORTS)}")
        if not workspace.followed():
            raise MaskError("there are no masks yet: draw the object and follow it first")
        key = (str(workspace.folder), kind)
        with self._lock:
            if (made := self._made.get(key)) is None or made.done():
                self._made[key] = self._thread.submit(self._write, workspace, kind, made)

    def ready(self, workspace: Workspace, kind: str) -> Path | None:
        """The file, to be taken once; None if it is not done yet.

        Raises:
            InoError: nobody asked for it, or it cannot be made.
        """
        key = (str(workspace.folder), kind)
        with self._lock:
            made = self._made.get(key)
        if made is None:
            raise InoError("this file was not asked for, or was taken already: export it again")
        return made.result() if made.done() else None

    def taken(self, workspace: Workspace, kind: str) -> None:
        """Removes a file that was sent."""
        with self._lock:
            made = self._made.pop((str(workspace.folder), kind), None)
        if made is not None and made.done() and made.exception() is None:
            made.result().unlink(missing_ok=True)

    def close(self) -> None:
        """Removes everything."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, workspace: Workspace, kind: str, earlier: Future[Path] | None) -> Path:
        if earlier is not None and earlier.exception() is None:
            earlier.result().unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=self._folder, suffix=EXPORTS[kind].suffix, delete=False
        ) as file:
            path = Path(file.name)
        try:
            EXPORTS[kind].write(workspace, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path
