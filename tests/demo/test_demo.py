"""The demo end to end, as small as it can be; one test, so that it runs once."""

import base64
import re

import cv2
import numpy as np
import pytest

import ino.demo.demo as demo
from ino.errors import OutputError

ROWS = ("raw color", "untrained", "learned", "out of the box")


def test_the_demo_from_video_to_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "NUM_FRAMES", 8)
    monkeypatch.setattr(demo, "SMALL_FRAMES", demo.SMALL_FRAMES | {"short_side": 64})
    out = tmp_path / "demo"
    report = demo.run_demo(out, num_steps=2, num_videos=6, num_held_out=2)

    text = report.read_text(encoding="utf-8")
    assert all(address.startswith("data:") for address in re.findall(r'(?:src|href)="(.*?)"', text))
    assert "@import" not in text and "url(" not in text
    pictures = re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) == 2 * 6 + 4  # strips of the best and the worst clip, and of features
    for picture in pictures:
        data = np.frombuffer(base64.b64decode(picture), np.uint8)
        assert cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
    (curves,) = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", text)
    assert "masked prediction" in base64.b64decode(curves).decode()
    for words in (*ROWS, "Best: clip-", "Worst: clip-", "frame 0, given", "frame 6"):
        assert words in text
    shown = capsys.readouterr().out
    assert all(row in shown for row in ROWS) and "s in all" in shown

    assert cv2.imread(str(out / "filmstrip.png")).shape[1] > 900
    for row in ROWS:
        masks = out / "files-1" / row.replace(" ", "-") / "predictions"
        assert len(list(masks.rglob("*.png"))) == 2 * 8
    with pytest.raises(OutputError, match="--overwrite"):
        demo.run_demo(out)
