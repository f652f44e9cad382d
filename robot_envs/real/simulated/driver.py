"""A robot of one or two arms that is simulated, as a driver."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from zprl_sb3.robot_envs.real.robots import Arm, RobotError, Values
from zprl_sb3.robot_envs.real.simulated.arm import JOINTS
from zprl_sb3.robot_envs.real.simulated.simulation import Simulation

CONTROLS = ("pose", "joints")


class SimulatedRobot:
    """The arms of a simulation.

    :param simulation: Which
    :param control: ``"pose"`` or ``"joints"``: what commands are
    :raises ValueError: If the control is unknown
    """

    def __init__(self, simulation: Simulation, control: str = "pose") -> None:
        if control not in CONTROLS:
            raise ValueError(f"A simulated arm is commanded by {' or '.join(CONTROLS)}, not {control!r}")
        self.simulation = simulation
        self._arms = {name: Arm(control, JOINTS) for name in simulation.world.arms}
        self._shapes = {
            key: shape for name, arm in self._arms.items() for key, shape in arm.command_shapes(name).items()
        }
        self._connected = False

    @property
    def arms(self) -> Mapping[str, Arm]:
        """The arms by name."""
        return self._arms

    def connect(self) -> None:
        """Start the simulation's clock, unless a camera has; the arms stay where they are.

        :raises RobotError: If it is told to fail, or the port of its side channel is taken
        """
        if self.simulation.faults.error:
            raise RobotError(self.simulation.faults.error)
        if not self._connected:
            self.simulation.acquire()
            self._connected = True
            self.simulation.hold()

    def get_observation(self) -> Values:
        """Return poses, joints and grippers of the arms, and what the motion-capture system tells."""
        return self.simulation.observe()

    def send_action(self, action: Values) -> None:
        """Tell all arms where to be next.

        :raises RobotError: If a part is missing, unknown, of another shape or not finite; nothing moves then
        """
        for name, shape in self._shapes.items():
            if name not in action or np.shape(action[name]) != shape or not np.isfinite(action[name]).all():
                raise RobotError(f"A command to this robot needs finite {name} {shape}, not {action.get(name)}")
        if unknown := set(action) - set(self._shapes):
            raise RobotError(f"This robot has no {min(unknown)!r}; a command holds {', '.join(self._shapes)}")
        self.simulation.command(action)

    def hold(self) -> None:
        """Stay where the arms are."""
        self.simulation.hold()

    def home(self) -> None:
        """Open the grippers and bring the arms home.

        :raises RobotError: If they do not come there
        """
        self.simulation.home()

    def disconnect(self) -> None:
        """Hold, and use the simulation no more; without its cameras its time stands still then."""
        if self._connected:
            self._connected = False
            self.simulation.hold()
            self.simulation.release()
