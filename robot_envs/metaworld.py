"""Meta-World's tasks with real seeds, one sparse reward and named observations."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from zprl_sb3.robot_envs import METAWORLD_TASKS, import_simulator

Observation = dict[str, Any]

OBSERVATIONS = ("state",)
CAMERA = "corner2"
FRAME_SIZE = 480


class UnstableSimulationError(FloatingPointError):
    """The physics diverged, so that whatever came after it would not be the task any more."""


class MetaWorldEnv(gym.Env[Observation, NDArray[np.float32]]):
    """One Meta-World task: reward 1 on success, which ends the episode, and 0 before it.

    Observations are float32, in metres and quaternions (x, y, z, w):

    - ``"object"`` (17,): position and quaternion of up to two objects, zeros where there is one, then the goal
    - ``"proprio"`` (9,): positions of hand, right finger and left finger

    Actions (4,) in [−1, 1] move the hand by up to 1 cm a step along x, y, z, and close (+) or open (−) the gripper.
    ``reset(seed=s)`` fixes the layout and the whole rollout bit by bit; ``reset()`` goes on to the next layout.

    :param task: Meta-World's name, e.g. ``"push-v3"``
    :param observation: What to observe; so far only ``"state"``
    :param render_mode: ``"rgb_array"`` for upright frames (480, 480, 3) of a fixed camera, or None
    :raises ValueError: If the task, the observation or the render mode is unknown
    :raises ImportError: If Meta-World is not installed
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(self, task: str, observation: str = "state", render_mode: str | None = None) -> None:
        if task not in METAWORLD_TASKS:
            raise ValueError(f"Meta-World has no task {task!r}; it has {', '.join(METAWORLD_TASKS)}")
        if observation not in OBSERVATIONS:
            raise ValueError(f"observation={observation!r} is not available (yet); there is {', '.join(OBSERVATIONS)}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is 'rgb_array' or None, not {render_mode!r}")
        self.task = task
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        # Meta-World's own bounds are wrong for the goal, so that clipping or scaling by them would hide it.
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in (("object", 17), ("proprio", 9))}
        )
        self._simulation = _make_simulation(task)
        self._renderer: Any = None
        self._raw = np.zeros(39)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class for what ``seed`` does.

        :param seed: Fixes this layout and those of the following unseeded resets
        :param options: Ignored
        """
        super().reset(seed=seed)
        # Meta-World ignores reset(seed=…) but draws the layout from the generator that seed(…) sets.
        self._simulation.seed(int(self.np_random.integers(2**31)))
        # Its reset moves the hand before it clears the simulation: nothing of the last episode may be in the way.
        import_simulator("mujoco").mj_resetData(self._simulation.model, self._simulation.data)
        self._raw, _ = self._simulation.reset()
        self._steps = 0
        self._check_stable()
        return self._observe(), {"is_success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply one action (4,) for 12.5 ms.

        :raises UnstableSimulationError: If the physics diverged
        """
        self._raw, _, _, _, info = self._simulation.step(np.asarray(action))
        self._steps += 1
        self._check_stable()
        success = bool(info["success"])
        return self._observe(), float(success), success, False, {"is_success": success}

    def render(self) -> NDArray[np.uint8] | None:
        """Return an upright frame (480, 480, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = _make_renderer(self._simulation.model)
        mujoco = import_simulator("mujoco")
        self._renderer.update_scene(self._simulation.data, camera=CAMERA)
        # Shadows and reflections are most of the cost where a CPU renders.
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        # The camera hangs upside down: turned by 180°, not mirrored.
        frame: NDArray[np.uint8] = np.ascontiguousarray(self._renderer.render()[::-1, ::-1])
        return frame

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    @property
    def raw_observation(self) -> NDArray[np.float64]:
        """Meta-World's own observation (39,), which its scripted policies expect."""
        return np.array(self._raw, dtype=np.float64)

    def get_state(self) -> NDArray[np.float64]:
        """Return the physical state ``[time, qpos, qvel]`` as robomimic stores it."""
        data = self._simulation.data
        return np.concatenate([[data.time], data.qpos, data.qvel])

    def _observe(self) -> Observation:
        simulation = self._simulation
        # The goal as it is: Meta-World's step clips it to a goal space that some tasks leave, its reset does not.
        objects = np.concatenate([self._raw[4:18], simulation._get_pos_goal()])
        fingers = [simulation.data.site(name).xpos for name in ("rightEndEffector", "leftEndEffector")]
        proprio = np.concatenate([simulation.get_endeff_pos(), *fingers])
        return {"object": objects.astype(np.float32), "proprio": proprio.astype(np.float32)}

    def _check_stable(self) -> None:
        # MuJoCo resets a diverged simulation by itself and only counts a warning.
        mujoco = import_simulator("mujoco")
        kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
        diverged = any(self._simulation.data.warning[kind].number for kind in kinds)
        if diverged or self._simulation._did_see_sim_exception or not np.isfinite(self._raw).all():
            raise UnstableSimulationError(
                f"The simulation of {self.task} became unstable (NaN, infinite or huge values) at step {self._steps}"
            )


def _make_simulation(task: str) -> Any:
    # MuJoCo picks its renderer on import and takes a window's where none is named, which fails without a display.
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
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
    simulation.model.vis.quality.offsamples = 0
    return simulation


def _make_renderer(model: Any) -> Any:
    return import_simulator("mujoco").Renderer(model, height=FRAME_SIZE, width=FRAME_SIZE)


def _touching_object(simulation: Any, geom: int) -> bool:
    """Return whether both pads of the gripper press on a geom, as Meta-World's method of this name does."""
    contact, force = simulation.data.contact, simulation.data.efc_force
    on_object = (contact.geom == geom).any(axis=1)
    pads = (simulation.data.geom(name).id for name in ("leftpad_geom", "rightpad_geom"))
    touched = (on_object & (contact.geom == pad).any(axis=1) for pad in pads)
    return all(force[contact.efc_address[contacts]].sum() > 0 for contacts in touched)
