"""Pages: one file that fetches nothing, whatever the names are."""

import base64
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from ino.demo.demo import Method
from ino.errors import OutputError
from ino.metrics import Summary
from ino.report.page import figure_uri, picture_uri, write_page
from ino.report.strips import Strip, StripGroup
from ino.tasks.davis import DavisScores, ObjectScore

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def decoded(uri: str) -> tuple[str, np.ndarray]:
    kind, encoded = re.fullmatch(r"data:image/(\w+);base64,(.*)", uri).groups()
    found = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
    return kind, found[..., ::-1]


def test_pictures_are_within_the_page():
    kind, image = decoded(picture_uri(IMAGE, lossless=True))
    assert kind == "png"
    np.testing.assert_array_equal(image, IMAGE)
    kind, image = decoded(picture_uri(IMAGE))
    assert kind == "jpeg" and image.shape == IMAGE.shape


def method(name: str, j: float, f: float, path) -> Method:
    summaries = (Summary(value, 1.0, 0.0) for value in (j, f))
    return Method(name, "what & why", DavisScores((ObjectScore("a", 1, *summaries),)), path)


@pytest.fixture
def values(tmp_path):
    """What the demo's page shows, with names that are markup elsewhere."""
    methods = [
        method("<raw>", 0.5, 0.5, tmp_path),
        method("[red] $x_$", 0.8, 0.6, tmp_path),
        method("{{ other }}", 0.6, 0.6, tmp_path),
    ]
    group = StripGroup("Best: <ants>", ["frame 0, given", "frame 6"], [Strip("<b>", [IMAGE] * 2)])
    return {
        "title": "A <title>",
        "seconds": 12.3,
        "num_videos": 4,
        "num_held_out": 2,
        "default": "net",
        "methods": methods,
        "best": methods[1],
        "strips": [group],
        "curves": Figure(),
        "features": StripGroup("", ["", ""], [Strip("Frame", [IMAGE] * 2, "1 < 2")]),
    }


def test_the_page_is_one_file_that_fetches_nothing(values, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_page(path, "demo.html", **values)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "<h1>A &lt;title&gt;</h1>" in text
    assert "<h3>Best: &lt;ants&gt;</h3>" in text
    assert "1 &lt; 2" in text and "what &amp; why" in text and "{{ other }}" in text
    assert "<i>frame 0, given</i><i>frame 6</i>" in text
    assert not re.search(r"<b>[^\d]|<raw>|<link|<script|@import|url\(", text)
    assert all(address.startswith("data:") for address in re.findall(r'(?:src|href)="(.*?)"', text))
    features = re.findall(r'src="(data:image/png.*?)"', text)
    np.testing.assert_array_equal(decoded(features[0])[1][:, :30], IMAGE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_table_has_percentages_and_sets_the_best_row_apart(values, tmp_path):
    write_page(tmp_path / "report.html", "demo.html", **values)
    rows = re.findall(r"<tr.*?</tr>", (tmp_path / "report.html").read_text(), flags=re.DOTALL)
    first, second, third = rows[1:]
    assert "&lt;raw&gt;" in first
    assert re.findall(r">(\d+\.\d)<", first) == ["50.0", "50.0", "50.0"]
    assert re.findall(r">(\d+\.\d)<", second) == ["70.0", "80.0", "60.0"]
    assert "width:70.0%" in second and "chosen" in second
    assert "chosen" not in first + third


def test_what_cannot_be_written_is_told(values, tmp_path):
    with pytest.raises(OutputError, match="absent"):
        write_page(tmp_path / "absent" / "x.html", "demo.html", **values)


def test_plots_need_nothing_else():
    content = base64.b64decode(figure_uri(Figure()).partition(",")[2]).decode()
    assert "<svg" in content and 'href="http' not in content and "Date" not in content


def test_hostile_names_are_shown_on_a_page(tmp_path):
    path = tmp_path / "page.html"
    name = "a\x1b[31m<b>\u202e$\udce9"
    lines = [["", name, "b", "difference"], [name, "1.0", "2.0", "-1.0"]]
    comparison = SimpleNamespace(name_a=name, name_b="b", notes=lambda: [name])
    write_page(
        path,
        "comparison.html",
        title=name,
        comparison=comparison,
        lines=lines,
        scatter=Figure(),
        ends=[[], []],
    )
    text = path.read_text(encoding="utf-8")
    assert "\x1b" not in text and "\u202e" not in text and "<b>" not in text
    assert r"a\x1b[31m&lt;b&gt;\u202e$\xe9" in text
