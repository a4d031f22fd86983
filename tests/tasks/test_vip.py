"""VIP: files of predictions, the command, and bad input."""

import hashlib
import json
import re

import numpy as np
import pytest

from command import refused, run
from dense_layouts import sliding, write_part_video
from ino.data.davis import VideoSequence
from ino.data.label_maps import read_raw_labels, write_labels
from ino.demo.synthetic import generate_clip
from ino.errors import DatasetError, MaskError
from ino.models.load import bundled_folder, load_backbone
from ino.propagate.protocols import get_protocol
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.vip import evaluate_vip, score_vip

FAST = ["--weights", "color", "--device", "cpu", "--input-size", "64"]
TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], dtype=np.uint8)
FOUND = np.array([[0, 0, 0, 1], [0, 1, 1, 2]], dtype=np.uint8)


@pytest.fixture
def videos(tmp_path):
    """Two videos: one label map right, one as in the example above, first frames right."""
    found = []
    for name, predicted in (("a", TRUTH), ("b", FOUND)):
        folder = tmp_path / "truth" / name
        folder.mkdir(parents=True)
        (tmp_path / "predicted" / name).mkdir(parents=True)
        annotations = {}
        for number in (0, 2):
            annotations[number] = folder / f"{number}.png"
            write_labels(annotations[number], TRUTH)
            labels = np.where(TRUTH == 255, 0, TRUTH if number == 0 else predicted)
            write_labels(tmp_path / "predicted" / name / f"{number}.png", labels.astype(np.uint8))
        frames = tuple(tmp_path / "frames" / name / f"{number}.jpg" for number in range(3))
        found.append(VideoSequence(name, frames, annotations))
    return tmp_path / "predicted", found


def test_all_pixels_of_all_frames_together(videos):
    folder, sequences = videos
    scores = score_vip(folder, sequences)
    # Three frames right (4 and 3 pixels), one with one error of each kind.
    assert scores.iou[:2] == (15 / 17, 11 / 13)
    assert scores.mean_iou == pytest.approx((15 / 17 + 11 / 13) / 2)
    assert scores.accuracy == 26 / 28
    assert scores.num_frames == 4
    later = score_vip(folder, sequences, first_frame=False)
    assert later.iou[:2] == (7 / 9, 5 / 7)
    assert later.num_frames == 2


def test_predictions_that_do_not_fit(videos):
    folder, sequences = videos
    write_labels(folder / "b" / "2.png", np.full_like(TRUTH, 20))
    with pytest.raises(MaskError, match=r"b/2\.png holds the label 20, but the labels are 0 to 19"):
        score_vip(folder, sequences)
    write_labels(folder / "b" / "2.png", TRUTH[:1])
    with pytest.raises(MaskError, match=r"b/2\.png is 1x4 .*, but the annotation .* is 2x4"):
        score_vip(folder, sequences)
    (folder / "a" / "2.png").unlink()
    with pytest.raises(MaskError, match=r"a/2\.png is not a file"):
        score_vip(folder, sequences)


def test_nothing_to_score(videos):
    folder, sequences = videos
    given = [VideoSequence(v.name, v.frames, {0: v.annotations[0]}) for v in sequences]
    with pytest.raises(DatasetError, match="no annotated pixel"):
        score_vip(folder, given, first_frame=False)


@pytest.fixture
def vip(tmp_path):
    clip = generate_clip(5, num_frames=1, height=48, width=80, num_objects=2)
    frames = [clip.frames[0]] * 4
    labels = {number: (clip.labels[0] * 7).astype(np.uint8) for number in (0, 3)}
    (tmp_path / "vip").mkdir()
    write_part_video(tmp_path / "vip", "videos1", frames, labels)
    return tmp_path / "vip"


def test_evaluate_vip(tmp_path, vip, capsys):
    out = tmp_path / "out"
    assert run("evaluate", "vip", "--root", vip, "--out", out, *FAST) == 0
    assert "sun-glasses" not in capsys.readouterr().out
    written = sorted((out / "predictions/videos1").iterdir())
    assert [path.stem for path in written] == [f"{number:012d}" for number in range(4)]
    given = read_raw_labels(vip / "Annotations/Category_ids/videos1/000000000000.png")
    np.testing.assert_array_equal(read_raw_labels(written[0]), given)
    assert set(np.unique(read_raw_labels(written[3]))) <= {0, 7, 14}
    scores = json.loads((out / "scores.json").read_text())
    assert 0.5 < scores["global"]["mIoU"] < 1
    assert scores["num_frames"] == 2
    assert scores["parts"]["IoU"]["hat"] is None
    assert scores["parts"]["IoU"]["socks"] > 0.2


