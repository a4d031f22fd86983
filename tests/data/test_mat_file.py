"""Files of MATLAB as scipy writes them, and the same files damaged."""

import io
import struct
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from ino.data.jhmdb import read_arrays

ARRAYS = {
    "pos_img": np.random.default_rng(0).random((2, 15, 4)),
    "count": np.arange(6, dtype=np.int32).reshape(2, 3),
    "small": np.array([[7]], dtype=np.uint8),
    "a_name_of_some_length": np.ones((1, 3), dtype=np.float32),
    "none": np.zeros((2, 0)),
}
OTHERS = {
    "viewpoint": "SW",
    "cells": np.array([["a", 1.0]], dtype=object),
    "complex": np.array([[1j]]),
    "structure": {"x": 1.0},
}


def written(content, *, compressed: bool) -> bytes:
    file = io.BytesIO()
    savemat(file, content, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_those_that_were_written(tmp_path, compressed):
    (tmp_path / "a.mat").write_bytes(written(ARRAYS | OTHERS, compressed=compressed))
    found = read_arrays(tmp_path / "a.mat")
    assert list(found) == [*ARRAYS, *OTHERS]
    for name, array in ARRAYS.items():
        read = found[name]
        assert read is not None
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
    assert all(found[name] is None for name in OTHERS)


def test_the_other_order_of_bytes(tmp_path):
    """By hand, for scipy writes the machine's own."""
    name = struct.pack(">HH4s", 3, 1, b"abc\0")
    flags = struct.pack(">IIII", 6, 8, 6, 0)
    matrix = flags + struct.pack(">IIii", 5, 8, 1, 2) + name + struct.pack(">IIdd", 9, 16, 1.5, -2)
    header = b"MATLAB".ljust(124) + struct.pack(">H", 0x100) + b"MI"
    path = tmp_path / "a.mat"
    path.write_bytes(header + struct.pack(">II", 14, len(matrix)) + matrix)
    np.testing.assert_array_equal(read_arrays(path)["abc"], [[1.5, -2]])


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_told(tmp_path, compressed):
    """Whatever bytes are changed or cut: arrays, or ValueError; scipy's reader may crash here."""
    rng = np.random.default_rng(0)
    whole = written(ARRAYS | OTHERS, compressed=compressed)
    path = tmp_path / "a.mat"
    refused = 0
    for number in range(600):
        damaged = bytearray(whole)
        for place in rng.integers(124, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(whole))] if number % 3 == 0 else damaged)
        try:
            read_arrays(path)
        except ValueError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: whole[:100], "header is none"),
        (lambda whole: whole[:124] + b"\0\2" + whole[126:], "version 0x200"),
        (lambda whole: whole[:-9], "ends within an element"),
        (lambda whole: whole[:128] + b"\x0f\0\5\0" + whole[132:], "broken tag"),
    ],
)
def test_what_is_wrong(tmp_path, change, words):
    path = tmp_path / "a.mat"
    path.write_bytes(change(written({"a": np.ones((2, 3))}, compressed=False)))
    with pytest.raises(ValueError, match=words):
        read_arrays(path)


def test_a_variable_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("ino.data.jhmdb._MAX_BYTES", 1 << 20)
    packed = zlib.compress(bytes(1 << 22))
    header = written({}, compressed=False)[:128]
    (tmp_path / "a.mat").write_bytes(header + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(ValueError, match="too large"):
        read_arrays(tmp_path / "a.mat")
