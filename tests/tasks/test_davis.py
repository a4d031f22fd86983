"""DAVIS: scores against published numbers and the oracle, their files, runs that are resumed."""

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import ino
from command import refused, run
from ino import Tracker, evaluate_davis, load_backbone
from ino.data.label_maps import write_labels
from ino.demo.synthetic import generate_clip, write_davis_layout
from ino.errors import ConfigError, DatasetError, MaskError, OutputError
from ino.metrics import Summary
from ino.propagate.protocols import get_protocol
from ino.tasks import davis as davis_task
from ino.tasks import scoring
from ino.tasks.davis import DavisScores, ObjectScore, read_davis_scores, score_davis
from ino.tasks.results import read_means
from oracles import boundary as oracle
from processes import held_elsewhere

HEIGHT, WIDTH = 36, 48


def moving_boxes(num_frames: int, num_objects: int, *, seed: int) -> list[np.ndarray]:
    """Label maps of boxes that drift, one after the other over the first."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 20, (num_objects, 2))
    sizes = rng.integers(6, 14, (num_objects, 2))
    maps = []
    for _ in range(num_frames):
        labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for index, ((y, x), (height, width)) in enumerate(zip(corners, sizes, strict=True)):
            labels[y : y + height, x : x + width] = index + 1
        maps.append(labels)
        corners = (corners + rng.integers(-1, 3, corners.shape)).clip(0, 24)
    return maps


def write_maps(folder: Path, maps, *, numbers=None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[int, Path] = {}
    for number, labels in zip(numbers or range(len(maps)), maps, strict=True):
        path = folder / f"{number:05d}.png"
        if id(labels) in written:
            path.hardlink_to(written[id(labels)])
        else:
            write_labels(path, labels)
            written[id(labels)] = path


def add_sequence(root: Path, name: str, maps, *, numbers=None, num_frames=None, year=2017) -> None:
    write_maps(root / "Annotations" / "480p" / name, maps, numbers=numbers)
    frames = root / "JPEGImages" / "480p" / name
    frames.mkdir(parents=True)
    for number in range(num_frames or len(maps)):
        (frames / f"{number:05d}.jpg").touch()
    names = root / "ImageSets" / str(year) / "val.txt"
    names.parent.mkdir(parents=True, exist_ok=True)
    names.write_text((names.read_text() if names.exists() else "") + f"{name}\n")


def expected_score(truth, prediction, label: int, *, sequence: str, void=None) -> ObjectScore:
    """From the oracle; `truth` and `prediction` are the maps of the scored frames."""
    j, f = [], []
    for index, (t, p) in enumerate(zip(truth, prediction, strict=True)):
        ignored = None if void is None else void[index]
        j.append(oracle.region_similarity(p == label, t == label, ignored))
        f.append(oracle.contour_accuracy(p == label, t == label, ignored))
    return ObjectScore(
        sequence, label, j=Summary(*oracle.summary(j)), f=Summary(*oracle.summary(f))
    )


def assert_equal(found: ObjectScore, expected: ObjectScore) -> None:
    assert (found.sequence, found.object_id) == (expected.sequence, expected.object_id)
    for ours, theirs in ((found.j, expected.j), (found.f, expected.f)):
        assert (ours.mean, ours.recall, ours.decay) == pytest.approx(
            (theirs.mean, theirs.recall, theirs.decay), abs=1e-12
        )


@pytest.fixture
def two_sequences(tmp_path):
    """A data set with one and two objects, and predictions that are a little off."""
    truth, predicted = {}, {}
    for seed, (name, num_objects, num_frames) in enumerate([("bear", 1, 9), ("pigs", 2, 7)]):
        truth[name] = moving_boxes(num_frames, num_objects, seed=seed)
        predicted[name] = [np.roll(labels, (1, 2), axis=(0, 1)) for labels in truth[name]]
        add_sequence(tmp_path / "davis", name, truth[name])
        write_maps(tmp_path / "predicted" / name, predicted[name])
    return tmp_path, truth, predicted


def test_scores_equal_the_oracle(two_sequences):
    folder, truth, predicted = two_sequences
    scores = score_davis(folder / "predicted", folder / "davis")
    expected = [
        expected_score(truth[name][1:-1], predicted[name][1:-1], label, sequence=name)
        for name, label in (("bear", 1), ("pigs", 1), ("pigs", 2))
    ]
    for found, wanted in zip(scores.objects, expected, strict=True):
        assert_equal(found, wanted)
    assert 0 < scores.jf_mean < 1
    assert scores.means()["F-Decay"] == pytest.approx(np.mean([one.f.decay for one in expected]))


def test_any_number_of_workers_gives_the_same(two_sequences):
    folder, _, _ = two_sequences
    alone = score_davis(folder / "predicted", folder / "davis", workers=1)
    assert [one.sequence for one in alone.objects] == ["bear", "pigs", "pigs"]
    assert score_davis(folder / "predicted", folder / "davis", workers=3) == alone


def test_errors_are_the_same_from_other_processes(two_sequences):
    folder, _, _ = two_sequences
    path = folder / "predicted" / "bear" / "00003.png"
    path.write_bytes(path.read_bytes()[:60])
    messages = set()
    for workers in (1, 2):
        with pytest.raises(MaskError) as raised:
            score_davis(folder / "predicted", folder / "davis", workers=workers)
        messages.add(str(raised.value))
    (message,) = messages
    assert "00003.png is broken" in message


def test_a_long_sequence_is_shared(tmp_path):
    """Its portions come together in order."""
    truth = moving_boxes(45, 2, seed=2)
    predicted = [np.roll(labels, 1 + t // 9, axis=1) for t, labels in enumerate(truth)]
    add_sequence(tmp_path / "davis", "bear", truth)
    write_maps(tmp_path / "predicted" / "bear", predicted)
    scores = score_davis(tmp_path / "predicted", tmp_path / "davis", workers=2)
    assert [one.object_id for one in scores.objects] == [1, 2]
    for found in scores.objects:
        wanted = expected_score(truth[1:-1], predicted[1:-1], found.object_id, sequence="bear")
        assert_equal(found, wanted)


def test_first_and_last_frame_do_not_count(two_sequences):
    folder, truth, _ = two_sequences
    before = score_davis(folder / "predicted", folder / "davis", sequences=["bear"])
    for number in (0, len(truth["bear"]) - 1):
        (folder / "predicted" / "bear" / f"{number:05d}.png").unlink()
    after = score_davis(folder / "predicted", folder / "davis", sequences=["bear"])
    assert before == after


def test_a_perfect_prediction_scores_one(two_sequences):
    folder, truth, _ = two_sequences
    for name, maps in truth.items():
        write_maps(folder / "perfect" / name, maps)
    scores = score_davis(folder / "perfect", folder / "davis")
    assert [*scores.means().values()] == [1, 1, 1, 0, 1, 1, 0]


def test_the_highest_number_of_the_first_frame_counts_objects(tmp_path):
    # Object 1 is nowhere and predicted nowhere: it counts, and is perfect, as officially.
    truth = [labels * 2 for labels in moving_boxes(5, 1, seed=0)]
    truth[2][0, 0] = 3  # enters later: not scored
    add_sequence(tmp_path / "davis", "bear", truth)
    write_maps(tmp_path / "predicted" / "bear", [np.zeros_like(labels) for labels in truth])
    scores = score_davis(tmp_path / "predicted", tmp_path / "davis")
    assert [(one.object_id, one.j.mean) for one in scores.objects] == [(1, 1.0), (2, 0.0)]


def test_void_of_the_annotation_does_not_count(tmp_path):
    truth = moving_boxes(6, 2, seed=3)
    for labels in truth:
        labels[:, 20:24] = 255
    truth[3][(truth[3] == 1) | (truth[3] == 2)] = 0  # void alone: still void, not an object
    predicted = [np.where(labels == 255, 2, labels).astype(np.uint8) for labels in truth]
    add_sequence(tmp_path / "davis", "bear", truth)
    write_maps(tmp_path / "predicted" / "bear", predicted)
    scores = score_davis(tmp_path / "predicted", tmp_path / "davis")
    void = [labels == 255 for labels in truth[1:-1]]
    for found in scores.objects:
        wanted = expected_score(
            truth[1:-1], predicted[1:-1], found.object_id, sequence="bear", void=void
        )
        assert_equal(found, wanted)
    assert len(scores.objects) == 2
    assert scores.j_mean == 1


@pytest.mark.parametrize("year", [2016, 2017])
@pytest.mark.parametrize("truth_value", [1, 255])
@pytest.mark.parametrize("predicted_value", [1, 255])
def test_one_object_may_be_1_or_255(tmp_path, year, truth_value, predicted_value):
    truth = moving_boxes(6, 1, seed=4)
    predicted = [np.roll(labels, 1, axis=1) for labels in truth]
    add_sequence(tmp_path / "davis", "bear", [m * truth_value for m in truth], year=year)
    write_maps(tmp_path / "predicted" / "bear", [m * predicted_value for m in predicted])
    (found,) = score_davis(tmp_path / "predicted", tmp_path / "davis", year=year).objects
    assert_equal(found, expected_score(truth[1:-1], predicted[1:-1], 1, sequence="bear"))


def test_2016_has_one_foreground(tmp_path):
    truth = moving_boxes(6, 3, seed=5)
    predicted = [np.roll(labels, 2, axis=0) * 40 for labels in truth]
    add_sequence(tmp_path / "davis", "bear", truth, year=2016)
    write_maps(tmp_path / "predicted" / "bear", predicted)
    (found,) = score_davis(tmp_path / "predicted", tmp_path / "davis", year=2016).objects
    one = [[(labels > 0).astype(np.uint8) for labels in maps[1:-1]] for maps in (truth, predicted)]
    assert_equal(found, expected_score(*one, 1, sequence="bear"))


def test_sparse_annotations_are_scored_where_they_are(tmp_path):
    numbers = [0, 3, 4, 9]
    truth = moving_boxes(4, 1, seed=6)
    add_sequence(tmp_path / "davis", "caps", truth, numbers=numbers, num_frames=12)
    predicted = [np.roll(labels, 1, axis=0) for labels in truth[1:-1]]
    write_maps(tmp_path / "predicted" / "caps", predicted, numbers=numbers[1:-1])
    (found,) = score_davis(tmp_path / "predicted", tmp_path / "davis").objects
    assert_equal(found, expected_score(truth[1:-1], predicted, 1, sequence="caps"))


def test_more_than_256_frames(tmp_path):
    box = moving_boxes(1, 1, seed=7)[0]
    truth = [box] * 300
    predicted = [box] * 150 + [np.zeros_like(box)] * 150  # the same arrays: links to two files
    add_sequence(tmp_path / "davis", "long", truth)
    write_maps(tmp_path / "predicted" / "long", predicted)
    scores = score_davis(tmp_path / "predicted", tmp_path / "davis")
    assert (scores.means()["J-Decay"], scores.means()["F-Decay"]) == (1, 1)


def test_missing_predictions_are_told_before_scoring(two_sequences, monkeypatch):
    folder, _, _ = two_sequences
    monkeypatch.delattr(scoring, "score_labels")

    def score():
        return score_davis(folder / "predicted", folder / "davis", workers=1)

    for number in (2, 4):
        (folder / "predicted" / "pigs" / f"{number:05d}.png").unlink()
    with pytest.raises(MaskError, match=r"pigs lacks .* 2 of 5 frames, .*pigs/00002\.png"):
        score()
    shutil.rmtree(folder / "predicted" / "pigs")
    words = r"no folder for 1 of 2 sequences, the first of them pigs: .* with --sequences"
    with pytest.raises(MaskError, match=words):
        score()
    shutil.rmtree(folder / "predicted")
    with pytest.raises(MaskError, match="predicted is not a folder"):
        score()


def test_predictions_of_another_size_are_refused(two_sequences):
    folder, _, _ = two_sequences
    path = folder / "predicted" / "bear" / "00003.png"
    write_labels(path, np.ones((18, 24), dtype=np.uint8))
    with pytest.raises(MaskError, match=r"bear/00003\.png is 18x24 .*, but .* is 36x48"):
        score_davis(folder / "predicted", folder / "davis")


@pytest.mark.parametrize(
    ("values", "named"), [((3, 7), "3, 7"), ((255,), "255")], ids=["extra", "void"]
)
def test_predictions_with_other_objects_are_refused(two_sequences, values, named):
    folder, _, predicted = two_sequences
    labels = predicted["pigs"][2].copy()
    labels[0, : len(values)] = values
    write_labels(folder / "predicted" / "pigs" / "00002.png", labels)
    with pytest.raises(MaskError, match=rf"pigs/00002\.png holds the objects {named}, .* are 1, 2"):
        score_davis(folder / "predicted", folder / "davis")


def test_colour_images_are_refused(two_sequences):
    folder, _, _ = two_sequences
    path = folder / "predicted" / "bear" / "00003.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    with pytest.raises(MaskError, match="of mode RGB"):
        score_davis(folder / "predicted", folder / "davis")


def test_sequences_without_anything_to_score_are_refused(tmp_path):
    boxes = moving_boxes(4, 1, seed=8)
    add_sequence(tmp_path / "short", "bear", boxes[:2])
    write_maps(tmp_path / "predicted" / "bear", boxes)
    with pytest.raises(DatasetError, match="bear has 2 annotated frames, but at least 3"):
        score_davis(tmp_path / "predicted", tmp_path / "short")
    add_sequence(tmp_path / "empty", "bear", [np.zeros_like(boxes[0]), *boxes[1:]])
    with pytest.raises(DatasetError, match=r"00000\.png holds no object"):
        score_davis(tmp_path / "predicted", tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"no sequence of .* is chosen"):
        score_davis(tmp_path / "predicted", tmp_path / "empty", sequences=[])


@pytest.mark.parametrize("wrong", [{"year": 2019}, {"workers": 0}])
def test_wrong_options_are_refused(two_sequences, wrong):
    folder, _, _ = two_sequences
    with pytest.raises(ConfigError, match=f"{next(iter(wrong.values()))}"):
        score_davis(folder / "predicted", folder / "davis", **wrong)


def test_global_means_by_hand():
    def score(name, label, j, f):
        return ObjectScore(name, label, j=Summary(*j), f=Summary(*f))

    scores = DavisScores(
        objects=(
            score("bear", 1, (0.9, 1.0, 0.1), (0.7, 0.8, 0.2)),
            score("pigs", 1, (0.3, 0.2, 0.5), (0.5, 0.4, 0.0)),
            score("pigs", 2, (0.6, 0.6, 0.3), (0.9, 0.6, 0.1)),
        )
    )
    expected = (0.65, 0.6, 0.6, 0.3, 0.7, 0.6, 0.1)
    assert tuple(scores.means().values()) == pytest.approx(expected)
    assert (scores.jf_mean, scores.j_mean, scores.f_mean) == pytest.approx((0.65, 0.6, 0.7))


@pytest.mark.real
@pytest.mark.parametrize("year", [2016, 2017])
def test_published_scores_to_three_decimals(shared_data, tmp_path, year):
    with (shared_data / "scores" / "published.csv").open() as file:
        published = {row["Sequence"]: row for row in csv.DictReader(file)}
    # DAVIS-2016's files under the list of either year: the sequences have one object in both.
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder).symlink_to(shared_data / "davis" / folder)
    names = tmp_path / "ImageSets" / str(year) / "val.txt"
    names.parent.mkdir(parents=True)
    names.write_text("\n".join(name.removesuffix("_1") for name in published))
    scores = score_davis(shared_data / "scores" / "predictions", tmp_path, year=year)
    assert len(scores.objects) == 5
    for score in scores.objects:
        row = published[f"{score.sequence}_{score.object_id}"]
        assert f"{score.j.mean:.3f}" == row["J-Mean"], score.sequence
        assert f"{score.f.mean:.3f}" == row["F-Mean"], score.sequence


FAST = ["--weights", "color", "--device", "cpu", "--set", "short_side=none", "radius=4"]


@pytest.fixture(scope="module")
def davis(tmp_path_factory) -> Path:
    """Two sequences of four frames."""
    root = tmp_path_factory.mktemp("davis") / "davis"
    sizes = {"height": 48, "width": 64, "num_frames": 4}
    write_davis_layout({f"s{seed}": generate_clip(seed, **sizes) for seed in range(2)}, root)
    return root


@pytest.fixture(scope="module")
def done(davis, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    assert run("evaluate", "davis", "--root", davis, "--out", out, *FAST) == 0
    return out


def results(out: Path) -> dict[str, bytes]:
    """All files but hidden ones."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("[!.]*")
        if path.is_file()
    }


