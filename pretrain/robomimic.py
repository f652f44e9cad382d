"""Turns robomimic's data sets, recorded in robosuite, into demonstrations of this package's environments.

A file holds what robosuite of its time observed and what its controllers were told. The stored simulator states are
what lasts: each is set in our environment, which then observes it itself, and the recorded observations are only
compared with that. So a policy sees in training what it will see later, but for the one step of the physics (2 ms) by
which robosuite's own observations are late.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from zprl_sb3.files import sha256
from zprl_sb3.pretrain.demonstrations import (
    ROBOSUITE,
    DemonstrationError,
    demo_names,
    member,
    opened,
    read_array,
    read_env_args,
    read_masks,
)
from zprl_sb3.pretrain.recording import QUALITIES, Episode, Recording
from zprl_sb3.pretrain.robosuite_actions import check_actions, read_controllers, to_poses
from zprl_sb3.robot_envs import robosuite_id
from zprl_sb3.robot_envs.base import IMAGE_SIZE, check_arguments, image_key
from zprl_sb3.robot_envs.robosuite import TASKS, RobosuiteEnv

Array = NDArray[Any]

ENVIRONMENTS = {task.name: robosuite_id(name) for name, task in TASKS.items()}
"""Our ids by robosuite's names."""
RECORDED_QUALITY = "full"
"""How robosuite renders, see :data:`~zprl_sb3.robot_envs.rendering.QUALITIES`."""
TOLERANCE = 0.02
"""By how much a recorded observation may differ, in metres or as part of a quaternion, halfway through the sorted
steps. Not at each: some versions of robosuite record values that are one step old."""
FAR = 0.3
"""Metres from the hand, halfway through the sorted steps, at which a target cannot be a target."""
IMAGE_TOLERANCE = 25.0
"""By how much, of 255, the mean pixel of an image may differ; another view differs by more."""
RENDER_ADVICE = "Have them rendered anew from the stored states: --render fast"


