"""Meta-World's tasks with real seeds, one sparse reward and named observations."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from zprl_sb3.robot_envs import METAWORLD_TASKS, UnstableSimulationError, import_simulator
from zprl_sb3.robot_envs.base import Observation, SimulatedEnv, check_arguments
from zprl_sb3.robot_envs.rendering import prepare_rendering

__all__ = ["MetaWorldEnv", "UnstableSimulationError"]

CAMERA = "corner2"
CAMERA_POSITION = (0.6, 0.295, 0.8)
"""Nearer than Meta-World's own, as in the paper's experiments."""
UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
"""Cameras that hang so; ``topview``, ``behindGripper`` and ``gripperPOV`` are upright."""
VIDEO_SIZE = 480


class MetaWorldEnv(SimulatedEnv):
    """One Meta-World task: reward 1 on success, which ends the episode, and 0 before it.

    Observations, see :class:`~zprl_sb3.robot_envs.base.SimulatedEnv`, in metres and quaternions (x, y, z, w):

    - ``"object"`` (17,): position and quaternion of up to two objects, zeros where there is one, then the goal
    - ``"proprio"`` (9,): positions of hand, right finger and left finger
    - ``"corner2_image"``, unless other cameras are named

    Actions (4,) in [−1, 1] move the hand by up to 1 cm a step along x, y, z, and close (+) or open (−) the gripper.
    ``reset(seed=s)`` fixes the layout and the whole rollout bit by bit; ``reset()`` goes on to the next layout.

    :param task: Meta-World's name, e.g. ``"push-v3"``
    :param observation: ``"state"`` or ``"image"``
    :param render_mode: ``"rgb_array"`` for upright frames (480, 480, 3) of a fixed camera, or None
    :param render_quality: ``"fast"`` or ``"full"``, see :data:`~zprl_sb3.robot_envs.rendering.QUALITIES`
    :param cameras: Cameras of the image observation; None for ``corner2``
    :raises ValueError: If the task, the observation, the render mode, its quality or a camera is unknown
    :raises ImportError: If Meta-World is not installed
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(
        self,
        task: str,
        observation: str = "state",
        render_mode: str | None = None,
        render_quality: str = "fast",
        cameras: Sequence[str] | None = None,
    ) -> None:
        if task not in METAWORLD_TASKS:
            raise ValueError(f"Meta-World has no task {task!r}; it has {', '.join(METAWORLD_TASKS)}")
        check_arguments(observation, render_mode, render_quality)
        self.task = task
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._simulation = _make_simulation(task)
        self._raw = np.zeros(39)
        super().__init__(
            name=task,
            sizes=(17, 9),
            cameras=(CAMERA,) if cameras is None else cameras,
            video=(CAMERA, VIDEO_SIZE, VIDEO_SIZE),
            observation=observation,
            render_mode=render_mode,
            render_quality=render_quality,
        )

    def _start(self, seed: int | None) -> None:
        # Meta-World ignores reset(seed=…) but draws the layout from the generator that seed(…) sets.
        self._simulation.seed(int(self.np_random.integers(2**31)))
        # Its reset moves the hand before it clears the simulation: nothing of the last episode may be in the way.
        import_simulator("mujoco").mj_resetData(self._simulation.model, self._simulation.data)
        self._raw, _ = self._simulation.reset()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply one action (4,) for 12.5 ms.

        :raises UnstableSimulationError: If the physics diverged
        """
        self._raw, _, _, _, info = self._simulation.step(np.asarray(action))
        self._steps += 1
        self._check_stable()
        success = bool(info["success"])
        return self._observe(), float(success), success, False, {"is_success": success}

    def commanded(self) -> NDArray[np.float64]:
        """Return where the actions so far told the hand to be, (1, 3) in metres: each moves that place."""
        return np.array(self.data.mocap_pos, dtype=np.float64)

    @property
    def raw_observation(self) -> NDArray[np.float64]:
        """Meta-World's own observation (39,), which its scripted policies expect."""
        return np.array(self._raw, dtype=np.float64)

    def _object(self) -> NDArray[Any]:
        # The goal as it is: Meta-World's step clips it to a goal space that some tasks leave, its reset does not.
        return np.concatenate([self._raw[4:18], self._simulation._get_pos_goal()])

    def _proprio(self) -> NDArray[Any]:
        fingers = [self.data.site(name).xpos for name in ("rightEndEffector", "leftEndEffector")]
        return np.concatenate([self._simulation.get_endeff_pos(), *fingers])

    def _frame(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        frame = super()._frame(camera, height, width)
        # Turned by 180°, not mirrored.
        return np.ascontiguousarray(frame[::-1, ::-1]) if camera in UPSIDE_DOWN else frame

    def _diverged(self) -> bool:
        return super()._diverged() or self._simulation._did_see_sim_exception or not np.isfinite(self._raw).all()


def _make_simulation(task: str) -> Any:
    prepare_rendering()
    simulation = import_simulator("metaworld.env_dict").ALL_V3_ENVIRONMENTS[task]()
    # Its own walks through all contacts in Python, twice, and takes a third of every step.
    simulation.touching_object = partial(_touching_object, simulation)
    # Otherwise Meta-World hides the goal, wants a task from its fixed list, and draws from numpy's global generator.
    del simulation.sawyer_observation_space
    simulation._partially_observable = False
    simulation._freeze_rand_vec = False
    simulation.seeded_rand_vec = True
    simulation._set_task_called = True
    # The time limit is Gymnasium's business; Meta-World raises at its own.
    simulation.max_path_length = sys.maxsize
    simulation.model.camera(CAMERA).pos = CAMERA_POSITION
    return simulation


def _touching_object(simulation: Any, geom: int) -> bool:
    """Return whether both pads of the gripper press on a geom, as Meta-World's method of this name does."""
    contact, force = simulation.data.contact, simulation.data.efc_force
    on_object = (contact.geom == geom).any(axis=1)
    pads = (simulation.data.geom(name).id for name in ("leftpad_geom", "rightpad_geom"))
    touched = (on_object & (contact.geom == pad).any(axis=1) for pad in pads)
    return all(force[contact.efc_address[contacts]].sum() > 0 for contacts in touched)