@pytest.fixture
def propagated(monkeypatch) -> list[str]:
    """The sequences that were propagated."""
    names, original = [], davis_task.propagate_sequence

    def propagate(sequence, predictions, **options):
        names.append(sequence.name)
        original(sequence, predictions, **options)

    monkeypatch.setattr(davis_task, "propagate_sequence", propagate)
    return names


def test_a_stopped_run_is_resumed_to_the_same_bytes(davis, done, tmp_path, capsys, monkeypatch):
    out, frames = tmp_path / "out", []
    arguments = ["evaluate", "davis", "--root", davis, "--out", out, *FAST]
    original = davis_task.propagate_sequence

    def propagate(sequence, predictions, *, on_frame, **options):
        def stop():
            frames.append(sequence.name)
            if len(frames) == 6:
                raise KeyboardInterrupt
            on_frame()

        original(sequence, predictions, on_frame=stop, **options)

    monkeypatch.setattr(davis_task, "propagate_sequence", propagate)
    assert run(*arguments) == 130
    assert "ino: stopped; what is done is kept: continue with --resume\n" in capsys.readouterr().err
    assert (out / "finished.txt").read_text() == "s0\n"
    assert not (out / "scores.json").exists()
    frames[:] = ["s0"] * 6
    assert run(*arguments, "--resume") == 0
    assert frames[6:] == ["s1"] * 4
    assert results(out) == results(done)


