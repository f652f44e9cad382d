"""Several robots as one: two arms with a driver each, of whatever makers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zprl_sb3.robot_envs.real.drivers import find_driver
from zprl_sb3.robot_envs.real.robots import Arm, Robot, RobotError, Values


class Several:
    """Robots with one arm each, told and asked one after the other.

    :param robots: By the name of their arm
    :raises ValueError: If there is none, or two have an arm of the same name
    """

    def __init__(self, robots: Mapping[str, Robot]) -> None:
        self._robots, self._connected = dict(robots), False
        names = [name for each in self._robots.values() for name in each.arms]
        if not names or len(names) != len(set(names)):
            raise ValueError(f"Each robot needs an arm of another name; these have {', '.join(names) or 'none'}")

    @property
    def arms(self) -> Mapping[str, Arm]:
        return {name: arm for each in self._robots.values() for name, arm in each.arms.items()}

    def connect(self) -> None:
        """Connect to all.

        :raises RobotError: If one cannot be; the others are let go of again, but not where all were connected before
        """
        try:
            for each in self._robots.values():
                each.connect()
        except BaseException:
            if not self._connected:
                self.disconnect()
            raise
        self._connected = True

    def get_observation(self) -> Values:
        return {name: value for each in self._robots.values() for name, value in each.get_observation().items()}

    def send_action(self, action: Values) -> None:
        for each in self._robots.values():
            arms = tuple(each.arms)
            each.send_action({name: value for name, value in action.items() if name.partition("/")[0] in arms})

    def hold(self) -> None:
        """Have all of them hold, whatever becomes of one.

        :raises RobotError: If one did not
        """
        errors: list[Exception] = []
        for each in self._robots.values():
            try:
                each.hold()
            except Exception as error:  # whatever a driver raises
                errors.append(error)
        if errors:
            raise RobotError("; ".join(map(str, errors)))

    def home(self) -> None:
        """Bring one home after the other, in the order of the file."""
        for each in self._robots.values():
            each.home()

    def disconnect(self) -> None:
        self._connected = False
        for each in self._robots.values():
            each.disconnect()


def robot(**arms: Mapping[str, Any]) -> Several:
    """Return robots as one; each argument is an arm's name with ``driver`` and that driver's arguments.

    :raises ValueError: If one names no driver, or none that there is
    """
    return Several({name: _one(name, arguments) for name, arguments in arms.items()})


def _one(name: str, arguments: Any) -> Robot:
    if not isinstance(arguments, Mapping) or not isinstance(arguments.get("driver"), str):
        raise ValueError(f"{name} must be a table with driver and its arguments, not {arguments!r}")
    more = {key: value for key, value in arguments.items() if key != "driver"}
    try:
        module = find_driver(arguments["driver"])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not hasattr(module, "robot"):
        raise ValueError(f"{name}: {arguments['driver']!r} is a driver, but not of a robot")
    made: Robot = module.robot(name=name, **more)
    return made
