"""The limits of a robot, which hold whatever commands it, and what is no command at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zprl_sb3.robot_envs.real.robots import Arm, RobotError, Values

Array = NDArray[np.float64]
Numbers = tuple[float, ...]

RATE, WATCHDOG = 100.0, 0.5  # set points per second; seconds without a command
LARGEST_TURN = 4 * np.pi  # of a rotation vector; what is longer was never one
# What an arm needs, by its control.
NEEDED = {
    "pose": ("workspace", "speed", "acceleration", "rotation_speed", "rotation_acceleration"),
    "joints": ("joint_low", "joint_high", "joint_speed", "joint_acceleration"),
}


@dataclass(frozen=True)
class Limits:
    """What one arm may do. Lists are taken for tuples, a mapping of ``axis`` and ``angle`` for a cone.

    An arm that is told poses needs ``workspace``, ``speed``, ``acceleration``, ``rotation_speed`` and
    ``rotation_acceleration``; one that is told joints needs ``joint_low``, ``joint_high``, ``joint_speed`` and
    ``joint_acceleration``. The other kind's ranges (joints of the first, workspace of the second) can only be watched,
    not kept: leaving them stops the robot.

    :param workspace: Lowest and highest corner of a box for the position, m
    :param speed: m/s
    :param acceleration: m/s²
    :param rotation_speed: rad/s
    :param rotation_acceleration: rad/s²
    :param step: Greatest distance of a command from the set point, m
    :param rotation_step: Likewise, rad
    :param cone: Axis in the base's frame, and the greatest angle between it and the tool's z axis, rad, at most π/2
    :param joint_low: Lowest joint angles (n,), rad
    :param joint_high: Highest ones
    :param joint_speed: rad/s, of each joint or of all
    :param joint_acceleration: rad/s², of each joint or of all
    :param joint_step: Greatest distance of a command from the set point, rad, of each joint or of all
    :param gripper_speed: Of what it opens, 1/s: 2 from closed to open in half a second
    :raises ValueError: For what is no limit
    """

    workspace: tuple[Numbers, Numbers] | None = None
    speed: float | None = None
    acceleration: float | None = None
    rotation_speed: float | None = None
    rotation_acceleration: float | None = None
    step: float | None = None
    rotation_step: float | None = None
    cone: tuple[Numbers, float] | None = None
    joint_low: Numbers | None = None
    joint_high: Numbers | None = None
    joint_speed: Numbers | float | None = None
    joint_acceleration: Numbers | float | None = None
    joint_step: Numbers | float | None = None
    gripper_speed: float = 2.0

    def __post_init__(self) -> None:
        cone: Any = self.cone
        if isinstance(cone, Mapping):
            if set(cone) != {"axis", "angle"}:
                raise ValueError(f"A cone has an axis and an angle, not {sorted(cone)}")
            object.__setattr__(self, "cone", (cone["axis"], cone["angle"]))
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name), field.name))
        for name in ("speed", "acceleration", "step", "gripper_speed"):
            for key in (name, f"rotation_{name}", f"joint_{name}"):
                value = getattr(self, key, None)
                if value is not None and not np.all(np.asarray(value) > 0):
                    raise ValueError(f"{key} must be above 0, not {value}")
        if self.workspace is not None:
            if [len(corner) for corner in self.workspace] != [3, 3]:
                raise ValueError(f"workspace must be two corners of three numbers, not {self.workspace}")
            _check_range("workspace", *self.workspace)
        if (self.joint_low is None) != (self.joint_high is None):
            raise ValueError("joint_low and joint_high belong together")
        _check_range("joint_low and joint_high", self.joint_low or (), self.joint_high or ())
        _check_cone(self.cone)

    @property
    def box(self) -> tuple[Array, Array] | None:
        """The workspace's corners as arrays (3,)."""
        return None if self.workspace is None else (np.array(self.workspace[0]), np.array(self.workspace[1]))

    @property
    def joints(self) -> tuple[Array, Array] | None:
        """The joints' lowest and highest angles as arrays (n,)."""
        return None if self.joint_low is None else (np.array(self.joint_low), np.array(self.joint_high))

    @property
    def unit_cone(self) -> tuple[Array, float] | None:
        """The cone's axis with length 1, and its angle."""
        if self.cone is None:
            return None
        axis = np.array(self.cone[0])
        return axis / np.linalg.norm(axis), self.cone[1]

    def slower(self, factor: float) -> Limits:
        """Return the same limits with a share of the speeds."""
        speeds = ("speed", "rotation_speed", "joint_speed", "gripper_speed")
        slow = {name: np.multiply(value, factor) for name in speeds if (value := getattr(self, name)) is not None}
        return Limits(**(asdict(self) | slow))


