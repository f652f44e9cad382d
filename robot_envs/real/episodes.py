"""Episodes on disk: a journal while one runs, which a crash cannot take back, and an HDF5 file once it is over.

A journal is ``episode_000012.journal``: a line that names the format, then records of a kind (one byte), a length, a
checksum (CRC-32) and a payload. The first is a header, JSON with the fields of a step; then one record for the
observation that the episode began with and one for each step; at last one that says how it ended. Each is with the
system as soon as it is written, and on the disk a third of a second later.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from zprl_sb3.locks import locked
from zprl_sb3.pretrain.demonstrations import DemonstrationError, opened
from zprl_sb3.pretrain.recording import Episode, save_demonstrations

FORMAT = b"zprl episode 1\n"
RECORD = struct.Struct("<cII")  # kind, length, CRC-32
HEADER, STEP, END = b"H", b"S", b"E"
LARGEST = 1 << 30  # bytes of a record; a length beyond it is damage
SYNC = 0.3  # seconds between two times that the disk is made to hold what was written
INTERRUPTED = "interrupted"
ENDINGS = ("success", "failure", "timeout", "aborted", INTERRUPTED)
LEARNED = ENDINGS[:3]
"""Endings of episodes that a policy may learn from."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """Whose episodes they are.

    :param env_id: Gymnasium id
    :param env_kwargs: What ``gym.make`` needs besides the id
    """

    env_id: str
    env_kwargs: dict[str, Any]


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
            self._step(observation, np.zeros(action_size), 0.0)
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
        self._step(observation, action, reward)

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

    def _step(self, observation: Mapping[str, Array], action: Array, reward: float) -> None:
        row = np.zeros((), self._dtype)
        for key, value in observation.items():
            row[f"obs/{key}"] = value
        row["action"], row["reward"], row["time"] = action, reward, time.time()
        self._append(STEP, row.tobytes())

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

    :raises DemonstrationError: If there is no step in it, or it is none
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
    if not header or len(rows) < 2:
        raise DemonstrationError(f"{path}: there is no step in this journal")
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


def convert(journal: Path) -> Path | None:
    """Turn a journal into ``episode_000012.hdf5`` in robomimic's layout, and remove it.

    :return: The file; None where the episode had no step, of which nothing is kept
    :raises OSError: If the disk is full; the journal stays
    """
    path = journal.with_suffix(".hdf5")
    try:
        recorded = read_journal(journal)
    except DemonstrationError:
        journal.unlink()
        return None
    source, facts = recorded.source, {"ending": recorded.ending, **recorded.facts}
    save_demonstrations(path, [recorded.episode], source.env_id, source.env_kwargs, "", facts)
    journal.unlink()
    return path


class Archive:
    """A folder of episodes, numbered from 0. Journals that a crash has left in it are converted when it is opened.

    :param folder: Made where it is missing
    :param source: Whose episodes
    :raises InUse: If another process writes there
    :raises OSError: If it cannot be written
    """

    def __init__(self, folder: str | Path, source: Source) -> None:
        self.folder, self.source = Path(folder), source
        self._stack = ExitStack()
        self._stack.enter_context(locked(self.folder))
        self._converting: threading.Thread | None = None
        self._journal: Journal | None = None
        self._failed: OSError | None = None
        self.recovered = recover(self.folder)
        """What crashes have left, as files."""

    def __len__(self) -> int:
        return len(self._numbers())

    def _numbers(self) -> list[int]:
        names = (re.fullmatch(r"episode_(\d+)\.(hdf5|journal)", path.name) for path in self.folder.iterdir())
        return sorted({int(name[1]) for name in names if name})

    def begin(self, observation: Mapping[str, Array], action_space: spaces.Box) -> None:
        """Begin an episode.

        :raises OSError: If the disk is full, also where the one before could not be converted
        """
        self._join()
        recover(self.folder)
        path = self.folder / f"episode_{max(self._numbers(), default=-1) + 1:06d}.journal"
        self._journal = Journal(path, self.source, observation, action_space.shape[0])

    def add(self, observation: Mapping[str, Array], action: Array, reward: float) -> None:
        """Write a step of the episode.

        :raises OSError: If the disk is full; what was written before stays whole
        """
        assert self._journal is not None
        self._journal.add(observation, action, reward)

    def end(self, ending: str, facts: Mapping[str, Any] | None = None) -> None:
        """End the episode; its file is made in the background, while a person resets the scene."""
        if self._journal is None:
            return
        self._journal.end(ending, facts)
        path, self._journal = self._journal.path, None
        self._converting = threading.Thread(target=self._convert, args=(path,), name="episode")
        self._converting.start()

    def close(self) -> None:
        """End the episode that runs as interrupted, and let go of the folder.

        :raises OSError: If the disk is full; the journal stays
        """
        self.end(INTERRUPTED)
        try:
            self._join()
        finally:
            self._stack.close()

    def _convert(self, path: Path) -> None:
        try:
            convert(path)
        except OSError as error:
            self._failed = error

    def _join(self) -> None:
        if self._converting is not None:
            self._converting.join()
        failed, self._failed, self._converting = self._failed, None, None
        if failed is not None:
            raise failed


def recover(folder: Path) -> list[Path]:
    """Convert the journals in a folder into which nobody writes, and return the files.

    :raises OSError: If the disk is full; what is not converted yet stays
    """
    files = (convert(journal) for journal in sorted(folder.glob("episode_*.journal")))
    return [file for file in files if file is not None]


def is_full(error: OSError) -> bool:
    """Tell whether the disk, or one's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def episode_files(folder: str | Path) -> list[Path]:
    """Return the files of the episodes in a folder, in their order."""
    return sorted(Path(folder).glob("episode_*.hdf5"))