def test_masks_that_broke_after_they_were_done_are_made_again(davis, done, tmp_path, propagated):
    out = shutil.copytree(done, tmp_path / "out")
    torn = out / "predictions/s1/00002.png"
    torn.write_bytes(torn.read_bytes()[:-20])
    assert run("evaluate", "davis", "--root", davis, "--out", out, *FAST, "--resume") == 0
    assert propagated == ["s1"]
    assert results(out) == results(done)


def test_a_layer_that_does_not_exist_leaves_nothing(davis, tmp_path, capsys):
    network = ["--weights", "random:vit_nano/8", "--set", "layer=13"]
    out = tmp_path / "out"
    assert "no layer 13" in refused(
        capsys, "evaluate", "davis", "--root", davis, "--out", out, *network
    )
    assert not out.exists()


def test_two_settings_are_never_mixed(davis, done, tmp_path, capsys):
    out = shutil.copytree(done, tmp_path / "out")
    arguments = ["evaluate", "davis", "--root", davis, "--out", out]
    assert "or pass --resume to continue" in refused(capsys, *arguments, *FAST)
    message = refused(capsys, *arguments, *FAST[:-1], "radius=5", "--resume")
    assert "says that protocol field radius was 4, but now it is 5: resume with" in message
    shutil.copytree(davis / "ImageSets/2017", davis / "ImageSets/2016", dirs_exist_ok=True)
    message = refused(capsys, *arguments, "--year", 2016, *FAST, "--resume")
    assert "says that year was 2017, but now it is 2016" in message
    assert "give one" in refused(capsys, *arguments, *FAST, "--resume", "--overwrite")
    with held_elsewhere(out):
        line = refused(capsys, *arguments, *FAST, "--overwrite")
        assert "another ino evaluate davis is writing into" in line
    assert results(out) == results(done)


