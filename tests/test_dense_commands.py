"""The commands for joints and parts: results on disk, one line and status 2 for bad input."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from command import run
from dense_layouts import write_official_list, write_part_video, write_pose_video
from ino.data.jhmdb import read_jhmdb
from ino.data.label_maps import read_raw_labels, write_labels
from ino.demo.synthetic import generate_clip
from ino.models.load import bundled_folder, load_backbone
from ino.propagate.protocols import get_protocol
from ino.tasks.jhmdb import JointMaps, evaluate_jhmdb, propagate_joints
from ino.tasks.label_tracker import LabelTracker
from ino.tasks.vip import evaluate_vip

FAST = ["--weights", "color", "--device", "cpu", "--input-size", "64"]


@pytest.fixture(scope="module")
def clip():
    return generate_clip(5, num_frames=4, height=48, width=80, num_objects=2)


@pytest.fixture
def jhmdb(tmp_path, clip):
    """A person that stands still and, in a second video, one whose last joint is outside."""
    rng = np.random.default_rng(0)
    still = np.repeat(rng.uniform((8, 8), (72, 40), (1, 15, 2)), 4, axis=0)
    write_pose_video(tmp_path / "jhmdb", "run", "still", [clip.frames[0]] * 4, still)
    outside = still[:3].copy()
    outside[:, 14] = (300, 20)
    write_pose_video(tmp_path / "jhmdb", "run", "cut", [clip.frames[0]] * 4, outside)
    write_official_list(tmp_path / "jhmdb", "run", {"still": 2, "cut": 2})
    return tmp_path / "jhmdb"


@pytest.fixture
def vip(tmp_path, clip):
    frames = [clip.frames[0]] * 4
    labels = {number: (clip.labels[0] * 7).astype(np.uint8) for number in (0, 3)}
    (tmp_path / "vip").mkdir()
    write_part_video(tmp_path / "vip", "videos1", frames, labels)
    return tmp_path / "vip"


def test_evaluate_jhmdb(tmp_path, jhmdb, capsys):
    """In a still video each joint stays within a position of where it was."""
    out = tmp_path / "out"
    still = ["--protocol", "crw", "--set", "topk=1", "num_context=1"]
    assert run("evaluate", "jhmdb", "--root", jhmdb, "--out", out, *FAST, *still) == 0
    shown = capsys.readouterr().out
    assert "left ankle" in shown
    assert "PCK@0.1" in shown
    assert "input 64x64" in shown
    found = np.load(out / "predictions/run/still.npy")
    assert found.shape == (4, 15, 2)
    np.testing.assert_allclose(found[3], found[0], atol=1e-6)
    lost = np.load(out / "predictions/run/cut.npy")
    assert lost.shape == (3, 15, 2)
    assert np.isnan(lost[:, 14]).all()
    scores = json.loads((out / "scores.json").read_text())
    assert 0 < scores["global"]["PCK@0.1"] <= scores["global"]["PCK@0.2"] == 1
    assert (scores["num_videos"], scores["num_joints"]) == (2, 3 * 15 + 2 * 14)
    settings = json.loads((out / "settings.json").read_text())
    assert settings["input_size"] == 64
    assert settings["joint_maps"] == {"sigma": 0.5, "topk": 5}
    assert settings["protocol"]["name"] == "crw"


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


def sliding(num_frames: int, *, size: int = 80) -> list[np.ndarray]:
    """Blocks of 8x8 pixels in colours of their own that go 8 pixels to the right each frame."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (size // 8, size // 8, 3)).astype(np.uint8)
    image = np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))
    return [np.roll(image, 8 * number, axis=1) for number in range(num_frames)]


@pytest.fixture
def exact():
    """A tracker that follows the blocks exactly."""
    protocol = get_protocol("ino-davis", topk=1, num_context=1, layer=None)
    return LabelTracker(load_backbone("color"), protocol, input_size=80)


def test_joints_follow_what_they_are_on(tmp_path, exact):
    start = np.random.default_rng(1).integers(1, 5, (15, 2)) * 8.0
    joints = np.stack([np.add(start, (8 * number, 0)) for number in range(4)])
    write_pose_video(tmp_path, "run", "slide", sliding(4), joints)
    write_official_list(tmp_path, "run", {"slide": 2})
    (video,) = read_jhmdb(tmp_path)
    found = propagate_joints(video, tracker=exact, maps=JointMaps(topk=1))
    np.testing.assert_allclose(found, joints, atol=1e-6)
    scores = evaluate_jhmdb(tmp_path, out=tmp_path / "out", tracker=exact, maps=JointMaps(topk=1))
    assert scores.pck(0.1) == 1


def test_parts_follow_what_they_are_on(tmp_path, exact):
    first = np.zeros((80, 80), dtype=np.uint8)
    first[16:40, 8:32], first[40:64, 16:40] = 4, 13
    labels = {number: np.roll(first, 8 * number, axis=1) for number in range(4)}
    write_part_video(tmp_path, "videos1", sliding(4), labels)
    protocol = exact.protocol.model_copy(update={"mask_down": "nearest", "mask_up": "nearest"})
    tracker = dataclasses.replace(exact, protocol=protocol)
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


def break_jhmdb(root, fault):
    if fault == "list":
        (root / "splits/run_test_split1.txt").unlink()
    elif fault == "joints":
        (root / "joint_positions/run/cut/joint_positions.mat").write_bytes(b"no joints" * 40)
    elif fault == "frames":
        for path in (root / "Rename_Images/run/cut").iterdir():
            path.unlink()


def break_vip(root, fault):
    if fault == "list":
        (root / "lists/val_videos.txt").unlink()
    elif fault == "frames":
        for path in (root / "Images/videos1").iterdir():
            path.unlink()
    elif fault == "size":
        path = root / "Annotations/Category_ids/videos1/000000000003.png"
        write_labels(path, np.ones((24, 32), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data_set", "fault", "words"),
    [
        ("jhmdb", "list", "has no list of test videos"),
        ("jhmdb", "joints", "cannot be read as a MATLAB file"),
        ("jhmdb", "frames", "cut has no frames"),
        ("vip", "list", r"val_videos\.txt does not exist"),
        ("vip", "frames", "videos1 has no frames"),
        ("vip", "size", "is 24x32 .*, but its frame is 48x80"),
    ],
)
def test_data_sets_that_are_wrong(tmp_path, jhmdb, vip, capsys, data_set, fault, words):
    root = {"jhmdb": jhmdb, "vip": vip}[data_set]
    {"jhmdb": break_jhmdb, "vip": break_vip}[data_set](root, fault)
    capsys.readouterr()
    out = tmp_path / "out"
    assert run("evaluate", data_set, "--root", root, "--out", out, *FAST) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ino: ")]
    assert len(lines) == 1
    assert re.search(words, lines[0]), lines[0]
    assert not out.exists()


@pytest.mark.parametrize(
    "option",
    [
        ["--input-size", "-1"],
        ["--joint-topk", "0"],
        ["--weights", "random:vit_nano/8", "--set", "layer=13"],
    ],
)
def test_options_that_are_wrong(tmp_path, jhmdb, capsys, option):
    out = tmp_path / "out"
    assert run("evaluate", "jhmdb", "--root", jhmdb, "--out", out, *FAST, *option) == 2
    assert "1 " in capsys.readouterr().err
    assert not out.exists()