def described(
    limits: Mapping[str, Limits],
    rate: float = RATE,
    watchdog: float = WATCHDOG,
    home: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Return by name, flat and in plain types, what a :class:`~zprl_sb3.robot_envs.real.guard.Guard` enforces.

    The arguments are the guard's. Two computers compare what they return.
    """
    flat: dict[str, Any] = {"rate": rate, "watchdog": watchdog}
    for arm, each in limits.items():
        flat |= {f"{arm}.{name}": value for name, value in asdict(each).items()}
    return flat | {f"{name} at home": [float(each) for each in value] for name, value in (home or {}).items()}


def check_limits(arms: Mapping[str, Arm], limits: Mapping[str, Limits]) -> None:
    """Refuse limits that are missing or do not fit.

    :param arms: The robot's arms by name
    :param limits: Theirs
    :raises ValueError: With the names of arm and limit
    """
    if set(arms) != set(limits):
        raise ValueError(f"The robot's arms are {sorted(arms)}, but there are limits for {sorted(limits)}")
    for name, arm in arms.items():
        if missing := [key for key in NEEDED[arm.control] if getattr(limits[name], key) is None]:
            raise ValueError(f"Arm {name!r} is told {arm.control}: its limits lack {', '.join(missing)}")
        for key in (*NEEDED["joints"], "joint_step"):
            if isinstance(value := getattr(limits[name], key), tuple) and len(value) != arm.joints:
                raise ValueError(f"Arm {name!r} has {arm.joints} joints, but its {key} has {len(value)}")


def checked(action: Mapping[str, ArrayLike], arms: Mapping[str, Arm]) -> Values:
    """Return a command as float64 arrays.

    :param action: What was commanded
    :param arms: To these arms
    :raises RobotError: If something is missing, too much, of another shape, or no number
    """
    shapes = {key: shape for name, arm in arms.items() for key, shape in arm.command_shapes(name).items()}
    if set(action) != set(shapes):
        missing, unknown = sorted(shapes.keys() - action.keys()), sorted(action.keys() - shapes.keys())
        raise RobotError(f"Refused a command for other arms: it lacks {missing}, and nothing is named {unknown}")
    command: Values = {}
    for key, shape in shapes.items():
        try:
            value = np.array(action[key], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise RobotError(f"Refused a command whose {key} is no array of numbers: {action[key]!r}") from error
        if value.shape != shape:
            raise RobotError(f"Refused a command whose {key} has the shape {value.shape} instead of {shape}")
        if not np.isfinite(value).all():
            raise RobotError(f"Refused a command whose {key} is not finite: {value}")
        if key.endswith("/rotation") and np.linalg.norm(value) > LARGEST_TURN:
            raise RobotError(f"Refused a command whose {key} turns more than twice around: {value}")
        command[key] = value
    return command


def _plain(value: Any, name: str) -> Any:
    """Return numbers, or nested sequences of them, as floats and tuples."""
    if value is None:
        return None
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(_plain(item, name) for item in value)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
        raise ValueError(f"{name} must consist of numbers, not {value!r}")
    return float(value)


def _check_range(name: str, low: Numbers, high: Numbers) -> None:
    if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
        raise ValueError(f"{name}: each lowest value must be below its highest, not {low} and {high}")


def _check_cone(cone: tuple[Numbers, float] | None) -> None:
    if cone is None:
        return
    axis, angle = cone
    if len(axis) != 3 or not np.linalg.norm(axis) > 0 or not 0 < angle <= np.pi / 2:
        raise ValueError(
            f"A cone has an axis of three numbers that are not all 0, and an angle in (0, π/2], not {cone}"
        )