def test_after_overwriting_nothing_old_counts_as_done(davis, done, tmp_path, propagated):
    """Masks of other settings lie there whole, and the new run stops before it comes to them."""
    out = shutil.copytree(done, tmp_path / "out")
    protocol = get_protocol("ino-davis", short_side=None, radius=1)
    tracker = Tracker(load_backbone("color"), protocol=protocol)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_davis(davis, out=out, tracker=tracker, overwrite=True, on_frame=stop)
    propagated.clear()
    evaluate_davis(davis, out=out, tracker=tracker, resume=True)
    assert propagated == ["s0", "s1"]


def test_settings_name_the_data_set(davis, done):
    settings = json.loads((done / "settings.json").read_text())
    names = ("root", "year", "split", "resolution")
    assert [settings[name] for name in names] == [str(davis), 2017, "val", "480p"]


@pytest.fixture
def scores() -> DavisScores:
    return DavisScores(
        objects=(
            ObjectScore("dog", 1, j=Summary(0.86654, 1.0, 0.064), f=Summary(0.846, 0.98, 0.16)),
            ObjectScore("pigs", 3, j=Summary(0.5, 0.25, -0.1), f=Summary(0.4, 0.5, 0.3)),
        )
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_shows_every_number(scores, width):
    text = io.StringIO()
    scores.print_table(Console(file=text, width=width))
    rows = [line.split() for line in text.getvalue().splitlines() if line.strip()]
    assert ["dog", "1", "85.6", "86.7", "100.0", "6.4", "84.6", "98.0", "16.0"] in rows
    assert ["pigs", "3", "45.0", "50.0", "25.0", "-10.0", "40.0", "50.0", "30.0"] in rows
    assert ["mean", "2", "65.3", "68.3", "62.5", "-1.8", "62.3", "74.0", "23.0"] in rows
    assert ["Mean", "Mean", "Recall", "Decay", "Mean", "Recall", "Decay"] in [
        [word for word in row if word not in ("Sequence", "Object")] for row in rows
    ]


def test_the_table_fits_80_columns_with_the_longest_name_of_davis(scores):
    text = io.StringIO()
    one = ObjectScore("paragliding-launch", 3, j=scores.objects[0].j, f=scores.objects[0].f)
    DavisScores(objects=(one,)).print_table(Console(file=text, width=80))
    assert "paragliding-launch" in text.getvalue()
    assert "…" not in text.getvalue()


def test_csv_files_are_those_of_the_official_evaluation(scores, tmp_path):
    whole, single = (tmp_path / f"{name}_results-val.csv" for name in ("global", "per-sequence"))
    whole.write_text("old")
    scores.write(tmp_path, split="val", protocol=None)
    assert whole.read_bytes() == (
        b"J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay\n"
        b"0.653,0.683,0.625,-0.018,0.623,0.740,0.230\n"
    )
    assert single.read_bytes() == (
        b"Sequence,J-Mean,F-Mean\ndog_1,0.867,0.846\npigs_3,0.500,0.400\n"
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [whole.name, single.name, "scores.json"]
    assert json.loads((tmp_path / "scores.json").read_text())["protocol"] is None
    scores.write(tmp_path, split="train", protocol=None)
    assert (tmp_path / "global_results-train.csv").read_bytes() == whole.read_bytes()


def test_json_holds_everything(scores, tmp_path):
    protocol = get_protocol("ino-davis", radius=40)
    scores.write(tmp_path, split="val", protocol=protocol)
    path = tmp_path / "scores.json"
    content = json.loads(path.read_text())
    assert list(content) == ["software", "protocol", "global", "objects"]
    assert content["software"] == {"name": "ino", "version": ino.__version__}
    assert (content["protocol"]["name"], content["protocol"]["radius"]) == ("ino-davis", 40)
    assert content["global"] == scores.means()
    assert content["objects"][1] == {
        "sequence": "pigs",
        "object_id": 3,
        "j": {"mean": 0.5, "recall": 0.25, "decay": -0.1},
        "f": {"mean": 0.4, "recall": 0.5, "decay": 0.3},
    }
    assert read_davis_scores(path) == scores
    assert read_means(path) == scores.means()


def test_what_cannot_be_written_is_said(scores, tmp_path):
    with pytest.raises(OutputError, match=r"global_results-val\.csv: the folder .*absent does not"):
        scores.write(tmp_path / "absent", split="val", protocol=None)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"objects": [{}]}'])
def test_files_of_other_scores_are_refused(tmp_path, content):
    path = tmp_path / "scores.json"
    with pytest.raises(OutputError, match="does not exist"):
        read_davis_scores(path)
    path.write_text(content)
    with pytest.raises(OutputError, match="does not hold scores on DAVIS"):
        read_davis_scores(path)
    assert read_means(path) is None


def test_a_split_without_later_annotations_gives_masks_and_a_zip_for_the_server(tmp_path, capsys):
    root, out = tmp_path / "davis", tmp_path / "out"
    clips = {f"s{seed}": generate_clip(seed, num_frames=4, height=32, width=48) for seed in (0, 1)}
    write_davis_layout(clips, root)
    for path in (root / "Annotations").rglob("*.png"):
        if path.stem != "00000":
            path.unlink()
    arguments = ("evaluate", "davis", "--root", root, "--out", out, "--weights", "color", *FAST)
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    assert "no scores: later frames of val are not annotated" in shown
    assert "the server of DAVIS" in shown
    with zipfile.ZipFile(out / "submission.zip") as packed:  # sequences are at its top
        assert packed.namelist() == [f"s{s}/{frame:05d}.png" for s in (0, 1) for frame in range(4)]
        mask = np.array(Image.open(packed.open("s1/00003.png")))
    np.testing.assert_array_equal(mask, np.array(Image.open(out / "predictions/s1/00003.png")))
    (out / "submission.zip").unlink()
    assert run(*arguments, "--resume") == 0
    assert (out / "submission.zip").is_file()
    assert run(*arguments, "--overwrite", "--sequences", "s0") == 0
    assert "needs all sequences" in capsys.readouterr().out


def test_a_sequence_that_cannot_be_scored_is_told_before_the_work(tmp_path, capsys, propagated):
    root = tmp_path / "davis"
    clips = {f"s{seed}": generate_clip(seed, num_frames=4, height=32, width=48) for seed in (0, 1)}
    write_davis_layout(clips, root)
    for path in (root / "Annotations/480p/s1").glob("*.png"):
        if path.stem != "00000":
            path.unlink()
    out = tmp_path / "out"
    arguments = ("evaluate", "davis", "--root", root, "--out", out, "--weights", "color", *FAST)
    assert "s1 has 1 annotated frames" in refused(capsys, *arguments)
    assert propagated == [] and not out.exists()


@pytest.mark.parametrize("year", [2016, 2017])
def test_probability_maps_are_refused(tmp_path, year):
    boxes = moving_boxes(4, 1, seed=3)
    add_sequence(tmp_path / "davis", "bear", boxes, year=year)
    folder = tmp_path / "predicted" / "bear"
    write_maps(folder, boxes)
    soft = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    Image.fromarray(soft).save(folder / "00002.png")
    with pytest.raises(MaskError, match=r"00002\.png holds \d+ levels .* probability map"):
        score_davis(tmp_path / "predicted", tmp_path / "davis", year=year)
