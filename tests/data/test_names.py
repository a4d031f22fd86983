"""Names out of lists never lead out of their folder, whichever data set they are of."""

import json
import os

import pytest

from ino.data.davis import read_davis
from ino.data.jhmdb import read_jhmdb
from ino.data.names import check_name, read_lines
from ino.data.vip import read_vip
from ino.data.ytvos import read_ytvos_split
from ino.errors import DatasetError

BAD = ["", ".", "..", "../a", "/a", "a/", "a/b", "a\\b", "a\0", "\x1b[31m", "a\x85", "a\u2028"]


@pytest.mark.parametrize("name", [*BAD, "x" * 256, "é" * 128, "\ud800"])
def test_what_is_no_name(name):
    with pytest.raises(DatasetError, match=r"^list\.txt holds '.*not the name of one") as error:
        check_name(name, source="list.txt")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["bear", "..a", "a b", "été", "a:b", "x" * 255, "caf\udce9"])
def test_what_is_a_name(name):
    assert check_name(name, source="list.txt") == name


def davis(root, name):
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text(f"{name}\n")
    read_davis(root)


def davis_pairs(root, name):
    davis(root, f"/JPEGImages/480p/{name}/0.jpg /Annotations/480p/{name}/0.png")


def vip(root, name):
    (root / "lists").mkdir()
    (root / "lists" / "val_videos.txt").write_text(f"{name}\n")
    read_vip(root)


def jhmdb(root, name):
    (root / "splits").mkdir()
    (root / "splits" / "run_test_split1.txt").write_text(f"{name}.avi 2\n")
    read_jhmdb(root)


def jhmdb_action(root, name):
    (root / "splits").mkdir()
    (root / "splits" / f"{name}_test_split1.txt").write_text("a.avi 2\n")
    read_jhmdb(root)


def jhmdb_paths(root, name):
    name = name.replace("a\\b", "a\0b")  # in these paths a \\ separates too
    (root / "testlist_split1.txt").write_text(f"/far/Rename_Images/run/{name}\n")
    read_jhmdb(root)


def ytvos(root, name):
    for part in ("JPEGImages", "Annotations"):
        (root / "valid" / part / "a").mkdir(parents=True)
    meta = {"videos": {name: {"objects": {"1": {"category": "cat", "frames": ["0"]}}}}}
    (root / "valid" / "meta.json").write_text(json.dumps(meta))
    read_ytvos_split(root)


READERS = [davis, davis_pairs, vip, jhmdb, jhmdb_action, jhmdb_paths, ytvos]


@pytest.mark.parametrize("name", ["..", "a\\b", "\x1b[31mred"])
@pytest.mark.parametrize("read", READERS)
def test_every_reader_refuses_such_a_name(tmp_path, read, name):
    with pytest.raises(DatasetError, match="is not the name of one file or folder"):
        read(tmp_path, name)


def test_frames_of_meta_json_are_names(tmp_path):
    (tmp_path / "valid" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "valid" / "Annotations").mkdir()
    meta = {"videos": {"a": {"objects": {"1": {"frames": ["../../0"]}}}}}
    (tmp_path / "valid" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match=r"meta\.json holds '\.\./\.\./0'"):
        read_ytvos_split(tmp_path)


def test_a_list_is_a_file(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa \r\n\r\n b\n")
    assert read_lines(tmp_path / "list.txt") == ["a", "b"]
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", tmp_path):
        with pytest.raises(DatasetError, match=r"cannot be read"):
            read_lines(path)
