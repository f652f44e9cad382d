"""Scripted experts for robosuite's tasks, which know where everything is: one script for each task."""

from __future__ import annotations

from collections.abc import Callable
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
        if not (yield from pick(arm, place, yaw, top=1.08, height=lambda: float(place()[2]))):
            return
        rotation = downwards(arm.nearest_yaw(yaw_of(arm.pose()[1]), np.pi))
        for height in (1.08, 0.93):
            yield from arm.move(lambda z=height: (np.append(goal[:2], z), rotation))  # type: ignore[misc]
        yield from arm.grip(OPEN, 6)
        yield from arm.move(lambda: (np.append(goal[:2], 1.08), rotation))

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

    def over_peg(yaw: float, height: float) -> Pose:
        (position, rotation), hand = nut(), arm.pose()[0]
        turn = _wrapped(yaw - yaw_of(rotation))
        offset = about_z(turn) @ (hand - position)
        return np.append(peg[:2], height) + offset, downwards(arm.yaw() + turn)

    def script() -> Script:
        yaw_to_grip = lambda: arm.nearest_yaw(yaw_of(nut()[1]) + np.pi / 2, np.pi)  # noqa: E731
        while True:
            if not (yield from pick(arm, handle, yaw_to_grip, top=1.02, height=lambda: float(nut()[0][2]))):
                return
            yaw = final_yaw()
            yield from arm.move(lambda: over_peg(yaw, 1.03))
            yield from arm.move(lambda: over_peg(yaw, 1.03), 0.4, 0.004)
            # The target stays just below the hand: a nut that is caught on the peg must not be pressed.
            down = lambda: over_peg(yaw, nut()[0][2] - 0.04)  # noqa: E731
            yield from arm.move(down, 0.5, 0.0, until=lambda: nut()[0][2] < 0.865)
            yield from arm.grip(OPEN, 5)
            yield from arm.move(lambda: (handle() + [0.0, 0.0, 0.15], arm.pose()[1]))

    return [script()]


def transport(env: RobosuiteEnv, left: Arm, right: Arm) -> list[Script]:
    """Hand the hammer over, from the closed bin into the one that the trash has to leave first."""
    group = env.simulation.transport
    done: set[str] = set()
    lean = {left: matrix_of_vector(np.array([LEAN, 0.0, 0.0])), right: matrix_of_vector(np.array([-LEAN, 0.0, 0.0]))}

    def axis() -> Array:
        """Return the direction from the hammer's tail to its head."""
        direction: Array = env.data.xmat[group.payload_body_id].reshape(3, 3)[:, 2]
        return direction

    def along_hammer(distance: float) -> Array:
        return np.asarray(group.payload_pos + distance * axis())

    def held_at(arm: Arm, place: Array, part: float, rotation: Array) -> Pose:
        """Return the hand's pose with a part of the hammer, so far from its centre, at a place."""
        return arm.pose()[0] + place - along_hammer(part), rotation

    def put(arm: Arm, x: float, y: float, height: float) -> Script:
        rotation = downwards(arm.yaw())
        for z in (SAFE, height):
            yield from arm.move(lambda z=z: (np.array([x, y, z]), rotation))  # type: ignore[misc]
        yield from arm.grip(OPEN, 6)
        yield from arm.move(lambda: (np.array([x, y, SAFE]), rotation))

    def left_script() -> Script:
        lid = lambda: group.lid_handle_pos  # noqa: E731
        if not (yield from pick(left, lid, lambda: left.nearest_yaw(left.home, np.pi), SAFE, lambda: lid()[2])):
            return
        yield from put(left, *LID_PLACE)
        yaw = lambda: left.nearest_yaw(np.arctan2(axis()[1], axis()[0]) + np.pi / 2, np.pi)  # noqa: E731
        if not (yield from pick(left, lambda: along_hammer(-0.045), yaw, SAFE, lambda: group.payload_pos[2])):
            return
        rotation = lean[left] @ downwards(np.pi / 2)
        yield from left.move(lambda: held_at(left, HAND_OVER, 0.0, rotation))
        done.add("offered")
        while "taken" not in done:
            yield
        yield from left.grip(OPEN, 6)
        position = left.pose()[0] - 0.15 * rotation[:, 2]
        yield from left.move(lambda: (position, rotation))
        done.add("left")

    def right_script() -> Script:
        trash = lambda: group.trash_pos  # noqa: E731
        yaw = lambda: right.nearest_yaw(_yaw_of_body(env, group.trash_body_id), np.pi / 2)  # noqa: E731
        if not (yield from pick(right, trash, yaw, SAFE, lambda: trash()[2])):
            return
        yield from put(right, *group.trash_bin_pos[:2], 0.93)

        def grasp(back: float) -> Pose:
            rotation = about_z(np.arctan2(axis()[1], axis()[0])) @ lean[right] @ downwards(-np.pi / 2)
            return along_hammer(0.05) - back * rotation[:, 2], rotation

        while "offered" not in done:
            yield
        yield from right.move(lambda: grasp(0.10))
        yield from right.move(lambda: grasp(0.0), 0.6, 0.006)
        yield from right.grip(CLOSED, 8)
        done.add("taken")
        while "left" not in done:
            yield
        bin_place, rotation = group.target_bin_pos, downwards(-np.pi / 2)
        for z in (SAFE, 0.93):
            above = np.append(bin_place[:2], z)
            yield from right.move(lambda above=above: held_at(right, above, 0.026, rotation))  # type: ignore[misc]
        yield from right.grip(OPEN, 6)

    return [left_script(), right_script()]


def _yaw_of_body(env: RobosuiteEnv, body: int) -> float:
    return yaw_of(env.data.xmat[body].reshape(3, 3))


HANDLE = 0.054
"""Metres from the nut's centre to where it is gripped, along its x axis."""
NUT_YAWS = (np.pi / 2, np.pi, -np.pi / 2)
SAFE = 1.08
"""Height in metres at which nothing is in the way."""
LEAN = np.deg2rad(50.0)
"""Angle of the hands towards each other where the hammer changes hands."""
HAND_OVER = np.array([0.05, 0.0, 1.12])
LID_PLACE = (-0.2, -0.45, 0.84)


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


SCRIPTS: dict[str, Callable[..., list[Script]]] = {"lift": lift, "can": can, "square": square, "transport": transport}
