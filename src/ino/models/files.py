"""Dictionaries in PyTorch's files and safetensors, read without running or trusting anything.

PyTorch's zip files and its older format (before version 1.6) are pickles, which may name any class
or function. Here a pickle gets only functions of this module and harmless classes that hold values,
so that nothing of it runs code, and tensors are rebuilt from bytes that are in the file: what
leaves is strided, on the CPU and no larger than the file explains. Checksums are compared in
passing, where the format has them. Which numbers a network accepts is up to `ino.models.weights`.
"""

import argparse
import collections
import errno
import functools
import io
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ino.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000
"""A safetensors file's header is not longer, by its definition."""
_MAX_UNPACKED = 20
"""Times its size that a file may unpack to; PyTorch's own are not compressed."""
_MAX_SHARED = 8
"""Times the size of its file that all tensors may be large together, as tensors may share bytes."""
_SPARE_BYTES = 1 << 20
"""What small files may need beyond that."""
_MAX_NAME, _MAX_DOTS, _MAX_DEPTH = 500, 40, 60
"""Length of a tensor's name, dots in it, and how deep dictionaries and lists may be nested."""
_ZIP_START = b"PK\x03\x04"
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_OLD_VERSION = 1001


class _CodeError(Exception):
    """A pickle names a class or function that is not known to be harmless."""


class _TensorError(Exception):
    """A tensor is of a kind that no weights are, or larger than what is stored of it."""


class _Storage(NamedTuple):
    """Bytes of a file (uint8) and the kind of numbers they are."""

    content: Tensor
    dtype: torch.dtype


def load_plain(path: Path) -> dict[str, Any]:
    """The dictionary in a file: plain values, and tensors that are strided and on the CPU.

    Besides these, it may hold harmless classes of values that releases store with their options and
    optimizers: argparse namespaces, numpy scalars and paths, which become pure ones, as every
    system has them and they touch no file.

    Raises:
        CheckpointError: the file is missing, damaged, would run code, or holds something else.
        OSError: the file cannot be opened or read, so its content is not known.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give a checkpoint or a run's folder")
    with path.open("rb") as file:  # where that fails, the file is not to blame
        start = file.read(9)
    try:
        if _is_safetensors(path, start):
            content: Any = dict(load_file(path))
        elif start.startswith(_ZIP_START):
            content = _read_zip(path)
        else:
            content = _read_old(path)
        _check_nesting(content)
    except _CodeError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values and could run code when read "
            f"({error}); it was not read: use a file of weights alone"
        ) from error
    except _TensorError as error:
        raise CheckpointError(
            f"{path} cannot be used: {error}; save its weights as plain tensors"
        ) from error
    # What reading damaged bytes ends in.
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        MemoryError,
        struct.error,
        SafetensorError,
    ) as error:
        # Damaged bytes may name a place that no file has (EINVAL); the rest is the disk's word.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size} bytes) is not a whole checkpoint: copy or download it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{path} is not a checkpoint: expected a dictionary by name, found {type(content)}"
        )
    return content


def _is_safetensors(path: Path, start: bytes) -> bool:
    length = int.from_bytes(start[:8], "little")
    looks_so = start[8:] == b"{" and 2 <= length <= _MAX_HEADER_BYTES
    return path.suffix == ".safetensors" or looks_so


def _read_zip(path: Path) -> Any:
    """The object in a file of PyTorch 1.6 or later; every record's checksum is compared."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        num_packed = sum(info.compress_size for info in archive.infolist())
        num_bytes = sum(info.file_size for info in archive.infolist())
        if num_packed > size or num_bytes > _MAX_UNPACKED * size + _SPARE_BYTES:
            raise _TensorError(f"its {size} bytes would unpack to {num_bytes}")
        (pickled,) = (name for name in records if re.fullmatch(r"[^/]+/data\.pkl", name))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in records:
            raise _TensorError("it is a TorchScript program")
        if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") != b"little":
            raise _TensorError("its numbers are big-endian")
        left = set(records)

        @functools.cache
        def find_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
            name, num_bytes = f"{folder}data/{key}", numel * dtype.itemsize
            if records[name].file_size != num_bytes:
                raise _TensorError(
                    f"a tensor claims {num_bytes} bytes of which the file has "
                    f"{records[name].file_size}"
                )
            left.discard(name)
            content = bytearray(archive.read(name))  # compares the checksum
            return (
                torch.frombuffer(content, dtype=torch.uint8)
                if content
                else torch.empty(0, dtype=torch.uint8)
            )

        left.discard(pickled)
        file = io.BytesIO(archive.read(pickled))
        content = _Unpickler(file, find_storage=find_storage, file_size=size).load()
        for name in left:
            with archive.open(name) as file:
                while file.read(_SPARE_BYTES):
                    pass
    return content


