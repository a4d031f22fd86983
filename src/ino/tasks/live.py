"""`ino segment` of a stream: a camera or a network stream, frame by frame as they come.

A thread receives frames and keeps the latest one only, so results lag behind by at most one frame
of work, and frames that come while one is computed are skipped and counted. Nothing can be read
again, so there is no going on after a stop, and only one frame, the first, has a mask.

    OUT/masks/00000.png ...    of the frames that were computed, numbered as these
    OUT/overlay.mp4            shows each of them as long as it was the latest one
    OUT/times.csv              of each: seconds since the first one, frames skipped before it
"""

import errno
import logging
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import ExitError
from PIL import Image

from ino.data.label_maps import describe_objects, write_labels
from ino.data.video import VideoWriter
from ino.errors import VideoError
from ino.overlay import draw_overlay
from ino.propagate.tracker import Tracker
from ino.system import folder_lock, new_folder, write_text
from ino.tasks.masks import read_masks
from ino.tasks.results import settings_text
from ino.tasks.segment import object_names, object_numbers

_LOG = logging.getLogger("ino")
TIMEOUT = 30.0
"""Seconds without a frame after which a stream is given up."""
OVERLAY_RATE = 25.0
"""Frames of the overlay begin at multiples of 1 / 25 of a second."""


def is_stream(video: str) -> bool:
    """Whether a text names a stream: PROTOCOL://..., or a video device such as /dev/video0."""
    return re.match(r"[a-z][a-z0-9+]+://", video) is not None or _is_camera(video)


def _is_camera(address: str) -> bool:
    return address.startswith("/dev/video")


