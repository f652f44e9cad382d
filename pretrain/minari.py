"""Turns Minari's data sets of the Adroit hand (D4RL's door, hammer, pen, relocate) into demonstrations.

They were recorded at 100 Hz, and our environments hold an action for two of those steps. So every second observation
is taken, and of each two actions, which are target angles of the joints, the mean. That is an approximation, best for
smooth demonstrations. Of 40 episodes of DAPG's experts for each of door, hammer, pen and relocate, those that had
succeeded did so again, replayed from the same start, in 100, 100, 91 and 100 %, and with the full noise of their
training in 97, 94, 65 and 97 %; with the first of each two actions it is 100, 100, 76 and 100 %, and 95, 82, 65 and
84 %.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from zprl_sb3.files import sha256
from zprl_sb3.pretrain.demonstrations import DemonstrationError, member, opened, read_array
from zprl_sb3.pretrain.recording import Episode, Recording
from zprl_sb3.robot_envs import adroit_id
from zprl_sb3.robot_envs.adroit import ACTION_REPEAT, HAND_JOINTS, TASKS, AdroitEnv

Array = NDArray[Any]

METADATA, MAIN = "metadata.json", "main_data.hdf5"
DATASET_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
NAIL_DEPTH = 0.091
"""How far the hammer drives the nail, in metres."""


def _length(vectors: Array) -> Array:
    return np.asarray(np.linalg.norm(vectors, axis=1))


GOALS: dict[str, Callable[[Array], Array]] = {
    "door": lambda seen: seen[:, 28] >= 1.35,  # the hinge's angle
    "hammer": lambda seen: np.abs(seen[:, 26] - NAIL_DEPTH) < 0.01,
    "pen": lambda seen: (_length(seen[:, 39:42]) < 0.075) & ((seen[:, 33:36] * seen[:, 36:39]).sum(1) > 0.95),
    "relocate": lambda seen: _length(seen[:, 36:39]) < 0.1,  # from the ball to the target
}
"""Whether the goal is reached in observations (n, size): what the simulator says, of which not all data sets keep a
record."""


def looks_like_minari(source: str | Path) -> bool:
    """Whether something is the folder of a Minari data set, or might be the id of one."""
    path = Path(source)
    return path.is_dir() or (not path.exists() and DATASET_ID.fullmatch(str(source)) is not None)


def dataset_folder(source: str | Path) -> Path:
    """Return the folder with a data set's files.

    :param source: The folder, or the one around it, or the id of a data set that Minari has on this machine
    :raises DemonstrationError: If there is none
    :raises ImportError: If an id is given and Minari is not installed
    """
    path = Path(source) if Path(source).is_dir() else _folder_of(str(source))
    for folder in (path, path / "data"):
        if (folder / METADATA).is_file():
            return folder
    raise DemonstrationError(
        f"{path}: no data set of Minari, which is a folder with {METADATA} and {MAIN}; "
        "nor of LeRobot, which has meta/info.json"
    )


def _folder_of(dataset_id: str) -> Path:
    try:
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise ImportError(
            f"There is no folder {dataset_id}. If it is the id of a Minari data set, install Minari with: "
            'pip install "zprl-sb3[minari]", or give the folder that holds its metadata.json'
        ) from error
    path = Path(get_dataset_path(dataset_id))
    if not path.is_dir():
        raise DemonstrationError(
            f"There is neither a folder {dataset_id} nor a Minari data set of this id in {path}. Get it with: "
            f"minari download {dataset_id}"
        )
    return path


class MinariFolder:
    """A data set of Minari as our environment has it; made by :func:`open_minari`.

    :param folder: With its files
    :raises DemonstrationError: If it cannot be converted
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MAIN
        self.metadata = _metadata(folder)
        self.task = self._known_task()
        env = gym.make(adroit_id(self.task)).unwrapped
        assert isinstance(env, AdroitEnv)
        self.sizes = {"observations": env.task.size, "actions": env.model.nu}
        with opened(self.path) as file:
            self.names = sorted((name for name in file if re.fullmatch(r"episode_\d+", name)), key=_number)
            # All of them now, and not after an hour of work.
            for name in self.names:
                self._arrays(file, name)
        if not self.names:
            raise DemonstrationError(f"{self.path}: it holds no episode (episode_0, …)")

    def recording(self) -> Recording:
        """Return all of it, with episodes that are made one by one."""
        return Recording(
            env_id=adroit_id(self.task),
            env_kwargs={"observation": "state"},
            env_version=version("gymnasium-robotics"),
            origin={
                "format": "minari",
                "dataset_id": self.metadata.get("dataset_id", ""),
                "minari_version": self.metadata.get("minari_version", ""),
                "sha256": sha256(self.path),
            },
            masks={},
            count=len(self.names),
            episodes=self._episodes(),
        )

    def _known_task(self) -> str:
        name = _env_name(self.metadata)
        found = re.fullmatch(r"AdroitHand(\w+?)(?:Sparse)?-v\d+", name)
        task = found[1].lower() if found else ""
        if task not in TASKS:
            known = ", ".join(f"AdroitHand{task.capitalize()}" for task in TASKS)
            raise DemonstrationError(
                f"{self.path.parent}: a data set of {name or 'an environment that it does not name'}; there are "
                f"environments here for {known}"
            )
        return task

    def _arrays(self, file: h5py.File, name: str) -> tuple[Array, Array]:
        group = member(self.path, file, name)
        arrays = {key: read_array(self.path, group, key, np.float64) for key in self.sizes}
        for key, size in self.sizes.items():
            if arrays[key].shape[1:] != (size,):
                raise DemonstrationError(
                    f"{self.path}, {name}, {key}: the shape is {arrays[key].shape}, but {adroit_id(self.task)} has "
                    f"{size} a step"
                )
        observations, actions = arrays["observations"], arrays["actions"]
        if len(observations) != len(actions) + 1 or len(actions) < ACTION_REPEAT:
            raise DemonstrationError(
                f"{self.path}, {name}: {len(observations)} observations and {len(actions)} actions; there must be one "
                f"observation more than actions, and at least {ACTION_REPEAT} actions"
            )
        return observations, actions

    def _episodes(self) -> Iterator[Episode]:
        for name in self.names:
            with opened(self.path) as file:
                observations, actions = self._arrays(file, name)
            yield to_episode(self.task, observations, actions)


