"""One process at a time in a run's folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from zprl_sb3.locks import LOCK, InUse, holder, locked, locked_in_turn


def test_a_folder_is_held_while_the_block_lasts(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    assert holder(folder) is None
    with locked(folder):
        me = f"process {os.getpid()} on {socket.gethostname()}"
        assert holder(folder) == me
        with pytest.raises(InUse, match=f"{folder} is in use by {me}: wait"), locked(folder):
            raise AssertionError("it is held")
        assert holder(folder) == me
        (folder / "run.yml").touch()
    assert holder(folder) is None
    with locked(folder):
        assert holder(folder) == me


def test_a_new_folder_with_nothing_in_it_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_lock_that_its_holder_has_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = fcntl.flock

    def removed_first(*arguments: Any) -> None:
        (tmp_path / LOCK).unlink()
        take(*arguments)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with pytest.raises(InUse), locked(tmp_path):
        raise AssertionError("another process may hold a new one")


def test_those_who_wait_hold_a_folder_one_after_another(tmp_path: Path) -> None:
    order: list[str] = []

    def hold(name: str) -> None:
        with locked_in_turn(tmp_path):
            order.append(name)
            time.sleep(0.05)
            order.append(name)

    threads = [Thread(target=hold, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[::2] == order[1::2]
    assert sorted(order) == sorted("aabbcc")


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    program = f"from zprl_sb3.locks import locked\nwith locked({str(tmp_path)!r}): print('held', flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert str(process.pid) in str(holder(tmp_path))
        process.kill()
    assert holder(tmp_path) is None
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} ")


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(number: int) -> Any:
        def flock(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOSYS))
    with locked(tmp_path):
        assert "No locks on this file system" in capsys.readouterr().err
    monkeypatch.setattr(fcntl, "flock", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path):
        raise AssertionError("an error of the disk is not passed over")
