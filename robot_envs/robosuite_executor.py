"""What the scripted experts for robosuite are made of: a hand that moves like an operator's, and picking things up.

A script is a generator: it sets the hand's command and yields once for each environment step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.demonstrators import Graded
from zprl_sb3.robot_envs.robosuite import RobosuiteEnv
from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_6d, rotation_vector

Array = NDArray[np.float64]
Pose = tuple[Array, Array]
Script = Generator[None, None, Any]

TURN = 0.12
"""Radians that the setpoint turns in a step."""
LEASH = (0.08, 0.5)
"""How far the setpoint may be ahead of the hand, in metres and radians: a hand that is held back must not jump."""
PAUSE_STEPS = 5
PATIENCE = 20
"""Steps that the hand is given to follow a setpoint that has arrived."""
LONGEST = 250
"""Steps after which a movement ends in any case."""
TRIES = 4
REACH = 1.75
"""Radians that the wrist turns from its home to either side."""
MISS = 0.06
"""Metres above the object at which the gripper closes when it misses."""
DROP = 0.015
"""Metres above its place from which an object is dropped."""
OPEN, CLOSED = -1.0, 1.0


@dataclass(frozen=True)
class Operator(Graded):
    """Who demonstrates a task of robosuite; lengths are in metres.

    :param quality: ``"better"``, ``"okay"`` or ``"worse"``
    :param speed: What the hand moves in an environment step
    :param hover: Height above an object from which the hand descends to it
    :param arc: Detour on the way, to one side; at 1 the hand sets off at an angle of 45°
    :param jitter: Standard deviation, along each axis, of a slow trembling
    :param pause: Probability per environment step that a pause of 5 steps begins
    :param other_yaw: Probability that an object is grasped from another side than the nearest
    :param scatter: Standard deviation, along x and y, of the error of a grasp
    :param miss: Probability that the first grasp misses
    :param drop: Probability that an object is dropped once, and grasped again
    """

    speed: float
    hover: float
    arc: float
    jitter: float
    pause: float
    other_yaw: float
    scatter: float
    miss: float
    drop: float


def about_z(angle: float) -> Array:
    """Return the rotation by an angle about the world's z axis."""
    return matrix_of_vector(np.array([0.0, 0.0, angle]))


def downwards(yaw: float) -> Array:
    """Return the rotation of a gripper that points down; its fingers slide along (cos yaw, sin yaw)."""
    down: Array = about_z(yaw) @ np.diag([1.0, -1.0, -1.0])
    return down


