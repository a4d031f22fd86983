"""Small videos that the tests write, with frames that can be told apart."""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ino.data.video import read_frames
from ino.errors import VideoError

H264 = {"g": "12", "bf": "2", "x264-params": "scenecut=0"}  # several key frames, B-frames
FASTSTART = {"movflags": "+faststart"}  # the index comes first: a cut file can still be opened


def moving_frames(num_frames: int, *, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """A smooth pattern that moves and turns lighter, so that each frame is like no other."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for t in range(num_frames):
        waves = [np.sin((x + 3 * t) / 9 + c) * np.cos((y - t) / 7 + 2 * c) for c in range(3)]
        frames.append((90 + t % 97 + 60 * np.stack(waves, axis=-1)).astype(np.uint8))
    return frames


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] = H264,
    container: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    rotation: int = 0,
) -> Path:
    """Encodes with FFmpeg; `times` are in milliseconds, otherwise 25 frames a second."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, 25) if times is None else Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_sound(path: Path, *, codec: str = "aac") -> Path:
    """A second of noise and no pictures."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=48000, layout="mono")
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, 48000)).astype(np.float32)
        for start in range(0, 48000 - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(
                noise[:, start : start + 1024].copy(), format="fltp", layout="mono"
            )
            frame.sample_rate = 48000
            frame.pts = start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def cut(path: Path, whole: Path, *, fraction: float = 0.5) -> Path:
    """The first part of a file's bytes, as a download that broke off leaves it."""
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def damage(path: Path, whole: Path, number: int) -> Path:
    """Writes a copy of an MP4 in which no decoder takes one packet."""
    content = bytearray(whole.read_bytes())
    with av.open(str(whole)) as file:  # entries are only valid while it is open
        entry = file.streams.video[0].index_entries[number]
        content[entry.pos : entry.pos + entry.size] = b"\xff" * entry.size
    path.write_bytes(content)
    return path


def read_until_error(path: Path) -> tuple[list[np.ndarray], VideoError | None]:
    """The frames that come before an error, and the error."""
    frames: list[np.ndarray] = []
    try:
        frames.extend(read_frames(path))  # keeps what came before an error
    except VideoError as error:
        return frames, error
    return frames, None


def quarantined(file: Path) -> dict[str, str]:
    """Why videos are in a quarantine, by path."""
    with closing(sqlite3.connect(file)) as records:
        rows = records.execute("SELECT path, fault FROM videos WHERE fault NOT NULL").fetchall()
    return {os.fsdecode(path): fault for path, fault in rows}
