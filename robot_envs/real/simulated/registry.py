"""The simulations of this process by name, by which cameras find that of their robot."""

from __future__ import annotations

import weakref
from typing import Any

from zprl_sb3.robot_envs.real.robots import RobotError
from zprl_sb3.robot_envs.real.simulated.simulation import Simulation

_BY_NAME: weakref.WeakValueDictionary[str, Simulation] = weakref.WeakValueDictionary()


def begin(name: str, **arguments: Any) -> Simulation:
    """Make a simulation that cameras of this process find by its name.

    :param name: Of the simulation
    :param arguments: Of :class:`Simulation`
    :raises ValueError: If one of this name is in use
    """
    if name in _BY_NAME and _BY_NAME[name].in_use:
        raise ValueError(f"There is a simulation {name!r} in this process already: give this one another name")
    _BY_NAME[name] = simulation = Simulation(**arguments)
    return simulation


def find(name: str) -> Simulation:
    """Return the simulation of a robot of this process.

    :raises RobotError: If there is none
    """
    if name not in _BY_NAME:
        raise RobotError(
            f"There is no simulation {name!r} in this process: a simulated camera belongs to a simulated robot, which "
            "is made with the same `simulation`"
        )
    return _BY_NAME[name]
