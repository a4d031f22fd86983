"""The page of a comparison: what is chosen, what is drawn, and that nothing is fetched."""

import base64
import json
import re

import cv2
import numpy as np
import pytest

from ino.data.davis import read_davis
from ino.data.label_maps import davis_palette, write_labels
from ino.demo.synthetic import generate_clip, write_davis_layout
from ino.errors import OutputError
from ino.metrics import Summary
from ino.report import page
from ino.report.page import Strip
from ino.report.sections import (
    Method,
    Section,
    curve_section,
    feature_section,
    film_section,
    labelled_picture,
    score_table,
    sequence_strips,
    shown_frames,
    telling_sequences,
    write_report,
)
from ino.tasks.davis import DavisScores, ObjectScore


def score(sequence: str, j: float, f: float, object_id: int = 1) -> ObjectScore:
    return ObjectScore(sequence, object_id, j=Summary(j, 1.0, 0.0), f=Summary(f, 1.0, 0.0))


def scores(**by_name: float) -> DavisScores:
    return DavisScores(tuple(score(name, value, value) for name, value in by_name.items()))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two clips, and predictions that are the truth."""
    root = tmp_path_factory.mktemp("report")
    clips = {
        name: generate_clip(i, num_frames=8, height=32, width=48)
        for i, name in enumerate(("ants", "bees"))
    }
    write_davis_layout(clips, root / "davis")
    for name, clip in clips.items():
        (root / "masks" / name).mkdir(parents=True)
        for t, labels in enumerate(clip.labels):
            write_labels(root / "masks" / name / f"{t:05d}.png", labels)
    found = scores(ants=0.25, bees=0.75)
    return read_davis(root / "davis"), Method("ours", "all of it", found, root / "masks"), clips


def test_score_of_a_sequence_is_the_mean_over_its_objects_and_the_best_comes_first():
    found = DavisScores((score("a", 0.2, 0.4, 1), score("b", 0.9, 0.7), score("a", 0.6, 0.8, 2)))
    assert list(found.by_sequence().items()) == [
        ("b", pytest.approx(0.8)),
        ("a", pytest.approx(0.5)),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": 0.5}, {"a": "Best"}),
        ({"a": 0.5, "b": 0.6}, {"b": "Best", "a": "Worst"}),
        ({"a": 0.5, "b": 0.6, "c": 0.1}, {"b": "Best", "a": "Median", "c": "Worst"}),
        (
            {"a": 0.5, "b": 0.6, "c": 0.1, "d": 0.9, "e": 0.2},
            {"d": "Best", "a": "Median", "c": "Worst"},
        ),
    ],
)
def test_best_median_and_worst_are_those_of_the_best_method(tmp_path, values, expected):
    best = Method("best", "", scores(**values), tmp_path)
    worse = Method("worse", "", scores(a=0.01, z=0.02), tmp_path)
    found = telling_sequences([best, worse])
    assert list(found.items()) == list(expected.items())


def test_shown_frames_are_even_and_leave_out_the_last():
    assert shown_frames(24) == [0, 6, 11, 16, 22]
    assert shown_frames(3) == [0, 1]
    assert shown_frames(1) == [0]
    assert shown_frames(24, count=1) == [0]


def test_the_table_has_percentages_and_sets_the_best_row_apart(tmp_path):
    methods = [
        Method("<raw>", "pixels", scores(a=0.5), tmp_path),
        Method("learned", "net", DavisScores((score("a", 0.8, 0.6),)), tmp_path),
        Method("other", "net", scores(a=0.6), tmp_path),
    ]
    table = score_table(methods)
    first, second, third = re.findall(r"<tr.*?</tr>", table)[1:]
    assert "&lt;raw&gt;" in first
    assert re.findall(r">(\d+\.\d)<", first) == ["50.0", "50.0", "50.0"]
    assert re.findall(r">(\d+\.\d)<", second) == ["70.0", "80.0", "60.0"]
    assert "width:70.0%" in second
    assert "chosen" in second
    assert "chosen" not in first + third


def test_strips_show_frames_truth_and_masks(data):
    sequences, method, clips = data
    numbers, rows = sequence_strips(sequences[1], [method], zoom=2)
    assert numbers == [0, 2, 3, 4, 6]
    assert [row.name for row in rows] == ["Frame", "Truth", "ours"]
    assert [row.remark for row in rows] == ["", "", "75.0"]
    frame, truth, ours = (row.image for row in rows)
    assert frame.shape == truth.shape == (64, 5 * 96 + 4 * 4, 3)
    np.testing.assert_array_equal(truth, ours)
    second = slice(100, 196)  # the picture of frame 2
    outside = (clips["bees"].labels[2] == 0).repeat(2, 0).repeat(2, 1)
    inside = (clips["bees"].labels[2] == 1).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(truth[:, second][outside], frame[:, second][outside])
    tinted = 0.5 * frame[:, second][inside] + 0.5 * davis_palette()[1]
    near = np.abs(truth[:, second][inside] - tinted).max(axis=-1) <= 1
    assert near.mean() > 0.5  # the rest is contour


def test_film_strips_are_of_the_telling_sequences_and_name_their_frames(data):
    sequences, method, _ = data
    text = "".join(film_section(sequences, [method]))
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["Best: bees", "Worst: ants"]
    assert text.count("<img") == 2 * 3
    assert "frame 0, given" in text
    assert "frame 6" in text


def test_pictures_are_within_the_page(data):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    kind, encoded = re.fullmatch(
        r"data:image/(\w+);base64,(.*)", page.data_uri(image, lossless=True)
    ).groups()
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
    assert kind == "png"
    np.testing.assert_array_equal(decoded[..., ::-1], image)
    assert page.data_uri(image).startswith("data:image/jpeg;base64,")


def test_features_are_enlarged_to_their_frames():
    frames = [np.full((40, 60, 3), value, np.uint8) for value in (10, 200)]
    colours = [np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8) for i in (0, 1)]
    text = feature_section(frames, {"net": colours})
    encoded = re.findall(r"data:image/png;base64,([^\"]+)", text)[1]
    strip = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
    assert strip.shape == (40, 124, 3)
    np.testing.assert_array_equal(strip[4::8, 5:60:10, ::-1], colours[0])
    np.testing.assert_array_equal(strip[4::8, 69::10, ::-1], colours[1])


def test_curves_leave_out_what_a_step_or_a_run_does_not_have(tmp_path):
    lines = [
        {
            "step": step,
            "loss": 9.0 - step,
            "g2g": 1.0,
            "l2g": 1.0,
            "masked": float(step % 2),
            "affinity": 0.0,
        }
        for step in range(6)
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (text,) = curve_section(log)
    assert re.findall(r"<figcaption>(\w+)", text) == ["loss", "g2g", "l2g", "masked"]
    masked = text.split("<figure>")[4]
    assert len(re.search(r'class="raw" points="(.*?)"', masked)[1].split()) == 3
    assert "loss: 7.00 at step 0, 6.00 at step 5" in text


def test_labelled_picture_writes_names_beside_strips():
    image = np.zeros((90, 200, 3), np.uint8)
    picture = labelled_picture([Strip("Frame", image), Strip("a longer name", image)])
    margin = picture.shape[1] - 200
    assert picture.shape[0] == 2 * 90 + 8
    assert picture[:90, margin:].max() == 0
    assert picture[98:, margin:].max() == 0
    assert (picture[90:98] == 255).all()
    names = picture[:, :margin].min(axis=-1) < 128
    assert names[:90].any()
    assert names[98:].sum() > names[:90].sum()


def test_the_page_is_one_file_that_fetches_nothing(data, tmp_path):
    sequences, method, _ = data
    path = tmp_path / "report.html"
    path.write_text("old")
    sections = [Section("Masks & more", film_section(sequences, [method]))]
    lead = [page.paragraph("1 < 2"), page.code(["ino segment <VIDEO>"])]
    write_report(path, title="A <title>", lead=lead, sections=sections)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "<h1>A &lt;title&gt;</h1>" in text
    assert "<h2>Masks &amp; more</h2>" in text
    assert "1 &lt; 2" in text
    assert "ino segment &lt;VIDEO&gt;" in text
    assert not re.search(r"https?:|<link|<script|@import|url\(", text)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError, match="absent"):
        write_report(tmp_path / "absent" / "x.html", title="", lead=[], sections=[])
