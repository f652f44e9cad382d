"""The set point of a robot on its way to what was ordered. Knows neither threads nor drivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zprl_sb3.robot_envs.real.motion import Array, Hits, Moving
from zprl_sb3.robot_envs.real.robots import Arm, Values
from zprl_sb3.robot_envs.real.safety import Limits
from zprl_sb3.robot_envs.real.set_points import advance, clamped, start
from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_vector

STALL = 0.2  # seconds without a set point after which the robot stands, and its measured place is the next one
HOME_SPEED = 0.5  # share of the limits' speeds
NEAR = {
    "position": 0.02,
    "rotation": 0.1,
    "joints": 0.1,
    "gripper": np.inf,
}  # measured: as near as there
REACHED = 1e-4  # of the set point


@dataclass(frozen=True)
class Order:
    """What the robot is to do: a command, home, or (without a target) hold.

    :param target: As commanded
    :param received: When
    :param spread: Seconds over which to spread the motion
    :param home: Whether it is the way home, which no watchdog ends
    :param slow: Whether to go there at the speed of the way home
    """

    target: Values | None = None
    received: float = 0.0
    spread: float = 0.0
    home: bool = False
    slow: bool = False


HOLD = Order()


class Follower:
    """The set point of all arms, and what it goes to. There is none before the first command, nor after a stop.

    :param arms: The robot's arms
    :param limits: Theirs
    :param watchdog: Seconds without a command after which it brakes
    """

    def __init__(self, arms: Mapping[str, Arm], limits: Mapping[str, Limits], watchdog: float) -> None:
        self._arms, self._limits, self._watchdog = arms, limits, watchdog
        self._slow = {name: limit.slower(HOME_SPEED) for name, limit in limits.items()}
        self._here: dict[str, Moving] | None = None
        self._begun = HOLD
        self._goal: Values | None = None
        self._now = self._dt = 0.0

    @property
    def is_set(self) -> bool:
        """Whether there is a set point."""
        return self._here is not None

    @property
    def is_moving(self) -> bool:
        """Whether it moved in the last tick."""
        return self._here is not None and any(moving.velocity.any() for moving in self._here.values())

    def forget(self) -> None:
        """Begin the next order from where the robot is measured."""
        self._here = None

    def stalls(self, now: float) -> bool:
        """Begin a tick; return whether the last one was so long ago that the robot no longer goes to the set point."""
        self._dt, self._now = now - self._now, now
        if self._dt <= STALL or self._here is None:
            return False
        self.forget()
        return True

    def follow(self, order: Order, values: Values) -> tuple[Values, Hits]:
        """Move the set point for the tick, and return it, with the names of what was in the way.

        :param order: Where to
        :param values: Where the robot is, if there is no set point yet
        :raises RobotError: If there is none and the robot does not tell where it is
        """
        if self._here is None:
            self._here, self._begun = start(values, self._arms), HOLD
        hits = self._begin(order, self._here) | self._watch(order)
        limits = self._slow if order.home or order.slow else self._limits
        within = order.received + order.spread - self._now
        self._here, met = advance(self._here, self._goal, limits, self._dt, within)
        return {name: moving.value for name, moving in self._here.items()}, hits | met

    def has_arrived(self, target: Values, values: Values) -> bool:
        """Return whether set point and measured values are at a target."""
        here = self._here or {}
        set_ = all(name in here and distance(name, here[name].value, target[name]) < REACHED for name in target)
        return set_ and all(
            distance(name, values[name], target[name]) < NEAR[name.rsplit("/", 1)[1]] for name in target
        )

    def _begin(self, order: Order, here: Mapping[str, Moving]) -> Hits:
        if order is self._begun:
            return frozenset()
        self._begun, self._goal = order, order.target
        if order.target is None or order.home:
            return frozenset()
        self._goal, hits = clamped(order.target, here, self._limits)
        return hits

    def _watch(self, order: Order) -> Hits:
        if order.home or self._goal is None or self._now - order.received <= self._watchdog:
            return frozenset()
        self._goal = None
        return frozenset({"watchdog"})


def distance(name: str, a: Array, b: Array) -> float:
    """Return how far two values of a name are from each other, in its unit; rotations by their angle."""
    if name.endswith("/rotation"):
        return float(np.linalg.norm(rotation_vector(matrix_of_vector(a) @ matrix_of_vector(b).T)))
    return float(np.linalg.norm(a - b))
