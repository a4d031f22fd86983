"""YouTube-VOS: scores, tables, the command, submissions, and runs that are resumed."""

import io
import json
import logging
import os
import shutil
import signal
import threading
import weakref
import zipfile
from contextlib import suppress
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from rich.console import Console

from command import refused, run
from ino import Tracker, evaluate_ytvos, load_backbone, score_davis
from ino.data.images import read_image
from ino.data.label_maps import read_labels, write_labels
from ino.data.ytvos import read_ytvos_split
from ino.demo.synthetic import generate_clip
from ino.errors import ConfigError, DatasetError, MaskError, OutputError, VideoError
from ino.propagate.protocols import get_protocol
from ino.propagate.tracker import Session
from ino.system import write_text
from ino.tasks import results
from ino.tasks.results import fingerprint, open_folder, read_finished
from ino.tasks.ytvos import YtvosObjectScore, YtvosScores, score_ytvos
from oracles import boundary as oracle
from processes import APART, held_elsewhere, wait
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


def score(data, *, videos=None, **options) -> YtvosScores:
    split = read_ytvos_split(data / "data", split="mine", videos=videos)
    return score_ytvos(data / "predicted", split, **options)


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
    means = list(scores.means().values())
    assert means[1:5] == four
    assert means[0] == pytest.approx(fmean(four))
    assert means[5:7] == [fmean(getattr(o, m) for o in scores.objects) for m in "jf"]
    assert means[7] == pytest.approx(fmean(means[5:7]))
    assert score(data, workers=1) == score(data, workers=3) == scores


def test_perfect_masks_have_the_score_one_and_the_first_frame_does_not_count(data):
    for name in NAMES:
        for path in sorted((data / "data" / "mine" / "Annotations" / name).iterdir()):
            labels = read_labels(path)
            write_labels(data / "predicted" / name / path.name, labels)
        write_labels(data / "predicted" / name / "00000.png", np.zeros_like(labels))
    assert score(data).means()["Overall"] == 1


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
    means = scores.means()
    assert (means["Overall"], means["J-Unseen"]) == (None, None)
    assert "4 seen, 0 unseen; Overall needs both kinds" in scores.describe_seen()


def test_without_categories_there_are_means_over_all(data):
    (data / "data" / "mine" / "meta.json").unlink()
    scores = score(data)
    assert (scores.means()["Overall"], scores.seen_source) == (None, None)
    assert 0 < scores.means()["J&F-All"] < 1
    assert "meta.json tells no categories" in scores.describe_seen()


