"""Files that are either whole or absent: temporary name, then rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that becomes ``path`` when the block ends without an error.

    Works for files and folders. A reader never sees a half-written result, and after an error or a kill the old
    content is still there.

    :param path: Where the finished file or folder shall be; missing parent folders are made
    :raises OSError: With the path and what to do, where the disk is full
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.part{path.suffix}"
    _remove(temporary)  # left by a killed process that had the same id, as is common in containers
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


def write_json(path: str | Path, data: dict[str, Any]) -> None:
    """Write ``data`` as readable JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as a hexadecimal string."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
