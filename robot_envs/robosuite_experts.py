"""Scripted experts for robosuite's tasks, which know where everything is: one script for each task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.robosuite import RobosuiteEnv
from zprl_sb3.robot_envs.robosuite_executor import (
    CLOSED,
    OPEN,
    Arm,
    Array,
    Operator,
    Pose,
    Script,
    about_z,
    downwards,
    pick,
    yaw_of,
)
from zprl_sb3.robot_envs.rotations import matrix_of_vector


class ScriptedDemonstrator:
    """The expert of a robosuite task with an operator's faults, for one episode.

    :param env: The environment to act in, wrapped or not, which has just been reset
    :param operator: How well it acts
    :param rng: Source of all randomness of this episode
    :raises ValueError: If the environment is not one of robosuite's
    """

    def __init__(self, env: gym.Env[Any, Any], operator: Operator, rng: np.random.Generator) -> None:
        simulated = env.unwrapped
        if not isinstance(simulated, RobosuiteEnv):
            raise ValueError(f"These scripted demonstrators know robosuite's tasks only, not {env}")
        self.operator = operator
        self._arms = [Arm(simulated, k, operator, rng) for k in range(len(simulated.task.homes))]
        self._scripts = SCRIPTS[simulated.name](simulated, *self._arms)

    def act(self) -> NDArray[np.float32]:
        """Return the next action, 10 values for each arm, for the environment's present state."""
        for script in self._scripts:
            next(script, None)  # An arm that is done holds still.
        return np.concatenate([arm.command() for arm in self._arms]).astype(np.float32)


def _body(env: RobosuiteEnv, body: int) -> Callable[[], Pose]:
    data = env.data
    return lambda: (data.xpos[body].copy(), data.xmat[body].reshape(3, 3).copy())


def lift(env: RobosuiteEnv, arm: Arm) -> list[Script]:
    """Raise the cube."""
    cube = _body(env, env.simulation.cube_body_id)

    def script() -> Script:
        yield from pick(
            arm,
            grasp=lambda: cube()[0],
            yaw=lambda: arm.nearest_yaw(yaw_of(cube()[1]), np.pi / 2),
            top=cube()[0][2] + 0.12,
            height=lambda: float(cube()[0][2]),
        )

    return [script()]


def can(env: RobosuiteEnv, arm: Arm) -> list[Script]:
    """Put the can into its bin."""
    simulation = env.simulation
    body = _body(env, simulation.obj_body_id["Can"])
    goal = simulation.target_bin_placements[simulation.object_id]
    middle, half = simulation.bin1_pos[1], simulation.bin_size[1] / 2

    def place() -> Array:
        return body()[0]

    def yaw() -> float:
        # Beside a wall along x there is no room for the fingers across it.
        near_wall = half - abs(place()[1] - middle) < 0.08
        return arm.nearest_yaw(arm.home + (np.pi / 2 if near_wall else 0.0), np.pi)

    def script() -> Script:
        if not (yield from pick(arm, place, yaw, top=SAFE, height=lambda: float(place()[2]))):
            return
        yield from _put(arm, goal[0], goal[1], 0.93)

    return [script()]


def square(env: RobosuiteEnv, arm: Arm) -> list[Script]:
    """Put the square nut over its peg."""
    simulation = env.simulation
    nut = _body(env, simulation.obj_body_id["SquareNut"])
    peg = env.data.xpos[simulation.peg1_body_id].copy()

    def handle() -> Array:
        position, rotation = nut()
        return position + rotation[:, 0] * HANDLE

    def final_yaw() -> float:
        # The least turn of the four; a handle that points away from the robot is out of reach.
        yaw = yaw_of(nut()[1])
        turned = [_wrapped(arm.yaw() + _wrapped(final - yaw) - arm.home) for final in NUT_YAWS]
        return float(NUT_YAWS[int(np.argmin(np.abs(turned)))])

    def yaw_to_grip() -> float:
        return arm.nearest_yaw(yaw_of(nut()[1]) + np.pi / 2, np.pi)

    def over_peg(yaw: float, height: Callable[[], float]) -> Pose:
        (position, rotation), hand = nut(), arm.pose()[0]
        turn = _wrapped(yaw - yaw_of(rotation))
        offset = about_z(turn) @ (hand - position)
        return np.append(peg[:2], height()).astype(np.float64) + offset, downwards(arm.yaw() + turn)

    def script() -> Script:
        while (yield from pick(arm, handle, yaw_to_grip, top=1.02, height=lambda: float(nut()[0][2]))):
            yaw = final_yaw()
            above = partial(over_peg, yaw, lambda: 1.03)
            yield from arm.move(above)
            yield from arm.move(above, 0.4, 0.004)
            # The target stays just below the nut: where it is caught on the peg it must not be pressed.
            down = partial(over_peg, yaw, lambda: nut()[0][2] - 0.04)
            yield from arm.move(down, 0.5, 0.0, until=lambda: bool(nut()[0][2] < 0.865))
            yield from arm.grip(OPEN, 5)
            away = handle() + np.array([0.0, 0.0, 0.15])
            rotation = arm.pose()[1]
            yield from arm.move(lambda: (away, rotation))  # noqa: B023

    return [script()]


