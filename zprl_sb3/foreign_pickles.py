"""Reads what other projects have pickled, without running what their pickles ask for and without torch."""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class UnsafePickleError(ValueError):
    """A pickle asks for something that no policy needs; it has not been run."""


class Stub:
    """Stands for an object of any class: keeps what it was made from, and does nothing."""

    origin = ""
    """Name of the class or function that it stands for."""

    def __new__(cls, *arguments: Any, **_: Any) -> Stub:
        """Keep the arguments."""
        stub = super().__new__(cls)
        stub.arguments, stub.items, stub.state = arguments, {}, {}
        return stub

    arguments: tuple[Any, ...]
    items: dict[Any, Any]
    state: dict[str, Any]

    def __repr__(self) -> str:
        """Return the name, without an address: what is printed is the same in every process."""
        return f"<{self.origin}>"

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take what ``__new__`` has kept."""

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes, whether or not some are in slots."""
        for part in state if isinstance(state, tuple) else (state,):
            self.state.update(part if isinstance(part, dict) else {})

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep an item, as an ordered dictionary does."""
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Keep an element, as a list does."""
        self.items[len(self.items)] = value


def read_foreign_pickle(path: str | Path) -> Any:
    """Return what is in a pickle: what ``np.asarray`` takes for arrays and tensors, a :class:`Stub` for other objects.

    :param path: The file, written by Python 2 or 3
    :raises UnsafePickleError: If it names anything but the classes of policies, torch and NumPy
    :raises ValueError: If it is damaged or no pickle
    """
    with named(path):
        return Unpickler(io.BytesIO(Path(path).read_bytes()), KNOWN, STAND_INS).load()


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Name the file in errors of reading its pickle.

    :raises UnsafePickleError: If it asks for what it must not
    :raises ValueError: If it is damaged; then it raises whatever its stray instructions do
    """
    try:
        yield
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path} is refused: {error}") from error
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a pickle: {error!r}") from error


def _load_bytes(unpickler: Any) -> None:
    """Read what there is, where the original makes bytes of the size that it is told first."""
    (size,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(size)))


class Unpickler(pickle._Unpickler):
    """Calls what it is given, puts a :class:`Stub` in the place of all else, and refuses what may not be mentioned.

    It is the one in Python: in the one in C five bytes can make a table of any size (``LONG_BINPUT``). A pickle also
    calls methods of what it has built, such as ``__setstate__`` and ``add``: what is called must return nothing whose
    methods do harm.

    :param file: The pickle
    :param known: What is called, by module and name
    :param stand_ins: What may be mentioned: packages, or pairs of module and name
    """

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytes}

    def __init__(
        self,
        file: Any,
        known: Mapping[tuple[str, str], Callable[..., Any]],
        stand_ins: Set[str | tuple[str, str]],
    ) -> None:
        # Strings of Python 2 may be bytes, which NumPy takes back from this encoding only.
        super().__init__(file, encoding="latin1")
        self._known, self._stand_ins = known, stand_ins

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            function = self._known[module, name]
            # A new one each time: a pickle may set attributes, such as defaults, of what it is given.
            return lambda *arguments: function(*arguments)
        if module.partition(".")[0] in self._stand_ins or (module, name) in self._stand_ins:
            return type(name, (Stub,), {"origin": f"{module}.{name}"})
        raise UnsafePickleError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return pid


DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8", "IntStorage": "<i4"}


def _storage_of_bytes(content: bytes | str) -> Array:
    """Return a storage of torch from the bytes of ``torch.save``: five pickles, its length, its values."""
    file = io.BytesIO(content.encode("latin1") if isinstance(content, str) else content)
    _, _, _, (_, kind, _, _, size, _), _ = (Unpickler(file, KNOWN, STAND_INS).load() for _ in range(5))
    values = np.frombuffer(file.read()[8:], DTYPES[kind.__name__])
    if len(values) != size:
        raise ValueError(f"a tensor of {size} values has {len(values)}")
    return values


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Array:
    if isinstance(storage, Stub):  # Torch up to 0.4 wrote a list of values.
        storage = np.array(storage.arguments[0], DTYPES[type(storage).__name__])
    contiguous = tuple(math.prod(size[k + 1 :]) for k in range(len(size)))
    if tuple(stride) != contiguous and math.prod(size) > 1:
        raise ValueError(f"a tensor's strides are {stride}, not {contiguous}")
    if min(offset, *size, 0) < 0 or offset + math.prod(size) > len(storage):
        raise ValueError(f"a tensor of size {size} from {offset} on is not within its storage of {len(storage)}")
    return np.asarray(storage[offset : offset + math.prod(size)].reshape(size))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    """Return bytes from how Python 3 writes them in old pickles."""
    if encoding != "latin1":
        raise ValueError(f"bytes are encoded as latin1, not {encoding}")
    return text.encode("latin1")


# NumPy's own rebuild functions trust a pickle: from a forged type they make arrays of pointers to anywhere.


class StoredType:
    """A type of plain numbers in the making.

    :param name: As NumPy writes it, e.g. ``"f8"``
    """

    def __init__(self, name: str, *_: Any) -> None:
        self._name, self._byte_order = name, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Take the byte order, and nothing else."""
        self._byte_order = state[1]

    def dtype(self) -> np.dtype[Any]:
        """Return the type.

        :raises UnsafePickleError: If it is not one of plain numbers
        """
        name = f"{self._byte_order}{self._name}"
        if not re.fullmatch(r"[<>|=][biuf]\d", name):
            raise UnsafePickleError(f"it holds an array of {name[:20]!r}, not of numbers")
        return np.dtype(name)


class StoredArray:
    """An array in the making."""

    def __init__(self, *_: Any) -> None:
        self._values: Array = np.zeros(0)

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Take shape, type, order and bytes."""
        shape, kind, columns_first, content = state[-4:]
        values = _numbers(kind, content)
        if min(shape, default=0) < 0:
            raise ValueError(f"an array has the shape {shape}")
        self._values = values.reshape(shape, order="F" if columns_first else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return the array, as NumPy asks for it."""
        return self._values.astype(dtype or self._values.dtype, copy=bool(copy))


def _numbers(kind: StoredType, content: bytes | str) -> Array:
    return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, kind.dtype())


def _array_of_buffer(content: bytes, kind: StoredType, shape: Sequence[int], order: str, *_: Any) -> Array:
    """Return an array from how protocol 5 writes it."""
    if min(shape, default=0) < 0:
        raise ValueError(f"an array has the shape {shape}")
    return _numbers(kind, content).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: StoredType, content: bytes | str) -> Any:
    return _numbers(kind, content)[0]


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): StoredArray for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_buffer for core in ("core", "_core")},
    ("numpy", "dtype"): StoredType,
    ("_codecs", "encode"): _bytes,
    ("torch.storage", "_load_from_bytes"): _storage_of_bytes,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
"""What is called. All else is stood in for by a :class:`Stub`, or refused."""

STAND_INS: frozenset[str | tuple[str, str]] = frozenset(
    {"mjrl", "mj_envs", "gym", "torch", "collections"}
    | {(module, name) for module in ("builtins", "__builtin__") for name in ("getattr", "object", "set", "slice")}
    | {("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor"), ("numpy", "ndarray")}
)
"""Packages whose classes and functions a policy may mention, and what else public ones do, e.g. to find ``torch.tanh``.
None of it is called."""
