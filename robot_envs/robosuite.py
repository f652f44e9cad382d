"""robosuite's tasks with absolute pose control, real seeds, one sparse reward and robomimic's observations."""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from zprl_sb3.robot_envs import UnstableSimulationError, import_simulator
from zprl_sb3.robot_envs.base import Observation, SimulatedEnv, check_arguments
from zprl_sb3.robot_envs.rendering import RenderingError, prepare_rendering
from zprl_sb3.robot_envs.rotations import are_parallel, matrix_of_6d, rotation_vector

VERSION = "1.5"
ARM_ACTION = 10
"""Values of an arm's action: position 3, rotation 6, gripper 1."""


@dataclass(frozen=True)
class Task:
    """What a task is called in robosuite, and what is observed of it.

    :param name: robosuite's name
    :param objects: Its observables that make up ``"object"``, in the order of robomimic's data sets (robosuite 1.4)
    :param object_size: Values in ``"object"``
    :param cameras: Cameras of the image observation
    :param homes: For each arm the yaw in which it starts, gripper downwards
    :param video: Camera, height and width of the frames for videos
    :param failed: Tells of MuJoCo's data that the episode cannot succeed any more
    """

    name: str
    objects: tuple[str, ...]
    object_size: int
    cameras: tuple[str, ...]
    homes: tuple[float, ...] = (np.pi / 2,)
    video: tuple[str, int, int] = ("agentview", 480, 480)
    failed: Callable[[Any], bool] = lambda data: False


def _can_lies(data: Any) -> bool:
    # In the first bin, from where no operator picks it up. One that is carried, or in the bin for it, may lie.
    can = data.body("Can_main")
    return bool(abs(can.xmat[8]) < 0.5 and can.xpos[2] < 0.87 and can.xpos[1] < 0)


def _pose(name: str) -> tuple[str, ...]:
    return (f"{name}_pos", f"{name}_quat", f"{name}_to_robot0_eef_pos", f"{name}_to_robot0_eef_quat")


ONE_ARM_CAMERAS = ("agentview", "robot0_eye_in_hand")
TASKS: dict[str, Task] = {
    "lift": Task("Lift", ("cube_pos", "cube_quat", "gripper_to_cube_pos"), 10, ONE_ARM_CAMERAS),
    "can": Task("PickPlaceCan", _pose("Can"), 14, ONE_ARM_CAMERAS, failed=_can_lies),
    "square": Task("NutAssemblySquare", _pose("SquareNut"), 14, ONE_ARM_CAMERAS),
    "transport": Task(
        "TwoArmTransport",
        (
            *("payload_pos", "payload_quat", "trash_pos", "trash_quat", "lid_handle_pos", "lid_handle_quat"),
            *("target_bin_pos", "trash_bin_pos", "payload_in_target_bin", "trash_in_trash_bin"),
            *("gripper0_to_payload", "gripper0_to_lid_handle", "gripper1_to_payload", "gripper1_to_trash"),
        ),
        41,
        ("shouldercamera0", "shouldercamera1", "robot0_eye_in_hand", "robot1_eye_in_hand"),
        homes=(np.pi, 0.0),
        video=("frontview", 480, 720),
    ),
}


