"""Reads files of ``torch.save`` without running anything that they ask for.

Weights are taken from their bytes, containers are plain ones, and objects of all other classes inert stubs (see
:mod:`zprl_sb3.foreign_pickles`). ``torch.load(weights_only=True)`` refuses the files of projects that save settings as
objects, and without it executes whatever is in them.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from zprl_sb3.foreign_pickles import KNOWN, STAND_INS, StoredArray, Stub, Unpickler, named

DTYPES = {
    "FloatStorage": th.float32,
    "DoubleStorage": th.float64,
    "HalfStorage": th.float16,
    "BFloat16Storage": th.bfloat16,
    "LongStorage": th.int64,
    "IntStorage": th.int32,
    "ShortStorage": th.int16,
    "CharStorage": th.int8,
    "ByteStorage": th.uint8,
    "BoolStorage": th.bool,
}

BUILTINS = ("builtins", "__builtin__")  # as Python 3 and 2 call them; torch pickles as for both
TYPES = ("bool", "bytes", "dict", "float", "int", "list", "long", "str", "tuple", "type", "unicode")
MENTIONED: frozenset[str | tuple[str, str]] = STAND_INS | {
    *("dill", "hydra", "omegaconf", "numpy", "functools", "typing", "pathlib"),
    *("diffusers", "diffusion_policy", "zprl", "robomimic"),
    *((module, name) for module in BUILTINS for name in TYPES),
}
"""What checkpoints of policies may mention. None of it is called."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MOST_PARTS = 300_000
"""Values that a file may hold, counted where they are used: a few lists in lists can mention each other that often."""


class _Dictionary(dict[Any, Any]):
    """An ordered dictionary or a default dictionary, without the attributes that a pickle gives it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(part for part in arguments if isinstance(part, (dict, list))))

    def __setstate__(self, state: Any) -> None:
        """Take nothing."""


def read_torch_file(path: str | Path) -> Any:
    """Return what ``torch.save`` has written: tensors, dictionaries, lists, numbers, arrays, and stubs of the rest.

    The tensors lie in the file, which is mapped: what nobody looks at, such as an optimiser's state, is not read.

    :param path: The file, in the ZIP format of torch since 1.6 or the one before
    :raises OSError: If there is no such file
    :raises zprl_sb3.foreign_pickles.UnsafePickleError: If it asks for anything that no checkpoint needs; nothing of it
        has been run
    :raises ValueError: If it is damaged or another kind of file
    """
    with open(path, "rb") as file, named(path):
        return _read(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), file)


def read_torch_bytes(content: bytes, name: str) -> Any:
    """Return what :func:`read_torch_file` would of a file with this content.

    :param content: Of the file
    :param name: Of it, for messages
    """
    with named(name):
        memory = mmap.mmap(-1, len(content))
        memory.write(content)
        memory.seek(0)
        return _read(memory, io.BytesIO(content))


def _read(content: mmap.mmap, file: Any) -> Any:
    return _plain(_read_zip(content, file) if zipfile.is_zipfile(file) else _read_legacy(content), count())


class _StoredTensor:
    """A tensor in the making, which has no methods that a pickle could call: those of tensors can take all memory."""

    def __init__(self, tensor: th.Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        """Take nothing."""


def _plain(value: Any, counter: Iterator[int]) -> Any:
    """Return a value with plain dictionaries, lists and arrays; settings of OmegaConf, pickled as objects, too.

    :param counter: Of the values so far
    :raises RecursionError: If it contains itself
    :raises ValueError: If it mentions the same things too often
    """
    if next(counter) > MOST_PARTS:
        raise ValueError(f"it holds more than {MOST_PARTS} values")
    if isinstance(value, dict):
        return {key: _plain(part, counter) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(part, counter) for part in value)
    if isinstance(value, StoredArray):
        return np.asarray(value)
    if isinstance(value, _StoredTensor):
        return value.tensor
    if isinstance(value, Stub) and value.origin.startswith("omegaconf."):
        return _plain(value.state.get("_content", value.state.get("_val")), counter)
    return value


def check_stored(archive: zipfile.ZipFile) -> None:
    """Raise a ValueError if something in an archive is compressed: a megabyte can become a gigabyte."""
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{member.filename} is compressed, which neither torch nor Stable-Baselines3 does")


def _read_zip(content: mmap.mmap, file: Any) -> Any:
    with zipfile.ZipFile(file) as archive:
        check_stored(archive)
        members = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
        if "data.pkl" not in members:
            raise ValueError("it is a ZIP archive, but none of torch.save")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise ValueError("it was written on a machine with another byte order")
        with archive.open(members["data.pkl"]) as pickled:
            return _Unpickler(pickled, lambda key: _place(content, members[f"data/{key}"]), content).load()


def _place(content: mmap.mmap, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Return where a member's bytes begin and how many they are."""
    name, extra = struct.unpack_from("<HH", content, member.header_offset + 26)
    return member.header_offset + 30 + name + extra, member.file_size


