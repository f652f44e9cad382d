from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch as th
from safetensors import SafetensorError

from zprl_sb3.files import atomic_path, read_rows, recovered, sha256, write_json, write_rows

FULL = Path("/dev/full")  # every write to it fails as on a full disk
needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="This system has no /dev/full")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_only_when_the_block_has_ended(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "result.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.parent == target.parent, "a rename from another disk would not be atomic"
        assert temporary.suffix == target.suffix, "writers choose their format by the suffix"
    assert target.read_text() == "whole"
    assert names(target.parent) == {"result.txt"}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert target.read_text() == "old"
    assert names(tmp_path) == {"result.txt"}


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert names(target) == {"second"}
    assert names(tmp_path) == {"folder"}


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / "new").write_text("ne")
            raise ValueError("stopped in the middle")

    with pytest.raises(ValueError, match="stopped in the middle"):
        write_half()
    assert (target / "old").read_text() == "old"
    assert names(target) == {"old"}
    assert names(tmp_path) == {"folder"}


@pytest.mark.parametrize("leftover", [".folder.{}.part", ".folder.old"])
def test_what_a_killed_process_of_the_same_id_left_is_no_obstacle(tmp_path: Path, leftover: str) -> None:
    target, stale = tmp_path / "folder", tmp_path / leftover.format(os.getpid())
    for folder in (target, stale):
        folder.mkdir()
        (folder / "old").write_text("old")
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert names(target) == {"new"}
    assert names(tmp_path) == {"folder"}


def test_a_kill_between_the_two_renames_of_a_folder_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real = tmp_path / "folder", os.replace
    target.mkdir()
    (target / "old").write_text("old")

    def killed_at_the_second(source: Path, destination: Path) -> None:
        if destination == target:
            raise KeyboardInterrupt
        real(source, destination)

    monkeypatch.setattr(os, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.mkdir()
    monkeypatch.undo()
    assert not target.exists()
    assert recovered(target) == target
    assert names(target) == {"old"}
    assert recovered(target) == target  # nothing left to undo


def leave(folder: Path, name: str) -> None:
    """Put down what a killed process leaves: a half-written file, or a folder."""
    if name.endswith("folder"):
        (folder / name).mkdir()
        (folder / name / "half").write_text("ha")
    else:
        (folder / name).write_text("ha")


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("target", ["result.txt", "a[1].txt", "folder"])
def test_what_dead_writers_left_of_the_same_target_is_removed(tmp_path: Path, target: str) -> None:
    suffix = Path(target).suffix
    dead, mine = dead_pid(), os.getpid()
    leave(tmp_path, f".{target}.{dead}.part{suffix}")
    (tmp_path / f".{target}.{10**30}.part{suffix}").mkdir()  # no such number can be a process's
    # Of a living process, of other targets, and of whatever else has such a name.
    kept = {f".{target}.1.part{suffix}", f".{target}.x.{dead}.part{suffix}", f".other.{dead}.part{suffix}"}
    kept |= {f"{target}.{dead}.part{suffix}", f".{target}.word.part{suffix}"}
    for name in kept:
        leave(tmp_path, name)
    with atomic_path(tmp_path / target) as temporary:
        assert names(tmp_path) == kept
        assert temporary.name == f".{target}.{mine}.part{suffix}"
        temporary.write_text("whole")
    assert names(tmp_path) == kept | {target}


def test_a_living_writer_of_the_same_target_keeps_its_temporary(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        other = f".result.txt.{process.pid}.part.txt"
        try:
            leave(tmp_path, other)
            with atomic_path(tmp_path / "result.txt") as temporary:
                temporary.write_text("whole")
            assert names(tmp_path) == {"result.txt", other}
        finally:
            process.kill()
    with atomic_path(tmp_path / "result.txt") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == {"result.txt"}


def test_a_writer_puts_back_what_a_kill_between_two_renames_moved_away(tmp_path: Path) -> None:
    (tmp_path / ".folder.old").mkdir()

    def fail() -> None:
        with atomic_path(tmp_path / "folder"):
            raise ValueError("stopped in the middle")

    with pytest.raises(ValueError, match="stopped in the middle"):
        fail()
    assert names(tmp_path) == {"folder"}


@needs_full
@pytest.mark.parametrize("writer", ["python", "torch"])
def test_a_full_disk_is_named_with_the_file_and_what_to_do(tmp_path: Path, writer: str) -> None:
    target = tmp_path / "result.bin"
    target.write_text("old")

    def fill_the_disk() -> None:
        with atomic_path(target), open(FULL, "wb") as file:
            if writer == "python":
                file.write(b"x" * 100_000)
            else:
                th.save({"weights": th.zeros(100_000)}, file)

    with pytest.raises(OSError, match="disk is full") as caught:
        fill_the_disk()
    assert caught.value.errno == errno.ENOSPC
    for words in (str(target), "old content is untouched", "Free some space"):
        assert words in str(caught.value)
    assert target.read_text() == "old"
    assert names(tmp_path) == {"result.bin"}


def test_a_full_disk_is_recognised_in_the_words_of_safetensors(tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        with atomic_path(tmp_path / "folder"):
            # Its own text: safetensors renames a file of its own, so that /dev/full cannot stand in for the disk.
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match=r"disk is full: .*folder was not written"):
        fill_the_disk()


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "result"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "somewhere")

    with pytest.raises(PermissionError, match="Permission denied"):
        fail()


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "data.json"
    write_json(target, {"name": "λ", "values": [1, 2.5, None]})
    assert json.loads(target.read_text()) == {"name": "λ", "values": [1, 2.5, None]}
    with pytest.raises(TypeError):
        write_json(target, {"bad": object()})
    assert json.loads(target.read_text())["values"] == [1, 2.5, None]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_is_that_of_the_content_around_the_size_of_a_block(tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [{"chunks": 1.0, "success_rate": 0.1 + 0.2}, {"chunks": 2.0, "success_rate": 1e-17}]
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows


def test_rows_of_an_earlier_version_lack_figures(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", [{"a": 1.0}, {"a": 2.0, "b": 3.0}])
    first, second = read_rows(tmp_path / "rows.csv")
    assert (first["a"], np.isnan(first["b"]), second) == (1.0, True, {"a": 2.0, "b": 3.0})
