"""`ino compare`: which sequences differ most, and pictures of them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command import refused, run
from ino.data.label_maps import read_labels, write_labels
from ino.demo.synthetic import generate_clip, write_davis_layout
from ino.metrics import Summary
from ino.report.comparison import compare_scores, mean_similarity, most_different_frames
from ino.tasks.davis import DavisScores, ObjectScore, read_davis_scores, score_davis

NAMES = ("s0", "s1", "s2", "s3")


@pytest.fixture(scope="module")
def davis(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("compare") / "davis"
    size = {"num_frames": 7, "height": 48, "width": 80}
    write_davis_layout({f"s{seed}": generate_clip(seed, **size) for seed in range(4)}, root)
    return root


def shifted(davis: Path, folder: Path, shifts: dict[str, int]) -> Path:
    """An evaluation whose masks are the truth moved by some pixels: the more, the worse."""
    for name, shift in shifts.items():
        (folder / "predictions" / name).mkdir(parents=True)
        for path in (davis / "Annotations/480p" / name).iterdir():
            labels = np.roll(read_labels(path), shift if path.stem != "00000" else 0, axis=1)
            write_labels(folder / "predictions" / name / path.name, labels)
    scores = score_davis(folder / "predictions", davis, sequences=list(shifts), workers=1)
    scores.write(folder, split="val", protocol=None)
    choice = {"root": str(davis), "year": 2017, "split": "val", "resolution": "480p"}
    (folder / "settings.json").write_text(json.dumps(choice))
    return folder


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory, davis) -> tuple[Path, Path]:
    """A is ahead in s0 and more so in s1, B in s2, and s3 is equal."""
    folder = tmp_path_factory.mktemp("evaluations")
    a = shifted(davis, folder / "a", {"s0": 2, "s1": 0, "s2": 6, "s3": 3})
    b = shifted(davis, folder / "b", {"s0": 4, "s1": 9, "s2": 1, "s3": 3})
    return a, b


def test_page_pictures_and_table(tmp_path, evaluations, capsys):
    out = tmp_path / "out"
    assert run("compare", *evaluations, "--out", out, "--num", 1) == 0
    shown = capsys.readouterr().out
    ours, theirs = (read_davis_scores(one / "scores.json") for one in evaluations)
    table = json.loads((out / "comparison.json").read_text())
    assert table["a"]["J&F"] == ours.jf_mean
    gaps = {name: one["difference"] for name, one in table["sequences"].items()}
    assert list(gaps) == ["s1", "s0", "s3", "s2"]
    assert gaps["s2"] == ours.by_sequence()["s2"] - theirs.by_sequence()["s2"] < 0
    assert gaps["s3"] == 0
    assert f"{100 * gaps['s1']:+.1f}" in shown
    assert [path.name for path in sorted((out / "strips").iterdir())] == ["01_s1.png", "02_s2.png"]
    page = (out / "comparison.html").read_text()
    assert "Best for a against b<" in page and "Best for b against a<" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs another file"
    assert page.count("<img") == 1 + 2 * 3
    assert Image.open(out / "scatter.png").size == (1080, 1080)
    strip = np.asarray(Image.open(out / "strips/01_s1.png"))
    height, width = strip.shape[:2]
    assert height == 2 * 27 + 3 * 180 + 2 * 4 and width > 5 * 300
    truth, ours, theirs = (strip[54 + 184 * i :][:180, width - 5 * 300 - 4 * 4 :] for i in range(3))
    np.testing.assert_array_equal(truth, ours)  # A's masks of s1 are the truth
    assert (truth != theirs).any()


def test_overwriting_leaves_no_older_strips(tmp_path, evaluations):
    a, b = evaluations
    out = tmp_path / "out"
    assert run("compare", a, b, "--out", out, "--num", 1) == 0
    (out / "strips/note.txt").write_text("mine")
    assert run("compare", b, a, "--out", out, "--num", 1, "--overwrite") == 0
    assert sorted(path.name for path in (out / "strips").iterdir()) == [
        "01_s2.png",
        "02_s1.png",
        "note.txt",
    ]


def test_only_common_sequences_are_compared(tmp_path, davis, evaluations, capsys):
    part = shifted(davis, tmp_path / "part", {"s1": 1, "s2": 2})
    assert run("compare", evaluations[0], part, "--out", tmp_path / "out") == 0
    words = "Scored in one of the two only, and left out: s0, s3. Means are over the 2 sequences"
    assert words in capsys.readouterr().out
    for name in ("comparison.html", "table.md"):
        assert words in (tmp_path / "out" / name).read_text()
    kept = compare_scores(
        ("a", "p"), *(read_davis_scores(x / "scores.json") for x in (evaluations[0], part))
    )
    assert {one.sequence for one in kept.a.objects} == {"s1", "s2"}


def test_masks_of_another_program_come_without_settings(tmp_path, davis, evaluations, capsys):
    a, b = (shutil.copytree(one, tmp_path / f"{one.name}2") for one in evaluations)
    out = ["--out", tmp_path / "out"]
    (b / "settings.json").unlink()
    assert run("compare", b, a, *out, "--root", davis, "--num", 0) == 0
    (a / "settings.json").unlink()
    assert "pass --root DAVIS" in refused(capsys, "compare", a, b, *out, "--overwrite")


def test_scores_of_sequences_are_means_over_objects_from_the_best_down():
    def score(sequence: str, number: int, j: float, f: float) -> ObjectScore:
        return ObjectScore(sequence, number, Summary(j, 1.0, 0.0), Summary(f, 1.0, 0.0))

    found = DavisScores((score("a", 1, 0.2, 0.4), score("b", 1, 0.9, 0.7), score("a", 2, 0.6, 0.8)))
    expected = [("b", pytest.approx(0.8)), ("a", pytest.approx(0.5))]
    assert list(found.by_sequence().items()) == expected


def test_shown_frames_are_the_telling_ones():
    differences = np.zeros(13)
    differences[[2, 5, 9, 12]] = 0.1, -0.4, 0.2, 0.9
    assert most_different_frames(differences, count=4) == [0, 2, 5, 9]  # of 1-4, 5-8, 9-11
    assert most_different_frames(differences * 0, count=4) == [0, 3, 7, 10]
    assert most_different_frames(np.zeros(3), count=5) == [0, 1]
    assert most_different_frames(np.zeros(2), count=5) == [0, 1]
    assert most_different_frames(np.zeros(1), count=5) == [0]
    assert most_different_frames(np.zeros(9), count=1) == [0]


def test_j_of_a_frame_by_hand():
    truth = np.array([[1, 1, 2, 255], [0, 0, 2, 0]], dtype=np.uint8)
    predicted = np.array([[1, 0, 2, 1], [0, 0, 0, 0]], dtype=np.uint8)
    assert mean_similarity(predicted, truth) == 0.5
    assert mean_similarity(np.zeros_like(truth), np.zeros_like(truth)) == 1


def test_bad_input(tmp_path, davis, evaluations, capsys):
    a, b = (shutil.copytree(one, tmp_path / one.name) for one in evaluations)
    out = ["--out", tmp_path / "out"]
    assert "same folder" in refused(capsys, "compare", a, a, *out)
    assert "scores.json does not exist" in refused(capsys, "compare", a, tmp_path, *out)
    assert "give 0 or more" in refused(capsys, "compare", a, b, *out, "--num", -1)
    assert "nowhere" in refused(capsys, "compare", a, b, *out, "--root", "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/scores.json").write_text('{"global": {"mIoU": 0.5}}')
    assert "scores on DAVIS" in refused(capsys, "compare", a, tmp_path / "other", *out)
    shutil.copytree(b, tmp_path / "c")
    (tmp_path / "c/settings.json").write_text('{"year": 2016}')
    assert "year 2017" in refused(capsys, "compare", a, tmp_path / "c", *out)
    (tmp_path / "c/settings.json").write_text("{")
    assert "is broken" in refused(capsys, "compare", a, tmp_path / "c", *out)
    (b / "predictions/s0/00003.png").unlink()
    assert "00003.png does not exist" in refused(capsys, "compare", a, b, *out)
    shutil.copy(a / "predictions/s0/00003.png", b / "predictions/s0/00003.png")
    write_labels(b / "predictions/s1/00004.png", np.ones((24, 80), dtype=np.uint8))
    line = refused(capsys, "compare", a, b, *out)
    assert "s1/00004.png is 24x80 (height x width), but its frame is 48x80" in line
    assert not (tmp_path / "out").exists()
    shutil.copytree(b, tmp_path / "row/seed_0")
    assert "row/seed_0" in refused(capsys, "compare", a, tmp_path / "row", *out)
    lonely = shifted(davis, tmp_path / "lonely", {"s3": 0})
    few = shifted(davis, tmp_path / "few", {"s0": 0})
    assert "no sequence in common" in refused(capsys, "compare", lonely, few, *out)
