"""JHMDB in its layout, and every fault of lists and joints."""

import os

import numpy as np
import pytest
from scipy.io import savemat

from dense_layouts import write_official_list, write_pose_video
from ino.data import jhmdb
from ino.data.jhmdb import read_jhmdb, read_joints
from ino.errors import ConfigError, DatasetError

FRAME = np.zeros((24, 32, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    joints = np.arange(3 * 15 * 2, dtype=float).reshape(3, 15, 2)
    for action, name in (("wave", "a_1"), ("wave", "b_2"), ("run", "c_3")):
        write_pose_video(tmp_path, action, name, [FRAME] * 3, joints)
    write_official_list(tmp_path, "wave", {"a_1": 2, "b_2": 1})
    write_official_list(tmp_path, "run", {"c_3": 2})
    return tmp_path


def test_official_lists_name_the_test_videos(root):
    found = read_jhmdb(root)
    assert [(one.action, one.name) for one in found] == [("run", "c_3"), ("wave", "a_1")]
    assert [path.name for path in found[0].frames] == ["00001.png", "00002.png", "00003.png"]


@pytest.mark.parametrize("order", ["joints first", "frames first"])
def test_the_list_of_uvc_and_crw(root, order):
    (root / "splits").rename(root / "others")
    lines = []
    for action, name in (("wave", "b_2"), ("run", "c_3")):
        paths = [
            f"/far/joint_positions/{action}/{name}/joint_positions.mat",
            f"/far/Rename_Images/{action}/{name}",
        ]
        lines.append(" ".join(paths if order == "joints first" else paths[::-1]))
    (root / "testlist_split1.txt").write_text("\n".join(lines))
    assert [one.name for one in read_jhmdb(root)] == ["b_2", "c_3"]


def test_joints_count_pixels_from_0(root):
    joints = read_joints(read_jhmdb(root)[0].joints)
    np.testing.assert_array_equal(joints, np.arange(90, dtype=float).reshape(3, 15, 2))


def test_a_single_frame(tmp_path):
    path = tmp_path / "joint_positions.mat"
    savemat(path, {"pos_img": np.ones((2, 15))})
    assert read_joints(path).shape == (1, 15, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"pos_img": np.ones((2, 14, 3))}, "2 x 14 x 3 of .*, but numbers 2 x 15 x frames"),
        ({"pos_img": np.ones((3, 15, 2))}, "3 x 15 x 2"),
        ({"pos_img": np.ones((2, 15, 0))}, "needed"),
        ({"pos_img": "text"}, "needed"),
        ({"pos_img": np.full((2, 15, 3), np.nan)}, "no numbers"),
        ({"pos_world": np.ones((2, 15, 3))}, "holds pos_world, but `pos_img`"),
        (None, "cannot be read as a MATLAB file"),
    ],
)
def test_joints_that_are_none(tmp_path, content, words):
    path = tmp_path / "joint_positions.mat"
    if content is None:
        path.write_bytes(b"not a file of MATLAB, whatever its name says, for it is text" * 5)
    else:
        savemat(path, content)
    with pytest.raises(DatasetError, match=words):
        read_joints(path)


def test_what_is_missing_is_told(root):
    with pytest.raises(DatasetError, match=r"splits/<action>_test_split2\.txt or testlist_split2"):
        read_jhmdb(root, split=2)
    (root / "joint_positions/run/c_3/joint_positions.mat").unlink()
    with pytest.raises(DatasetError, match=r"c_3 has no joints: expected .*joint_positions\.mat"):
        read_jhmdb(root)


def test_a_video_without_frames(root):
    for path in (root / "Rename_Images/run/c_3").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"c_3 has no frames: expected PNG files in .*run/c_3"):
        read_jhmdb(root)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("splits/run_test_split1.txt", "c_3.avi", "but `<video>.avi 1` or `<video>.avi 2`"),
        ("splits/run_test_split1.txt", "c_3.avi 1", "names no test video"),
        ("testlist_split1.txt", "somewhere/else", "joint_positions/<action>/<video>"),
        ("testlist_split1.txt", "x/joint_positions/run", "joint_positions/<action>/<video>"),
    ],
)
def test_lists_that_are_wrong(root, name, text, words):
    for path in (root / "splits").iterdir():
        path.unlink()
    (root / name).write_text(text)
    with pytest.raises(DatasetError, match=words):
        read_jhmdb(root)


def test_a_file_of_joints_that_is_empty(tmp_path):
    path = tmp_path / "joint_positions.mat"
    path.touch()
    with pytest.raises(DatasetError, match="cannot be read as a MATLAB file"):
        read_joints(path)


def saved(path, content, *, compressed: bool):
    savemat(path, content, do_compression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_other_variables_do_no_harm(tmp_path, compressed):
    positions = np.random.default_rng(0).random((2, 15, 4))
    others = {"viewpoint": "SW", "cells": np.array([["a", 1.0]], dtype=object), "x": {"y": 1.0}}
    path = saved(tmp_path / "a.mat", {**others, "pos_img": positions}, compressed=compressed)
    np.testing.assert_array_equal(read_joints(path), positions.transpose(2, 1, 0) - 1)


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_told(tmp_path, compressed, capfd):
    """Whatever bytes are changed: joints, or a sentence. scipy 1.17 crashes at seed 81."""
    content = {"pos_img": np.random.default_rng(0).random((2, 15, 4)), "viewpoint": "SW"}
    content["scale"] = np.ones((1, 4))
    path = saved(tmp_path / "a.mat", content, compressed=compressed)
    whole = path.read_bytes()
    num_refused = 0
    for seed in range(60, 100):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for place in rng.integers(124, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_joints(path)
        except DatasetError as error:
            num_refused += "copy it again" in str(error)
    assert num_refused > 10
    assert capfd.readouterr().err == ""


def test_a_reader_that_crashes_is_started_anew(root, monkeypatch):
    path = read_jhmdb(root)[0].joints
    with monkeypatch.context() as patch:
        patch.setattr(jhmdb, "_load", crash)
        with pytest.raises(DatasetError, match=r"MATLAB file of version 5 to 7 \(it is damaged\)"):
            read_joints(path)
    assert read_joints(path).shape == (3, 15, 2)


def crash(*_):
    os.abort()


def test_a_variable_that_would_fill_the_memory(root, monkeypatch):
    path = read_jhmdb(root)[0].joints
    monkeypatch.setattr(jhmdb, "_MAX_BYTES", 10_000)
    savemat(path, {"pos_img": np.ones((2, 15, 100), dtype=np.uint8)})  # 24,000 bytes as float64
    with pytest.raises(DatasetError, match="pos_img is too large"):
        read_joints(path)
    savemat(path, {"other": np.zeros(9000), "pos_img": np.ones((2, 15, 1))}, do_compression=True)
    assert path.stat().st_size < 1000
    with pytest.raises(DatasetError, match="it unpacks to more than 10000 bytes"):
        read_joints(path)
    savemat(path, {"other": np.zeros(9000)})
    with pytest.raises(DatasetError, match="it holds more than 10000 bytes"):
        read_joints(path)


def test_without_scipy_the_way_to_it_is_told(root, monkeypatch):
    monkeypatch.setattr(jhmdb, "_load", import_missing)
    with pytest.raises(ConfigError, match="uv sync --extra jhmdb"):
        read_joints(read_jhmdb(root)[0].joints)


def import_missing(*_):
    raise ImportError("No module named 'scipy'")
