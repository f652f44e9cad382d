"""The two tasks: where things are at first, what a motion-capture system tells, when it is done and when it is lost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zprl_sb3.robot_envs import import_simulator
from zprl_sb3.robot_envs.real.robots import Values
from zprl_sb3.robot_envs.rendering import prepare_rendering
from zprl_sb3.robot_envs.rotations import rotation_vector

MODELS = Path(__file__).parent / "models"
NOISE = 0.0005
"""Of the motion-capture system, standard deviation in metres and in radians."""
FALLEN = -0.1
"""Below the table, in metres."""


class Scene(ABC):
    """A task in a model of MuJoCo.

    :param model: MuJoCo's ``MjModel`` of :attr:`file`
    :param data: Its state
    """

    name: ClassVar[str]
    arms: ClassVar[tuple[str, ...]]

    def __init__(self, model: Any, data: Any) -> None:
        self._model, self._data = model, data

    @abstractmethod
    def place(self, rng: np.random.Generator) -> None:
        """Put things where an episode begins."""

    @abstractmethod
    def sensors(self) -> Values:
        """Return where things are, exactly; frame: the model's, whose z = 0 is the table."""

    @abstractmethod
    def is_success(self) -> bool:
        """Tell whether the task is done now."""

    def is_failure(self) -> bool:
        """Tell whether it cannot be done any more: a thing has fallen from the table."""
        return any(value[2] < FALLEN for name, value in self.sensors().items() if name.endswith("/position"))

    def _set_free(self, joint: str, position: Any, yaw: float = 0.0) -> None:
        place = self._data.joint(joint)
        place.qpos[:] = [*position, np.cos(yaw / 2.0), 0.0, 0.0, np.sin(yaw / 2.0)]
        place.qvel[:] = 0.0


class OrangeScene(Scene):
    """Put the orange into the bowl, and let go of it."""

    name = "orange"
    arms = ("arm",)

    def place(self, rng: np.random.Generator) -> None:
        self._set_free("orange", [rng.uniform(0.33, 0.47), rng.uniform(-0.2, -0.02), 0.036])
        self._data.mocap_pos[0] = [rng.uniform(0.35, 0.45), rng.uniform(0.14, 0.22), 0.0]

    def sensors(self) -> Values:
        return {
            "orange/position": self._data.body("orange").xpos.copy(),
            "bowl/position": self._data.mocap_pos[0].copy(),
        }

    def is_success(self) -> bool:
        from_bowl = self._data.body("orange").xpos - self._data.mocap_pos[0]
        from_hand = self._data.site("arm/tool").xpos - self._data.body("orange").xpos
        inside = float(np.linalg.norm(from_bowl[:2])) < 0.05 and from_bowl[2] < 0.06
        return bool(inside and np.linalg.norm(from_hand) > 0.06)


class TrayScene(Scene):
    """Lift the tray and hold it level, which takes a hand at each end."""

    name = "tray"
    arms = ("left", "right")
    height = 0.1
    tilt = 0.15

    def place(self, rng: np.random.Generator) -> None:
        self._set_free("tray", [rng.uniform(0.36, 0.46), rng.uniform(-0.05, 0.05), 0.007], rng.uniform(-0.25, 0.25))

    def sensors(self) -> Values:
        tray = self._data.body("tray")
        return {"tray/position": tray.xpos.copy(), "tray/rotation": rotation_vector(tray.xmat.reshape(3, 3))}

    def is_success(self) -> bool:
        tray = self._data.body("tray")
        return bool(tray.xpos[2] > self.height and tray.xmat[8] > np.cos(self.tilt))


SCENES: dict[str, type[Scene]] = {scene.name: scene for scene in (OrangeScene, TrayScene)}


def load(task: str) -> tuple[Any, Any, Scene]:
    """Return the model of a task, its state, and its scene.

    :raises ValueError: If there is no such task
    """
    if task not in SCENES:
        raise ValueError(f"There is no simulated task {task!r}; there are {', '.join(SCENES)}")
    prepare_rendering()
    mujoco = import_simulator("mujoco")
    model = mujoco.MjModel.from_xml_path(str(MODELS / f"{task}.xml"))
    data = mujoco.MjData(model)
    return model, data, SCENES[task](model, data)