def test_where_nothing_tells_what_is_seen_there_are_means_over_all(data):
    split = data / "data" / "mine"
    for part in ("JPEGImages", "Annotations"):
        (split / part / NAMES[0]).rename(split / part / "own")
    (data / "predicted" / NAMES[0]).rename(data / "predicted" / "own")
    meta = (split / "meta.json").read_text().replace(NAMES[0], "own")
    (split / "meta.json").write_text(meta)
    scores = score(data)
    assert (scores.means()["Overall"], scores.seen_source) == (None, None)
    assert {one.category for one in scores.objects} == {"dog", "guitar"}
    assert "--seen FILE or train/meta.json would" in scores.describe_seen()


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
        score_ytvos(data / "predicted", read_ytvos_split(tmp_path / "other"))
    with pytest.raises(ConfigError, match="workers"):
        score(data, workers=0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", r"0000000aaa lacks the predictions of 1 of 4 frames, the first .*00010\.png"),
        ("size", r"00010\.png is 20x56 \(height x width\), but the annotation .* is 40x56:"),
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
    scores.print_table(Console(file=text, width=80))
    rows = [line.split() for line in text.getvalue().splitlines() if line.strip()]
    assert ["a1", "1", "dog", "yes", "4", "70.0", "80.0", "60.0"] in rows
    assert ["b2", "1", "-", "-", "3", "15.0", "20.0", "10.0"] in rows
    assert ["55.0", "80.0", "50.0", "60.0", "30.0", "50.0", "33.3", "41.7"] in rows
    assert "1 seen, 1 unseen, 1 without a category" in text.getvalue()


def test_files_hold_every_number(scores, tmp_path):
    scores.write(tmp_path, split="mine", protocol=get_protocol("ino-ytvos"))
    whole, single = (tmp_path / f"{name}_results-mine.csv" for name in ("global", "per-object"))
    assert whole.read_text() == (
        "Overall,J-Seen,J-Unseen,F-Seen,F-Unseen,J-All,F-All,J&F-All\n"
        "0.550,0.800,0.500,0.600,0.300,0.500,0.333,0.417\n"
    )
    assert single.read_text().splitlines()[1:] == [
        "a1,1,dog,yes,4,0.800,0.600",
        "a1,2,guitar,no,2,0.500,0.300",
        "b2,1,,,3,0.200,0.100",
    ]
    content = json.loads((tmp_path / "scores.json").read_text())
    assert list(content) == ["software", "protocol", "seen", "global", "objects"]
    assert content["protocol"]["name"] == "ino-ytvos"
    assert content["global"] == scores.means()
    assert content["seen"] == "2 categories of seen.txt"
    assert content["objects"][2]["category"] is None


FAST = ["--weights", "color", "--device", "cpu", "--set", "short_side=none", "radius=4"]
A1, B2 = "0000000aaa", "00000000bb"
MASKS = {A1: ["00000", "00005", "00010", "00015"], B2: ["00005", "00010", "00015"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """In A1 object 2 enters with frame 10, in B2 nothing before frame 5; `mine` has the truth."""
    root = tmp_path_factory.mktemp("command") / "data"
    clip = generate_clip(5, num_frames=17, height=48, width=64, num_objects=2)
    other = generate_clip(6, num_frames=17, height=48, width=72, num_objects=2)
    options = {
        "entries": {A1: {2: 10}, B2: {1: 5, 2: 5}},
        "categories": {1: "dog", 2: "guitar"},
    }
    write_ytvos_layout({A1: clip, B2: other}, root, **options)
    write_ytvos_layout({A1: clip, B2: other}, root, split="mine", dense=True, **options)
    return root


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    assert run("evaluate", "ytvos", "--root", made, "--out", out, *FAST) == 0
    return out


def fast_tracker(**overrides) -> Tracker:
    protocol = get_protocol("ino-ytvos", **{"short_side": None, "radius": 4} | overrides)
    return Tracker(load_backbone("color"), protocol=protocol)


def masks_of(out: Path) -> dict[str, bytes]:
    folder = out / "predictions"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")
    }


def test_a_submission_holds_what_is_asked_for(done, made):
    written = {
        name: sorted(path.stem for path in (done / "predictions" / name).iterdir())
        for name in MASKS
    }
    assert written == MASKS
    with zipfile.ZipFile(done / "submission.zip") as packed:
        assert packed.namelist() == [
            f"Annotations/{name}/{frame}.png" for name in sorted(MASKS) for frame in MASKS[name]
        ]
    given = made / "valid" / "Annotations" / A1 / "00000.png"
    np.testing.assert_array_equal(
        read_labels(done / "predictions" / A1 / "00000.png"), read_labels(given)
    )
    settings = json.loads((done / "settings.json").read_text())
    assert settings["protocol"]["name"] == "ino-ytvos"
    assert settings["frames"].endswith("valid_all_frames")
    assert not (done / "scores.json").exists()


def test_late_objects_enter_with_their_mask(done):
    seen = {
        frame: set(np.unique(read_labels(done / "predictions" / A1 / f"{frame}.png")))
        for frame in MASKS[A1]
    }
    assert 2 not in seen["00000"] | seen["00005"]
    assert 2 in seen["00010"]
    assert 2 in seen["00015"]


def test_masks_are_those_of_the_tracker_on_all_frames(done, made, tmp_path):
    """Equal to a run over every frame by hand, from which each fifth mask is taken."""
    video = read_ytvos_split(made).videos[1]
    assert video.name == A1
    frames = [read_image(path, size=(48, 64)) for path in video.frames]
    masks = {int(f): read_labels(path) for f, path in video.annotations.items()}
    for number, labels in enumerate(fast_tracker().track(frames, masks)):
        if number % 5 == 0:
            written = read_labels(done / "predictions" / A1 / f"{number:05d}.png")
            np.testing.assert_array_equal(labels, written)


def test_what_is_printed(made, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("evaluate", "ytvos", "--root", made, "--out", out, *FAST, "--videos", A1) == 0
    text = capsys.readouterr().out
    assert "protocol ino-ytvos" in text
    assert "holds only the frames that objects enter with" in text
    assert "1 video, 4 masks, no faults" in text
    assert "no submission.zip: it needs all videos" in text
    assert not (out / "submission.zip").exists()


def test_the_truth_is_scored_where_it_is(made, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    assert run("evaluate", "ytvos", "--root", made, "--split", "mine", "--out", out, *FAST) == 0
    printed = capsys.readouterr().out
    assert "seen: the 65 categories of YouTube-VOS train; objects: 2 seen, 2 unseen" in printed
    assert "protocol ino-ytvos" in printed
    scores = json.loads((out / "scores.json").read_text())
    assert 0 < scores["global"]["Overall"] < 1
    assert scores["protocol"]["radius"] == 4
    options = ["--root", made, "--layout", "ytvos", "--split", "mine", "--out", again]
    assert run("score", out / "predictions", *options) == 0
    for name in ("global_results-mine.csv", "per-object_results-mine.csv"):
        assert (out / name).read_text() == (again / name).read_text()


def test_scoring_a_split_without_truth_is_refused(made, done, capsys):
    arguments = ["score", done / "predictions", "--root", made, "--layout", "ytvos"]
    assert "server of YouTube-VOS" in refused(capsys, *arguments)


def test_the_frames_of_the_split_do_where_there_are_no_others(made, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("ino"), "propagate", True)
    root = shutil.copytree(made, tmp_path / "data")
    shutil.rmtree(root / "valid_all_frames")
    out = tmp_path / "out"
    assert run("evaluate", "ytvos", "--root", root, "--out", out, *FAST) == 0
    assert "valid_all_frames is not there: masks are propagated through the frames" in caplog.text
    assert len(masks_of(out)) == 7


def test_memory_does_not_grow_with_the_video(tmp_path, monkeypatch):
    clip = generate_clip(5, num_frames=60, height=32, width=32, num_objects=1)
    write_ytvos_layout({"long": clip}, tmp_path / "data")
    alive: list[weakref.ref] = []
    most = 0

    def monitored(path, *, size):
        nonlocal most
        frame = read_image(path, size=size)
        alive.append(weakref.ref(frame))
        most = max(most, sum(ref() is not None for ref in alive))
        return frame

    monkeypatch.setattr(results, "read_image", monitored)
    tracker = fast_tracker(num_context=2)
    evaluate_ytvos(tmp_path / "data", out=tmp_path / "out", tracker=tracker)
    assert len(alive) == 56
    assert most <= 6  # two are read ahead, one waits for its place, and what the tracker holds


def test_reading_propagating_and_writing_overlap(made, tmp_path, monkeypatch):
    """They are in different threads, which are gone at the end, also where writing fails."""
    threads: dict[str, set[int]] = {"read": set(), "write": set(), "track": set()}

    def noting(name, function):
        def noted(*arguments, **options):
            threads[name].add(threading.get_ident())
            return function(*arguments, **options)

        return noted

    monkeypatch.setattr(results, "read_image", noting("read", read_image))
    monkeypatch.setattr(results, "write_labels", noting("write", write_labels))
    tracker = fast_tracker()
    monkeypatch.setattr(Session, "step", noting("track", Session.step))
    before = set(threading.enumerate())
    evaluate_ytvos(made, out=tmp_path / "out", tracker=tracker, videos=[A1])
    files, tracking = threads["read"] | threads["write"], threads["track"]
    assert len(tracking) == 1
    assert files.isdisjoint(tracking)
    assert threading.get_ident() not in files | tracking

    def stop():
        raise OutputError("full")

    try:
        evaluate_ytvos(made, out=tmp_path / "other", tracker=tracker, on_frame=stop)
    except OutputError as error:
        assert error.__traceback__ is not None
        assert set(threading.enumerate()) <= before


def evaluate_and_die(made: Path, out: Path, num_frames: int) -> None:
    """SIGKILL comes with this frame."""
    left = iter(range(num_frames, 0, -1))

    def on_frame() -> None:
        if next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    evaluate_ytvos(made, out=out, tracker=fast_tracker(), on_frame=on_frame)


def test_a_killed_run_is_resumed_to_the_same_bytes(made, done, tmp_path):
    out = tmp_path / "out"
    process = APART.Process(target=evaluate_and_die, args=(made, out, 18))
    process.start()
    assert wait([process]) == [-signal.SIGKILL]
    assert (out / "finished.txt").read_text() == f"{B2}\n"
    assert not (out / "submission.zip").exists()
    torn = out / "predictions" / A1 / "00005.png"
    torn.write_bytes(b"of a run that was killed")
    first = (out / "predictions" / B2 / "00005.png").stat().st_mtime_ns
    result = evaluate_ytvos(made, out=out, tracker=fast_tracker(), resume=True)
    assert (result.num_videos, result.num_skipped) == (2, 1)
    assert (out / "predictions" / B2 / "00005.png").stat().st_mtime_ns == first
    assert masks_of(out) == masks_of(done)
    assert (out / "submission.zip").read_bytes() == (done / "submission.zip").read_bytes()


def test_videos_come_in_parts(made, done, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["evaluate", "ytvos", "--root", made, "--out", out, *FAST, "--resume"]
    assert run(*arguments, "--videos", A1) == 0
    (out / "predictions" / A1 / "00010.png").unlink()
    assert run(*arguments, "--videos", B2) == 0
    assert run(*arguments) == 0
    assert "1 of 2 videos were done before" in capsys.readouterr().out
    assert (out / "submission.zip").read_bytes() == (done / "submission.zip").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b""),
        lambda path: write_labels(path, np.ones((8, 9), dtype=np.uint8)),
    ],
)
def test_masks_that_broke_after_they_were_done_are_made_again(made, done, tmp_path, capsys, damage):
    out = shutil.copytree(done, tmp_path / "out")
    damage(out / "predictions" / A1 / "00010.png")
    assert run("evaluate", "ytvos", "--root", made, "--out", out, *FAST, "--resume") == 0
    assert "1 of 2 videos were done before" in capsys.readouterr().out
    assert masks_of(out) == masks_of(done)


def test_two_settings_are_never_mixed(made, done, tmp_path, capsys):
    out = shutil.copytree(done, tmp_path / "out")
    before = masks_of(out)
    arguments = ["evaluate", "ytvos", "--root", made, "--out", out]
    message = refused(capsys, *arguments, *FAST)
    assert "is not empty: choose another --out, or pass --resume" in message
    other = [*FAST[:-1], "radius=5"]
    message = refused(capsys, *arguments, *other, "--resume")
    assert "says that protocol field radius was 4, but now it is 5: resume with" in message
    message = refused(capsys, *arguments, "--split", "mine", *FAST, "--resume")
    assert "frames was" in message
    assert "give one" in refused(capsys, *arguments, *FAST, "--resume", "--overwrite")
    both = ["evaluate", "ytvos", "--root", made, "--out", tmp_path / "new", *FAST]
    assert "give one" in refused(capsys, *both, "--resume", "--overwrite")
    assert not (tmp_path / "new").exists()
    assert masks_of(out) == before
    (out / "settings.json").write_text("{")
    assert "is broken" in refused(capsys, *arguments, *FAST, "--resume")
    (out / "settings.json").unlink()
    assert "has no settings.json" in refused(capsys, *arguments, *FAST, "--resume")


@pytest.mark.parametrize("num_writes", [0, 1, 2])
def test_a_kill_at_any_point_of_the_start_can_be_resumed(tmp_path, monkeypatch, num_writes):
    done = []

    def killed(path, text):
        if len(done) == num_writes:
            raise KeyboardInterrupt
        done.append(path)
        write_text(path, text)

    monkeypatch.setattr(results, "write_text", killed)
    with suppress(KeyboardInterrupt):
        open_folder(tmp_path / "out", '{"a": 1}', resume=False, overwrite=False)
    monkeypatch.setattr(results, "write_text", write_text)
    open_folder(tmp_path / "out", '{"a": 1}', resume=True, overwrite=False)
    assert json.loads((tmp_path / "out/settings.json").read_text()) == {"a": 1}
    assert read_finished(tmp_path / "out") == []


def test_two_commands_do_not_write_into_one_folder(made, done, tmp_path, capsys):
    out = shutil.copytree(done, tmp_path / "out")
    arguments = ["evaluate", "ytvos", "--root", made, "--out", out, *FAST]
    with held_elsewhere(out):
        for option in ("--resume", "--overwrite"):
            line = refused(capsys, *arguments, option)
            assert "another ino evaluate ytvos is writing into" in line
    assert run(*arguments, "--resume") == 0


def test_after_overwriting_nothing_old_counts_as_done(made, done, tmp_path):
    """Masks of other settings lie there whole, and the new run stops before it comes to them."""
    out = shutil.copytree(done, tmp_path / "out")
    tracker = fast_tracker(radius=1)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_ytvos(made, out=out, tracker=tracker, overwrite=True, on_frame=stop)
    (out / "predictions" / A1 / "00003.png").touch()
    result = evaluate_ytvos(made, out=out, tracker=tracker, resume=True)
    assert result.num_skipped == 0
    evaluate_ytvos(made, out=tmp_path / "new", tracker=tracker)
    assert masks_of(out) == masks_of(tmp_path / "new") != masks_of(done)


def test_a_broken_frame_stops_the_run_and_keeps_what_was_done(made, tmp_path):
    root, out = shutil.copytree(made, tmp_path / "data"), tmp_path / "out"
    frame = root / "valid_all_frames" / "JPEGImages" / A1 / "00007.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(whole[:-300])
    with pytest.raises(VideoError, match=r"00007\.jpg is broken"):
        evaluate_ytvos(root, out=out, tracker=fast_tracker())
    assert (out / "finished.txt").read_text() == f"{B2}\n"
    frame.write_bytes(whole)
    assert evaluate_ytvos(root, out=out, tracker=fast_tracker(), resume=True).num_skipped == 1


def test_masks_of_another_size_than_the_frames_are_refused(made, tmp_path, capsys):
    root = shutil.copytree(made, tmp_path / "data")
    path = root / "valid" / "Annotations" / A1 / "00000.png"
    write_labels(path, np.eye(24, 64, dtype=np.uint8))
    message = refused(capsys, "evaluate", "ytvos", "--root", root, "--out", tmp_path / "o", *FAST)
    assert "00000.png is 24x64 (height x width), but its frame is 48x64" in message


def test_other_weights_under_the_same_name_are_noticed(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"one")
    first = fingerprint(str(path))
    path.write_bytes(b"two")
    assert first != fingerprint(str(path))
    assert fingerprint("color") == {}


def test_check_says_what_is_wrong_and_exits_with_2(made, done, tmp_path, capsys):
    arguments = ["--root", made]
    assert run("check", done / "submission.zip", *arguments) == 0
    assert "2 videos, 7 masks, no faults" in capsys.readouterr().out
    masks = shutil.copytree(done / "predictions", tmp_path / "masks")
    (masks / A1 / "00010.png").unlink()
    assert run("check", masks, *arguments) == 2
    shown = capsys.readouterr()
    assert f"  {A1} lacks 1 of 4 masks, the first of them 00010.png: predict" in shown.out
    assert "masks cannot be handed in (2 videos, 6 masks, 1 fault): mend what" in shown.err
    assert run("check", masks, *arguments, "--videos", B2) == 0
    assert "predictions or its zip" in refused(capsys, "check", done, *arguments)
    assert "does not exist" in refused(capsys, "check", tmp_path / "no.zip", *arguments)


@pytest.mark.real
def test_a_real_video_of_youtube_vos(shared_data, tmp_path):
    """003234408d as a split of its own: five objects, every fifth frame annotated."""
    root = tmp_path / "data"
    for part in ("JPEGImages", "Annotations"):
        source = shared_data / "vos" / part / "480p" / "003234408d"
        shutil.copytree(source, root / "valid" / part / "003234408d")
    protocol = get_protocol("ino-ytvos", radius=3)
    tracker = Tracker(load_backbone("color"), protocol=protocol)
    result = evaluate_ytvos(root, out=tmp_path / "out", tracker=tracker)
    assert (result.report.num_masks, result.report.num_faults) == (15, 0)
    assert result.scores is not None
    assert [one.object_id for one in result.scores.objects] == [1, 2, 3, 4, 5]
    assert all(one.num_frames == 14 for one in result.scores.objects)
    # DAVIS leaves out the last frame too: with one more, both score the same frames.
    davis = tmp_path / "davis"
    for part, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".png")):
        folder = davis / part / "480p" / "003234408d"
        shutil.copytree(root / "valid" / part / "003234408d", folder)
        shutil.copy(folder / f"00070{suffix}", folder / f"00075{suffix}")
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    (davis / "ImageSets" / "2017" / "val.txt").write_text("003234408d\n")
    same = score_davis(tmp_path / "out" / "predictions", davis)
    for ours, theirs in zip(result.scores.objects, same.objects, strict=True):
        assert (ours.j, ours.f) == pytest.approx((theirs.j.mean, theirs.f.mean), abs=1e-12)
    means = result.scores.means()
    assert means["J&F-All"] is not None
    assert means["J&F-All"] > 0.3
    assert means["Overall"] is None


