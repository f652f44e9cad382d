"""Reads files of ``torch.save`` without running anything that they ask for.

Weights are taken from their bytes, containers are plain ones, and objects of all other classes inert stubs (see
:mod:`zprl_sb3.foreign_pickles`). ``torch.load(weights_only=True)`` refuses the files of projects that save settings as
objects, and without it executes whatever is in them.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterable, Sequence
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
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return plain(_read_zip(content, file) if zipfile.is_zipfile(file) else _read_legacy(content))


def plain(value: Any) -> Any:
    """Return a value with plain dictionaries, lists and arrays; settings of OmegaConf, pickled as objects, too.

    :raises RecursionError: If it contains itself
    """
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(part) for part in value)
    if isinstance(value, StoredArray):
        return np.asarray(value)
    if isinstance(value, Stub) and value.origin.startswith("omegaconf."):
        state = value.state
        return plain(state["_content"]) if "_content" in state else plain(state.get("_val"))
    return value


def _read_zip(content: mmap.mmap, file: Any) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
        if "data.pkl" not in members:
            raise ValueError("it is a ZIP archive, but none of torch.save")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise ValueError("it was written on a machine with another byte order")
        with archive.open(members["data.pkl"]) as pickled:
            return _Unpickler(pickled, lambda key: _place(content, members[f"data/{key}"]), content).load()


def _place(content: mmap.mmap, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Return where a member's bytes begin and how many they are."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed, which torch.save does not do")
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

    def persistent_load(self, pid: Any) -> th.Tensor | None:
        _, kind, key, _, count = pid[:5]
        dtype = DTYPES.get(kind.__name__)
        if dtype is None:
            raise ValueError(f"it holds a storage of type {kind.__name__}")
        self.sizes[key] = count * dtype.itemsize
        if self._place is None:
            return None
        position, size = self._place(key)
        if not 0 <= self.sizes[key] <= size or position + size > len(self._content):
            raise ValueError(f"storage {key} of {count} values is not within its {size} bytes")
        if count == 0:
            return th.empty(0, dtype=dtype)
        if dtype == th.bool:  # any byte may be there
            return th.frombuffer(self._content, dtype=th.uint8, count=count, offset=position) != 0
        return th.frombuffer(self._content, dtype=dtype, count=count, offset=position)

    def _tensor(
        self, storage: th.Tensor | None, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
    ) -> th.Tensor:
        if storage is None:
            return th.empty(0)
        _check_bounds(len(storage), offset, size, stride, len(self._content))
        return storage.as_strided(tuple(size), tuple(stride), offset)


def _check_bounds(length: int, offset: int, size: Sequence[int], stride: Sequence[int], limit: int) -> None:
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    outside = min(offset, *size, *stride, 0) < 0 or (math.prod(size) > 0 and last >= length)
    # With strides of 0 a few bytes would be as large a tensor as they like.
    if outside or math.prod(size) > limit:
        raise ValueError(f"a tensor of size {size}, strides {stride}, from {offset} is not within its {length} values")


def _set(elements: Iterable[Any] = ()) -> set[Any]:
    return set(elements)
