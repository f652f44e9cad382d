"""Turns robomimic's data sets, recorded in robosuite, into demonstrations of this package's environments.

A file holds what robosuite of its time observed and what its controllers were told. The stored simulator states are
what lasts: each is set in our environment, which then observes it itself, and the recorded observations are only
compared with that. So a policy sees in training exactly what it will see later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from zprl_sb3.files import sha256
from zprl_sb3.pretrain.demonstrations import (
    DemonstrationError,
    demo_names,
    member,
    opened,
    read_array,
    read_env_args,
    read_masks,
)
from zprl_sb3.pretrain.recording import Episode
from zprl_sb3.pretrain.robosuite_actions import read_controllers, to_poses
from zprl_sb3.robot_envs import robosuite_id
from zprl_sb3.robot_envs.base import IMAGE_SIZE, image_key
from zprl_sb3.robot_envs.robosuite import TASKS, RobosuiteEnv

Array = NDArray[Any]

ENVIRONMENTS = {task.name: robosuite_id(name) for name, task in TASKS.items()}
"""Our ids by robosuite's names."""
QUALITIES = ("better", "okay", "worse")
RECORDED_QUALITY = "full"
"""How robosuite renders, see :data:`~zprl_sb3.robot_envs.rendering.QUALITIES`."""
TOLERANCE = 0.02
"""By how much a recorded observation may differ, in metres or as part of a quaternion, halfway through the sorted
steps. Not at each: some versions of robosuite record values that are one step old."""
IMAGE_TOLERANCE = 25.0
"""By how much, of 255, the mean pixel of an image may differ; another view differs by more."""


