"""Many paths in little memory, which data workers share instead of each having a copy."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np


class PathTable(Sequence[Path]):
    """Paths, kept as one run of bytes: no Python object for each, no reference to be counted.

    Args:
        paths: as paths or text.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        self._bounds = np.concatenate([np.zeros(1, np.int64), ends])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return Path(
            os.fsdecode(self._bytes[self._bounds[place] : self._bounds[place + 1]].tobytes())
        )

    def digest(self) -> str:
        """A short text that is equal for equal paths in equal order, and for no others."""
        return hashlib.sha256(self._bounds.tobytes() + self._bytes.tobytes()).hexdigest()[:16]