def test_processes_read_and_write_beside_a_gpu(made, tmp_path, monkeypatch):
    """As if there were one: several frames at a time, and files in other processes."""
    plain, batched = tmp_path / "plain", tmp_path / "batched"
    evaluate_ytvos(made, out=plain, tracker=fast_tracker(), videos=[A1])
    monkeypatch.setattr(Tracker, "best_batch", 3)
    evaluate_ytvos(made, out=batched, tracker=fast_tracker(), videos=[A1])
    masks = sorted((plain / "predictions").rglob("*.png"))
    assert masks
    for path in masks:
        other = batched / path.relative_to(plain)
        assert other.read_bytes() == path.read_bytes()


def test_a_frame_that_breaks_in_another_process_is_named(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Tracker, "best_batch", 2)
    broken = tmp_path / "00001.jpg"
    frames = sorted((made / "valid" / "JPEGImages").rglob("*.jpg"))
    broken.write_bytes(frames[0].read_bytes()[:100])
    first = next(iter(sorted((made / "valid" / "Annotations").rglob("*.png"))))
    frame = next(
        one for one in frames if one.stem == first.stem and one.parent.name == first.parent.name
    )
    with pytest.raises(VideoError, match=r"00001\.jpg"):
        results.propagate_masks(
            [frame, broken],
            {0: first},
            tmp_path / "out",
            tracker=fast_tracker(),
            wanted=set(),
            on_frame=lambda: None,
        )
