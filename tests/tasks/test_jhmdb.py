"""JHMDB: maps of joints, files of predictions, the command, and bad input."""

import json
import os
import re

import numpy as np
import pytest
import torch

from command import refused, run
from dense_layouts import sliding, write_official_list, write_pose_video
from ino.data.jhmdb import PoseVideo, read_jhmdb
from ino.demo.synthetic import generate_clip
from ino.errors import ConfigError, DatasetError, OutputError
from ino.models.load import load_backbone
from ino.propagate.protocols import get_protocol
from ino.tasks.jhmdb import (
    JointMaps,
    PoseScores,
    evaluate_jhmdb,
    joints_to_maps,
    maps_to_joints,
    propagate_joints,
    score_jhmdb,
)
from ino.tasks.label_tracker import LabelTracker

FAST = ["--weights", "color", "--device", "cpu", "--input-size", "64"]
SIZE, GRID = (240, 320), (40, 40)


def test_a_gaussian_by_hand():
    # 320 pixels are 40 positions: column 100 is position 12.5, which rounds to 13; row 60 is 10.
    drawn = joints_to_maps(np.array([[100.0, 60.0]]), image_size=SIZE, grid=GRID, maps=JointMaps())
    background, joint = drawn.unbind(dim=-1)
    assert joint[10, 13] == 1
    assert joint[10, 12] == joint[9, 13] == pytest.approx(np.exp(-2))
    assert joint[11, 14] == pytest.approx(np.exp(-4))
    assert (joint > 0).sum() == 25
    assert torch.equal(background, (joint == 0).float())


def test_there_and_back_within_half_a_position():
    rng = np.random.default_rng(0)
    joints = rng.uniform((16, 12), (300, 224), (15, 2))
    drawn = joints_to_maps(joints, image_size=SIZE, grid=GRID, maps=JointMaps())
    found = maps_to_joints(drawn, image_size=SIZE, maps=JointMaps())
    assert np.abs(found - joints).max(axis=0) == pytest.approx([4, 3], abs=1)
    assert (np.abs(found - joints) <= [4.01, 3.01]).all()


def test_the_mean_of_the_highest_by_hand():
    soft = torch.zeros(4, 8, 2)
    soft[1, 2, 1], soft[1, 4, 1], soft[3, 2, 1], soft[0, 0, 1] = 0.6, 0.3, 0.1, 0.05
    two = maps_to_joints(soft, image_size=(40, 80), maps=JointMaps(topk=2))
    np.testing.assert_allclose(two, [[10 * (2 * 0.6 + 4 * 0.3) / 0.9, 10]])
    three = maps_to_joints(soft, image_size=(40, 80), maps=JointMaps(topk=3))
    np.testing.assert_allclose(three, [[10 * (1.2 + 1.2 + 0.2), 10 * (0.6 + 0.3 + 0.3)]])


def test_more_positions_than_there_are():
    soft = torch.ones(1, 2, 2)
    found = maps_to_joints(soft, image_size=(10, 20), maps=JointMaps(topk=9))
    np.testing.assert_allclose(found, [[5, 0]])


