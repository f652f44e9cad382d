"""How a set point moves to a target: pure functions that keep speed, acceleration and walls, whatever the time steps.

**Why walls hold.** From velocity v one can stop within |v|²/2a, in steps of any lengths: a step of dt that brakes
first and moves then, (v − a·dt)·dt, is never longer than the continuous one. A velocity is therefore allowed if its
step and the way to stop behind it, straight on, end inside. From an allowed one braking is allowed again, so that
there is always a choice. Boxes and joint ranges are convex; for cones the whole arc is looked at.

Velocities are those of the steps: what was moved, divided by the time that it took.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_vector

Array = NDArray[np.float64]
Hits = frozenset[str]

TOLERANCE = 1e-9  # metres or cosines by which rounding may cross a wall; set points in a box are clipped to it
HALVINGS = 12  # of the way from braking to what is wanted


class Moving(NamedTuple):
    """A set point and its velocity.

    :param value: As commands have it: position (3,), rotation vector (3,), joints (n,), gripper (1,)
    :param velocity: Of the last step, the same shape; of a rotation the angular velocity in the arm's base frame
    """

    value: Array
    velocity: Array


def move_point(
    moving: Moving,
    target: Array | None,
    box: tuple[Array, Array],
    speed: float,
    acceleration: float,
    dt: float,
    within: float,
) -> tuple[Moving, Hits]:
    """Move a point in a box. From outside it may only move inward.

    :param moving: Where it is, (3,)
    :param target: Where to, (3,) in the box; None: brake
    :param box: Its lowest and its highest corner, each (3,)
    :param speed: Greatest norm of the velocity, m/s
    :param acceleration: Greatest norm of the velocity's change per second, m/s²
    :param dt: Seconds since it was moved last, > 0
    :param within: Seconds in which to reach the target where the limits allow it, at least dt
    :return: Where it is next, and which limits were in the way: ``speed``, ``acceleration``, ``workspace``
    """
    here = moving.value
    low, high = np.minimum(box[0], here) - TOLERANCE, np.maximum(box[1], here) + TOLERANCE
    error = None if target is None else target - here

    def fits(velocity: Array) -> bool:
        stop = here + _way(velocity, acceleration, dt)
        return bool(np.all((low <= stop) & (stop <= high)))

    velocity, hits = _velocity(moving.velocity, error, speed, acceleration, dt, within, fits)
    there = np.clip(here + velocity * dt, low + TOLERANCE, high - TOLERANCE)
    return Moving(there, velocity), _named(hits, wall="workspace")


def move_rotation(
    moving: Moving,
    target: Array | None,
    cone: tuple[Array, float] | None,
    speed: float,
    acceleration: float,
    dt: float,
    within: float,
) -> tuple[Moving, Hits]:
    """Turn, with the tool's z axis in a cone. From outside the axis may only come nearer to the cone's.

    :param moving: The rotation now, as a vector (3,)
    :param target: Which to turn to, a vector (3,); None: brake
    :param cone: Its axis, a unit vector (3,), and the greatest angle to it, rad
    :param speed: Greatest angular speed, rad/s
    :param acceleration: Greatest norm of the angular velocity's change per second, rad/s²
    :param dt: As for :func:`move_point`
    :param within: As for :func:`move_point`
    :return: The rotation next, and what was in the way: ``rotation_speed``, ``rotation_acceleration``, ``cone``
    """
    here = matrix_of_vector(moving.value)
    error = None if target is None else rotation_error(here, matrix_of_vector(target), cone is not None)

    def fits(velocity: Array) -> bool:
        return cone is None or arc_fits(here[:, 2], cone, _way(velocity, acceleration, dt))

    velocity, hits = _velocity(moving.velocity, error, speed, acceleration, dt, within, fits)
    if cone is not None and target is not None and "wall" in hits:
        # Turned around itself, too, the axis goes no great circle and may meet the wall. Without that it does not.
        swing = _swing(here[:, 2], matrix_of_vector(target)[:, 2])
        straight, met = _velocity(moving.velocity, swing, speed, acceleration, dt, within, fits)
        velocity = velocity if "wall" in met else straight
    there = rotation_vector(matrix_of_vector(velocity * dt) @ here)
    return Moving(there, velocity), _named(hits, "rotation_", "cone")


def move_axes(
    moving: Moving,
    target: Array | None,
    range_: tuple[Array, Array],
    speed: Array,
    acceleration: Array,
    dt: float,
    within: float,
) -> tuple[Moving, Hits]:
    """Move joints, each within limits of its own. From outside its range a joint may only move inward.

    :param moving: Where they are, (n,)
    :param target: Where to, (n,) in the range; None: brake
    :param range_: Lowest and highest angles, each (n,), rad
    :param speed: Greatest speeds, (n,), rad/s
    :param acceleration: Greatest accelerations, (n,), rad/s²
    :param dt: As for :func:`move_point`
    :param within: As for :func:`move_point`
    :return: Where they are next, and which limits were in the way: ``joint_speed``, ``joint_acceleration``, ``joints``
    """
    here, before, change = moving.value, moving.velocity, acceleration * dt
    low, high = np.minimum(range_[0], here), np.maximum(range_[1], here)
    way = np.zeros_like(here) if target is None else target - here
    free = np.minimum(_stoppable(np.abs(way), acceleration, dt), np.abs(way) / within)
    wanted = np.sign(way) * np.minimum(free, speed)
    reached = np.clip(wanted, before - change, before + change)
    velocity = np.clip(reached, -_stoppable(here - low, acceleration, dt), _stoppable(high - here, acceleration, dt))
    hits = {
        "speed": (free > speed * (1 + TOLERANCE)).any(),
        "acceleration": (np.abs(wanted - reached) > TOLERANCE).any(),
        "wall": (np.abs(velocity - reached) > TOLERANCE).any(),
    }
    there = np.clip(here + velocity * dt, low, high)
    return Moving(there, velocity), _named({name for name, hit in hits.items() if hit}, "joint_", "joints")


def move_gripper(moving: Moving, target: Array | None, speed: float, dt: float) -> tuple[Moving, Hits]:
    """Open or close a gripper, (1,) in [0, 1], by ``speed`` (1/s) at most; without a target it stays."""
    way = np.zeros(1) if target is None else target - moving.value
    velocity = np.clip(way / dt, -speed, speed)
    there = np.clip(moving.value + velocity * dt, 0.0, 1.0)
    return Moving(there, velocity), frozenset({"gripper_speed"} if np.abs(way / dt) > speed * (1 + TOLERANCE) else ())


def shortened(vector: Array, length: float) -> Array:
    """Return a vector of the same direction that is no longer than ``length``."""
    norm = math.sqrt(vector @ vector)
    return vector if norm <= length else vector * (length / norm)


def rotation_error(here: Array, there: Array, by_swing: bool) -> Array:
    """Return the angular velocity (3,) that leads from one rotation matrix to another in a second.

    :param by_swing: Not the shortest way, but the shortest one for the tool's z axis, together with a turn around that
        axis: a great circle does not leave a cone that holds both of its ends
    """
    if not by_swing:
        return rotation_vector(there @ here.T)
    swing = _swing(here[:, 2], there[:, 2])
    twist = rotation_vector(there @ (matrix_of_vector(swing) @ here).T)
    return swing + here[:, 2] * (twist @ there[:, 2])


def into_cone(matrix: Array, cone: tuple[Array, float]) -> Array:
    """Return the rotation matrix nearest to a given one whose z axis is in a cone, by :data:`TOLERANCE` at least."""
    swing = _swing(matrix[:, 2], cone[0])
    excess = math.sqrt(swing @ swing) - cone[1] + TOLERANCE
    return matrix if excess <= TOLERANCE else matrix_of_vector(shortened(swing, excess)) @ matrix


def arc_fits(z: Array, cone: tuple[Array, float], turn: Array) -> bool:
    """Tell whether an axis (3,) that turns by a vector (3,) does not leave a cone, nor moves away from it outside.

    Along the arc its cosine to the cone's axis is A + B·cos θ + C·sin θ. Where that falls, it must be inside still. The
    end of the fall tells: the end of the arc, or a trough.
    """
    axis, cosine = cone[0], math.cos(cone[1])
    whole = math.sqrt(turn @ turn)
    if whole == 0.0:
        return True
    around = turn / whole
    a = float(around @ axis) * float(around @ z)
    b, c = float(axis @ z) - a, float(axis @ _cross(around, z))
    if math.hypot(b, c) < 1e-12:  # a turn around the axis itself, or around the cone's
        return True
    trough = (math.atan2(c, b) + math.pi) % (2 * math.pi)
    falls_at_end = c * math.cos(whole) - b * math.sin(whole) < 0
    if falls_at_end and a + b * math.cos(whole) + c * math.sin(whole) < cosine - TOLERANCE:
        return False
    return not (0 < trough <= whole and a - math.hypot(b, c) < cosine - TOLERANCE)


def _velocity(
    before: Array,
    error: Array | None,
    speed: float,
    acceleration: float,
    dt: float,
    within: float,
    fits: Callable[[Array], bool],
) -> tuple[Array, set[str]]:
    """Return the velocity nearest to the wanted one that limits allow, and the names of those in the way."""
    braking = before - shortened(before, acceleration * dt)
    if error is None:
        return braking, set()
    distance = math.sqrt(error @ error)
    free = min(float(_stoppable(distance, acceleration, dt)), distance / within)
    wanted = error * (min(free, speed) / distance) if distance > 0 else error
    hits = {"speed"} if free > speed * (1 + TOLERANCE) else set()
    change = wanted - before
    if math.sqrt(change @ change) > acceleration * dt * (1 + TOLERANCE):
        hits.add("acceleration")
    reached = before + shortened(change, acceleration * dt)
    if fits(reached):
        return reached, hits
    return _farthest(braking, reached, fits), hits | {"wall"}


def _farthest(sure: Array, wanted: Array, fits: Callable[[Array], bool]) -> Array:
    # Between two velocities within the limits all are. Which fit need not be an interval; one that does is enough.
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(sure + middle * (wanted - sure)) else (low, middle)
    return sure + low * (wanted - sure)


def _stoppable(room: Array | float, acceleration: Array | float, dt: float) -> Array:
    """Return the greatest v with v·dt + v²/2a ≤ room."""
    speed: Array = 2 * room / (np.sqrt(dt * dt + 2 * room / acceleration) + dt)
    return speed


def _way(velocity: Array, acceleration: float, dt: float) -> Array:
    """Return a step and the way to stop behind it."""
    return velocity * (dt + math.sqrt(velocity @ velocity) / (2 * acceleration))


def _swing(start: Array, end: Array) -> Array:
    """Return the rotation vector (3,) that turns one unit vector into another on the shortest way."""
    cross = _cross(start, end)
    sine, cosine = math.sqrt(cross @ cross), float(start @ end)
    if sine > 1e-12:
        return cross * (math.atan2(sine, cosine) / sine)
    if cosine > 0:
        return np.zeros(3)
    side = _cross(start, np.eye(3)[np.abs(start).argmin()])  # opposite: around any axis at a right angle
    return side * (math.pi / math.sqrt(side @ side))


def _cross(a: Array, b: Array) -> Array:
    # np.cross takes ten times as long.
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def _named(hits: set[str], prefix: str = "", wall: str = "") -> Hits:
    return frozenset(wall if hit == "wall" else prefix + hit for hit in hits)
