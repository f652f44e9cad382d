"""The file that an interrupted training goes on from."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch as th

from zprl_sb3.files import atomic_path


def write_state(file: Path, state: dict[str, Any]) -> None:
    """Write a training state, atomically.

    :param file: Where to; replaced if it exists
    :param state: Tensors and numbers in plain containers
    """
    # Through Python's own file, so that a full disk is told apart from other errors.
    with atomic_path(file) as temporary, open(temporary, "wb") as opened:
        th.save(state, opened)


def read_state(file: Path) -> dict[str, Any]:
    """Return what :func:`write_state` wrote, with all tensors on the CPU.

    :param file: An existing file
    :raises ValueError: If it is truncated or changed. Errors of disk and memory pass as they are
    """
    # Looked through before torch loads it: torch has one kind of error for a bad file and for too little memory, and
    # looks at no checksums.
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise _unreadable(file, error) from error
    if damaged:
        raise _unreadable(file, f"bad checksum of {damaged}")
    state: dict[str, Any] = th.load(file, map_location="cpu", weights_only=True)
    return state


def _unreadable(file: Path, reason: object) -> ValueError:
    return ValueError(f"{file} cannot be read ({reason}): if it is truncated, delete it to train from the beginning")
