"""Files of weights as dictionaries, read without running code from them.

PyTorch's two formats (zip files, and what it wrote before version 1.6) and safetensors.
"""

import argparse
import errno
import io
import pickle
import pickletools
import struct
import warnings
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ino.errors import CheckpointError

_MOST_HEADER_BYTES = 100_000_000
"""A safetensors file's header is not longer, by its definition."""

_MOST_PICKLE_BYTES = 16_000_000
"""That are looked at to tell a pickle which names code from damage."""


def load_plain(path: Path) -> dict[str, Any]:
    """The dictionary in a file; only tensors, plain values and a few harmless classes are read.

    The classes hold values and run nothing: argparse's namespaces, numpy's scalars and paths, which
    releases have in their options and optimisers.

    Raises:
        CheckpointError: the file is missing, truncated, would run code, or holds something else.
        OSError: it cannot be opened or read, which tells nothing of what it holds.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give a checkpoint or a run's folder")
    is_safetensors = _is_safetensors(path)  # opens it: where that fails, the file is not to blame
    try:
        if is_safetensors:
            return dict(load_file(path))
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            # It says that reading may fail, and where it does that is told below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (zipfile.is_zipfile(path) or _asks_for_code(error) or _is_pickle_of_code(path)):
            raise CheckpointError(_not_whole(path)) from error
        raise CheckpointError(
            f"{path} holds more than tensors and plain values and could run code when read; "
            "it was not read: use a file of weights alone"
        ) from error
    # What reading damaged bytes ends in: torch checks little of them.
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        struct.error,
        SafetensorError,
    ) as error:
        # Damaged bytes may name a place that no file has (EINVAL); the rest is the disk's word.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise CheckpointError(_not_whole(path)) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{path} is not a checkpoint: expected a dictionary by name, found {type(content)}"
        )
    return content


def _harmless() -> list[Any]:
    """Classes and functions that releases name in their files, by those names."""
    numbers = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.dtype,
        *numbers,
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        # Paths become pure ones, which every system has and which touch no file.
        *((PurePosixPath, f"pathlib.{name}PosixPath") for name in ("", "Pure", "_local.")),
        *((PureWindowsPath, f"pathlib.{name}WindowsPath") for name in ("", "Pure", "_local.")),
    ]


def _asks_for_code(error: pickle.UnpicklingError) -> bool:
    """Whether torch refused a class or function, and not bytes that make no sense."""
    return any(words in str(error) for words in ("GLOBAL", "reduce", "allowlisted"))


def _is_pickle_of_code(path: Path) -> bool:
    """Whether a file is a whole pickle that names a class or function, in a form that torch does
    not know: `pickle.dump` writes newer ones than `torch.save`. Nothing of it is run."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(_MOST_PICKLE_BYTES))
    try:
        named = {opcode.name for opcode, _, _ in pickletools.genops(start)}
    except (ValueError, EOFError, struct.error, OverflowError, MemoryError):
        return False
    return not named.isdisjoint({"GLOBAL", "STACK_GLOBAL", "INST"})


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors":
        return True
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= length <= _MOST_HEADER_BYTES


def _not_whole(path: Path) -> str:
    size = path.stat().st_size
    return f"{path} ({size} bytes) is not a whole checkpoint: copy or download it again"
