"""What a robot, a camera and a person must offer for :class:`~zprl_sb3.robot_envs.real.env.RealRobotEnv`.

Shaped like LeRobot's robots (connect, observe, act, disconnect, context manager). Nothing here imports a driver.

**Values.** What a robot tells and is told are float64 arrays by name, in SI units and in the frame of the arm's base.
For an arm ``left``: ``left/position`` (3,) in metres, ``left/rotation`` (3,), axis times angle in radians,
``left/joints`` (n,) in radians, ``left/gripper`` (1,), 0 closed to 1 open. Other names are sensors: told, never
commanded.

**Time.** ``time.monotonic()`` of the process that is asked, in seconds. Clocks of two computers are never compared:
what crosses the network says how old it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Values = dict[str, NDArray[np.float64]]

STALE = 0.5  # seconds after which what a robot has told is no longer taken for the present, wherever it comes from


class RobotError(RuntimeError):
    """The robot or its connection does not do what it must; the message says what was wrong and what to do."""


class Stopped(RobotError):
    """The robot was stopped, and stays so until a person clears it. The message says why."""


class LeaderError(RobotError):
    """Whoever demonstrates does not tell where the arms are to be. The message says why."""


@dataclass(frozen=True)
class Arm:
    """One arm of a robot.

    :param control: ``"pose"``: commands are ``position`` and ``rotation``; ``"joints"``: they are ``joints``
    :param joints: Number of joints
    :param gripper: Whether it has one, so that commands have ``gripper`` too
    """

    control: str
    joints: int
    gripper: bool = True

    def command_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return name and shape of all that a command to this arm holds."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.control == "pose":
            shapes |= {f"{name}/position": (3,), f"{name}/rotation": (3,)}
        else:
            shapes[f"{name}/joints"] = (self.joints,)
        if self.gripper:
            shapes[f"{name}/gripper"] = (1,)
        return shapes


@runtime_checkable
class Robot(Protocol):
    """One or more arms that are told where to be.

    A driver is such a class. It may be called from one thread at a time only, and its calls are short: none but
    :meth:`connect` and :meth:`home` takes longer than a period of control.
    """

    @property
    def arms(self) -> Mapping[str, Arm]:
        """The arms by name; known before :meth:`connect`."""

    def connect(self) -> None:
        """Connect and take over; the robot holds still.

        Called once more after an error, to end what it left behind (an error of the controller, a port that is gone),
        without letting arms fall that do not hold by themselves.

        :raises RobotError: If that fails
        """

    def get_observation(self) -> Values:
        """Return where the arms are now, and what other sensors tell.

        :raises RobotError: If the robot does not answer
        """

    def send_action(self, action: Values) -> None:
        """Tell the arms where to be next; returns at once. It holds until the next one.

        :param action: What :meth:`Arm.command_shapes` names, for all arms
        :raises RobotError: If the robot does not take it
        """

    def hold(self) -> None:
        """Stay where the arms are now."""

    def home(self) -> None:
        """Bring the arms to where episodes begin, slowly; returns when they are there.

        :raises RobotError: If they do not get there
        """

    def disconnect(self) -> None:
        """Hold, and let go of the connection. May be called twice, and after an error."""


@dataclass(frozen=True)
class Frame:
    """What a camera saw.

    :param image: RGB, uint8 (H, W, 3), upright
    :param number: Counts the frames; the same number is the same frame
    :param age: Seconds since it was taken, when it was asked for
    """

    image: NDArray[np.uint8]
    number: int
    age: float


@runtime_checkable
class Camera(Protocol):
    """A camera that takes frames by itself."""

    def connect(self) -> None:
        """Connect, and return when there is a first frame. May be called twice.

        :raises RobotError: If there is none
        """

    def read(self) -> Frame:
        """Return the latest frame without waiting for the next one."""

    def disconnect(self) -> None:
        """Let go of the camera. May be called twice, and after an error."""


@dataclass(frozen=True)
class Station:
    """A robot and the cameras around it, by name: on this computer, or on another one behind ``zprl robot-server``."""

    robot: Robot
    cameras: Mapping[str, Camera]

    def __enter__(self) -> Station:
        self.connect()
        return self

    def __exit__(self, *_: Any) -> None:
        self.disconnect()

    def connect(self) -> None:
        """Connect all of it.

        :raises RobotError: If a part cannot be; the others are let go of again
        """
        try:
            self.robot.connect()
            for camera in self.cameras.values():
                camera.connect()
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        """Let go of all of it, the robot first."""
        self.robot.disconnect()
        for camera in self.cameras.values():
            camera.disconnect()


class Signal(Enum):
    """What a person says while an episode runs."""

    SUCCESS = "success"
    FAILURE = "failure"  # it cannot succeed any more
    ABORT = "abort"  # forget this episode, e.g. because something was wrong with the scene
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"  # emergency stop
    QUIT = "quit"  # end the session once the episode is over


@dataclass(frozen=True)
class Status:
    """What a person should know.

    :param task: Name of the task
    :param phase: ``"preparing"`` (the robot goes home, say, and nothing is asked for), ``"reset"`` (the scene is to be
        set), ``"running"``, ``"paused"``, ``"judging"``, ``"stopped"``
    :param message: What is waited for, or what is wrong
    :param episode: Number of the episode, from 1
    :param episodes: Episodes that were finished
    :param successes: Of those
    :param seconds: Since the episode began
    """

    task: str
    phase: str
    message: str
    episode: int
    episodes: int
    successes: int
    seconds: float


class Supervisor(Protocol):
    """The person beside the robot: resets the scene, gives the sparse reward, stops what goes wrong.

    All calls come from the environment's thread. None of them blocks: the environment asks again and again and keeps
    the robot still in the meantime, however long a person takes.
    """

    def ready(self) -> bool:
        """Return whether the scene is set for the episode that :meth:`show` has asked it for (once per episode)."""

    def poll(self) -> Signal | None:
        """Return what was said since the last call, the most urgent one: STOP, ABORT, FAILURE, SUCCESS, PAUSE, ...."""

    def verdict(self) -> bool | None:
        """Return whether an episode that ran out of time was a success; None while that is not yet said."""

    def cleared(self) -> bool:
        """Return whether, after an emergency stop, a person has said that the robot may move again."""

    def show(self, status: Status, frames: Mapping[str, NDArray[np.uint8]]) -> None:
        """Show how it stands and what the cameras see; called once per period at most, must be quick."""

    def close(self) -> None:
        """Give back a terminal, end a page."""
