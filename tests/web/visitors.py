"""A site of `ino web` with raw color as the network, and small videos for it."""

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

from ino.data.video import VideoWriter
from ino.demo.synthetic import generate_clip
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Tracker
from ino.web.server import Site, make_app

SIZE = (48, 64)
FAST = ["--weights", "color", "--device", "cpu", "--set", "short_side=none"]


class GatedTracker(Tracker):
    """Waits for a gate before each frame."""

    gate = threading.Event()

    def track(self, frames, masks, **options):
        for labels in super().track(frames, masks, **options):
            self.gate.wait(20)
            yield labels


def make_tracker(quality, kind=Tracker):
    protocol = get_protocol("ino-davis", short_side=None)
    return kind("color", protocol=protocol, device="cpu"), {"weights": "color"}


def write_clip(path: Path, *, num_frames: int = 6, seed: int = 5, size=SIZE) -> np.ndarray:
    """Writes a video and returns its label maps."""
    clip = generate_clip(seed, num_frames=num_frames, height=size[0], width=size[1], num_objects=2)
    with VideoWriter(path, fps=8.0) as writer:
        for frame in clip.frames:
            writer.write(frame)
    return clip.labels


@contextmanager
def running(root: Path, folder: Path, *, kind=Tracker, **options):
    """A site and a function that gives the client of one more person."""
    site = Site(
        root,
        folders=[folder],
        make_tracker=lambda quality: make_tracker(quality, kind),
        **options,
    )
    app = make_app(site)
    with TestClient(app, base_url="http://localhost"):
        yield site, lambda: TestClient(app, base_url="http://localhost")


def opened(client, path) -> str:
    """The address of the workspace of a video."""
    answer = client.post("/api/open", json={"path": str(path)})
    assert answer.status_code == 200, answer.text
    return f"/api/w/{answer.json()['id']}"


def draw(client, work: str, labels: np.ndarray, number: int = 0):
    content = np.where(labels == 1, 1, 0).astype(np.uint8).tobytes()
    answer = client.put(f"{work}/labels/{number}", content=content)
    assert answer.status_code == 200, answer.text


def until(client, work: str, *statuses: str, **values):
    """The progress once it has one of these statuses and these values."""
    for _ in range(1000):
        found = client.get(f"{work}/progress").json()
        if found["status"] in statuses and all(found[key] >= values[key] for key in values):
            return found
        time.sleep(0.02)
    raise AssertionError(found)


def labels_of(client, work: str, number: int) -> tuple[np.ndarray, str]:
    answer = client.get(f"{work}/labels/{number}")
    return np.frombuffer(answer.content, np.uint8).reshape(SIZE), answer.headers["x-source"]


def sentence(answer, *, status: int | None = None) -> str:
    """The sentence by which a request was refused."""
    assert 400 <= answer.status_code < 500, answer.text
    assert status in (None, answer.status_code)
    text = answer.json()["error"]
    assert 10 < len(text) < 1000
    assert "Traceback" not in text and "\n" not in text
    return text
