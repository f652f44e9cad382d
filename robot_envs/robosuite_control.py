"""robosuite's control loop without what it repeats: the same torques, bit by bit, sooner.

robosuite moves an arm by torques that it computes anew in each of the 25 physics steps of an action. Most of that time
goes into looking up the same names, into Jacobians that it computes several times over, and into observables that are
not due. Here its own functions compute the torques from what was looked up once.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error


def hasten(simulation: Any) -> None:
    """Replace, in one simulation, what happens between two actions.

    Arms whose goals have been changed to another frame than the world's are left to robosuite.

    :param simulation: From ``robosuite.make``: arms on fixed bases under ``OSC_POSE`` controllers without
        interpolation, and observables that all have the same clock
    """
    begin_action, update_observables = simulation._pre_action, simulation._update_observables
    arms: list[_Arm] = []

    def pre_action(action: Any, policy_step: bool = False) -> None:
        if policy_step or any(arm.controller.input_ref_frame != "world" for arm in arms):
            begin_action(action, policy_step)
            # A reset makes new controllers.
            arms[:] = [_Arm(robot) for robot in simulation.robots] if _are_old(arms, simulation) else arms
        else:  # The grippers keep what the action has set.
            for arm in arms:
                arm.control()

    def update(force: bool = False) -> None:
        if force or _is_due(next(iter(simulation._observables.values())), simulation.model_timestep):
            update_observables(force)
        else:
            for observable in simulation._observables.values():
                observable._time_since_last_sample += simulation.model_timestep

    simulation._pre_action, simulation._update_observables = pre_action, update


def _are_old(arms: list[_Arm], simulation: Any) -> bool:
    current = [_controller(robot) for robot in simulation.robots]
    return [arm.controller for arm in arms] != current


def _controller(robot: Any) -> Any:
    return robot.part_controllers["right"]


def _is_due(observable: Any, timestep: float) -> bool:
    """Tell whether a measurement is taken, or its period ends, in this physics step."""
    time = observable._time_since_last_sample + timestep
    sampling = not observable._sampled and observable._sampling_timestep - observable._current_delay >= time
    return bool(sampling or time >= observable._sampling_timestep)


class _Arm:
    """One arm between two actions: ``OperationalSpaceController.run_controller`` on a fixed base."""

    def __init__(self, robot: Any) -> None:
        self.controller = _controller(robot)
        self._sim = self.controller.sim
        self._site = self._sim.model.site_name2id(self.controller.ref_name)
        self._actuators = robot._ref_actuators_indexes_dict["right"]
        self._limits = self._model.actuator_ctrlrange[self._actuators].T.copy()
        velocities = self._model.nv
        self._mass = np.zeros((velocities, velocities))
        self._jacobians = np.zeros((3, velocities)), np.zeros((3, velocities))

    # Asked for each time: who held them would keep a closed simulation in memory.
    @property
    def _model(self) -> Any:
        return self._sim.model._model

    @property
    def _data(self) -> Any:
        return self._sim.data._data

    def control(self) -> None:
        """Set the torques for the next physics step."""
        self._observe()
        self._data.ctrl[self._actuators] = np.clip(self._torques(), *self._limits)
        self.controller.new_update = True  # what it knows is older than the next physics step

    def _observe(self) -> None:
        arm, data = self.controller, self._data
        positions, rotations = self._jacobians
        mujoco.mj_jacSite(self._model, data, positions, rotations, self._site)
        mujoco.mj_fullM(self._model, self._mass, data.qM)
        arm.ref_pos[:] = data.site_xpos[self._site]
        arm.ref_ori_mat[:] = data.site_xmat[self._site].reshape(3, 3)
        arm.ref_pos_vel[:] = np.dot(positions, data.qvel)
        arm.ref_ori_vel[:] = np.dot(rotations, data.qvel)
        arm.J_pos[:] = positions[:, arm.qvel_index]
        arm.J_ori[:] = rotations[:, arm.qvel_index]
        arm.J_full[:3], arm.J_full[3:] = arm.J_pos, arm.J_ori
        arm.joint_pos, arm.joint_vel = data.qpos[arm.qpos_index], data.qvel[arm.qvel_index]
        arm.mass_matrix = self._mass[arm.qvel_index, :][:, arm.qvel_index]

    def _torques(self) -> Any:
        arm = self.controller
        turn = orientation_error(arm.goal_ori, arm.ref_ori_mat)
        force = (arm.goal_pos - arm.ref_pos) * arm.kp[:3] - arm.ref_pos_vel * arm.kd[:3]
        torque = turn * arm.kp[3:] - arm.ref_ori_vel * arm.kd[3:]
        _, inertia, rotational_inertia, nullspace = opspace_matrices(arm.mass_matrix, arm.J_full, arm.J_pos, arm.J_ori)
        wrench = np.concatenate([np.dot(inertia, force), np.dot(rotational_inertia, torque)])
        torques = np.dot(arm.J_full.T, wrench) + self._data.qfrc_bias[arm.qvel_index]
        return torques + nullspace_torques(arm.mass_matrix, nullspace, arm.initial_joint, arm.joint_pos, arm.joint_vel)
