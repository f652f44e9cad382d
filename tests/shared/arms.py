"""A kinematic robot and a synthetic camera, to test what is between a driver and a policy without physics.

The arms go straight and at no more than a speed to where they were told, in the time that really passes. What hardware
does wrong can be switched on: it does not answer, a camera shows the same frame for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.robots import Arm, Camera, Frame, Robot, RobotError, Station, Values

ONE_ARM: Mapping[str, Arm] = {"arm": Arm("pose", 6)}
TWO_ARMS: Mapping[str, Arm] = {"left": Arm("pose", 7), "right": Arm("pose", 7)}

HOME = {"position": (0.3, 0.0, 0.2), "rotation": (np.pi, 0.0, 0.0), "gripper": (1.0,)}
SPEED = {"position": 1.0, "rotation": 3.0, "joints": 3.0, "gripper": 5.0}  # per second


class KinematicRobot:
    """Arms that go to where they are told at a constant speed; they know neither mass nor walls.

    :param arms: By name
    :param noise: Standard deviation of what is added to what is told, in the value's unit
    :param clock: Seconds; a test's own makes it independent of real time
    """

    def __init__(
        self,
        arms: Mapping[str, Arm] = ONE_ARM,
        noise: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._arms, self._noise, self._clock = dict(arms), noise, clock
        self._random = np.random.default_rng(0)
        self._calling = threading.Lock()
        self._now: Values = {}
        for name, arm in self._arms.items():
            self._now |= {f"{name}/{part}": np.array(value) for part, value in HOME.items()}
            self._now[f"{name}/joints"] = np.zeros(arm.joints)
        self._target = {name: value.copy() for name, value in self._now.items()}
        self._time = clock()
        self.connected = False
        self.broken = False
        """Set it, and the robot no longer answers."""
        self.commands: list[Values] = []
        """All that :meth:`send_action` was given."""
        self.holds, self.homes = 0, 0

    @property
    def arms(self) -> Mapping[str, Arm]:
        return self._arms

    def connect(self) -> None:
        self.connected = True
        self._time = self._clock()

    def get_observation(self) -> Values:
        with self._call():
            return {
                name: value + self._noise * self._random.standard_normal(value.shape)
                for name, value in self._now.items()
            }

    def send_action(self, action: Values) -> None:
        with self._call():
            shapes: dict[str, tuple[int, ...]] = {}
            for name, arm in self._arms.items():
                shapes |= arm.command_shapes(name)
            if {name: np.shape(value) for name, value in action.items()} != shapes:
                raise RobotError(f"A command holds {shapes}")
            if not all(np.isfinite(value).all() for value in action.values()):
                raise RobotError("A command has a value that is not finite")
            self.commands.append({name: np.array(value) for name, value in action.items()})
            self._target |= self.commands[-1]

    def hold(self) -> None:
        with self._call():
            self.holds += 1
            self._target = {name: value.copy() for name, value in self._now.items()}

    def home(self) -> None:
        """At once, so that tests do not wait."""
        with self._call():
            self.homes += 1
            for name, arm in self._arms.items():
                self._now |= {f"{name}/{part}": np.array(value) for part, value in HOME.items()}
                self._now[f"{name}/joints"] = np.zeros(arm.joints)
            self._target = {name: value.copy() for name, value in self._now.items()}

    def disconnect(self) -> None:
        self.connected = False

    def _call(self) -> _Call:
        return _Call(self)

    def _move(self) -> None:
        now = self._clock()
        seconds, self._time = now - self._time, now
        for name, target in self._target.items():
            way = target - self._now[name]
            far = float(np.linalg.norm(way))
            reach = SPEED[name.rpartition("/")[2]] * seconds
            self._now[name] = target.copy() if far <= reach else self._now[name] + way * (reach / far)


class _Call:
    """One call of a driver: refused when another thread is in one, moves the arms to the present."""

    def __init__(self, robot: KinematicRobot) -> None:
        self._robot = robot

    def __enter__(self) -> None:
        if not self._robot._calling.acquire(blocking=False):
            raise AssertionError("A driver is called from one thread at a time")
        try:
            if not self._robot.connected:
                raise RobotError("The robot is not connected")
            if self._robot.broken:
                raise RobotError("The robot does not answer")
            self._robot._move()
        except BaseException:
            self._robot._calling.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._robot._calling.release()


class SyntheticCamera:
    """A gradient with a bar that moves by one column per frame, so that every frame differs from the one before.

    :param size: Height and width
    :param rate: Frames per second
    :param clock: As the robot's
    """

    def __init__(
        self, size: tuple[int, int] = (48, 64), rate: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._size, self._rate, self._clock = size, rate, clock
        self._start = clock()
        self._frozen: float | None = None
        self.connected = False

    def connect(self) -> None:
        self.connected = True
        self._start = self._clock()

    def freeze(self) -> None:
        """Show the same frame from now on, older and older."""
        self._frozen = self._clock()

    def thaw(self) -> None:
        self._frozen = None

    def read(self) -> Frame:
        if not self.connected:
            raise RobotError("The camera is not connected")
        now = self._clock()
        seen = now if self._frozen is None else self._frozen
        number = int((seen - self._start) * self._rate)
        return Frame(self._image(number), number, max(0.0, now - (self._start + number / self._rate)))

    def disconnect(self) -> None:
        self.connected = False

    def _image(self, number: int) -> NDArray[np.uint8]:
        height, width = self._size
        image = np.empty((height, width, 3), np.uint8)
        image[..., 0] = np.linspace(0, 255, width)[None, :]
        image[..., 1] = np.linspace(0, 255, height)[:, None]
        image[..., 2] = 64
        image[:, number % width] = 255
        return image


def kinematic_station(arms: Mapping[str, Arm] = ONE_ARM, cameras: tuple[str, ...] = ("front",)) -> Station:
    """Return a robot and its cameras, not connected."""
    robot: Robot = KinematicRobot(arms)
    pictures: dict[str, Camera] = {name: SyntheticCamera() for name in cameras}
    return Station(robot, pictures)
