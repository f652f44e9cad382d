"""The Adroit hand's tasks: each action held for two simulator steps, the original dense rewards, sustained success."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from zprl_sb3.robot_envs import import_simulator
from zprl_sb3.robot_envs.base import Observation, SimulatedEnv, check_arguments
from zprl_sb3.robot_envs.rendering import prepare_rendering

Array = NDArray[np.float64]

ACTION_REPEAT = 2
HAND_JOINTS = 24
VIDEO_SIZE = 480
TOP = {"door": (0.0, -0.4, 1.25), "hammer": (0.0, -0.45, 0.85)}
"""Where the camera ``top`` is, which the paper names and these models lack. Its pose is ours."""
TOP_TILT = np.deg2rad(25.0)
"""How far it looks to the front, so that heights show as well."""


@dataclass(frozen=True)
class Task:
    """What makes a task.

    :param reward: The dense reward of one simulator step, from MuJoCo's ``MjData``
    :param scale: Factor on the reward
    :param hand: Where the raw observation holds the hand's first joint
    :param size: Values in the raw observation
    :param layout: What a reset changes in the model: kind of element, its name, its attribute
    :param camera: Camera of the image observation
    :param success_steps: Environment steps in which the goal must be reached
    :param failed: Whether the task can no longer be done, from MuJoCo's ``MjData``
    """

    reward: Callable[[Any], float]
    scale: float
    hand: int
    size: int
    layout: tuple[tuple[str, str, str], ...]
    camera: str
    success_steps: int = 25
    failed: Callable[[Any], bool] = lambda data: False


def _distance(one: Array, other: Array) -> float:
    return float(np.linalg.norm(one - other))


# The rewards are those of the original tasks (Rajeswaran et al. 2018, in the repository mj_envs) written anew: the -v1
# tasks of gymnasium-robotics up to 1.4.2 reward the distance from palm to object, which they should punish.


def door_reward(data: Any) -> float:
    """Reach for the handle, open the door, do not hurry."""
    angle = _door_angle(data)
    reward = -0.1 * _distance(data.site("S_grasp").xpos, data.site("S_handle").xpos)
    reward -= 0.1 * (angle - 1.57) ** 2 + 1e-5 * float(data.qvel @ data.qvel)
    return reward + 2 * (angle > 0.2) + 8 * (angle > 1.0) + 10 * (angle > 1.35)


def hammer_reward(data: Any) -> float:
    """Reach for the hammer, lift it, bring its head to the nail, drive the nail in."""
    hammer, head, nail = data.body("Object").xpos, data.site("tool").xpos, data.site("S_target").xpos
    left = _distance(nail, data.site("nail_goal").xpos)
    reward = -0.1 * _distance(data.site("S_grasp").xpos, hammer) - _distance(head, nail) - 10 * left
    reward -= 0.01 * float(np.linalg.norm(data.qvel))
    return reward + 2 * bool(hammer[2] > 0.04 and head[2] > 0.04) + 25 * (left < 0.02) + 75 * (left < 0.01)


def pen_reward(data: Any) -> float:
    """Bring the pen to the place and direction of the target, do not drop it."""
    distance = _distance(data.body("Object").xpos, data.site("eps_ball").xpos)
    similarity = _direction(data, "object") @ _direction(data, "target")
    reward = float(similarity) - distance - 5 * _pen_dropped(data)
    return reward + (distance < 0.075) * (10 * bool(similarity > 0.9) + 50 * bool(similarity > 0.95))


def relocate_reward(data: Any) -> float:
    """Reach for the ball, lift it, carry it to the target."""
    ball, palm, target = data.body("Object").xpos, data.site("S_grasp").xpos, data.site("target").xpos
    left = _distance(ball, target)
    reward = -0.1 * _distance(palm, ball) + 10 * (left < 0.1) + 20 * (left < 0.05)
    return reward + bool(ball[2] > 0.04) * (1 - 0.5 * _distance(palm, target) - 0.5 * left)


def _door_angle(data: Any) -> float:
    return float(data.joint("door_hinge").qpos[0])


def _direction(data: Any, name: str) -> Array:
    axis = data.site(f"{name}_top").xpos - data.site(f"{name}_bottom").xpos
    return np.asarray(axis / np.linalg.norm(axis))


def _pen_dropped(data: Any) -> bool:
    return bool(data.body("Object").xpos[2] < 0.075)


TASKS: dict[str, Task] = {
    "door": Task(
        door_reward,
        scale=1 / 20,
        hand=3,
        size=39,
        layout=(("body", "frame", "pos"),),
        camera="top",
        failed=lambda data: _door_angle(data) < -0.1,
    ),
    "hammer": Task(
        hammer_reward, scale=1 / 100, hand=2, size=46, layout=(("body", "nail_board", "pos"),), camera="top"
    ),
    "pen": Task(
        pen_reward,
        scale=1 / 50,
        hand=0,
        size=45,
        layout=(("body", "target", "quat"),),
        camera="vil_camera",
        success_steps=20,
        failed=_pen_dropped,
    ),
    "relocate": Task(
        relocate_reward,
        scale=1 / 30,
        hand=6,
        size=39,
        layout=(("body", "Object", "pos"), ("site", "target", "pos")),
        camera="vil_camera",
    ),
}


class AdroitEnv(SimulatedEnv):
    """One task of the Adroit hand at 50 Hz: an action is held for two simulator steps, whose dense rewards are summed.

    Success is to have reached the goal in 25 environment steps (pen: 20). It does not end an episode, which goes on
    to its limit. Rewards are scaled: door 1/20, hammer 1/100, pen 1/50, and relocate, which the paper does not have,
    1/30.

    Observations, see :class:`~zprl_sb3.robot_envs.base.SimulatedEnv`, as gymnasium-robotics' ``-v1`` tasks have them:

    - ``"proprio"`` (24,): angles of the hand's joints
    - ``"object"``: the rest of their observation; door 15, hammer 22, pen 21, relocate 15
    - ``"top_image"`` (door, hammer) or ``"vil_camera_image"``, unless other cameras are named

    Actions in [−1, 1] are target positions of all joints; door 28, hammer 26, pen 24, relocate 30.
    ``reset(seed=s)`` fixes the layout, which is that of gymnasium-robotics, and the whole rollout bit by bit;
    ``reset()`` goes on to the next layout.

    :param task: ``"door"``, ``"hammer"``, ``"pen"`` or ``"relocate"``
    :param observation: ``"state"`` or ``"image"``
    :param render_mode: ``"rgb_array"`` for upright frames (480, 480, 3) of a fixed camera, or None
    :param render_quality: ``"fast"`` or ``"full"``, see :data:`~zprl_sb3.robot_envs.rendering.QUALITIES`
    :param terminate_on_failure: End an episode once the door is pushed the wrong way by 0.1 rad or the pen is dropped;
        meant for training
    :param cameras: Cameras of the image observation; None for the task's own
    :raises ValueError: If the task, the observation, the render mode, its quality or a camera is unknown
    :raises ImportError: If gymnasium-robotics is not installed
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(
        self,
        task: str,
        observation: str = "state",
        render_mode: str | None = None,
        render_quality: str = "fast",
        terminate_on_failure: bool = False,
        cameras: Sequence[str] | None = None,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"There is no Adroit task {task!r}; there is {', '.join(TASKS)}")
        check_arguments(observation, render_mode, render_quality)
        self.task = TASKS[task]
        self.terminate_on_failure = terminate_on_failure
        self._simulation = _make_simulation(task)
        self._raw = np.zeros(self.task.size)
        self._goal_steps = 0
        self.action_space = spaces.Box(-1.0, 1.0, (self._simulation.model.nu,), np.float32)
        super().__init__(
            name=task,
            sizes=(self.task.size - HAND_JOINTS, HAND_JOINTS),
            cameras=(self.task.camera,) if cameras is None else cameras,
            video=(self.task.camera, VIDEO_SIZE, VIDEO_SIZE),
            observation=observation,
            render_mode=render_mode,
            render_quality=render_quality,
        )

    @property
    def raw_observation(self) -> Array:
        """The observation of gymnasium-robotics, which the public expert policies expect."""
        return np.array(self._raw, dtype=np.float64)

    def _start(self, seed: int | None) -> None:
        self._raw, _ = self._simulation.reset(seed=seed)
        self._goal_steps = 0

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply one action for 20 ms.

        :raises UnstableSimulationError: If the physics diverged
        """
        self._steps += 1
        reward = 0.0
        for _ in range(ACTION_REPEAT):
            self._raw, _, _, _, info = self._simulation.step(np.asarray(action))
            reward += self.task.scale * self.task.reward(self.data)
        self._check_stable()
        self._goal_steps += bool(info["success"])
        success = self._goal_steps >= self.task.success_steps
        failed = self.terminate_on_failure and self.task.failed(self.data)
        return self._observe(), float(reward), failed, False, {"is_success": success}

    def get_state(self) -> Array:
        """Return ``[time, qpos, qvel]`` as robomimic stores it, and then what the reset has placed in the model."""
        return np.concatenate([super().get_state(), *self._layout()])

    def set_state(self, state: Array) -> None:
        """Set what :meth:`get_state` returned, in whichever episode: the layout is part of it.

        For how many steps the goal has been reached is not, nor what the solver remembers: a rollout from here is
        close to the original, not equal.

        :raises ValueError: If the state is of another size
        """
        if np.shape(state) != self.get_state().shape:
            raise ValueError(f"A state of {self.name} has {self.get_state().size} values, not {np.shape(state)}")
        end = len(state)
        for part in reversed(self._layout()):
            part[:] = state[end - len(part) : end]
            end -= len(part)
        super().set_state(state[:end])
        self._raw = self._simulation._get_obs()

    def _layout(self) -> list[Array]:
        """Return views into the model."""
        return [getattr(getattr(self.model, kind)(name), attribute) for kind, name, attribute in self.task.layout]

    def _object(self) -> NDArray[Any]:
        hand = self.task.hand
        return np.concatenate([self._raw[:hand], self._raw[hand + HAND_JOINTS :]])

    def _proprio(self) -> NDArray[Any]:
        return self._raw[self.task.hand : self.task.hand + HAND_JOINTS]


def _make_simulation(task: str) -> Any:
    prepare_rendering()
    # While it is imported it prints a notice about its rewards, which are not used here.
    with contextlib.redirect_stderr(io.StringIO()):
        module = import_simulator(f"gymnasium_robotics.envs.adroit_hand.adroit_{task}")
    kind = getattr(module, f"AdroitHand{task.capitalize()}Env")
    return _with_top_camera(kind, TOP[task]) if task in TOP else kind()


def _with_top_camera(kind: Any, position: tuple[float, ...]) -> Any:
    mujoco = import_simulator("mujoco")

    class Simulation(kind):  # type: ignore[misc]
        def _initialize_simulation(self) -> tuple[Any, Any]:
            spec = mujoco.MjSpec.from_file(self.fullpath)
            turn = (np.cos(TOP_TILT / 2), np.sin(TOP_TILT / 2), 0.0, 0.0)
            spec.worldbody.add_camera(name="top", pos=position, quat=turn)
            model = spec.compile()
            return model, mujoco.MjData(model)

    return Simulation()
