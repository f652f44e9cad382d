"""What a policy sees and says of poses, and what robots call them: numbers in a row here, names there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from zprl_sb3.robot_envs.real.robots import Arm, Values
from zprl_sb3.robot_envs.rotations import matrix_of_6d, matrix_of_vector, quaternion_of, rotation_6d, rotation_vector

Array = NDArray[np.float64]
Bounds = Mapping[str, tuple[ArrayLike, ArrayLike]]

ROTATIONS = {"axis_angle": 3, "rotation_6d": 6, "quaternion": 4}
"""Representations of a pose's rotation and how many numbers each takes; quaternions are (x, y, z, w)."""
JOINTS = "joints"
REPRESENTATIONS = (*ROTATIONS, JOINTS)
FAR = 2.0  # metres: a position without a workspace is bounded by it, no arm reaches farther
DOWN = np.array([np.pi, 0.0, 0.0])  # a gripper that points down, where axis-angle jumps


class ActionError(ValueError):
    """A policy said what is no action: a value that is not finite, or of the wrong number. The robot was not told."""


class Poses:
    """Turns a policy's actions into a robot's commands, and a robot's values into what a policy sees.

    An action is, arm by arm, position (3) and rotation, or joints, and the gripper (1): absolute targets. Rotations
    that have two numbers for the same thing (axis-angle beyond π, the sign of a quaternion) are told continuously:
    first the one nearest to a gripper that points down, then the one nearest to the last. So they do not jump where
    policies like to be.

    :param arms: By name, in the order of the action
    :param representation: One of :data:`REPRESENTATIONS`; of joints if and only if the arms take them
    :param proprio: Names of what a policy sees, in this order; ``ARM/rotation`` in the representation
    :param sizes: Of further sensors, by name
    :param bounds: Lowest and highest position, joints by the command's name, e.g. ``"arm/position"``
    :raises ValueError: If a name is unknown, or the representation is not the arms'
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        representation: str,
        proprio: Sequence[str],
        sizes: Mapping[str, int] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        if representation not in REPRESENTATIONS:
            raise ValueError(f"representation is one of {', '.join(REPRESENTATIONS)}, not {representation!r}")
        for name, arm in arms.items():
            if (arm.control == JOINTS) != (representation == JOINTS):
                raise ValueError(f"The arm {name!r} takes {arm.control}, actions are {representation}")
        self.arms, self.representation, self.proprio = dict(arms), representation, tuple(proprio)
        self._commands = {key: shape for name, arm in arms.items() for key, shape in arm.command_shapes(name).items()}
        self._bounds = dict(bounds or {})
        self._seen: dict[str, int] = dict(sizes or {})
        for name, arm in arms.items():
            parts = {"position": 3, "rotation": self._rotation_size, "joints": arm.joints, "gripper": 1}
            self._seen |= {f"{name}/{part}": size for part, size in parts.items() if part != "gripper" or arm.gripper}
        for name in self.proprio:
            if name not in self._seen:
                raise ValueError(f"There is no {name!r} to see; there is {', '.join(self._seen)}")
        self._last: dict[str, Array] = {}

    @property
    def _rotation_size(self) -> int:
        return ROTATIONS.get(self.representation, 3)

    @property
    def proprio_size(self) -> int:
        """How many numbers a policy sees of the robot."""
        return sum(self._seen[name] for name in self.proprio)

    @property
    def action_size(self) -> int:
        """A, numbers of an action."""
        return sum(self._size(name, shape) for name, shape in self._commands.items())

    def action_space(self) -> spaces.Box:
        """Return the box of actions (A,), float32."""
        low, high = zip(*(self._box(name, shape[0]) for name, shape in self._commands.items()), strict=True)
        return spaces.Box(np.concatenate(low), np.concatenate(high), dtype=np.float32)

    def _box(self, name: str, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        part = name.rpartition("/")[2]
        if part == "rotation":
            most = 2 * np.pi if self.representation == "axis_angle" else 1.0
            low, high = np.full(self._rotation_size, -most), np.full(self._rotation_size, most)
        else:
            least, most = {"position": (-FAR, FAR), "joints": (-2 * np.pi, 2 * np.pi), "gripper": (0.0, 1.0)}[part]
            given = self._bounds.get(name, (np.full(size, least), np.full(size, most)))
            low, high = (np.broadcast_to(np.asarray(bound, np.float64), (size,)) for bound in given)
        return low.astype(np.float32), high.astype(np.float32)

    def begin(self) -> None:
        """Begin an episode: rotations are told near to a gripper that points down again."""
        self._last.clear()

    def command(self, action: ArrayLike) -> Values:
        """Return what the robot is told.

        :param action: (A,)
        :raises ActionError: If it has another size, a value that is not finite, or numbers that are no rotation
        """
        numbers = np.asarray(action, np.float64)
        if numbers.shape != (self.action_size,):
            raise ActionError(f"An action is {self.action_size} numbers, not an array of shape {numbers.shape}")
        if not np.isfinite(numbers).all():
            raise ActionError(f"The action has values that are not finite: {numbers.tolist()}")
        command: Values = {}
        for name, shape in self._commands.items():
            part, numbers = np.split(numbers, [self._size(name, shape)])
            command[name] = self._vector(part) if name.endswith("/rotation") else part
        return command

    def action(self, values: Values) -> NDArray[np.float32]:
        """Return the action (A,) that sends the robot to where ``values`` are, those of a leader arm for instance."""
        parts = [
            self._rotation(f"action {name}", values[name]) if name.endswith("/rotation") else values[name]
            for name in self._commands
        ]
        return np.concatenate(parts).astype(np.float32)

    def observe(self, values: Values) -> NDArray[np.float32]:
        """Return what a policy sees of the robot (P,).

        :raises KeyError: If the robot does not tell one of the names
        """
        parts = [
            self._rotation(name, values[name]) if name.endswith("/rotation") else np.atleast_1d(values[name])
            for name in self.proprio
        ]
        numbers: NDArray[np.float32] = np.concatenate([part.ravel() for part in parts]).astype(np.float32)
        return numbers

    def positions(self, command: Values) -> Array | None:
        """Return where a command sends the hands, (hands, 3) in metres; None where it tells joints."""
        hands = [value for name, value in command.items() if name.endswith("/position")]
        return np.stack(hands) if hands else None

    def _size(self, name: str, shape: tuple[int, ...]) -> int:
        return self._rotation_size if name.endswith("/rotation") else shape[0]

    def _vector(self, numbers: Array) -> Array:
        """Return axis times angle of a rotation in the representation."""
        if self.representation == "axis_angle":
            return rotation_vector(matrix_of_vector(numbers))
        if self.representation == "quaternion":
            return _vector_of_quaternion(numbers)
        try:
            return rotation_vector(matrix_of_6d(numbers))
        except ValueError as error:
            raise ActionError(str(error)) from error

    def _rotation(self, name: str, vector: Array) -> Array:
        """Return a rotation in the representation, near to how it was told last under this name."""
        if self.representation == "rotation_6d":
            return rotation_6d(matrix_of_vector(vector))
        if self.representation == "quaternion":
            quaternion = quaternion_of(matrix_of_vector(vector))
            near = self._last.get(name, quaternion_of(matrix_of_vector(DOWN)))
            self._last[name] = quaternion if quaternion @ near >= 0 else -quaternion
        else:
            self._last[name] = nearest_vector(vector, self._last.get(name, DOWN))
        return self._last[name]


def nearest_vector(vector: ArrayLike, near: Array) -> Array:
    """Return axis times angle (3,) of the same rotation that is nearest to ``near``, with an angle up to 2π."""
    short = rotation_vector(matrix_of_vector(vector))
    angle = float(np.linalg.norm(short))
    if angle < 1e-6:
        return short
    long: Array = short * (1.0 - 2.0 * np.pi / angle)
    return short if np.linalg.norm(short - near) <= np.linalg.norm(long - near) else long


def _vector_of_quaternion(numbers: Array) -> Array:
    length = float(np.linalg.norm(numbers))
    if length < 1e-6:
        raise ActionError("A quaternion of zeros is no rotation")
    x, y, z, w = numbers / length * (1.0 if numbers[3] >= 0 else -1.0)
    sine = float(np.linalg.norm([x, y, z]))
    if sine < 1e-12:
        return np.zeros(3)
    vector: Array = np.array([x, y, z]) / sine * (2.0 * np.arctan2(sine, w))
    return vector
