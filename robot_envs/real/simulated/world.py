"""Physics, arms and scene of a simulation, without a clock: it advances when it is told to."""

from __future__ import annotations

import numpy as np

from zprl_sb3.robot_envs import import_simulator
from zprl_sb3.robot_envs.real.robots import RobotError, Values
from zprl_sb3.robot_envs.real.simulated.arm import SimulatedArm
from zprl_sb3.robot_envs.real.simulated.scenes import NOISE, load

STEPS_PER_TICK = 5
"""Physics steps between two looks of the arms' controllers at their targets: 10 ms."""


class World:
    """A task's model with its arms at home and its things placed.

    :param task: ``"orange"`` or ``"tray"``
    :raises ValueError: If there is no such task
    """

    def __init__(self, task: str) -> None:
        self.model, self.data, self.scene = load(task)
        self._mujoco = import_simulator("mujoco")
        self._plan = self._mujoco.MjData(self.model)
        self.arms = {name: SimulatedArm(self.model, self.data, self._plan, name) for name in self.scene.arms}
        self._rng = np.random.default_rng()
        self.restart(0)

    @property
    def timestep(self) -> float:
        """Of the physics, in seconds."""
        return float(self.model.opt.timestep)

    def restart(self, seed: int) -> None:
        """Begin anew: arms at home, time 0, the scene of a seed. What follows is the same each time, bit by bit."""
        self._mujoco.mj_resetData(self.model, self.data)
        for arm in self.arms.values():
            arm.place()
        self.place(seed)

    def place(self, seed: int) -> None:
        """Put things where the scene of a seed has them; the arms stay."""
        self._rng = np.random.default_rng(seed)
        self.scene.place(self._rng)
        self._mujoco.mj_forward(self.model, self.data)

    def advance(self, steps: int) -> None:
        """Advance by so many physics steps; the arms look at their targets every :data:`STEPS_PER_TICK`.

        :raises RobotError: If the simulation becomes unstable
        """
        while steps > 0:
            tick = min(steps, STEPS_PER_TICK)
            self._mujoco.mj_kinematics(self.model, self._plan)
            self._mujoco.mj_comPos(self.model, self._plan)
            for arm in self.arms.values():
                arm.advance(tick * self.timestep)
            self._mujoco.mj_step(self.model, self.data, tick)
            steps -= tick
        if any(self.data.warning[kind].number for kind in self._unstable()):
            raise RobotError("The simulation became unstable, as after commands that press the hand into the table")

    def observe(self) -> Values:
        """Return what the arms tell of themselves, and the motion-capture system of things."""
        values: Values = {}
        for arm in self.arms.values():
            values |= arm.observe()
        sensors = self.scene.sensors()
        return values | {name: value + self._rng.normal(0.0, NOISE, value.shape) for name, value in sensors.items()}

    def _unstable(self) -> tuple[int, ...]:
        kinds = self._mujoco.mjtWarning
        return kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC
