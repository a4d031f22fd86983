"""The scripts of examples/ do what their first lines say, on a generated video."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from pycocotools import mask as coco

from ino.data.label_maps import write_labels
from ino.data.video import VideoWriter, read_info

EXAMPLES = Path(__file__).parent.parent / "examples"

# pycocotools' own decoder under NumPy 2
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def run(name: str, *arguments: object) -> str:
    """What a script prints."""
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """A bright rectangle of 30x40 that moves 2 pixels a frame over a dark ground."""
    rng = np.random.default_rng(0)
    ground = rng.integers(20, 60, (96, 160, 3), np.uint8)
    moving = np.stack([ground] * 6)
    for number, frame in enumerate(moving):
        frame[30:60, 40 + 2 * number : 80 + 2 * number] = (220, 180, 60)
    return moving


@pytest.fixture(scope="module")
def video(frames, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "barn.mp4"
    with VideoWriter(path, fps=10.0) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def overlap(mask: np.ndarray, number: int) -> float:
    """J with the rectangle of a frame."""
    truth = np.zeros((96, 160), bool)
    truth[30:60, 40 + 2 * number : 80 + 2 * number] = True
    return (truth & (mask > 0)).sum() / (truth | (mask > 0)).sum()


def test_they_are_short():
    assert all(len(path.read_text().splitlines()) < 60 for path in EXAMPLES.glob("*.py"))


def test_a_folder_becomes_coco(video, tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("video,frame,name,x0,y0,x1,y1\nbarn.mp4,0,cow,36,26,84,64\n")
    run("folder_to_coco", video.parent, boxes, tmp_path / "out")
    found = json.loads((tmp_path / "out/barn/coco.json").read_text())
    assert [one["name"] for one in found["categories"]] == ["cow"]
    masks = [one["segmentation"] for one in found["annotations"]]
    assert len(masks) == 6
    assert overlap(coco.decode(masks[0]), 0) > 0.8
    assert overlap(coco.decode(masks[5]), 5) > 0.7


def test_a_stack_becomes_areas(frames, tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", frames[..., 0].astype(np.uint16) * 16)
    first = np.zeros((96, 160), np.uint8)
    first[30:60, 40:80] = 7
    write_labels(tmp_path / "first.png", first)
    arguments = [tmp_path / "stack.tif", tmp_path / "first.png", tmp_path / "areas.csv"]
    run("stack_to_areas", *arguments, "--pixel", 0.5, "--minutes", 5)
    with (tmp_path / "areas.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["minutes"] for row in rows] == ["0", "5", "10", "15", "20", "25"]
    assert {row["cell"] for row in rows} == {"7"}
    assert float(rows[0]["area_um2"]) == 1200 * 0.25
    assert float(rows[0]["column_um"]) == 59.5 * 0.5
    assert float(rows[5]["column_um"]) == pytest.approx(69.5 * 0.5, abs=2)


def test_a_camera_is_followed(frames, tmp_path):
    video = tmp_path / "camera.mp4"
    with VideoWriter(video, fps=10.0) as writer:
        for frame in np.repeat(frames, 400, axis=0):  # so many that it still comes after the first
            writer.write(frame)
    shown = run("live_camera", video, "36,26,84,64", tmp_path / "overlay.mp4")
    assert "pixels" in shown
    assert read_info(tmp_path / "overlay.mp4").height == 96


def test_the_service_follows_videos_of_several_visitors(frames, monkeypatch):
    from starlette.testclient import TestClient

    monkeypatch.syspath_prepend(str(EXAMPLES))
    import service

    def encoded(frame: np.ndarray) -> bytes:
        return cv2.imencode(".png", frame[..., ::-1])[1].tobytes()

    client = TestClient(service.app)
    names = []
    for _ in range(2):
        answer = client.post("/?box=36,26,84,64", content=encoded(frames[0]))
        names.append(answer.json()["id"])
    for number in (1, 2):
        for name in names:
            answer = client.post(f"/?id={name}", content=encoded(frames[number]))
            mask = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_GRAYSCALE)
            assert overlap(mask, number) > 0.7
    assert "no such video" in client.post("/?id=x", content=encoded(frames[0])).json()["error"]
    assert "no picture" in client.post("/?box=1,2,3,4", content=b"x").json()["error"]
    small = client.post("/?box=900,26,984,64", content=encoded(frames[0]))
    assert "outside the frame" in small.json()["error"]
