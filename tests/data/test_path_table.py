"""Paths come back as they went in, from little memory."""

import os
import pickle
from pathlib import Path

import pytest

from ino.data.clips import PathTable
from ino.data.decode import LRUCache

PATHS = ["a.mp4", "folder/ü b.mp4", os.fsdecode(b"caf\xe9.mp4"), "/x/y.mkv"]


def test_paths_come_back():
    table = PathTable(PATHS)
    assert list(table) == [Path(path) for path in PATHS]
    assert table[-1] == Path("/x/y.mkv")
    assert table[1:3] == [Path(path) for path in PATHS[1:3]]
    with pytest.raises(IndexError):
        table[4]
    assert len(PathTable([])) == 0


def test_a_table_is_hardly_larger_than_its_text():
    paths = [f"folder/{number:09d}.mp4" for number in range(1000)]
    assert len(pickle.dumps(PathTable(paths))) < 1000 * (len(paths[0]) + 8) + 1000


def test_digests_tell_tables_apart():
    digests = {PathTable(paths).digest() for paths in ([], ["ab", "c"], ["a", "bc"], ["c", "ab"])}
    assert len(digests) == 4
    assert PathTable(PATHS).digest() == PathTable([Path(path) for path in PATHS]).digest()


def test_what_was_not_used_longest_is_forgotten_first():
    made = []

    def make(key):
        made.append(key)
        return key

    remembered: Remembered[int] = Remembered(most=10, weigh=lambda value: value)
    for key in (4, 5, 4, 6, 4, 5, 20, 4):
        assert remembered.get(key, lambda key=key: make(key)) == key
    # 6 drives out 5; 20, too heavy by itself, drives out all.
    assert made == [4, 5, 6, 5, 20, 4]
