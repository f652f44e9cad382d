import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch as th
from omegaconf import OmegaConf

from zprl_sb3.adapters.torch_files import DTYPES, read_torch_file
from zprl_sb3.foreign_pickles import Stub, UnsafePickleError

formats = pytest.mark.parametrize("zipped", [True, False])


def saved(value, path, zipped=True):
    th.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@formats
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_tensors_of_all_types_come_back(tmp_path, dtype, zipped):
    values = (th.arange(-6, 6) * 0.7).to(dtype).reshape(3, 4)
    read = read_torch_file(saved({"values": values, "number": values[1, 2]}, tmp_path / "x.pt", zipped))
    assert read["values"].dtype == dtype
    assert th.equal(read["values"], values)
    assert th.equal(read["number"], values[1, 2])


@formats
def test_strides_offsets_and_shared_storages_come_back(tmp_path, zipped):
    whole = th.arange(24.0)
    views = {
        "transposed": whole.reshape(4, 6).T,
        "part": whole[5:9],
        "every": whole[1::3],
        "expanded": whole[:1].expand(7),
        "empty": whole[:0],
        "parameter": th.nn.Parameter(whole.reshape(2, 12)),
    }
    read = read_torch_file(saved(views, tmp_path / "x.pt", zipped))
    assert all(
        th.equal(read[name], values) and read[name].stride() == values.stride() for name, values in views.items()
    )
    assert read["part"].untyped_storage().data_ptr() == read["every"].untyped_storage().data_ptr()
    read["part"].zero_()  # a copy in memory
    assert th.equal(read_torch_file(tmp_path / "x.pt")["part"], whole[5:9])


@formats
def test_containers_and_arrays_come_back_plain(tmp_path, zipped):
    network = th.nn.Sequential(th.nn.Linear(3, 2), th.nn.BatchNorm1d(2))
    value = {
        "state": network.state_dict(),  # an ordered dictionary with attributes
        "optimizer": th.optim.AdamW(network.parameters()).state_dict(),
        "counts": defaultdict(list, {"a": [1]}),
        "ordered": OrderedDict(b=(1, None, {2, 3})),
        "array": np.arange(6.0).reshape(2, 3),
        "json": '{"algo": "bc"}',
        "bytes": b"\x80\x04",
    }
    read = read_torch_file(saved(value, tmp_path / "x.pt", zipped))
    assert all(th.equal(read["state"][name], values) for name, values in network.state_dict().items())
    np.testing.assert_array_equal(read["array"], value["array"])
    for name in ("optimizer", "counts", "ordered", "json", "bytes"):
        assert read[name] == value[name]


def test_settings_of_omegaconf_come_back_plain(tmp_path):
    settings = {
        "policy": {"_target_": "a.b.C", "dims": [1, 2, [3, None]], "crop": None, "same": "${policy.crop}", 3: 0.5},
        "missing": "???",
        "nothing": {},
    }
    read = read_torch_file(saved({"cfg": OmegaConf.create(settings)}, tmp_path / "x.ckpt"))
    assert read["cfg"] == settings


def test_other_classes_are_stubs(tmp_path):
    value = {"partial": partial(th.nn.Linear, 3), "path": Path("x"), "device": th.device("cpu"), "module": th.nn.ReLU()}
    read = read_torch_file(saved(value, tmp_path / "x.pt"))
    assert all(isinstance(part, Stub) for part in read.values())
    assert read["module"].origin == "torch.nn.modules.activation.ReLU"
    assert repr(read["path"]) == "<pathlib.PosixPath>"  # no address: fingerprints have such texts in them


class Evil:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@formats
@pytest.mark.parametrize("nested", [False, True])
def test_malicious_files_are_refused(tmp_path, zipped, nested):
    trace = tmp_path / "trace"
    functions = [
        (os.system, f"touch {trace}"),
        (eval, f"open({str(trace)!r}, 'w')"),
        (exec, "import os"),
        (open, trace, "w"),
    ]
    functions += [(subprocess.Popen, ["touch", trace]), (__import__, "os"), (pickle.loads, pickle.dumps(1))]
    for function, *arguments in functions:
        evil = Evil(function, *arguments)
        path = saved(
            {"cfg": OmegaConf.create({"x": 1}), "evil": [evil] if nested else evil}, tmp_path / "x.ckpt", zipped
        )
        with pytest.raises(UnsafePickleError, match=r"x\.ckpt is refused: it asks for"):
            read_torch_file(path)
        assert not trace.exists()


