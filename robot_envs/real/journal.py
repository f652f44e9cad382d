"""One episode on disk while it runs: a journal, which a crash cannot take back.

A journal is ``episode_000012.journal``: a line that names the format, then records of a kind (one byte), a length, a
checksum (CRC-32) and a payload. The first is a header, JSON with the fields of a step; then one record for the
observation that the episode began with and one for each step; at last one that says how it ended. Each is with the
system as soon as it is written, and on the disk a third of a second later.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.pretrain.demonstrations import DemonstrationError
from zprl_sb3.pretrain.recording import Episode

FORMAT = b"zprl episode 1\n"
RECORD = struct.Struct("<cII")  # kind, length, CRC-32
HEADER, STEP, END = b"H", b"S", b"E"
LARGEST = 1 << 30  # bytes of a record; a length beyond it is damage
SYNC = 0.3  # seconds between two times that the disk is made to hold what was written
INTERRUPTED = "interrupted"
ENDINGS = ("success", "failure", "timeout", "aborted", INTERRUPTED)

Array = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """Whose episodes they are.

    :param env_id: Gymnasium id
    :param env_kwargs: What ``gym.make`` needs besides the id
    """

    env_id: str
    env_kwargs: dict[str, Any]


class NoStep(DemonstrationError):
    """A journal that ends before its first step."""


class Journal:
    """One episode, written as it happens. Not to be used after :meth:`end`.

    :param path: The file; it must not exist
    :param source: Whose episode
    :param observation: The first one
    :param action_size: A
    :raises OSError: If it cannot be written
    """

    def __init__(self, path: Path, source: Source, observation: Mapping[str, Array], action_size: int) -> None:
        self.path = path
        self._dtype = _step_dtype(observation, action_size)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._size = 0  # of whole records
        self._over = threading.Event()
        self._sync = threading.Thread(target=self._keep, name="journal", daemon=True)
        header = {
            "env_id": source.env_id,
            "env_kwargs": source.env_kwargs,
            "began": time.time(),
            "fields": [[name, kind.str, list(shape)] for name, (kind, shape) in _fields(self._dtype).items()],
        }
        try:
            self._write(FORMAT)
            self._append(HEADER, json.dumps(header).encode())
            self.add(observation, np.zeros(action_size), 0.0)
        except OSError:
            os.close(self._file)
            path.unlink()
            raise
        self._sync.start()

    def add(self, observation: Mapping[str, Array], action: Array, reward: float) -> None:
        """Write a step.

        :param observation: After the action
        :param action: (A,), in environment units
        :param reward: Of the step
        :raises OSError: If the disk is full for instance; what was written before stays whole
        """
        row = np.zeros((), self._dtype)
        for key, value in observation.items():
            row[f"obs/{key}"] = value
        row["action"], row["reward"], row["time"] = action, reward, time.time()
        self._append(STEP, row.tobytes())

    def end(self, ending: str, facts: Mapping[str, Any] | None = None) -> None:
        """Say how the episode ended, and close the file. Where even that cannot be written, it counts as interrupted.

        :param ending: One of :data:`ENDINGS`
        :param facts: What else is worth to be known, as JSON
        """
        self._over.set()
        self._sync.join()
        try:
            self._append(END, json.dumps({"ending": ending, **(facts or {})}).encode())
            os.fsync(self._file)
        except OSError:
            pass  # the steps are there, and converting, where there is no room either, says so
        finally:
            os.close(self._file)

    def _append(self, kind: bytes, payload: bytes) -> None:
        self._write(RECORD.pack(kind, len(payload), zlib.crc32(payload)) + payload)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            # A record that is only begun would hide those that may still follow.
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(data)

    def _keep(self) -> None:
        # In a thread: the disk may take longer than a period of control.
        while not self._over.wait(SYNC):
            os.fsync(self._file)


def _step_dtype(observation: Mapping[str, Array], action_size: int) -> np.dtype[np.void]:
    fields = [(f"obs/{key}", np.asarray(value).dtype, np.shape(value)) for key, value in observation.items()]
    return np.dtype([*fields, ("action", "<f8", (action_size,)), ("reward", "<f8"), ("time", "<f8")])


def _fields(dtype: np.dtype[np.void]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    assert dtype.fields is not None
    return {name: (each[0].base, each[0].shape) for name, each in dtype.fields.items()}


@dataclass(frozen=True)
class Recorded:
    """What a journal, or the file that it became, holds.

    :param source: Whose episode
    :param episode: Its T steps
    :param ending: One of :data:`ENDINGS`
    :param facts: What else was noted at its end; ``began`` in seconds since 1970
    """

    source: Source
    episode: Episode
    ending: str
    facts: dict[str, Any] = field(default_factory=dict)


def read_journal(path: Path) -> Recorded:
    """Read a journal up to its end, or to where a crash cut it off.

    :raises NoStep: If there is no step in it
    :raises DemonstrationError: If it is none, or its header is damaged
    """
    header: dict[str, Any] = {}
    rows: list[bytes] = []
    end: dict[str, Any] = {}
    for kind, payload in _records(path):
        if kind == HEADER:
            header = json.loads(payload)
        elif kind == STEP:
            rows.append(payload)
        elif kind == END:
            end = json.loads(payload)
    if not header:
        raise DemonstrationError(f"{path}: the header of this journal is damaged")
    if len(rows) < 2:
        raise NoStep(f"{path}: there is no step in this journal")
    dtype = np.dtype([(name, kind, tuple(shape)) for name, kind, shape in header["fields"]])
    steps = np.frombuffer(b"".join(rows), dtype)
    ending = end.pop("ending", INTERRUPTED)
    facts = {"began": header["began"], **end}
    return Recorded(Source(header["env_id"], header["env_kwargs"]), _episode(steps, ending), ending, facts)


def _records(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Return kind and payload of the whole records."""
    with open(path, "rb") as file:
        if file.read(len(FORMAT)) != FORMAT:
            raise DemonstrationError(f"{path}: not a journal of an episode")
        while len(head := file.read(RECORD.size)) == RECORD.size:
            kind, length, checksum = RECORD.unpack(head)
            payload = file.read(length) if length <= LARGEST else b""
            if len(payload) != length or zlib.crc32(payload) != checksum:
                return
            yield kind, payload


def _episode(steps: Array, ending: str) -> Episode:
    keys = [name.removeprefix("obs/") for name in steps.dtype.names or () if name.startswith("obs/")]
    return Episode(
        observations={key: steps[f"obs/{key}"][:-1] for key in keys},
        next_observations={key: steps[f"obs/{key}"][1:] for key in keys},
        actions=steps["action"][1:],
        rewards=steps["reward"][1:],
        states=np.zeros((len(steps) - 1, 0)),
        seed=-1,
        quality="",
        success=ending == "success",
    )