def to_episode(task: str, observations: Array, actions: Array) -> Episode:
    """Return an episode that was recorded at 100 Hz as our environment would have it.

    :param task: ``"door"``, ``"hammer"``, ``"pen"`` or ``"relocate"``
    :param observations: (T + 1, size)
    :param actions: (T, A); with an odd T the last one is left out
    """
    steps = len(actions) // ACTION_REPEAT
    held = np.clip(actions[: steps * ACTION_REPEAT], -1, 1).reshape(steps, ACTION_REPEAT, -1).mean(axis=1)
    seen = observations[: steps * ACTION_REPEAT + 1 : ACTION_REPEAT]
    hand = slice(TASKS[task].hand, TASKS[task].hand + HAND_JOINTS)
    both = {"object": np.delete(seen, hand, axis=1), "proprio": seen[:, hand]}
    success = GOALS[task](seen[1:]).cumsum() >= TASKS[task].success_steps
    return Episode(
        observations={key: values[:-1].astype(np.float32) for key, values in both.items()},
        next_observations={key: values[1:].astype(np.float32) for key, values in both.items()},
        actions=held.astype(np.float32),
        rewards=success.astype(np.float64),
        states=np.zeros((steps, 0)),
        seed=-1,
        quality="",
        success=bool(success[-1]),
    )


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / METADATA
    try:
        metadata = dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise DemonstrationError(f"{path}: not Minari's JSON, or damaged ({error})") from error
    kind = metadata.get("data_format", "hdf5")
    if kind != "hdf5" or not (folder / MAIN).is_file():
        raise DemonstrationError(f"{folder}: its data is in the format {kind!r}; only hdf5, in {MAIN}, can be read")
    return metadata


def _env_name(metadata: dict[str, Any]) -> str:
    try:
        return str(json.loads(metadata["env_spec"])["id"]).rpartition("/")[2]
    except (KeyError, TypeError, ValueError):
        return ""


def open_minari(source: str | Path) -> Recording:
    """Return a data set of Minari as demonstrations of our environment; only those of the Adroit hand.

    An episode counts as a success where our environment says so: if it was at the goal in 25 steps of 20 ms, pen in 20.
    Simulator states are not stored.

    :param source: Its folder, or the id of one that Minari has on this machine
    :raises DemonstrationError: If it is damaged, or of a task that we do not have
    :raises ImportError: If gymnasium-robotics is not installed, or Minari is not and an id is given
    """
    return MinariFolder(dataset_folder(source)).recording()