def test_a_joint_outside_the_image_is_lost():
    joints = np.array([[-40.0, 10.0], [5.0, 5.0]])
    drawn = joints_to_maps(joints, image_size=SIZE, grid=GRID, maps=JointMaps())
    found = maps_to_joints(drawn, image_size=SIZE, maps=JointMaps())
    assert np.isnan(found[0]).all()
    assert not np.isnan(found[1]).any()


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"topk": 0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError, match="above 0 and topk 1 or more"):
        JointMaps(**wrong)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read as an array"),
        (b"text", "cannot be read as an array"),
        (np.zeros((2, 15, 2)), "2 x 15 x 2 of float64, but floats 3 x 15 x 2"),
        (np.zeros((3, 15, 2), dtype=int), "of int64, but floats"),
    ],
)
def test_predictions_that_do_not_fit(tmp_path, monkeypatch, content, words):
    video = PoseVideo("run", "one", (tmp_path / "1.png",) * 3, tmp_path / "joints.mat")
    monkeypatch.setattr("ino.tasks.jhmdb.read_joints", lambda _: np.zeros((4, 15, 2)))
    (tmp_path / "run").mkdir()
    if isinstance(content, bytes):
        (tmp_path / "run/one.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "run/one.npy", content)
    with pytest.raises(DatasetError, match=words):
        score_jhmdb(tmp_path, [video])


def test_the_mean_leaves_out_joints_that_never_count():
    scores = PoseScores({0.1: (0.5, 1.0, float("nan"))}, num_videos=1, num_joints=4)
    assert scores.means() == {"PCK@0.1": 0.75}


@pytest.fixture
def jhmdb(tmp_path):
    """A person that stands still and, in a second video, one whose last joint is outside."""
    clip = generate_clip(5, num_frames=1, height=48, width=80, num_objects=2)
    rng = np.random.default_rng(0)
    still = np.repeat(rng.uniform((8, 8), (72, 40), (1, 15, 2)), 4, axis=0)
    write_pose_video(tmp_path / "jhmdb", "run", "still", [clip.frames[0]] * 4, still)
    outside = still[:3].copy()
    outside[:, 14] = (300, 20)
    write_pose_video(tmp_path / "jhmdb", "run", "cut", [clip.frames[0]] * 4, outside)
    write_official_list(tmp_path / "jhmdb", "run", {"still": 2, "cut": 2})
    return tmp_path / "jhmdb"


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


def test_the_authors_settings_for_jhmdb(tmp_path, jhmdb):
    out = tmp_path / "out"
    choice = ["--protocol", "rvm", "--set", "num_context=2", "topk=3"]
    assert run("evaluate", "jhmdb", "--root", jhmdb, "--out", out, *FAST, *choice) == 0
    settings = json.loads((out / "settings.json").read_text())
    assert settings["joint_maps"] == {"sigma": 0.5, "topk": 5, "cut": "released"}


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
    propagate_joints(video, tmp_path / "alone", tracker=exact, maps=JointMaps(topk=1))
    np.testing.assert_allclose(np.load(tmp_path / "alone/run/slide.npy"), joints, atol=1e-6)
    scores = evaluate_jhmdb(tmp_path, out=tmp_path / "out", tracker=exact, maps=JointMaps(topk=1))
    assert scores.means()["PCK@0.1"] == 1


def test_a_stopped_run_is_resumed(tmp_path, jhmdb, exact):
    """The video that was done stays as it is; other settings are refused."""
    out, done = tmp_path / "out", []

    def stop():
        done.append(1)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_jhmdb(jhmdb, out=out, tracker=exact, on_frame=stop)
    (first,) = (out / "predictions/run").glob("*.npy")
    before = first.stat().st_mtime_ns
    with pytest.raises(OutputError, match=r"joint_maps was .*but now it is"):
        evaluate_jhmdb(jhmdb, out=out, tracker=exact, maps=JointMaps(topk=3), resume=True)
    scores = evaluate_jhmdb(jhmdb, out=out, tracker=exact, resume=True)
    assert first.stat().st_mtime_ns == before
    assert scores == evaluate_jhmdb(jhmdb, out=tmp_path / "whole", tracker=exact)


def break_jhmdb(root, fault):
    if fault == "list":
        (root / "splits/run_test_split1.txt").unlink()
    elif fault == "joints":
        (root / "joint_positions/run/cut/joint_positions.mat").write_bytes(b"no joints" * 40)
    else:
        for path in (root / "Rename_Images/run/cut").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("list", "has no list of test videos"),
        ("joints", "cannot be read as a MATLAB file"),
        ("frames", "cut has no frames"),
    ],
)
def test_data_that_is_wrong(tmp_path, jhmdb, capsys, fault, words):
    break_jhmdb(jhmdb, fault)
    out = tmp_path / "out"
    assert re.search(
        words, refused(capsys, "evaluate", "jhmdb", "--root", jhmdb, "--out", out, *FAST)
    )
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


def test_a_pipe_is_no_prediction(tmp_path, monkeypatch):
    video = PoseVideo("run", "one", (tmp_path / "1.png",) * 3, tmp_path / "joints.mat")
    monkeypatch.setattr("ino.tasks.jhmdb.read_joints", lambda _: np.zeros((4, 15, 2)))
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "one.npy")
    with pytest.raises(DatasetError, match="it is not a regular file"):
        score_jhmdb(tmp_path, [video])