class Hammer:
    """Transport's payload, and the words with which the two arms hand it over."""

    def __init__(self, env: RobosuiteEnv) -> None:
        self.said: set[str] = set()
        self._group = env.simulation.transport
        self._rotation = _body(env, self._group.payload_body_id)
        # Where the two hands hold the handle, in metres from its middle towards the head. The first holds the end that
        # is farther from its own shoulder: it hardly reaches the other.
        self.given, self.taken = (0.045, -0.05) if self.axis()[1] > 0 else (-0.03, 0.055)

    def axis(self) -> Array:
        """Return the direction from tail to head."""
        return self._rotation()[1][:, 2]

    def yaw(self) -> float:
        """Return the angle of the axis."""
        return float(np.arctan2(self.axis()[1], self.axis()[0]))

    def part(self, distance: float) -> Array:
        """Return the place so far from the handle's middle towards the head."""
        return np.asarray(self._group.payload_pos + distance * self.axis(), dtype=np.float64)

    def held(self, arm: Arm, part: float, place: Array, rotation: Array) -> Pose:
        """Return the pose of the hand that brings a part of the hammer to a place."""
        return arm.pose()[0] + place - self.part(part), rotation

    def wait_for(self, word: str) -> Script:
        """Hold still until the other arm has said something."""
        while word not in self.said:
            yield


def transport(env: RobosuiteEnv, left: Arm, right: Arm) -> list[Script]:
    """Hand the hammer over, from the closed bin into the one that the trash has to leave first."""
    hammer = Hammer(env)
    return [_give_hammer(env, left, hammer), _take_hammer(env, right, hammer)]


def _give_hammer(env: RobosuiteEnv, arm: Arm, hammer: Hammer) -> Script:
    def lid() -> Array:
        return np.array(env.simulation.transport.lid_handle_pos)

    if not (yield from pick(arm, lid, lambda: arm.nearest_yaw(arm.home, np.pi), SAFE, lambda: float(lid()[2]))):
        return
    yield from _put(arm, *LID_PLACE)

    def yaw() -> float:
        return arm.nearest_yaw(hammer.yaw() + np.pi / 2, np.pi)

    height = lambda: float(hammer.part(0.0)[2])  # noqa: E731
    if not (yield from pick(arm, lambda: hammer.part(hammer.given), yaw, SAFE, height, WALLS)):
        return
    # The head points along x and so past the other hand; the hand leans back, to leave it room.
    rotation = matrix_of_vector(np.array([LEAN, 0.0, 0.0])) @ downwards(arm.yaw() - hammer.yaw())
    yield from arm.move(lambda: hammer.held(arm, 0.0, HAND_OVER, rotation), CARRYING)
    hammer.said.add("offered")
    yield from hammer.wait_for("taken")
    yield from arm.grip(OPEN, 6)
    back = arm.pose()[0] - 0.15 * rotation[:, 2]
    yield from arm.move(lambda: (back, rotation))
    hammer.said.add("left")


def _take_hammer(env: RobosuiteEnv, arm: Arm, hammer: Hammer) -> Script:
    group = env.simulation.transport
    trash = _body(env, group.trash_body_id)

    def yaw() -> float:
        return arm.nearest_yaw(yaw_of(trash()[1]), np.pi / 2)

    if not (yield from pick(arm, lambda: trash()[0], yaw, SAFE, lambda: float(trash()[0][2]), WALLS)):
        return
    yield from _put(arm, group.trash_bin_pos[0], group.trash_bin_pos[1], 0.93)
    yield from hammer.wait_for("offered")

    def grasp(back: float) -> Pose:
        # Across the handle as it is held, which droops; from the other hand's opposite side.
        y, towards = -hammer.axis(), np.array([0.0, -np.sin(LEAN), -np.cos(LEAN)])
        z = towards - (towards @ y) * y
        z /= np.linalg.norm(z)
        return hammer.part(hammer.taken) - back * z, np.stack([np.cross(y, z), y, z], axis=1)

    yield from arm.move(lambda: grasp(0.10))
    yield from arm.move(lambda: grasp(0.0), 0.6, 0.006)
    yield from arm.grip(CLOSED, 8)
    hammer.said.add("taken")
    yield from hammer.wait_for("left")
    x, y, _ = group.target_bin_pos
    for z in (SAFE, 0.93):
        above = np.array([x, y, z])
        yield from arm.move(partial(hammer.held, arm, 0.026, above, downwards(-np.pi / 2)), CARRYING)
    yield from arm.grip(OPEN, 6)


def _put(arm: Arm, x: float, y: float, height: float) -> Script:
    rotation = downwards(arm.yaw())
    high, low = (np.array([x, y, z]) for z in (SAFE, height))
    yield from arm.move(lambda: (high, rotation))
    yield from arm.move(lambda: (low, rotation))
    yield from arm.grip(OPEN, 6)
    yield from arm.move(lambda: (high, rotation))


HANDLE = 0.054
"""Metres from the nut's centre to where it is gripped, along its x axis."""
NUT_YAWS = (np.pi / 2, np.pi, -np.pi / 2)
SAFE = 1.08
"""Height in metres at which nothing is in the way."""
WALLS = 1.02
"""Height in metres above which an open hand passes over the bins' walls."""
LEAN = np.deg2rad(50.0)
"""Angle of the hands towards each other where the hammer changes hands."""
CARRYING = 0.7
"""Share of the usual speed at which the hammer does not slip."""
HAND_OVER = np.array([0.05, 0.0, 1.12])
LID_PLACE = (-0.2, -0.45, 0.84)


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


SCRIPTS: dict[str, Callable[..., list[Script]]] = {"lift": lift, "can": can, "square": square, "transport": transport}
