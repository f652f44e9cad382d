"""A folder of episodes: journals while they run, HDF5 files in robomimic's layout once they are over."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.files import to_disk
from zprl_sb3.locks import locked, locked_in_turn
from zprl_sb3.pretrain.demonstrations import DemonstrationError, opened
from zprl_sb3.pretrain.recording import Episode, save_demonstrations
from zprl_sb3.robot_envs.real.journal import ENDINGS, INTERRUPTED, Journal, NoStep, Recorded, Source, read_journal

LEARNED = ENDINGS[:3]
"""Endings of episodes that a policy may learn from."""
PATIENCE = 30.0  # seconds to wait for a folder

Array = NDArray[Any]


def convert(journal: Path) -> Path | None:
    """Turn a journal into ``episode_000012.hdf5`` in robomimic's layout, and remove it.

    :return: The file; None where the episode had no step, of which nothing is kept, and where what is there cannot be
        read, which is kept as ``episode_000012.damaged``
    :raises OSError: If the disk is full; the journal stays
    """
    path = journal.with_suffix(".hdf5")
    try:
        recorded = read_journal(journal)
    except NoStep:
        journal.unlink()
        return None
    except DemonstrationError:
        journal.rename(journal.with_suffix(".damaged"))
        return None
    source, facts = recorded.source, {"ending": recorded.ending, **recorded.facts}
    # Images after a step are those before the next one: written twice, they would double the file.
    following = {key: each for key, each in recorded.episode.next_observations.items() if each.ndim < 4}
    episode = replace(recorded.episode, next_observations=following)
    save_demonstrations(path, [episode], source.env_id, source.env_kwargs, "", facts, in_memory=True)
    to_disk(path)
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
        # A program that was killed may still be letting go of the robot.
        self._stack.enter_context(locked_in_turn(self.folder, PATIENCE))
        self._converting: threading.Thread | None = None
        self._journal: Journal | None = None
        self._failed: OSError | None = None
        self.recovered = recover(self.folder)
        """What crashes have left, as files."""

    def _numbers(self) -> list[int]:
        names = (re.fullmatch(r"episode_(\d+)\.(hdf5|journal|damaged)", path.name) for path in self.folder.iterdir())
        return sorted({int(name[1]) for name in names if name})

    def begin(self, observation: Mapping[str, Array], action_size: int) -> None:
        """Begin an episode.

        :param observation: The first one
        :param action_size: A

        :raises OSError: If the disk is full, also where the one before could not be converted
        """
        self._join()
        recover(self.folder)
        path = self.folder / f"episode_{max(self._numbers(), default=-1) + 1:06d}.journal"
        self._journal = Journal(path, self.source, observation, action_size)

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
