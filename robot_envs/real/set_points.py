"""The set point of all arms, where a robot is told to be next: pure functions, which ``guard.py`` applies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.motion import (
    Hits,
    Moving,
    into_cone,
    move_axes,
    move_gripper,
    move_point,
    move_rotation,
    rotation_error,
    shortened,
)
from zprl_sb3.robot_envs.real.robots import Arm, RobotError, Values
from zprl_sb3.robot_envs.real.safety import Limits, checked
from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_vector

Array = NDArray[np.float64]

LATE = 0.05  # seconds without a new set point from which the next one brakes: the robot has stopped by itself meanwhile
MEANT = 1e-6  # m or rad by which a limit must change a command to be counted
WALLS = {"position": "workspace", "rotation": "cone", "joints": "joints", "gripper": "gripper"}
STEPS = {"position": "step", "rotation": "rotation_step", "joints": "joint_step", "gripper": ""}


def start(values: Values, arms: Mapping[str, Arm]) -> dict[str, Moving]:
    """Return the set point of a robot that stands still.

    :param values: Where it is
    :param arms: Its arms
    :raises RobotError: If the robot does not tell all that it is told
    """
    names = [key for name, arm in arms.items() for key in arm.command_shapes(name)]
    if missing := [name for name in names if name not in values]:
        raise RobotError(f"The robot does not tell {', '.join(missing)}: without knowing where it is it is not moved")
    here = checked({name: values[name] for name in names}, arms)
    return {name: Moving(value, np.zeros_like(value)) for name, value in here.items()}


def clamped(command: Values, here: Mapping[str, Moving], limits: Mapping[str, Limits]) -> tuple[Values, Hits]:
    """Bring a command nearer, and into workspace, cone and joint ranges.

    :param command: As :func:`checked` returns it
    :param here: The set point that ``step`` is measured from
    :param limits: Of the arms
    :return: The target, and which limits changed it: ``left/workspace``, ``left/step``, ...
    """
    target: Values = {}
    hits: set[str] = set()
    for key, value in command.items():
        arm, quantity = key.rsplit("/", 1)
        inside = _inside(quantity, value, limits[arm])
        target[key] = _near(quantity, inside, here[key].value, limits[arm])
        hits |= {f"{arm}/{WALLS[quantity]}"} if _differ(value, inside) else set()
        hits |= {f"{arm}/{STEPS[quantity]}"} if _differ(inside, target[key]) else set()
    return target, frozenset(hits)


def advance(
    here: Mapping[str, Moving], target: Values | None, limits: Mapping[str, Limits], dt: float, within: float
) -> tuple[dict[str, Moving], Hits]:
    """Move the set point for one tick.

    Whatever the target and the time steps, it stays in workspace, cone and joint ranges, and its steps divided by dt
    exceed neither speed nor acceleration. Late ticks brake: meanwhile the robot has stopped where it was told to be.

    :param here: The set point
    :param target: As :func:`clamped` returns it; None: brake
    :param limits: Of the arms
    :param dt: Seconds since the last tick, as measured
    :param within: Seconds in which to reach the target where the limits allow it
    :return: The next set point, and which limits were in the way: ``left/speed``, ...
    """
    if dt <= 0:
        return dict(here), frozenset()
    there: dict[str, Moving] = {}
    hits: set[str] = set()
    for key, moving in here.items():
        arm, quantity = key.rsplit("/", 1)
        goal = None if target is None or dt > LATE else target[key]
        there[key], met = _moved(quantity, moving, goal, limits[arm], dt, max(within, dt))
        hits |= {f"{arm}/{name}" for name in met}
    return there, frozenset(hits)


def left_range(values: Values, arms: Mapping[str, Arm], limits: Mapping[str, Limits]) -> list[str]:
    """Return what is measured outside a range that can only be watched, in words: see :class:`Limits`."""
    found = []
    for name, arm in arms.items():
        watched = ("joints", limits[name].joints) if arm.control == "pose" else ("position", limits[name].box)
        value = values.get(f"{name}/{watched[0]}")
        if value is None or watched[1] is None:
            continue
        low, high = watched[1]
        if ((value < low) | (value > high)).any():
            here = np.round(value, 3).tolist()
            found.append(f"{name}/{watched[0]} {here} is outside {low.tolist()} to {high.tolist()}")
    return found


def _moved(
    quantity: str, moving: Moving, goal: Array | None, limits: Limits, dt: float, within: float
) -> tuple[Moving, Hits]:
    if quantity == "gripper":
        return move_gripper(moving, goal, limits.gripper_speed, dt)
    if quantity == "joints":
        assert limits.joints is not None  # check_limits
        speed, change = np.asarray(limits.joint_speed), np.asarray(limits.joint_acceleration)
        return move_axes(moving, goal, limits.joints, speed, change, dt, within)
    if quantity == "rotation":
        assert limits.rotation_speed is not None
        assert limits.rotation_acceleration is not None
        turning = limits.rotation_speed, limits.rotation_acceleration
        return move_rotation(moving, goal, limits.unit_cone, *turning, dt, within)
    assert limits.box is not None
    assert limits.speed is not None
    assert limits.acceleration is not None
    return move_point(moving, goal, limits.box, limits.speed, limits.acceleration, dt, within)


def _inside(quantity: str, value: Array, limits: Limits) -> Array:
    """Return the command nearest to a given one that is in workspace, cone or range."""
    if quantity == "rotation":
        return value if limits.unit_cone is None else _in_cone(value, limits.unit_cone)
    ranges = {"position": limits.box, "joints": limits.joints, "gripper": (np.zeros(1), np.ones(1))}
    range_ = ranges[quantity]
    assert range_ is not None  # check_limits
    return np.clip(value, *range_)


def _in_cone(value: Array, cone: tuple[Array, float]) -> Array:
    matrix = matrix_of_vector(value)
    inside = into_cone(matrix, cone)
    return value if inside is matrix else rotation_vector(inside)


def _near(quantity: str, value: Array, here: Array, limits: Limits) -> Array:
    """Return a command on the way to a given one, not farther from the set point than one may be."""
    if quantity == "position" and limits.step is not None:
        return here + shortened(value - here, limits.step)
    if quantity == "joints" and limits.joint_step is not None:
        step = np.asarray(limits.joint_step)
        return here + np.clip(value - here, -step, step)
    if quantity == "rotation" and limits.rotation_step is not None:
        start = matrix_of_vector(here)
        error = rotation_error(start, matrix_of_vector(value), limits.cone is not None)
        turn = shortened(error, limits.rotation_step)
        return value if turn is error else rotation_vector(matrix_of_vector(turn) @ start)
    return value


def _differ(a: Array, b: Array) -> bool:
    return float(np.abs(a - b).max()) > MEANT
