"""How a person does the two tasks, with the faults that people have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.demonstrators import Graded
from zprl_sb3.robot_envs.real.robots import Values
from zprl_sb3.robot_envs.real.simulated.scenes import TrayScene
from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_vector

Array = NDArray[np.float64]
Moves = Iterator[None]
"""One item per look at the leader."""

ABOVE = np.array([0.0, 0.0, 0.1])
DOWN = np.diag([1.0, -1.0, -1.0])
"""Rotation of a hand that points down."""
REACHED = 0.008
"""How far the arm may be from its leader when the person goes on, in metres."""
PATIENCE = 1.0
"""Seconds after which the person goes on anyhow, e.g. because the arm is blocked."""
SMOOTH = 0.12
"""Time constant of a hand's acceleration, in seconds."""
TREMBLE, TURN = 0.3, 1.0
"""Time constants of its tremor and of its turning."""


@dataclass(frozen=True)
class Operator(Graded):
    """Who demonstrates a task of the simulated robot.

    :param quality: ``"better"``, ``"okay"`` or ``"worse"``
    :param speed: Of the hand, in m/s
    :param tremor: Standard deviation of the hand's tremor, in metres
    :param turn: Standard deviation of the hand's slow turning about each axis, in radians. Without any, a policy learns
        from a hand that is never turned, and does not know what to do once its own is
    :param pause: Pauses per second, each of half a second
    :param offset: Standard deviation of the error with which a place is judged, in metres, drawn for each attempt
    :param miss: Probability that an attempt begins with a miss, 2 to 4 cm beside it
    """

    speed: float
    tremor: float
    turn: float
    pause: float
    offset: float
    miss: float


class Hand:
    """A person's hand at a leader arm: moves it with limited speed, and looks at what follows.

    :param name: Of the arm that follows
    :param operator: Whose hand
    :param rng: Source of all chance
    :param state: What the simulation says now, see :meth:`~.simulation.Simulation.state`
    """

    def __init__(self, name: str, operator: Operator, rng: np.random.Generator, state: Mapping[str, Any]) -> None:
        self.operator, self._name, self._rng = operator, name, rng
        self._state, self._step = state, 0.0
        self._position, self._yaw, self._gripper = self.value(f"{name}/position"), 0.0, 1.0
        self._velocity, self._tremor, self._turned, self._rest = np.zeros(3), np.zeros(3), np.zeros(3), 0.0

    def see(self, state: Mapping[str, Any]) -> None:
        """Look: at how it stands now."""
        # Rounded: the same demonstration again, at another time, is the same to the last bit.
        self._step = round(min(max(state["time"] - self._state["time"], 0.0), 0.2), 6)
        self._state = state
        self._tremor = self._wander(self._tremor, self.operator.tremor, TREMBLE)
        self._turned = self._wander(self._turned, self.operator.turn, TURN)

    def held(self) -> Values:
        """Return where the leader is held: position, rotation and gripper."""
        return {
            "position": self._position + self._tremor,
            "rotation": rotation_vector(matrix_of_vector(self._turned + np.array([0.0, 0.0, self._yaw])) @ DOWN),
            "gripper": np.array([self._gripper]),
        }

    def value(self, name: str) -> Array:
        """Return a true value."""
        return np.array(self._state["values"][name])

    def judged(self) -> Array:
        """Return by how much a place is misjudged this time (3,)."""
        error: Array = np.append(self._rng.normal(0.0, self.operator.offset, 2), 0.0)
        if self._rng.random() < self.operator.miss:
            angle, distance = self._rng.uniform(0.0, 2.0 * np.pi), self._rng.uniform(0.02, 0.04)
            error[:2] += distance * np.array([np.cos(angle), np.sin(angle)])
        return error

    def go(self, goal: Array, yaw: float = 0.0, slowly: float = 1.0) -> Moves:
        """Move to a place, and wait until the arm has followed."""
        waited = 0.0
        while True:
            self._move(goal, yaw, self.operator.speed * slowly)
            there = np.linalg.norm(self._position - goal) < REACHED / 2.0
            waited += self._step if there else 0.0
            follows = np.linalg.norm(self.value(f"{self._name}/position") - self._position) < REACHED
            if there and (follows or waited > PATIENCE):
                return
            yield

    def grip(self, opening: float, seconds: float = 0.35) -> Moves:
        """Open or close the gripper, and wait."""
        self._gripper = opening
        while seconds > 0.0:
            yield
            seconds -= self._step

    def _wander(self, value: Array, spread: float, seconds: float) -> Array:
        fade = np.exp(-self._step / seconds)
        wandered: Array = fade * value + self._rng.normal(0.0, spread, 3) * np.sqrt(1.0 - fade**2)
        return wandered

    def _move(self, goal: Array, yaw: float, speed: float) -> None:
        if self._rest > 0.0:
            self._rest -= self._step
            self._velocity[:] = 0.0
            return
        if self._rng.random() < self.operator.pause * self._step:
            self._rest = 0.5
        way = goal - self._position
        wanted = way * min(1.0 / (2.0 * SMOOTH), speed / max(float(np.linalg.norm(way)), 1e-9))
        self._velocity += (wanted - self._velocity) * (1.0 - np.exp(-self._step / SMOOTH))
        self._position = self._position + self._velocity * self._step
        turn = 1.5 * self._step
        self._yaw += float(np.clip(yaw - self._yaw, -turn, turn))


