"""The demo end to end, as small as it can be."""

import base64
import re

import cv2
import numpy as np
import pytest

from ino.demo.demo import run_demo
from ino.errors import OutputError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, num_steps=2, num_videos=6, num_held_out=2)
    return out


def test_the_report_opens_offline_and_its_pictures_decode(demo):
    text = (demo / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|file:)""", text)
    assert "@import" not in text
    pictures = re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) >= 10
    for picture in pictures:
        data = np.frombuffer(base64.b64decode(picture), np.uint8)
        assert cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
    for words in (
        "raw color",
        "untrained",
        "learned",
        "out of the box",
        "Best",
        "Worst",
        "svg+xml",
    ):
        assert words in text


def test_the_picture_of_the_readme_is_written(demo):
    picture = cv2.imread(str(demo / "filmstrip.png"))
    assert picture.shape[1] > 900


def test_masks_of_every_row_are_kept(demo):
    for row in ("raw-color", "untrained", "learned", "out-of-the-box"):
        assert len(list((demo / "files-1" / row / "predictions").rglob("*.png"))) == 2 * 24


def test_a_folder_that_holds_something_is_not_overwritten_unasked(demo):
    with pytest.raises(OutputError, match="--overwrite"):
        run_demo(demo)
