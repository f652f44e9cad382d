"""An arm of the models: where it is, and joint targets that bring its tool where it is told to be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs import import_simulator
from zprl_sb3.robot_envs.real.robots import Values
from zprl_sb3.robot_envs.rotations import matrix_of_vector, quaternion_of, rotation_vector

Array = NDArray[np.float64]

JOINTS = 6
HOME = (0.0, 0.28, 0.39, 0.0, -0.67, 0.0)
"""Joints at which episodes begin, in radians: the hand 0.36 m in front of the base and 0.25 m above the table."""
JOINT_SPEED = 2.5
"""Of the arm's own controller, rad/s."""
HOME_SPEED = 0.8
GRIPPER_SPEED = 2.5
"""Full strokes per second."""
OPEN = 0.045
"""How far each finger is from the middle when the gripper is open, in metres."""
DAMPING = 0.03
"""Of the least squares: small enough not to be felt away from singular poses, where joints would race without it."""
DAMPED = DAMPING**2 * np.eye(6)


class SimulatedArm:
    """One arm of a model, by the prefix of its names.

    :param model: MuJoCo's ``MjModel``
    :param data: Its state
    :param plan: A second state of the same model, in which the joints are where they have been told to be; shared by
        the arms of a model, whose kinematics are up to date before :meth:`advance`
    :param name: Prefix of its parts in the model
    """

    def __init__(self, model: Any, data: Any, plan: Any, name: str) -> None:
        self._mujoco = import_simulator("mujoco")
        self._model, self._data, self._plan, self.name = model, data, plan, name
        joints = [model.joint(f"{name}/j{k}") for k in range(1, JOINTS + 1)]
        self._positions = np.array([joint.qposadr[0] for joint in joints])
        self._velocities = np.array([joint.dofadr[0] for joint in joints])
        self._limits = np.array([joint.range for joint in joints]).T
        self._motors = np.array([model.actuator(f"{name}/j{k}").id for k in range(1, JOINTS + 1)])
        self._grip = model.actuator(f"{name}/grip").id
        self._fingers = np.array([model.joint(f"{name}/f{k}").qposadr[0] for k in (1, 2)])
        self._tool = model.site(f"{name}/tool").id
        self._base = model.body(f"{name}/base").pos.copy()
        self._target: tuple[Array, Array] | Array = np.array(HOME)
        self._gripper, self._speed = 1.0, JOINT_SPEED
        self._jacobian, self._error, self._turned = np.zeros((6, model.nv)), np.zeros(6), np.zeros(4)

    def place(self) -> None:
        """Set it to where episodes begin, at once and at rest."""
        self._data.qpos[self._positions] = self._plan.qpos[self._positions] = HOME
        self._data.qpos[self._fingers] = OPEN
        self._data.ctrl[self._motors], self._data.ctrl[self._grip] = HOME, OPEN
        self._target, self._gripper, self._speed = np.array(HOME), 1.0, JOINT_SPEED

    def observe(self) -> Values:
        """Return its pose in the frame of its base, joints and gripper.

        A hand that points down is turned by π about x: its frame's z is where the fingers point.
        """
        opening = self._data.qpos[self._fingers].mean() / OPEN
        return {
            f"{self.name}/position": self._data.site_xpos[self._tool] - self._base,
            f"{self.name}/rotation": rotation_vector(self._data.site_xmat[self._tool].reshape(3, 3)),
            f"{self.name}/joints": self._data.qpos[self._positions].copy(),
            f"{self.name}/gripper": np.clip([opening], 0.0, 1.0),
        }

    def tell(self, action: Values) -> None:
        """Take a command: ``joints``, or ``position`` and ``rotation``, and ``gripper``."""
        self._speed = JOINT_SPEED
        if f"{self.name}/joints" in action:
            self._target = np.array(action[f"{self.name}/joints"], dtype=np.float64)
        else:
            position = np.array(action[f"{self.name}/position"], dtype=np.float64) + self._base
            self._target = position, np.roll(quaternion_of(matrix_of_vector(action[f"{self.name}/rotation"])), 1)
        self._gripper = float(action[f"{self.name}/gripper"][0])

    def hold(self) -> None:
        """Stay where the joints are now; where it holds already, stay where that was."""
        if isinstance(self._target, tuple) or np.abs(self._target - self._commanded).max() > 0.0:
            self._plan.qpos[self._positions] = self._data.qpos[self._positions]
            self._target = self._commanded.copy()

    def go_home(self) -> None:
        """Open the gripper and start to move home, slowly."""
        self._target, self._gripper, self._speed = np.array(HOME), 1.0, HOME_SPEED

    def is_home(self) -> bool:
        """Tell whether the joints are within half a degree of home, and the gripper is open."""
        away = np.abs(self._data.qpos[self._positions] - HOME).max()
        return bool(away < 0.01 and self._data.qpos[self._fingers].min() > 0.95 * OPEN)

    def advance(self, seconds: float) -> None:
        """Move joint and gripper targets as far as they may go in ``seconds``."""
        change = self._joint_change()
        largest = np.abs(change).max()
        reach = self._speed * seconds
        commanded = self._commanded + change * min(1.0, reach / max(largest, 1e-12))
        self._plan.qpos[self._positions] = np.clip(commanded, *self._limits)
        self._data.ctrl[self._motors] = self._plan.qpos[self._positions]
        step = GRIPPER_SPEED * seconds * OPEN
        opening = self._data.ctrl[self._grip]
        wanted = np.clip(self._gripper, 0.0, 1.0) * OPEN
        self._data.ctrl[self._grip] = opening + np.clip(wanted - opening, -step, step)

    @property
    def _commanded(self) -> Array:
        joints: Array = self._plan.qpos[self._positions]
        return joints

    def _joint_change(self) -> Array:
        if not isinstance(self._target, tuple):
            return self._target - self._commanded
        position, rotation = self._target  # w, x, y, z, as MuJoCo has it
        now = self._plan.site_xmat[self._tool]
        self._error[:3] = position - self._plan.site_xpos[self._tool]
        self._mujoco.mju_mat2Quat(self._turned, now)
        self._mujoco.mju_subQuat(self._error[3:], rotation, self._turned)
        self._error[3:] = now.reshape(3, 3) @ self._error[3:]
        self._mujoco.mj_jacSite(self._model, self._plan, self._jacobian[:3], self._jacobian[3:], self._tool)
        jacobian = self._jacobian[:, self._velocities]
        change: Array = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + DAMPED, self._error)
        return change