class RobosuiteEnv(SimulatedEnv):
    """One robosuite task with Panda arms at 20 Hz: reward 1 on success, which ends the episode, and 0 before it.

    Observations, see :class:`~zprl_sb3.robot_envs.base.SimulatedEnv`, in metres and quaternions (x, y, z, w):

    - ``"object"``: robomimic's object state in the order of its data sets; lift 10, can and square 14, transport 41
    - ``"proprio"``: for each arm position 3 and quaternion 4 of the grip site, positions of the two fingers 2

    Actions, for each arm 10: the grip site's target position in the world (3), the first two rows of its target
    rotation matrix (6), and the gripper, which −1 opens and 1 closes. Parallel rows name no rotation (policies far from
    their demonstrations come to them by clipping): the arm then goes on to aim at the rotation before.

    ``reset(seed=s)`` fixes the layout and the whole rollout bit by bit; ``reset()`` goes on to the next layout.

    :param task: ``"lift"``, ``"can"``, ``"square"`` or ``"transport"``
    :param observation: ``"state"`` or ``"image"``
    :param render_mode: ``"rgb_array"`` for upright frames (480, 480, 3), transport (480, 720, 3), or None
    :param render_quality: ``"fast"`` or ``"full"``, see :data:`~zprl_sb3.robot_envs.rendering.QUALITIES`
    :param terminate_on_failure: End an episode of can once the can has fallen over where it stood; meant for
        training
    :param cameras: Cameras of the image observation; None for the task's own
    :raises ValueError: If the task, the observation, the render mode, its quality or a camera is unknown
    :raises ImportError: If robosuite is not installed, or another version than 1.5
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}
    hidden_groups = (0,)  # robosuite keeps its collision meshes there

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
            raise ValueError(f"There is no robosuite task {task!r}; there is {', '.join(TASKS)}")
        check_arguments(observation, render_mode, render_quality)
        self.task = TASKS[task]
        self.terminate_on_failure = terminate_on_failure
        arms = len(self.task.homes)
        self._simulation = _make_simulation(self.task)
        super().__init__(
            name=task,
            sizes=(self.task.object_size, 9 * arms),
            cameras=self.task.cameras if cameras is None else cameras,
            video=self.task.video,
            observation=observation,
            render_mode=render_mode,
            render_quality=render_quality,
        )
        # robosuite says [-1, 1], which is about its relative actions; it does not clip absolute ones.
        bound = np.tile(np.array([2.0] * 3 + [1.0] * 7, np.float32), arms)
        self.action_space = spaces.Box(-bound, bound, dtype=np.float32)
        self._raw: dict[str, Any] = {}
        self._turns: list[NDArray[np.float64]] = []  # rotation that each arm aims at

    @property
    def model(self) -> Any:
        """MuJoCo's ``MjModel``."""
        return self._simulation.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's ``MjData``."""
        return self._simulation.sim.data._data

    @property
    def simulation(self) -> Any:
        """The environment as robosuite made it, for those that may know everything: demonstrators."""
        return self._simulation

    def _start(self, seed: int | None) -> None:
        # robosuite has no seed for a reset. Its samplers hold on to its generator: new state, not a new generator.
        state = np.random.default_rng(int(self.np_random.integers(2**31))).bit_generator.state
        self._simulation.rng.bit_generator.state = state
        self._simulation.reset()
        sites = [robot.eef_site_id["right"] for robot in self._simulation.robots]
        self._turns = [rotation_vector(self.data.site_xmat[site].reshape(3, 3)) for site in sites]
        # Observables that build on others are still zero in what reset returns.
        self._raw = self._simulation._get_observations(force_update=True)

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply one action for 50 ms.

        :raises ValueError: If three numbers of a rotation are zero, or one is NaN
        :raises UnstableSimulationError: If the physics diverged
        """
        arms = np.asarray(action, dtype=np.float64).reshape(-1, ARM_ACTION)
        self._commanded = arms[:, :3]
        self._steps += 1
        try:
            self._raw, *_ = self._simulation.step(np.concatenate([self._aim(k, arm) for k, arm in enumerate(arms)]))
        except np.linalg.LinAlgError as error:  # The controller meets NaN before MuJoCo counts it.
            raise UnstableSimulationError(f"The simulation of {self.name} became unstable: {error}") from error
        self._check_stable()
        success = bool(self._simulation._check_success())
        failed = self.terminate_on_failure and self.task.failed(self.data)
        return self._observe(), float(success), success or failed, False, {"is_success": success}

    def commanded(self) -> NDArray[np.float64]:
        """Return where the last action told the hands to be, (arms, 3) in metres."""
        return self._commanded.copy()

    def _aim(self, arm: int, action: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the action of an arm with its rotation as robosuite wants it, axis times angle."""
        if not are_parallel(action[3:9]):
            self._turns[arm] = rotation_vector(matrix_of_6d(action[3:9]))
        return np.concatenate([action[:3], self._turns[arm], action[9:]])

    def close(self) -> None:
        """Free the renderers and the simulation: robosuite's parts hold each other, and would stay for long."""
        super().close()
        self._simulation.close()

    def observe_state(self, state: NDArray[np.float64]) -> Observation:
        """Set what :meth:`get_state` returned, and return what is observed there.

        Later steps of this episode may return observations from the middle of a step: robosuite's clock for when to
        observe is not part of the state.
        """
        self.set_state(state)
        # Twice: what builds on observables further down the list is made from their values before the update.
        self._simulation._get_observations(force_update=True)
        self._raw = self._simulation._get_observations(force_update=True)
        return self._observe()

    def _object(self) -> NDArray[Any]:
        return np.concatenate([np.atleast_1d(self._raw[name]) for name in self.task.objects])

    def _proprio(self) -> NDArray[Any]:
        parts = []
        for k, home in enumerate(self.task.homes):
            quaternion = self._raw[f"robot{k}_eef_quat_site"]
            # q and −q are the same rotation: the one nearer home, so that no value jumps while the gripper looks down.
            sign = 1.0 if quaternion[0] * np.cos(home / 2) + quaternion[1] * np.sin(home / 2) >= 0 else -1.0
            parts += [self._raw[f"robot{k}_eef_pos"], sign * quaternion, self._raw[f"robot{k}_gripper_qpos"]]
        return np.concatenate(parts)