class Receiver:
    """The latest frame of a stream.

    Used in a `with` block. Iteration gives time in seconds, number of the frame in the stream, from
    0, and the frame, uint8 RGB height x width x 3; it ends with the stream.

    Raises:
        VideoError: the stream cannot be opened, has no video, ends without a frame, or gives none
            for `TIMEOUT` seconds.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._changed = threading.Condition()
        self._latest: tuple[float, int, np.ndarray] | None = None
        self._is_over = self._is_stopped = False
        self._reason = ""
        self._thread = threading.Thread(target=self._receive, daemon=True)

    def __enter__(self) -> "Receiver":
        is_camera = _is_camera(self._address)
        options = {"format": "v4l2"} if is_camera else {}
        try:
            self._container = av.open(self._address, timeout=TIMEOUT, **options)  # type: ignore
        except (av.FFmpegError, OSError, ValueError) as error:
            if is_camera:
                raise VideoError(_camera_fault(self._address, error)) from error
            raise VideoError(
                f"the stream {self._address} cannot be opened: {_reason(error)}; check its "
                "address, and whether it is running"
            ) from error
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"the stream {self._address} has no video")
        if self._container.streams.video[0].codec_context is None:
            self._container.close()
            raise VideoError(
                f"the pictures of {self._address} are in a format that cannot be decoded here: "
                "choose another one in its settings, such as H.264 or MJPEG"
            )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped = True
        self._thread.join(TIMEOUT)
        if not self._thread.is_alive():
            self._container.close()

    def __iter__(self) -> Iterator[tuple[float, int, np.ndarray]]:
        is_empty = True
        while True:
            with self._changed:
                came = self._changed.wait_for(
                    lambda: self._latest is not None or self._is_over, timeout=TIMEOUT
                )
                found, self._latest = self._latest, None
            if found is not None:
                is_empty = False
                yield found
            elif came:
                if is_empty:
                    reason = self._reason or "it ended"
                    raise VideoError(f"no frame came from {self._address}: {reason}")
                if self._reason:
                    _LOG.warning(f"the stream {self._address} broke off: {self._reason}")
                return
            else:
                raise VideoError(f"no frame came from {self._address} for {TIMEOUT:g} seconds")

    def _receive(self) -> None:
        try:
            stream = self._container.streams.video[0]
            number, broken = 0, None
            for packet in self._container.demux(stream):
                if self._is_stopped:
                    break
                try:
                    for frame in packet.decode():
                        image = frame.to_ndarray(format="rgb24")  # type: ignore[union-attr]
                        with self._changed:
                            self._latest = (time.monotonic(), number, image)
                            self._changed.notify()
                        number += 1
                except av.InvalidDataError as error:  # a stream is often joined in the middle
                    broken = error
            if number == 0 and broken is not None:
                raise broken
        except Exception as error:  # told by the thread that reads
            self._reason = _reason(error)
        with self._changed:
            self._is_over = True
            self._changed.notify()


def _camera_fault(address: str, error: Exception) -> str:
    """Why a camera cannot be opened, and what to do."""
    others = sorted(str(path) for path in Path("/dev").glob("video*"))
    connected = f"there is {' and '.join(others)}" if others else "none is connected"
    match getattr(error, "errno", None):
        case errno.ENOENT:
            return f"there is no camera {address}; {connected}"
        case errno.EBUSY:
            return f"another program uses the camera {address}: close it"
        case errno.EACCES:
            return (
                f"the camera {address} may not be read by this user: as a rule, those in the group "
                "video may"
            )
    return (
        f"{address} gives no pictures ({_reason(error)}): many cameras have a second device for "
        f"other data, so try another one; {connected}"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ExitError):  # how FFmpeg says that its timeout is over
        return f"nothing came for {TIMEOUT:g} seconds"
    return getattr(error, "strerror", None) or str(error)


def segment_stream(
    address: str,
    masks: Sequence[str],
    *,
    out: Path,
    tracker: Tracker,
    settings: Mapping[str, Any],
    resize: bool = False,
    overlay: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Propagates masks of the first frame through a stream until it ends or Ctrl-C is pressed, and
    returns the number of frames that were computed.

    Args:
        address: see `is_stream`.
        masks: of the first frame that comes, as for `read_masks`.
        out: folder of the results, see the head of this module.
        tracker: propagates the masks.
        settings: stored in `settings.json`.
        resize: fit masks of another size to the stream.
        overlay: write the video with masks drawn over it.
        overwrite: accept a folder that holds something.
        say: is told which objects the masks hold, and how many frames were skipped.

    Raises:
        VideoError: see `Receiver`; or the size of frames changes.
        MaskError: see `read_masks`; or a mask is for another frame.
        OutputError: see `new_folder`.
    """
    rows = ["frame,seconds,skipped"]
    count = skipped = 0
    with Receiver(address) as receiver, closing(iter(receiver)) as frames:  # type: ignore[type-var]
        begun, latest, frame = next(frames)
        with tempfile.TemporaryDirectory() as name:
            Image.fromarray(frame).save(Path(name) / "00000.png")
            given = read_masks(masks, Path(name), resize=resize)
        say(f"mask of the first frame: {describe_objects(given.labels[0], given.names)}")
        labels = tracker.start(frame, given.labels[0])
        names = {
            label: given.names.get(label) or str(label) for label in object_numbers(given.labels)
        }
        folder = new_folder(out, overwrite=overwrite) / "masks"
        with folder_lock(out, command="ino segment"):
            folder.mkdir(exist_ok=True)
            for path in folder.glob("*.png"):  # of an earlier result that this one overwrites
                path.unlink()
            stored = {
                **settings,
                "video": address,
                "masks": [0],
                "objects": {
                    str(label): name
                    for label, name in object_names(given.labels, given.names).items()
                },
                "annotated": [0],
            }
            write_text(out / "settings.json", settings_text(tracker.protocol, stored))
            movie = out / "overlay.mp4"
            with (
                VideoWriter(movie, fps=OVERLAY_RATE, live=True) if overlay else nullcontext()
            ) as writer:
                end = "the stream ended"
                try:
                    seconds, before = 0.0, 0
                    while True:
                        write_labels(folder / f"{count:05d}.png", labels)
                        if writer is not None:
                            drawn = draw_overlay(frame, labels, caption=f"{count:05d}", names=names)
                            writer.write(drawn, at=seconds)
                        rows.append(f"{count},{seconds:.3f},{before}")
                        count += 1
                        moment, number, frame = next(frames, (0.0, 0, None))
                        if frame is None:
                            break
                        before, latest = number - latest - 1, number
                        skipped += before
                        seconds = moment - begun
                        labels = tracker.step(frame)
                except KeyboardInterrupt:
                    end = "stopped"
                    sys.stderr.write("\n")
                finally:
                    write_text(out / "times.csv", "\n".join(rows) + "\n")
    say(f"{end}: {count} masks in {folder}; {skipped} frames were skipped as they came too fast")
    return count