def place_orange(hands: Mapping[str, Hand], rng: np.random.Generator) -> Moves:
    """Grasp the orange, as often as it takes, and let it go above the bowl."""
    hand = hands["arm"]
    while True:
        error = hand.judged()
        yield from hand.grip(1.0, 0.1)
        yield from hand.go(hand.value("orange/position") + ABOVE + error)
        yield from hand.go(hand.value("orange/position") + error, slowly=0.6)
        yield from hand.grip(0.0)
        yield from hand.go(hand.value("arm/position") + ABOVE)
        if np.linalg.norm(hand.value("orange/position") - hand.value("arm/position")) > 0.05:
            continue
        error = hand.judged()
        error[2] = 0.08
        yield from hand.go(hand.value("bowl/position") + ABOVE + error)
        yield from hand.go(hand.value("bowl/position") + error, slowly=0.6)
        yield from hand.grip(1.0)
        yield from hand.go(hand.value("arm/position") + ABOVE)
        if np.linalg.norm((hand.value("orange/position") - hand.value("bowl/position"))[:2]) < 0.05:
            return


GRASP = 0.042
"""Height of the hands above the tray's middle when they grasp its rims."""
LIFT = np.array([0.0, 0.0, 0.14])
RIM = 0.194
BESIDE = 0.3
"""Of the arms' bases from the middle, whose frames their poses are in."""


def lift_tray(hands: Mapping[str, Hand], rng: np.random.Generator) -> Moves:
    """Grasp the tray at both ends, and lift it with both hands at once."""
    while True:
        errors = {name: hand.judged() for name, hand in hands.items()}
        yield from _both(hand.grip(1.0, 0.1) for hand in hands.values())
        for height, slowly in ((GRASP + 0.1, 1.0), (GRASP, 0.6)):
            yield from _both(
                hand.go(_rim(hand, name, height) + errors[name], _yaw(hand), slowly) for name, hand in hands.items()
            )
        yield from _both(hand.grip(0.0) for hand in hands.values())
        yield from _both(
            hand.go(hand.value(f"{name}/position") + LIFT, _yaw(hand), 0.5) for name, hand in hands.items()
        )
        if hands["left"].value("tray/position")[2] > TrayScene.height:
            return


def _yaw(hand: Hand) -> float:
    return float(hand.value("tray/rotation")[2])


def _rim(hand: Hand, name: str, height: float) -> Array:
    side = 1.0 if name == "left" else -1.0
    rim = matrix_of_vector([0.0, 0.0, _yaw(hand)]) @ [0.0, side * RIM, height]
    place: Array = hand.value("tray/position") + rim - [0.0, side * BESIDE, 0.0]
    return place


def _both(moves: Iterable[Moves]) -> Moves:
    """Make several moves at once, until the last one has ended."""
    for _ in zip_longest(*moves):
        yield


Plan = Callable[[Mapping[str, Hand], np.random.Generator], Moves]
PLANS: dict[str, Plan] = {"orange": place_orange, "tray": lift_tray}