def yaw_of(rotation: Array) -> float:
    """Return the angle of a rotation's x axis in the plane."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


class Arm:
    """One arm in an operator's hands.

    :param env: The environment, which has just been reset
    :param index: Which arm
    :param operator: Who moves it
    :param rng: Source of all randomness
    """

    def __init__(self, env: RobosuiteEnv, index: int, operator: Operator, rng: np.random.Generator) -> None:
        self.operator, self.rng = operator, rng
        self.home = env.task.homes[index]
        self._data = env.data
        self._site = env.simulation.robots[index].eef_site_id["right"]
        self._position, self._rotation = self.pose()
        self._grip = OPEN
        self._tremor = np.zeros(3)
        self._pause_left = 0

    def pose(self) -> Pose:
        """Return position and rotation of the grip site."""
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def yaw(self) -> float:
        """Return the gripper's angle."""
        return yaw_of(self.pose()[1])

    def command(self) -> Array:
        """Return the action (10,) of this arm; to be called once a step."""
        # Correlated over some ten steps, with the same spread at all times.
        self._tremor = 0.9 * self._tremor + np.sqrt(1 - 0.9**2) * self.rng.normal(0.0, 1.0, 3) * self.operator.jitter
        return np.concatenate([self._position + self._tremor, rotation_6d(self._rotation), [self._grip]])

    def nearest_yaw(self, yaw: float, period: float) -> float:
        """Return the angle within reach that looks the same as ``yaw``, usually the nearest to home.

        :param yaw: An angle of the gripper
        :param period: Angle after which it looks the same again
        """
        steps = np.arange(-np.ceil(2 * np.pi / period) - 1, np.ceil(2 * np.pi / period) + 2)
        distances = (yaw - self.home + np.pi) % (2 * np.pi) - np.pi + period * steps
        reachable = sorted(distances[abs(distances) <= REACH], key=abs)
        other = len(reachable) > 1 and self.rng.random() < self.operator.other_yaw
        return self.home + float(reachable[1 if other else 0])

    def move(
        self,
        target: Callable[[], Pose],
        speed: float = 1.0,
        tolerance: float = 0.012,
        until: Callable[[], bool] = lambda: False,
    ) -> Script:
        """Move until the hand is there, or will not come nearer.

        :param target: Where to; asked anew every step, because things move
        :param speed: Share of the operator's speed
        :param tolerance: Distance in metres that counts as there
        :param until: Ends the movement early
        """
        side = self.rng.choice([-1.0, 1.0]) * self.operator.arc
        patience = PATIENCE
        for _ in range(LONGEST):
            arrived = self._step(*target(), speed, side)
            yield
            patience -= arrived
            there = arrived and np.linalg.norm(self.pose()[0] - target()[0]) < tolerance
            if there or until() or not patience:
                return

    def grip(self, value: float, steps: int) -> Script:
        """Open or close the gripper and hold still.

        :param value: :data:`OPEN` or :data:`CLOSED`
        :param steps: Environment steps
        """
        self._grip = value
        yield from self.wait(steps)

    def wait(self, steps: int) -> Script:
        """Hold still."""
        for _ in range(steps):
            yield

    def _step(self, position: Array, rotation: Array, speed: float, side: float) -> bool:
        if self._pause_left or self.rng.random() < self.operator.pause:
            self._pause_left = self._pause_left - 1 if self._pause_left else PAUSE_STEPS - 1
            return False
        length = speed * self.operator.speed
        way = position - self._position
        if np.linalg.norm(way[:2]) > 2 * length:
            way = way + side * np.array([-way[1], way[0], 0.0])
        here, facing = self.pose()
        moved = self._position + _shortened(way, length)
        turned = (
            matrix_of_vector(_shortened(rotation_vector(rotation @ self._rotation.T), speed * TURN)) @ self._rotation
        )
        self._position = here + _shortened(moved - here, LEASH[0])
        self._rotation = matrix_of_vector(_shortened(rotation_vector(turned @ facing.T), LEASH[1])) @ facing
        off = np.linalg.norm(rotation_vector(rotation @ self._rotation.T))
        return bool(np.linalg.norm(position - self._position) < 1e-3 and off < 0.01)


def _shortened(vector: Array, length: float) -> Array:
    norm = float(np.linalg.norm(vector))
    return vector if norm <= length else vector * (length / norm)


def pick(
    arm: Arm,
    grasp: Callable[[], Array],
    yaw: Callable[[], float],
    top: float,
    height: Callable[[], float],
    walls: float = 0.0,
) -> Generator[None, None, bool]:
    """Grasp an object from above and raise it, again if it does not come along.

    :param arm: Who
    :param grasp: Where the fingers close
    :param yaw: The gripper's angle, asked once for each try
    :param top: Height to which the hand is raised
    :param height: The object's height
    :param walls: Height below which the hand must not come from the side
    :return: Whether it came along
    """
    operator, rng = arm.operator, arm.rng
    misses, drops = rng.random() < operator.miss, rng.random() < operator.drop
    for _ in range(TRIES):
        rotation, before = downwards(yaw()), height()
        error = np.append(np.clip(rng.normal(0.0, 1.0, 2) * operator.scatter, -0.012, 0.012), MISS * misses)
        yield from arm.grip(OPEN, 1)
        yield from arm.move(partial(_hover, grasp, rotation, operator.hover, walls))
        yield from arm.move(partial(_shifted, grasp, rotation, error), 0.6, 0.006)
        yield from arm.grip(CLOSED, 8)
        missed, misses = misses, False
        if drops and not missed:
            drops = False
            yield from arm.move(_raised(arm, arm.pose()[0][2] + DROP))
            yield from arm.grip(OPEN, 6)
            continue
        yield from arm.move(_raised(arm, top))
        if height() > before + 0.5 * (top - before) - 0.03:
            return True
    return False


def _hover(place: Callable[[], Array], rotation: Array, hover: float, walls: float) -> Pose:
    x, y, z = place()
    return np.array([x, y, max(z + hover, walls)]), rotation


def _shifted(place: Callable[[], Array], rotation: Array, offset: Array) -> Pose:
    return place() + offset, rotation


def _raised(arm: Arm, height: float) -> Callable[[], Pose]:
    (x, y, _), rotation = arm.pose()
    return lambda: (np.array([x, y, height]), rotation)