class RobomimicFile:
    """A data set of robomimic as our environment has it; made by :func:`open_robomimic`.

    :param path: Its HDF5 file
    :param observation: ``"state"`` or ``"image"``
    :param render: ``"fast"`` or ``"full"`` renders images anew; None takes the recorded ones
    :param absolute: Actions are poses in the world, whatever the file says of its controller
    :raises DemonstrationError: If it cannot be converted
    """

    def __init__(self, path: Path, observation: str, render: str | None, absolute: bool) -> None:
        self.path, self.observation, self.render = path, observation, render
        with opened(path) as file:
            data = member(path, file, "data")
            self.names = demo_names(path, data)
            self.masks = read_masks(path, file, self.names)
            self.env_args = read_env_args(path, data)
        self.env_id = self._known_id()
        self.quality = render or RECORDED_QUALITY
        self.env = _make(self.env_id, self.quality)
        self.arms = len(self.env.task.homes)
        kwargs, self.recorded_version = self.env_args["env_kwargs"], str(self.env_args.get("env_version") or "")
        try:
            self.controllers = read_controllers(kwargs, self.recorded_version, self.arms, absolute)
        except ValueError as error:
            raise DemonstrationError(f"{path}, env_args: {error}") from error
        # All of them now, and not after an hour of work.
        for name in self.names:
            with opened(path) as file:
                self._check(file["data"][name])

    def recording(self) -> Recording:
        """Return all of it, with episodes that are made one by one."""
        env_kwargs = {"observation": self.observation}
        if self.observation == "image":
            env_kwargs["render_quality"] = self.quality
        origin = {
            "format": "robomimic",
            "file": self.path.name,
            "sha256": sha256(self.path),
            "env_name": self.env_args["env_name"],
            "env_version": self.recorded_version,
        }
        return Recording(
            env_id=self.env_id,
            env_kwargs=env_kwargs,
            env_version=version("robosuite"),
            origin=origin,
            masks=self.masks,
            count=len(self.names),
            episodes=self._episodes(),
        )

    def _known_id(self) -> str:
        name, kind = self.env_args["env_name"], self.env_args.get("type")
        if kind != ROBOSUITE:
            raise DemonstrationError(
                f"{self.path}: recorded in {name}, which is none of robosuite's environments (type {kind}). If it is "
                f"a Gymnasium environment, zprl pretrain takes the file as it is: demos={self.path}"
            )
        if name not in ENVIRONMENTS:
            raise DemonstrationError(
                f"{self.path}: there is no environment for robosuite's {name!r}, only for {', '.join(ENVIRONMENTS)}"
            )
        return ENVIRONMENTS[name]

    def _check(self, demo: h5py.Group) -> None:
        where = self._where(demo)
        states, actions = self._arrays(demo)
        if len(states) != len(actions):
            raise DemonstrationError(f"{where}: {len(states)} states, but {len(actions)} actions")
        size = len(self.env.get_state())
        if states.shape[1:] != (size,):
            raise DemonstrationError(
                f"{where}, states: {states.shape[1]} values, but a state of {self.env_id} has {size}; "
                f"{self._versions()}"
            )
        try:
            check_actions(self.controllers, actions)
        except ValueError as error:
            raise DemonstrationError(f"{where}, actions: {error}") from error
        if self.observation == "image" and self.render is None:
            for camera in self.env.cameras:
                self._check_image(demo, image_key(camera), len(actions))

    def _where(self, demo: h5py.Group) -> str:
        return f"{self.path}, {demo.name.rpartition('/')[2]}"

    def _arrays(self, demo: h5py.Group) -> tuple[Array, Array]:
        states, actions = (read_array(self.path, demo, key, np.float64) for key in ("states", "actions"))
        return states, actions

    def _versions(self) -> str:
        recorded = self.recorded_version or "of an unknown version"
        return f"it was recorded with robosuite {recorded}, installed is {version('robosuite')}"

    def _check_image(self, demo: h5py.Group, key: str, steps: int) -> None:
        if key not in demo.get("obs", {}):
            raise DemonstrationError(f"{self._where(demo)}: it holds no images obs/{key}. {RENDER_ADVICE}")
        images, needed = demo["obs"][key], (steps, IMAGE_SIZE, IMAGE_SIZE, 3)
        if images.dtype != np.uint8 or images.shape != needed:
            raise DemonstrationError(
                f"{self._where(demo)}, obs/{key}: images are {images.dtype} {images.shape}, needed is uint8 {needed}. "
                f"{RENDER_ADVICE}"
            )

    def _episodes(self) -> Iterator[Episode]:
        for k, name in enumerate(self.names):
            quality = next((quality for quality in QUALITIES if k in self.masks.get(quality, ())), "")
            yield self._episode(name, quality)

    def _episode(self, name: str, quality: str) -> Episode:
        with opened(self.path) as file:
            demo = file["data"][name]
            states, recorded = self._arrays(demo)
            seen = {key: demo["obs"][key][()] for key in demo.get("obs", {})}
        observations, reached, actions = self._replay(states, recorded)
        before, after = (
            {key: both[part] for key, both in observations.items()} for part in (slice(-1), slice(1, None))
        )
        self._compare(f"{self.path}, {name}", seen, before, actions)
        if self.observation == "image":
            before |= self._images(f"{self.path}, {name}", seen, states)
        return Episode(
            observations=before,
            next_observations=after,
            actions=actions,
            rewards=reached[1:].astype(np.float64),
            states=states,
            seed=-1,
            quality=quality,
            success=bool(reached[1:].any()),
        )

    def _replay(self, states: Array, recorded: Array) -> tuple[dict[str, Array], Array, Array]:
        """Return what our environment observes in T + 1 states, where it sees success, and the T actions it takes."""
        self.env.reset(seed=0)  # What the gripper was told before is nothing to this episode.
        observed, reached, actions = [], [], []
        for state, action in zip(states, recorded, strict=True):
            observed.append(self.env.observe_state(state))
            reached.append(self.env.simulation._check_success())
            actions.append(to_poses(self.env, self.controllers, action))
        *_, info = self.env.step(actions[-1])  # The state after the last action is not stored.
        observed.append(self.env.observe_state(self.env.get_state()))
        reached.append(info["is_success"])
        stacked = {key: np.stack([each[key] for each in observed]) for key in observed[0]}
        return stacked, np.array(reached, dtype=bool), np.stack(actions)

    def _compare(self, where: str, seen: dict[str, Array], observed: dict[str, Array], poses: Array) -> None:
        """Compare what was recorded, where something was, with what our environment observes."""
        pairs = {"object": observed["object"]}
        for k in range(self.arms):
            position, fingers = observed["proprio"][:, 9 * k : 9 * k + 3], observed["proprio"][:, 9 * k + 7 : 9 * k + 9]
            pairs |= {f"robot{k}_eef_pos": position, f"robot{k}_gripper_qpos": fingers}
            distance = np.median(np.linalg.norm(poses[:, 10 * k : 10 * k + 3] - position, axis=1))
            if distance > FAR:
                raise DemonstrationError(
                    f"{where}: half of the actions aim at least {distance:.2f} m away from the hand: they are no "
                    "poses in the world, or in another frame than the file says"
                )
        for key, here in pairs.items():
            if key in seen:
                self._compare_values(f"{where}, obs/{key}", seen[key], here)

    def _compare_values(self, where: str, recorded: Array, here: Array) -> None:
        if recorded.shape != here.shape:
            raise DemonstrationError(
                f"{where}: the shape is {recorded.shape}, but {self.env_id} has {here.shape} there"
            )
        # Sorted and without signs: from 1.5 on robosuite lists the same values in another order, and q and −q are the
        # same rotation.
        difference = np.sort(np.abs(recorded)) - np.sort(np.abs(here))
        error = float(np.median(np.abs(difference), axis=0).max())
        if not error <= TOLERANCE:
            raise DemonstrationError(
                f"{where}: it differs by {error:.3f} from what {self.env_id} observes in the stored states; "
                f"{self._versions()}"
            )

    def _images(self, where: str, seen: dict[str, Array], states: Array) -> dict[str, Array]:
        chosen = states if self.render else states[:1]
        frames = [self._frame(state) for state in chosen]
        rendered = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
        if self.render:
            return rendered
        for key, (first,) in rendered.items():
            difference = float(np.abs(seen[key][0].astype(float) - first).mean())
            if difference > IMAGE_TOLERANCE:
                raise DemonstrationError(
                    f"{where}, obs/{key}: it looks unlike what {self.env_id} shows in the same state (mean difference "
                    f"{difference:.0f} of 255). {RENDER_ADVICE}"
                )
        return {key: seen[key] for key in rendered}

    def _frame(self, state: Array) -> dict[str, Array]:
        self.env.set_state(state)
        return self.env.images()


@functools.lru_cache(maxsize=1)
def _make(env_id: str, render_quality: str) -> RobosuiteEnv:
    env = gym.make(env_id, observation="state", render_quality=render_quality).unwrapped
    assert isinstance(env, RobosuiteEnv)
    env.reset(seed=0)
    return env


def open_robomimic(
    path: str | Path, observation: str = "state", render: str | None = None, absolute: bool = False
) -> Recording:
    """Return a data set of robomimic that was recorded in robosuite as demonstrations of our environment.

    Relative actions become the poses at which they aimed, from the stored states: what robosuite's controller makes of
    them. Absolute ones get a rotation in six numbers.

    :param path: Its HDF5 file
    :param observation: ``"state"`` or ``"image"``
    :param render: ``"fast"`` or ``"full"`` renders images anew; None takes the recorded ones
    :param absolute: Actions are poses in the world, whatever the file says of its controller
    :raises DemonstrationError: If the file is damaged, or of a task, robot or controller that we do not have
    :raises ValueError: If an argument is unknown
    :raises ImportError: If robosuite is not installed
    """
    check_arguments(observation, None, render or RECORDED_QUALITY)
    return RobomimicFile(Path(path), observation, render, absolute).recording()
