"""Scores on YouTube-VOS: against the oracle, by category, and every fault of predictions."""

import io
import json
from statistics import fmean

import numpy as np
import pytest
from rich.console import Console

from ino.data.label_maps import read_labels, write_labels
from ino.demo.synthetic import generate_clip
from ino.errors import ConfigError, DatasetError, MaskError
from ino.tasks.ytvos import (
    YtvosObjectScore,
    YtvosScores,
    describe_seen,
    print_scores,
    score_ytvos,
    write_csv,
    write_json,
)
from oracles import boundary as oracle
from synthetic_ytvos import write_ytvos_layout

NAMES = ("0000000aaa", "00000000bb")


@pytest.fixture
def data(tmp_path):
    """Two videos, each fifth frame annotated, and predictions a little off; object 2 is late."""
    clips = {
        name: generate_clip(seed, num_frames=21, height=40, width=56, num_objects=2)
        for seed, name in zip((5, 7), NAMES, strict=True)
    }
    root = tmp_path / "data"
    write_ytvos_layout(
        clips,
        root,
        split="mine",
        dense=True,
        all_frames=False,
        entries={NAMES[0]: {2: 10}},
        categories={1: "dog", 2: "guitar"},
    )
    for name in NAMES:
        folder = tmp_path / "predicted" / name
        folder.mkdir(parents=True)
        for path in sorted((root / "mine" / "Annotations" / name).iterdir()):
            write_labels(folder / path.name, np.roll(read_labels(path), (1, 2), axis=(0, 1)))
    return tmp_path


def score(data, **options) -> YtvosScores:
    return score_ytvos(data / "predicted", data / "data", split="mine", **options)


def expected(data, name: str, label: int, frames) -> tuple[float, float]:
    j, f = [], []
    for t in frames:
        pair = [
            read_labels(folder / name / f"{t:05d}.png") == label
            for folder in (data / "predicted", data / "data" / "mine" / "Annotations")
        ]
        j.append(oracle.region_similarity(*pair))
        f.append(oracle.contour_accuracy(*pair))
    return fmean(j), fmean(f)


def test_an_object_is_scored_after_its_first_frame_up_to_the_last(data):
    scores = score(data)
    frames = {(NAMES[0], 2): (15, 20)}
    assert len(scores.objects) == 4
    for one in scores.objects:
        used = frames.get((one.video, one.object_id), (5, 10, 15, 20))
        assert one.num_frames == len(used)
        assert (one.j, one.f) == pytest.approx(
            expected(data, one.video, one.object_id, used), abs=1e-12
        )


def test_the_overall_number_is_the_mean_of_four_means_over_objects(data):
    scores = score(data)
    assert scores.seen_source == "the 65 categories of YouTube-VOS train"
    by_seen = {
        is_seen: [one for one in scores.objects if one.is_seen is is_seen]
        for is_seen in (True, False)
    }
    assert {one.category for one in by_seen[True]} == {"dog"}
    four = [fmean(getattr(o, m) for o in by_seen[s]) for m in "jf" for s in (True, False)]
    assert [scores.j_seen, scores.j_unseen, scores.f_seen, scores.f_unseen] == four
    assert scores.overall == pytest.approx(fmean(four))
    assert scores.jf_all == pytest.approx((scores.j_all + scores.f_all) / 2)
    assert score(data, workers=1) == score(data, workers=3) == scores


def test_perfect_masks_have_the_score_one_and_the_first_frame_does_not_count(data):
    for name in NAMES:
        for path in sorted((data / "data" / "mine" / "Annotations" / name).iterdir()):
            labels = read_labels(path)
            write_labels(data / "predicted" / name / path.name, labels)
        write_labels(data / "predicted" / name / "00000.png", np.zeros_like(labels))
    assert score(data).overall == 1


def test_what_is_seen_can_be_said(data):
    seen = data / "seen.txt"
    seen.write_text("guitar\n")
    scores = score(data, seen=seen)
    assert {(one.category, one.is_seen) for one in scores.objects} == {
        ("dog", False),
        ("guitar", True),
    }
    seen.write_text("dog\nguitar\n")
    scores = score(data, seen=seen)
    assert (scores.overall, scores.j_unseen) == (None, None)
    assert "4 seen, 0 unseen; Overall needs both kinds" in describe_seen(scores)


def test_without_categories_there_are_means_over_all(data):
    (data / "data" / "mine" / "meta.json").unlink()
    scores = score(data)
    assert (scores.overall, scores.seen_source) == (None, None)
    assert 0 < scores.jf_all < 1
    assert "meta.json tells no categories" in describe_seen(scores)


