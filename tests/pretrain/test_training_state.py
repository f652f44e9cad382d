from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch as th

from zprl_sb3.pretrain.training_state import read_state, write_state


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_state(tmp_path / "state.pt", {"step": 3, "weights": th.arange(10_000.0)})
    return tmp_path / "state.pt"


def test_what_was_written_is_read(file: Path) -> None:
    state = read_state(file)
    assert state["step"] == 3
    assert th.equal(state["weights"], th.arange(10_000.0))
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("kept", [0, 1, 100, 20_000, -500, -1])
def test_a_truncated_file_is_named(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"state\.pt cannot be read \(.+\): if it is truncated, delete it to train"):
        read_state(file)


@pytest.mark.parametrize("place", [1_000, 20_000, -1_000])
def test_a_changed_byte_is_named(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 255
    file.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(file)


@pytest.mark.parametrize("error", [th.cuda.OutOfMemoryError("CUDA out of memory"), OSError(5, "Input/output error")])
def test_an_error_that_is_not_the_files_stays_what_it_is(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(th, "load", fail)
    with pytest.raises(type(error)) as caught:
        read_state(file)
    assert caught.value is error


def test_a_file_that_may_not_be_opened_keeps_its_error(tmp_path: Path) -> None:
    (tmp_path / "state.pt").mkdir()
    with pytest.raises(IsADirectoryError):
        read_state(tmp_path / "state.pt")
