"""Finds out which features of a LeRobot data set are an environment's observation and action, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from zprl_sb3.pretrain.demonstrations import DemonstrationError
from zprl_sb3.pretrain.lerobot_files import LeRobotFiles
from zprl_sb3.robot_envs import check_kwargs
from zprl_sb3.wrappers.chunking import by_key

Keys = Mapping[str, Sequence[str]]

IMAGE_SUFFIX = "_image"  # of our environments' cameras


class Matching:
    """What an environment's observation and action are made of.

    :param files: The data set
    :param env_id: Gymnasium id
    :param env_kwargs: What ``gym.make`` needs besides the id
    :param keys: For each key of the observation the features that it is made of; None: found by name, for all of them
    :param action: The feature that is the action
    :raises DemonstrationError: If a feature is missing or does not fit the environment
    :raises ValueError: If the environment does not take an argument
    :raises ImportError: If a module that the id names cannot be imported
    :raises gymnasium.error.Error: If there is no such environment
    """

    def __init__(
        self, files: LeRobotFiles, env_id: str, env_kwargs: Mapping[str, Any], keys: Keys | None, action: str
    ) -> None:
        self.files, self.env_id, self.action = files, env_id, action
        self.notes: list[str] = []
        env = self._make(env_kwargs)
        self.keys = {key: list(names) for key, names in (self._by_name(env) if keys is None else keys).items()}
        self.notes += [f"{key} is made of {' and '.join(names)}" for key, names in self.keys.items()]
        shapes = {key: self._joined_shape(key) for key in self.keys}
        action_shape = files.shape(action)
        if env is not None:
            observed = {key: space.shape for key, space in by_key(env.observation_space).items()}
            for key, shape in shapes.items():
                if key not in observed:
                    raise DemonstrationError(f"{env_id} observes no {key!r}, but {', '.join(observed)}")
                self._compare(f"{key!r}", self.keys[key], shape, observed[key])
            self._compare("the action", [action], action_shape, env.action_space.shape)
            self._compare_rates(env.metadata.get("render_fps"))

    @property
    def features(self) -> list[str]:
        """Names of all features that are used."""
        return sorted({self.action, *(name for names in self.keys.values() for name in names)})

    def _make(self, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any] | None:
        check_kwargs(self.env_id, env_kwargs)  # It imports the module of a user's own environment, too.
        gym.spec(self.env_id.rpartition(":")[2])  # An unknown id is an error, and similar ones are suggested.
        try:
            env = gym.make(self.env_id, **env_kwargs)
        except (ImportError, OSError, RuntimeError) as error:
            self.notes.append(f"{self.env_id} cannot be made here, so the data set is not compared with it ({error})")
            return None
        env.close()
        return env

    def _by_name(self, env: gym.Env[Any, Any] | None) -> dict[str, list[str]]:
        if env is None:
            raise DemonstrationError(f"{self.notes[-1]}. {self._advice('KEY')}")
        found = {key: self._named(key) for key in by_key(env.observation_space)}
        if missing := [key for key, name in found.items() if name is None]:
            raise DemonstrationError(
                f"{self.files.folder}: no feature is named like {', '.join(missing)} of {self.env_id}. "
                f"{self._advice(missing[0])}"
            )
        return {key: [name] for key, name in found.items() if name is not None}

    def _named(self, key: str) -> str | None:
        camera = f"observation.images.{key.removesuffix(IMAGE_SUFFIX)}"
        names = (key, f"observation.{key}", f"observation.images.{key}", camera)
        return next((name for name in names if name in self.files.features), None)

    def _advice(self, key: str) -> str:
        return (
            f"Name the keys that the policy shall see, each with its feature: --keys {key}=FEATURE. The data set has "
            f"{', '.join(self.files.features)}"
        )

    def _joined_shape(self, key: str) -> tuple[int, ...]:
        shapes = [self.files.shape(name) for name in self.keys[key]]
        if len(shapes) == 1:
            return shapes[0]
        if any(len(shape) != 1 for shape in shapes):
            raise DemonstrationError(f"{key}: {', '.join(self.keys[key])}: only vectors can be put side by side")
        return (sum(size for (size,) in shapes),)

    def _compare(self, what: str, names: list[str], shape: tuple[int, ...], needed: tuple[int, ...] | None) -> None:
        if shape != needed:
            raise DemonstrationError(
                f"{self.files.folder}, {' and '.join(names)}: the shape is {shape}, but {what} of {self.env_id} has "
                f"{needed}"
            )

    def _compare_rates(self, rate: float | None) -> None:
        if rate and abs(rate - self.files.fps) > 1e-3 * self.files.fps:
            self.notes.append(
                f"Warning: recorded at {self.files.fps:g} Hz, but {self.env_id} says {rate:g} Hz (render_fps). An "
                "action that is held for another time does something else"
            )
