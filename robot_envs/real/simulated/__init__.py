"""A simulated robot, for tests of all that is between a policy and a robot, and to try it without one.

An arm with an orange and a bowl, or two arms with a tray, in MuJoCo; physics follow the clock on the wall. The
functions here make robot, camera, leader arm and supervisor of plain arguments, as a task's YAML has them. MuJoCo is
the extra ``sim``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Nothing of the simulation itself: a supervisor and a leader of a robot on another computer need no simulator.
from zprl_sb3.robot_envs.real.robots import Camera, Robot, Supervisor
from zprl_sb3.robot_envs.real.simulated.supervision import SimulatedSupervisor
from zprl_sb3.robot_envs.real.simulated.teleoperation import SimulatedTeleoperator

if TYPE_CHECKING:
    from zprl_sb3.robot_envs.real.simulated.driver import SimulatedRobot

# No module here may be called as one of the functions below: once imported it would take the function's place.
ADDRESS = "tcp://127.0.0.1:5570"
"""Of the side channel, unless told otherwise."""


def robot(
    task: str = "orange",
    simulation: str = "simulation",
    control: str = "pose",
    channel: int = 5570,
    speedup: float = 1.0,
    lock_step: float | None = None,
    faults: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> SimulatedRobot:
    """Make a simulated robot, and the simulation that its cameras find by name.

    :param task: ``"orange"`` or ``"tray"``
    :param simulation: Its name
    :param control: ``"pose"`` or ``"joints"``
    :param channel: Port of the side channel on loopback; 0 takes a free one
    :param speedup: Seconds of the simulation per second on the wall
    :param lock_step: None: real time. Otherwise commands per second of the simulation, whose time stands still but for
        them: for tests and for collecting fast
    :param faults: What goes wrong, see :class:`~.faults.Faults`
    :param seed: Of the first scene
    :raises ValueError: If an argument is wrong
    """
    from zprl_sb3.robot_envs.real.simulated.driver import SimulatedRobot
    from zprl_sb3.robot_envs.real.simulated.registry import begin

    arguments = {"task": task, "channel": channel, "speedup": speedup, "lock_step": lock_step, "seed": seed}
    return SimulatedRobot(begin(simulation, **arguments, faults=dict(faults or {})), control)


def camera(simulation: str = "simulation", **arguments: Any) -> Camera:
    """Make a camera of a simulated robot in the same process.

    :param simulation: Name of the robot's simulation
    :param arguments: Of :class:`~.cameras.SimulatedCamera`: view, size, rate, noise, quality
    :raises ValueError: If an argument is wrong
    """
    from zprl_sb3.robot_envs.real.simulated.cameras import SimulatedCamera

    return SimulatedCamera(simulation, **arguments)


def supervisor(
    address: str = ADDRESS,
    seed: int = 0,
    reaction: float = 0.4,
    reset_time: float = 1.0,
    script: Sequence[Mapping[str, Any]] = (),
) -> Supervisor:
    """Make the person beside a simulated robot, see :class:`~.supervision.SimulatedSupervisor` for the arguments."""
    return SimulatedSupervisor(address, seed, reaction, reset_time, script)


def teleoperator(
    task: str = "orange",
    address: str = ADDRESS,
    operators: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Robot:
    """Make a leader arm with a person at it, see :class:`~.teleoperation.SimulatedTeleoperator` for the arguments."""
    return SimulatedTeleoperator(task, address, operators, seed)