def _read_legacy(content: mmap.mmap) -> Any:
    """Five pickles (magic number, version, system, the object, its storages' keys), then length and bytes of each."""
    if _Unpickler(content, None, content).load() != LEGACY_MAGIC:
        raise ValueError("it is no file of torch.save")
    version, _ = (_Unpickler(content, None, content).load() for _ in range(2))
    if version != 1001:
        raise ValueError(f"its format is {version}, not 1001")
    begin = content.tell()
    first = _Unpickler(content, None, content)  # only to learn what storages there are
    first.load()
    places, sizes = {}, first.sizes
    keys = _Unpickler(content, None, content).load()
    position = content.tell()
    for key in keys:
        places[key] = (position + 8, sizes[key])
        position += 8 + sizes[key]
    content.seek(begin)
    return _Unpickler(content, places.__getitem__, content).load()


class _Unpickler(Unpickler):
    """Also finds the storages that a pickle names.

    :param file: The pickle
    :param place: Position and size in bytes of a storage by its key; None leaves tensors empty
    :param content: The whole file
    """

    def __init__(self, file: Any, place: Callable[[str], tuple[int, int]] | None, content: mmap.mmap) -> None:
        tensors = {
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
        }
        containers: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): _Dictionary,
            ("collections", "defaultdict"): _Dictionary,
            **{(module, "set"): _set for module in BUILTINS},
        }
        super().__init__(file, {**KNOWN, **tensors, **containers}, MENTIONED)
        self._place, self._content = place, content
        self.sizes: dict[str, int] = {}
        """Size in bytes of each storage by its key."""

    def persistent_load(self, pid: Any) -> _StoredTensor:
        _, kind, key, _, length = pid[:5]
        dtype = DTYPES.get(kind.__name__)
        if dtype is None:
            raise ValueError(f"it holds a storage of type {kind.__name__}")
        _check_whole_numbers(length)
        self.sizes[key] = length * dtype.itemsize
        return _StoredTensor(th.empty(0) if self._place is None else self._storage(*self._place(key), length, dtype))

    def _storage(self, position: int, size: int, length: int, dtype: th.dtype) -> th.Tensor:
        if not 0 <= length * dtype.itemsize <= size or not 0 <= position <= len(self._content) - size:
            raise ValueError(f"a storage of {length} values is not within its {size} bytes of the file")
        if length == 0:
            return th.empty(0, dtype=dtype)
        if dtype == th.bool:  # any byte may be there
            return th.frombuffer(self._content, dtype=th.uint8, count=length, offset=position) != 0
        return th.frombuffer(self._content, dtype=dtype, count=length, offset=position)

    def _tensor(
        self, storage: _StoredTensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
    ) -> _StoredTensor:
        if self._place is None:
            return storage
        _check_bounds(len(storage.tensor), offset, size, stride, len(self._content))
        return _StoredTensor(storage.tensor.as_strided(tuple(size), tuple(stride), offset))


def _check_whole_numbers(*numbers: Any) -> None:
    # NumPy's, which a pickle can hold, are small again where a product is too large.
    if strange := [number for number in numbers if type(number) is not int]:
        raise ValueError(f"a size is {strange[0]!r}, no whole number")


def _check_bounds(length: int, offset: int, size: Sequence[int], stride: Sequence[int], limit: int) -> None:
    _check_whole_numbers(offset, *size, *stride)
    last = offset + sum((many - 1) * step for many, step in zip(size, stride, strict=True))
    outside = min(offset, *size, *stride, 0) < 0 or (math.prod(size) > 0 and last >= length)
    # With strides of 0 a few bytes would be as large a tensor as they like.
    if outside or math.prod(size) > limit:
        raise ValueError(f"a tensor of size {size}, strides {stride}, from {offset} is not within its {length} values")


def _set(elements: Iterable[Any] = ()) -> set[Any]:
    return set(elements)