def read_episode(path: Path) -> Recorded:
    """Read an episode's file.

    :raises DemonstrationError: If it is damaged
    """
    with opened(path) as file:
        data = file["data"]
        facts = json.loads(data.attrs["collection"])
        args, demo = json.loads(data.attrs["env_args"]), data["demo_0"]
        observations, following = ({key: each[()] for key, each in demo[kind].items()} for kind in ("obs", "next_obs"))
        actions, rewards = demo["actions"][()], demo["rewards"][()]
    ending = facts.pop("ending")
    states = np.zeros((len(actions), 0))
    episode = Episode(observations, following, actions, rewards, states, -1, "", ending == "success")
    return Recorded(Source(args["env_name"], args["env_kwargs"]), episode, ending, facts)


def ending_of(path: Path) -> str:
    """Return how the episode of a file ended, without reading the rest of it.

    :raises DemonstrationError: If it is damaged
    """
    with opened(path) as file:
        return str(json.loads(file["data"].attrs["collection"])["ending"])


def join(folders: Sequence[str | Path], output: str | Path, endings: Sequence[str] = LEARNED) -> list[Path]:
    """Write the episodes of folders as one file of demonstrations, for ``zprl pretrain``.

    :param folders: Of one task; nobody may be writing there
    :param output: The HDF5 file, whole or absent
    :param endings: Only episodes that ended so
    :return: The episodes that are in it
    :raises DemonstrationError: If there is none, or they are of different tasks
    """
    for folder in folders:
        with locked(folder):
            recover(Path(folder))
    chosen = [path for folder in folders for path in episode_files(folder) if ending_of(path) in endings]
    if not chosen:
        raise DemonstrationError(f"{', '.join(map(str, folders))}: no episode that ended in {' or '.join(endings)}")
    source = read_episode(chosen[0]).source
    save_demonstrations(
        output,
        (_same_source(path, source) for path in chosen),
        source.env_id,
        source.env_kwargs,
        "",
        {"episodes_of": [str(folder) for folder in folders]},
    )
    return chosen


def _same_source(path: Path, source: Source) -> Episode:
    recorded = read_episode(path)
    if recorded.source != source:
        raise DemonstrationError(
            f"{path} is of {recorded.source}, the first of {source}: join one task's episodes only"
        )
    return recorded.episode