@pytest.mark.parametrize(("given", "size"), [((), None), (("--input-size", "64"), 64)])
def test_the_authors_settings_for_vip(tmp_path, vip, given, size):
    """cropmae has another protocol for VIP, with its own size unless one is given."""
    out = tmp_path / "out"
    choice = ["--weights", "color", "--device", "cpu", "--protocol", "cropmae", *given]
    small = ["--set", "long_side=128"]
    assert run("evaluate", "vip", "--root", vip, "--out", out, *choice, *small) == 0
    settings = json.loads((out / "settings.json").read_text())
    assert settings["input_size"] == size
    assert (settings["protocol"]["name"], settings["protocol"]["topk"]) == ("cropmae-vip", 10)


def test_settings_tell_which_weights_were_used(tmp_path, vip, monkeypatch):
    def settings(name, *options):
        assert run("evaluate", "vip", "--root", vip, "--out", tmp_path / name, *options) == 0
        return json.loads((tmp_path / name / "settings.json").read_text())

    found = settings("ours", "--weights", "ino_vitt8", *FAST[2:])
    file = bundled_folder("ino_vitt8") / "model.safetensors"
    assert found["checkpoint"] == str(file)
    assert found["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "color").mkdir()  # as the folder of a suite has it
    assert not {"checkpoint", "sha256"} & settings("raw", *FAST).keys()


@pytest.fixture
def exact():
    """A tracker that follows the blocks exactly."""
    protocol = get_protocol("ino-davis", topk=1, num_context=1, layer=None)
    return LabelTracker(load_backbone("color"), protocol, input_size=80)


def test_parts_follow_what_they_are_on(tmp_path, exact):
    first = np.zeros((80, 80), dtype=np.uint8)
    first[16:40, 8:32], first[40:64, 16:40] = 4, 13
    labels = {number: np.roll(first, 8 * number, axis=1) for number in range(4)}
    write_part_video(tmp_path, "videos1", sliding(4), labels)
    protocol = exact.protocol.model_copy(update={"mask_down": "nearest", "mask_up": "nearest"})
    tracker = LabelTracker(load_backbone("color"), protocol, input_size=80)
    scores = evaluate_vip(tmp_path, out=tmp_path / "out", tracker=tracker)
    assert scores.mean_iou == 1
    assert scores.num_frames == 4


def test_void_of_the_first_frame_is_background(tmp_path, exact):
    first = np.full((80, 80), 255, dtype=np.uint8)
    first[16:40, 8:32] = 4
    write_part_video(tmp_path, "videos1", sliding(2), {0: first})
    evaluate_vip(tmp_path, out=tmp_path / "out", tracker=exact)
    written = read_raw_labels(tmp_path / "out/predictions/videos1/000000000001.png")
    assert set(np.unique(written)) == {0, 4}


def test_the_size_of_the_protocol(tmp_path, vip):
    out = tmp_path / "out"
    arguments = [*FAST[:-1], "0", "--set", "short_side=none"]
    assert run("evaluate", "vip", "--root", vip, "--out", out, *arguments) == 0
    assert json.loads((out / "settings.json").read_text())["input_size"] is None


def test_resuming_keeps_what_is_whole(tmp_path, vip, exact):
    out = tmp_path / "out"
    means = evaluate_vip(vip, out=out, tracker=exact).means()
    masks = sorted((out / "predictions/videos1").iterdir())
    before = [path.read_bytes() for path in masks]
    times = [path.stat().st_mtime_ns for path in masks]
    assert evaluate_vip(vip, out=out, tracker=exact, resume=True).means() == means
    assert [path.stat().st_mtime_ns for path in masks] == times
    masks[2].write_bytes(before[2][:-20])
    assert evaluate_vip(vip, out=out, tracker=exact, resume=True).means() == means
    assert [path.read_bytes() for path in masks] == before


def break_vip(root, fault):
    if fault == "list":
        (root / "lists/val_videos.txt").unlink()
    elif fault == "frames":
        for path in (root / "Images/videos1").iterdir():
            path.unlink()
    else:
        path = root / "Annotations/Category_ids/videos1/000000000003.png"
        write_labels(path, np.ones((24, 32), dtype=np.uint8))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("list", r"val_videos\.txt does not exist"),
        ("frames", "videos1 has no frames"),
        ("size", "is 24x32 .*, but its frame is 48x80"),
    ],
)
def test_data_that_is_wrong(tmp_path, vip, capsys, fault, words):
    break_vip(vip, fault)
    out = tmp_path / "out"
    assert re.search(words, refused(capsys, "evaluate", "vip", "--root", vip, "--out", out, *FAST))
    assert not out.exists()
