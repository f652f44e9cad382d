"""Files that are either whole or absent: temporary name, then rename."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNREADABLE = (AssertionError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that becomes ``path`` when the block ends without an error.

    Works for files and folders. A reader never sees a half-written result, and after an error or a kill the old
    content is still there (a folder's where :func:`recovered` finds it). What killed writers left is removed.

    :param path: Where the finished file or folder shall be; missing parent folders are made
    :raises OSError: With the path and what to do, where the disk is full
    """
    path = recovered(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.part{path.suffix}"
    try:
        yield temporary
        _replace(temporary, path)
    except Exception as error:
        if _disk_full(error):
            raise OSError(
                errno.ENOSPC,
                f"The disk is full: {path} was not written and its old content is untouched. "
                "Free some space and run the same command again",
            ) from error
        raise
    finally:
        _remove(temporary)


def to_disk(path: Path) -> None:
    """Have the disk hold a file, or all files of a folder, so that what they replace may be removed.

    What was only written may be empty after a power cut, though its name is there.
    """
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def _remove_stale(path: Path) -> None:
    temporary = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.part{re.escape(path.suffix)}")
    for sibling in path.parent.iterdir():
        if (found := temporary.fullmatch(sibling.name)) and not _alive(int(found[1])):
            _remove(sibling)


def _alive(pid: int) -> bool:
    """Whether another process has this id. In containers a killed process and this one may well have the same."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return pid != os.getpid()


def _disk_full(error: BaseException | None) -> bool:
    # safetensors turns the system's error into one of its own, torch.save fails once more while it closes the file.
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _replace(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(temporary, path)
        return
    # A folder cannot be replaced in one step: keep the old one until the new one has its name.
    old = _old(path)
    _remove(old)
    os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old)


def _old(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def recovered(path: str | Path) -> Path:
    """Return a folder's path, after undoing a replacement that a kill cut short between its two renames."""
    path = Path(path)
    if _old(path).is_dir() and not path.exists():
        os.replace(_old(path), path)
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Name the file in errors that loading it raises, and what to do if it is damaged.

    Errors of the system (no permission) and of memory stay as they are: the file may be whole.

    :param path: What is loaded in the block
    :raises ValueError: For a file that is truncated, foreign, or does not fit
    """
    try:
        yield
    except (OSError, *UNREADABLE) as error:
        # A truncated ZIP file makes its reader seek to a negative position; torch's lack of memory is a RuntimeError.
        if "out of memory" in str(error) or getattr(error, "errno", errno.EINVAL) != errno.EINVAL:
            raise
        reason = f"{type(error).__name__}: {error}".strip(": ")
        raise ValueError(f"{path} cannot be loaded ({reason}). If it is damaged, remove it and start again") from error


def write_json(path: str | Path, data: dict[str, Any]) -> None:
    """Write ``data`` as readable JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a CSV file of numbers."""
    with open(path, newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def write_rows(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically; what a row lacks, one of an earlier version for instance, is NaN."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)), restval="nan")
        writer.writeheader()
        writer.writerows(rows)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as a hexadecimal string."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def slug(name: str) -> str:
    """Return a name as it can be part of a file's name or of an address: ``zprl/Push-v0`` becomes ``zprl-Push-v0``."""
    return re.sub(r"[^\w.-]+", "-", name)