class RobomimicFile:
    """A data set of robomimic, episode by episode as our environment has it; see :func:`open_robomimic`.

    :param path: The file
    :param file: The same, open
    :param observation: ``"state"`` or ``"image"``
    :param render: ``"fast"`` or ``"full"`` renders images anew; None takes the recorded ones
    :raises DemonstrationError: If it cannot be converted
    """

    def __init__(self, path: Path, file: h5py.File, observation: str = "state", render: str | None = None) -> None:
        self.path, self.observation, self.render = path, observation, render
        self._data = member(path, file, "data")
        self.names = demo_names(path, self._data)
        self.masks = read_masks(path, file, self.names)
        env_args = read_env_args(path, self._data)
        self.recorded_version = str(env_args.get("env_version") or "")
        self._shaped = bool(env_args["env_kwargs"].get("reward_shaping", False))
        self.env_id = self._known(env_args["env_name"])
        self.env_kwargs: dict[str, Any] = {"observation": observation}
        if observation == "image":
            self.env_kwargs["render_quality"] = render or RECORDED_QUALITY
        self._env = _make(self.env_id, render or RECORDED_QUALITY)
        try:
            arms = len(self._env.task.homes)
            self._controllers = read_controllers(env_args["env_kwargs"], self.recorded_version, arms)
        except ValueError as error:
            raise DemonstrationError(f"{path}, env_args: {error}") from error
        self._check_first()
        self.source = {
            "format": "robomimic",
            "file": path.name,
            "sha256": sha256(path),
            "env_name": env_args["env_name"],
            "env_version": self.recorded_version,
        }

    def __len__(self) -> int:
        return len(self.names)

    def close(self) -> None:
        """Free the simulation."""
        self._env.close()

    def episode(self, k: int) -> Episode:
        """Return episode k as our environment observes it, with actions that it takes.

        :raises DemonstrationError: If it holds what does not fit
        """
        name = self.names[k]
        demo = self._data[name]
        states, recorded = (read_array(self.path, demo, key, np.float64) for key in ("states", "actions"))
        rewards = member(self.path, demo, "rewards")[()]
        if not len(states) == len(recorded) == len(rewards):
            raise DemonstrationError(
                f"{self.path}, {name}: {len(states)} states, {len(recorded)} actions, {len(rewards)} rewards"
            )
        try:
            actions = to_poses(self._env, self._controllers, recorded, states)
            observations = _stacked(self._env.observe_state(state) for state in states)
            last, success, *_ = self._env.step(actions[-1])  # What followed the last action is not stored.
        except ValueError as error:
            raise DemonstrationError(f"{self.path}, {name}: {error}") from error
        self._check_recorded(demo, observations)
        following = {key: np.concatenate([values[1:], last[key][None]]) for key, values in observations.items()}
        if self.observation == "image":
            del observations["object"], following["object"]
            observations |= self._images(demo, states)
        rewards = self._successes(states, success) if self._shaped else rewards > 0
        return Episode(
            observations=observations,
            next_observations=following,
            actions=actions,
            rewards=rewards.astype(np.float64),
            states=states,
            seed=-1,
            quality=next((quality for quality in QUALITIES if k in self.masks.get(quality, ())), ""),
            success=bool(rewards.any()),
        )

    def _known(self, name: str) -> str:
        if name not in ENVIRONMENTS:
            raise DemonstrationError(
                f"{self.path}: there is no environment for robosuite's {name!r}, only for {', '.join(ENVIRONMENTS)}"
            )
        return ENVIRONMENTS[name]

    def _check_first(self) -> None:
        """Find what is wrong with all episodes before the first hour of work."""
        demo = self._data[self.names[0]]
        states = read_array(self.path, demo, "states", np.float64)
        size = len(self._env.get_state())
        if states.shape[1] != size:
            raise DemonstrationError(
                f"{self.path}, {demo.name[6:]}, states: {states.shape[1]} values, but a state of {self.env_id} has "
                f"{size}; {self._versions()}"
            )
        if self.observation == "image" and self.render is None:
            for camera in self._env.cameras:
                self._recorded_images(demo, image_key(camera))

    def _versions(self) -> str:
        recorded = self.recorded_version or "of an unknown version"
        return f"it was recorded with robosuite {recorded}, installed is {self.env_version}"

    @property
    def env_version(self) -> str:
        """The installed version of robosuite."""
        return version("robosuite")

    def _successes(self, states: Array, last: float) -> Array:
        # Shaped rewards are positive everywhere. The reward of an action is that of the state after it.
        reached = []
        for state in states[1:]:
            self._env.set_state(state)
            reached.append(float(self._env.simulation._check_success()))
        return np.array([*reached, last])

    def _check_recorded(self, demo: h5py.Group, observations: dict[str, Array]) -> None:
        """Compare with what was recorded, where something was."""
        recorded = demo.get("obs", {})
        for k in range(len(self._env.task.homes)):
            for part, first, size in (("eef_pos", 0, 3), ("gripper_qpos", 7, 2)):
                key = f"robot{k}_{part}"
                if key in recorded:
                    here = observations["proprio"][:, 9 * k + first : 9 * k + first + size]
                    self._compare(demo, key, {key: here}, [(key, size)])
        for key in {"object", "object-state"}.intersection(recorded):
            # From 1.5 on robosuite lists the same values in another order than robomimic's data sets do.
            raw = self._env.simulation._get_observations()
            ours = [(name, np.size(raw[name])) for name in self._env.task.objects]
            starts = np.cumsum([0, *(size for _, size in ours)])
            parts = {
                name: observations["object"][:, start : start + size]
                for (name, size), start in zip(ours, starts, strict=False)
            }
            theirs = sorted(ours, key=lambda entry: list(raw).index(entry[0]))
            self._compare(demo, key, parts, ours, theirs)

    def _compare(self, demo: h5py.Group, key: str, parts: dict[str, Array], *orders: list[tuple[str, int]]) -> None:
        values = read_array(self.path, demo["obs"], key)
        where = f"{self.path}, {demo.name[6:]}, obs/{key}"
        size = sum(part.shape[1] for part in parts.values())
        if values.shape[1] != size:
            raise DemonstrationError(f"{where}: {values.shape[1]} values, but {self.env_id} has {size} there")
        faults = []
        for order in orders:
            starts = np.cumsum([size for _, size in order])[:-1]
            pieces = np.split(values, starts, axis=1)
            names = [f"{name}[{i}]" for name, size in order for i in range(size)]
            errors = [_typical_error(name, parts[name], piece) for (name, _), piece in zip(order, pieces, strict=True)]
            error = np.concatenate(errors)
            faults.append((error.max(), names[int(error.argmax())], int(error.argmax())))
        error, name, dimension = min(faults)
        if error > TOLERANCE:
            raise DemonstrationError(
                f"{where}: dimension {dimension} ({name}) differs by {error:.3f} from what {self.env_id} observes in "
                f"the stored states; {self._versions()}"
            )

    def _images(self, demo: h5py.Group, states: Array) -> dict[str, Array]:
        if self.render is not None:
            return _stacked(self._seen(state) for state in states)
        images = {key: self._recorded_images(demo, key) for key in map(image_key, self._env.cameras)}
        for key, here in self._seen(states[0]).items():
            difference = float(np.abs(images[key][0].astype(float) - here).mean())
            if difference > IMAGE_TOLERANCE:
                raise DemonstrationError(
                    f"{self.path}, {demo.name[6:]}, obs/{key}: it looks unlike what {self.env_id} shows in the same "
                    f"state (mean difference {difference:.0f} of 255). Have the images rendered anew: --render fast"
                )
        return images

    def _seen(self, state: Array) -> dict[str, Array]:
        self._env.set_state(state)
        return self._env.images()

    def _recorded_images(self, demo: h5py.Group, key: str) -> Array:
        where, advice = f"{self.path}, {demo.name[6:]}", "Have them rendered from the stored states: --render fast"
        if key not in demo.get("obs", {}):
            raise DemonstrationError(f"{where}: it holds no images obs/{key}. {advice}")
        images = demo["obs"][key]
        if images.dtype != np.uint8 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
            raise DemonstrationError(
                f"{where}, obs/{key}: images are {images.dtype} {images.shape[1:]}, needed is uint8 "
                f"{(IMAGE_SIZE, IMAGE_SIZE, 3)}. {advice}"
            )
        if len(images) != len(demo["actions"]):
            raise DemonstrationError(f"{where}, obs/{key}: {len(images)} images for {len(demo['actions'])} actions")
        return np.asarray(images[()])


