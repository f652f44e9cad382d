"""One process at a time in a run's folder, on one machine or on several that share the file system."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

LOCK = "lock"
PATIENCE = 600.0  # seconds to wait for one's turn
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # what file systems say that have none


class InUse(OSError):
    """A folder that another process holds; the message names both."""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process while the block lasts. The kernel lets go of it however the process ends.

    On a file system without locks (some Lustre) a warning is printed, and nothing held.

    :param folder: Made where it is missing, and then removed again if the block puts nothing into it
    :raises InUse: If another process holds it
    """
    folder = Path(folder)
    made = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+") as file:
        if not (_take(file) and _is_there(file, folder / LOCK)):
            raise InUse(f"{folder} is in use by {_read(file)}: wait until it has ended, or choose another folder")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if made and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()


@contextmanager
def locked_in_turn(folder: str | Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a folder like :func:`locked`, once others who hold it for a short time have let go of it.

    :param folder: As there
    :param patience: Seconds to wait for that
    :raises InUse: If they do not within this time
    """
    end = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except InUse:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        yield


def holder(folder: str | Path) -> str | None:
    """Return which process holds a folder, or None."""
    file = Path(folder) / LOCK
    if not file.is_file():
        return None
    with open(file, "a+") as opened:
        return None if _take(opened) else _read(opened)


def _take(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"No locks on this file system ({error}): start nothing twice that writes here", file=sys.stderr)
    return True


def _is_there(file: TextIO, path: Path) -> bool:
    # Who held it may have removed it between our opening and our taking it.
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _read(file: TextIO) -> str:
    file.seek(0)
    return file.read() or "another process"