def import_robosuite() -> ModuleType:
    """Import robosuite without its notices, for off-screen rendering.

    :raises ImportError: If it is not installed, or another version than 1.5
    :raises RenderingError: If the environment's variables for rendering name what it refuses
    """
    prepare_rendering()
    # It greets with warnings about optional parts while it is imported, before its logger can be changed.
    logging.getLogger("robosuite_logs").addFilter(_is_error)
    robosuite = _import()
    if not robosuite.__version__.startswith(f"{VERSION}."):
        raise ImportError(
            f"robosuite {robosuite.__version__} is installed, but version {VERSION} is needed: the controllers differ. "
            'Install it with: pip install "zprl-sb3[sim]" "robosuite==1.5.2"'
        )
    return robosuite


def _import() -> ModuleType:
    renderer = os.environ.get("MUJOCO_GL")
    try:
        return import_simulator("robosuite")
    except AssertionError as error:
        devices = [f"{name}={os.environ.get(name)!r}" for name in ("MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES")]
        raise RenderingError(
            f"robosuite refuses {' with '.join(devices)}: set MUJOCO_EGL_DEVICE_ID to one of the numbers in "
            "CUDA_VISIBLE_DEVICES, or unset it"
        ) from error
    finally:
        # It names EGL whatever was named before: too late for this process, but those that it starts would believe it.
        if renderer is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = renderer


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _make_simulation(task: Task) -> Any:
    robosuite = import_robosuite()
    from zprl_sb3.robot_envs import robosuite_control  # which needs it

    controller = copy.deepcopy(robosuite.load_composite_controller_config(robot="Panda"))
    for arm in controller["body_parts"].values():
        # Its default, "base", would send a world target a metre away.
        arm.update(input_type="absolute", input_ref_frame="world")
    arms = len(task.homes)
    simulation = robosuite.make(
        task.name,
        robots=["Panda"] * arms,
        controller_configs=[controller] * arms,
        has_renderer=False,
        has_offscreen_renderer=False,  # Cameras are ours.
        use_camera_obs=False,
        hard_reset=False,  # A hard one takes seconds and leaks memory.
        horizon=sys.maxsize,  # The time limit is Gymnasium's business.
        ignore_done=True,
        control_freq=20,
        reward_shaping=False,
        seed=0,
    )
    robosuite_control.hasten(simulation)
    return simulation