def _typical_error(name: str, here: Array, recorded: Array) -> Array:
    if name.endswith("quat"):  # q and −q are the same rotation
        recorded = recorded * np.where((here * recorded).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    error: Array = np.median(np.abs(here - recorded), axis=0)
    return error


def _stacked(rows: Iterable[dict[str, Array]]) -> dict[str, Array]:
    listed = list(rows)
    return {key: np.stack([row[key] for row in listed]) for key in listed[0]}


def _make(env_id: str, render_quality: str) -> RobosuiteEnv:
    env = gym.make(env_id, observation="state", render_quality=render_quality).unwrapped
    assert isinstance(env, RobosuiteEnv)
    env.reset(seed=0)
    return env


@contextmanager
def open_robomimic(path: str | Path, observation: str = "state", render: str | None = None) -> Iterator[RobomimicFile]:
    """Open a data set of robomimic that was recorded in robosuite.

    :param path: Its HDF5 file
    :param observation: ``"state"`` or ``"image"``
    :param render: ``"fast"`` or ``"full"`` renders images anew; None takes the recorded ones
    :raises DemonstrationError: If the file is damaged, or of a task, robot or controller that we do not have
    :raises ImportError: If robosuite is not installed
    """
    path = Path(path)
    if not path.is_file():
        raise DemonstrationError(f"{path}: no such file")
    with opened(path) as file:
        source = RobomimicFile(path, file, observation, render)
        try:
            yield source
        finally:
            source.close()