def test_what_is_mentioned_is_not_called(tmp_path):
    path = saved({"hub": Evil(th.hub.load, "somebody/code")}, tmp_path / "x.pt")
    assert read_torch_file(path)["hub"].arguments == ("somebody/code",)


@formats
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (2, (3,), (1,)), (0, (2,), (900,)), (-1, (1,), (1,)), (0, (-2,), (1,)), (3, (2,), (-1,)),
     (0, (1 << 40,), (0,)), (0, (2,), (1, 1)), (0, (np.int64(1 << 62), 4), (1, 1)), (0, (1.0,), (1,))],
)  # fmt: skip
def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path, zipped, offset, size, stride):
    storage = th.arange(4.0)

    class Forged:
        def __reduce__(self):
            arguments = (storage._typed_storage(), offset, size, stride, False, OrderedDict())
            return th._utils._rebuild_tensor_v2, arguments

    with pytest.raises(ValueError, match=r"x\.pt cannot be read"):
        read_torch_file(saved([Forged()], tmp_path / "x.pt", zipped))


class Built:
    """A tensor of which a pickle says how to go on: by ``__setstate__``."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        tensor = th.zeros(4)
        arguments = (tensor._typed_storage(), 0, (4,), (1,), False, OrderedDict())
        return th._utils._rebuild_tensor_v2, arguments, self.state


@formats
def test_methods_of_tensors_are_not_called(tmp_path, zipped):
    empty = th.zeros(0)  # whose storage torch would let grow
    path = saved([Built((empty._typed_storage(), 0, (1 << 20,), (1,)))], tmp_path / "x.pt", zipped)
    (read,) = read_torch_file(path)
    assert th.equal(read, th.zeros(4))


def archive(path, pickled, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as written:
        written.writestr("x/data.pkl", pickled)
        written.writestr("x/data/0", bytes(16))
    return path


def test_sums_of_tensors_are_not_formed(tmp_path):
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
    path = archive(tmp_path / "x.pt", b"\x80\x04" + storage + b"(" + storage + pickle.ADDITEMS + b".")
    with pytest.raises(ValueError, match="has no attribute 'add'"):
        read_torch_file(path)


def test_files_cannot_become_much_larger_than_they_are(tmp_path):
    mentioned = pickle.EMPTY_LIST
    for _ in range(12):  # each list holds the one before ten times: 10^12 numbers
        mentioned = b"](" + mentioned + pickle.DUP * 9 + b"e"
    for pickled in (b"\x80\x04" + mentioned + b".", b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"."):
        with pytest.raises(ValueError, match=r"x\.pt cannot be read"):
            read_torch_file(archive(tmp_path / "x.pt", pickled))
    assert read_torch_file(archive(tmp_path / "x.pt", b"\x80\x02}r\xff\xff\xff\xff.")) == {}  # entry 2^32 of a table
    with pytest.raises(ValueError, match=r"data\.pkl is compressed"):
        read_torch_file(archive(tmp_path / "x.pt", b"}" + bytes(10_000) + b".", zipfile.ZIP_DEFLATED))


def test_a_storage_cannot_reach_beyond_its_file(tmp_path):
    path = saved({"x": th.arange(4.0)}, tmp_path / "x.pt")
    forged = tmp_path / "forged.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(forged, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[:8] if name.endswith("data/0") else content)
    with pytest.raises(ValueError, match=r"forged\.pt cannot be read.*a storage of 4 values is not within its 8 bytes"):
        read_torch_file(forged)


@formats
def test_damaged_and_other_files_are_named(tmp_path, zipped):
    whole = saved({"x": th.arange(1000.0)}, tmp_path / "whole.pt", zipped).read_bytes()
    path = tmp_path / "part.pt"
    for content in (whole[: len(whole) // 2], whole[:-1000], whole[:40], b"", b"no checkpoint", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"part\.pt cannot be read"):
            read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "c")
    with pytest.raises(ValueError, match=r"none of torch\.save"):
        read_torch_file(path)