def test_where_nothing_tells_what_is_seen_there_are_means_over_all(data):
    split = data / "data" / "mine"
    for part in ("JPEGImages", "Annotations"):
        (split / part / NAMES[0]).rename(split / part / "own")
    (data / "predicted" / NAMES[0]).rename(data / "predicted" / "own")
    meta = (split / "meta.json").read_text().replace(NAMES[0], "own")
    (split / "meta.json").write_text(meta)
    scores = score(data)
    assert (scores.overall, scores.seen_source) == (None, None)
    assert {one.category for one in scores.objects} == {"dog", "guitar"}
    assert "--seen FILE or train/meta.json would" in describe_seen(scores)


def test_void_does_not_count(data):
    before = score(data, videos=[NAMES[1]]).objects
    path = data / "data" / "mine" / "Annotations" / NAMES[1] / "00010.png"
    labels = read_labels(path).copy()
    prediction = read_labels(data / "predicted" / NAMES[1] / "00010.png")
    labels[labels != prediction] = 255
    write_labels(path, labels)
    after = score(data, videos=[NAMES[1]]).objects
    assert all(new.j > old.j for new, old in zip(after, before, strict=True))


def test_one_object_may_be_255(data):
    for folder in (data / "data" / "mine" / "Annotations", data / "predicted"):
        for path in (folder / NAMES[0]).iterdir():
            write_labels(path, np.where(read_labels(path) == 1, 255, 0).astype(np.uint8))
    (data / "data" / "mine" / "meta.json").unlink()
    (one,) = score(data, videos=[NAMES[0]]).objects
    assert (one.object_id, one.num_frames) == (1, 4)
    assert one.j > 0.3


def test_a_split_without_later_annotations_is_refused(data, tmp_path):
    clip = generate_clip(5, num_frames=11, height=40, width=56)
    write_ytvos_layout({"a1": clip}, tmp_path / "other")
    with pytest.raises(DatasetError, match=r"only the frames that objects enter with.*server"):
        score_ytvos(data / "predicted", tmp_path / "other")
    with pytest.raises(ConfigError, match="workers"):
        score(data, workers=0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", r"0000000aaa lacks the predictions of 1 of 4 frames, the first .*00010\.png"),
        ("size", r"00010\.png is 20x56 \(height x width\), but the annotation is 40x56"),
        ("object", r"00010\.png holds the objects 9, but .* are 1, 2: leave out"),
        ("folder", "is not a folder"),
    ],
)
def test_predictions_that_do_not_fit(data, fault, words):
    path = data / "predicted" / NAMES[0] / "00010.png"
    labels = read_labels(path).copy()
    if fault == "missing":
        path.unlink()
    elif fault == "size":
        write_labels(path, labels[:20])
    elif fault == "object":
        labels[0, 0] = 9
        write_labels(path, labels)
    else:
        (data / "predicted").rename(data / "moved")
    with pytest.raises(MaskError, match=words):
        score(data)


# ---- tables


@pytest.fixture
def scores() -> YtvosScores:
    objects = (
        YtvosObjectScore("a1", 1, "dog", True, 4, 0.8, 0.6),
        YtvosObjectScore("a1", 2, "guitar", False, 2, 0.5, 0.3),
        YtvosObjectScore("b2", 1, None, None, 3, 0.2, 0.1),
    )
    return YtvosScores(objects, "2 categories of seen.txt")


def test_the_table_shows_every_number_in_80_columns(scores):
    text = io.StringIO()
    print_scores(scores, Console(file=text, width=80))
    rows = [line.split() for line in text.getvalue().splitlines() if line.strip()]
    assert ["a1", "1", "dog", "yes", "4", "70.0", "80.0", "60.0"] in rows
    assert ["b2", "1", "-", "-", "3", "15.0", "20.0", "10.0"] in rows
    assert ["55.0", "80.0", "50.0", "60.0", "30.0", "50.0", "33.3", "41.7"] in rows
    assert "1 seen, 1 unseen, 1 without a category" in text.getvalue()


def test_files_hold_every_number(scores, tmp_path):
    whole, single = write_csv(scores, tmp_path, split="mine")
    assert whole.name == "global_results-mine.csv"
    assert whole.read_text() == (
        "Overall,J-Seen,J-Unseen,F-Seen,F-Unseen,J-All,F-All,J&F-All\n"
        "0.550,0.800,0.500,0.600,0.300,0.500,0.333,0.417\n"
    )
    assert single.read_text().splitlines()[1:] == [
        "a1,1,dog,yes,4,0.800,0.600",
        "a1,2,guitar,no,2,0.500,0.300",
        "b2,1,,,3,0.200,0.100",
    ]
    write_json(scores, tmp_path / "scores.json", protocol={"name": "ino-ytvos"})
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["global"]["Overall"] == scores.overall
    assert content["seen"] == "2 categories of seen.txt"
    assert content["objects"][2]["category"] is None