def _read_old(path: Path) -> Any:
    """The object in a file of PyTorch before 1.6: pickles, then the bytes of all storages."""
    size = path.stat().st_size
    storages: dict[str, tuple[Tensor, int]] = {}

    def find_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        if key not in storages:
            num_bytes = numel * dtype.itemsize
            if num_bytes + sum(len(content) for content, _ in storages.values()) > size:
                raise EOFError  # before memory is taken
            storages[key] = torch.empty(num_bytes, dtype=torch.uint8), dtype.itemsize
        return storages[key][0]

    with path.open("rb") as file:

        def load() -> Any:
            return _Unpickler(file, find_storage=find_storage, file_size=size).load()

        if load() != _OLD_MAGIC or load() != _OLD_VERSION:
            raise pickle.UnpicklingError("no file of PyTorch")
        load()  # sizes of the types of C
        content = load()
        for key in load():
            storage, itemsize = storages[key]
            (numel,) = struct.unpack("<q", file.read(8))
            target: Any = storage.numpy()
            if numel * itemsize != len(storage) or file.readinto(target) != len(storage):
                raise EOFError
    return content


class _Unpickler(pickle._Unpickler):  # in Python: that in C reserves memory as a file demands
    """Builds plain values and tensors; see the module."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        file: Any,
        *,
        find_storage: Callable[[str, torch.dtype, int], Tensor],
        file_size: int,
    ) -> None:
        """`find_storage` takes key, kind and count of numbers and returns their bytes."""
        super().__init__(file, encoding="utf-8")
        self._find_storage = find_storage
        self._left = _MAX_SHARED * file_size + _SPARE_BYTES
        self._known = _HARMLESS | {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
        }

    def find_class(self, module: str, name: str) -> Any:  # pyright: ignore
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if full in self._known:
            return self._known[full]
        if match := _SPECIAL.match(full):
            kind = (match[1] or match[2]).replace("qtensor", "quantized").replace("_", " ")
            raise _TensorError(f"it holds a {kind} tensor, expected dense ones with numbers")
        raise _CodeError(ascii(full)[:200])

    def get_extension(self, code: int) -> Any:
        raise _CodeError(f"extension {code}")

    def load_build(self) -> None:
        """Attributes go to objects that are values, never to classes and functions."""
        state: Any = self.stack.pop()  # pyright: ignore
        target = self.stack[-1]  # pyright: ignore
        if isinstance(target, np.dtype):
            if state[1] not in ("<", "|", "="):
                raise _TensorError("it holds big-endian numbers")
        elif type(target) in (argparse.Namespace, collections.OrderedDict):
            vars(target).update(state)
        else:
            raise pickle.UnpicklingError(f"{type(target)} has no state")

    dispatch[pickle.BUILD[0]] = load_build

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, numel, *view = pid
        known = isinstance(key, str) and isinstance(dtype, torch.dtype) and _is_count(numel)
        if kind != "storage" or not known:
            raise pickle.UnpicklingError("no storage")
        content = self._find_storage(key, dtype, numel)
        if view and view[0] is not None:  # part of a storage, in old files
            _, start, length = view[0]
            content = content[start * dtype.itemsize : (start + length) * dtype.itemsize]
        return _Storage(content, dtype)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        return self._strided(storage, storage.dtype, offset, size, stride)

    def _tensor_v3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        dtype: Any,
        *rest: Any,
    ) -> Tensor:
        return self._strided(storage, dtype, offset, size, stride)

    def _strided(
        self, storage: _Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any
    ) -> Tensor:
        """A tensor whose numbers all have a place of their own in the storage."""
        if not (_is_count(offset) and len(size) == len(stride) <= 64):
            raise pickle.UnpicklingError("no shape")
        if not all(map(_is_count, (*size, *stride))):
            raise pickle.UnpicklingError("no shape")
        numel, held = math.prod(size), len(storage.content) // dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if numel and (offset + numel > held or last >= held):
            shape = "x".join(map(str, size))
            raise _TensorError(
                f"a tensor of {shape[:80]} has {numel} numbers, of which the file holds {held}"
            )
        self._left -= numel * dtype.itemsize
        if self._left < 0:
            raise _TensorError("its tensors are many times larger than the file")
        numbers = storage.content[: held * dtype.itemsize].view(dtype)
        if not numel:
            return torch.empty(tuple(size), dtype=dtype)
        return numbers.as_strided(size, stride, numbers.storage_offset() + offset)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _inner(tensor: Tensor, *rest: Any) -> Tensor:
    """The tensor of a parameter; whether it needs a gradient is up to who uses it."""
    return tensor


def _of_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """A tensor that has attributes, without these."""
    return rebuild(*arguments)


def _dtype(code: Any, *rest: Any) -> np.dtype:
    if not re.fullmatch(r"[<|=]?([?bhilqBHILQefd]|[iuf][1248]|b1)", code):
        raise _CodeError(f"numpy.dtype {ascii(code)[:80]}")
    return np.dtype(code)


def _scalar(dtype: np.dtype, content: bytes) -> Any:
    (number,) = np.frombuffer(content, dtype)
    return number


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise _CodeError(f"_codecs.encode {ascii(encoding)[:80]}")
    return text.encode(encoding)


def _bytes_array(content: bytes = b"") -> bytearray:
    if not isinstance(content, bytes):
        raise _CodeError("bytearray of a length")
    return bytearray(content)


_SPECIAL = re.compile(
    r"torch\.(?:_utils\._rebuild_(qtensor|meta|sparse|nested|wrapper_subclass|device)|(nested)\.)"
)

_HARMLESS: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.Counter": collections.Counter,
    "builtins.set": set,
    "builtins.complex": complex,
    "builtins.bytearray": _bytes_array,
    "_codecs.encode": _encoded,
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"pathlib.{name}PosixPath": PurePosixPath for name in ("", "Pure", "_local.")},
    **{f"pathlib.{name}WindowsPath": PureWindowsPath for name in ("", "Pure", "_local.")},
    "torch.Size": tuple,
    "torch.device": lambda *text: ":".join(map(str, text)),
    "torch.nn.parameter.Parameter": _inner,
    "torch.Tensor": "Tensor",  # only named, beside what rebuilds it
    "torch._utils._rebuild_parameter": _inner,
    "torch._utils._rebuild_parameter_with_state": _inner,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    **{f"torch.{name}": value for name, value in vars(torch).items() if type(value) is torch.dtype},
    **{
        f"torch.{place}{name}Storage": dtype
        for place in ("", "cuda.")
        for name, dtype in {
            "Double": torch.float64,
            "Float": torch.float32,
            "Half": torch.float16,
            "BFloat16": torch.bfloat16,
            "Long": torch.int64,
            "Int": torch.int32,
            "Short": torch.int16,
            "Char": torch.int8,
            "Byte": torch.uint8,
            "Bool": torch.bool,
            "ComplexFloat": torch.complex64,
            "ComplexDouble": torch.complex128,
        }.items()
    },
    "torch.storage.UntypedStorage": torch.uint8,
}
"""What a pickle may name, and what it gets in its place: nothing that can be called runs code, or
takes more memory than its arguments."""


def _check_nesting(content: Any) -> None:
    """Raises _TensorError for dictionaries and lists that are too deep, and such names."""
    level, seen = [content], set[int]()
    for _ in range(_MAX_DEPTH):
        level = [one for one in level if id(one) not in seen]
        seen |= {id(one) for one in level}
        for name in (name for one in level if isinstance(one, dict) for name in one):
            if isinstance(name, str) and (len(name) > _MAX_NAME or name.count(".") > _MAX_DOTS):
                raise _TensorError(f"it holds a name of {len(name)} letters, {ascii(name)[:60]}...")
        level = [value for one in level for value in _values(one)]
        if not level:
            return
    raise _TensorError(f"its dictionaries are more than {_MAX_DEPTH} deep")


def _values(one: Any) -> Iterator[Any]:
    found = one.values() if isinstance(one, dict) else one
    if isinstance(found, argparse.Namespace):
        found = vars(found).values()
    if not isinstance(one, dict | list | tuple | set | argparse.Namespace):
        return
    for value in found:
        if isinstance(value, dict | list | tuple | set | argparse.Namespace):
            yield value
