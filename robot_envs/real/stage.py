"""A robot and its cameras as the environment uses them: held throughout a fault, stopped until a person clears it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.following import NEAR, distance
from zprl_sb3.robot_envs.real.frames import Frames, Images, StaleCamera
from zprl_sb3.robot_envs.real.robots import RobotError, Station, Stopped, Values

if TYPE_CHECKING:
    from zprl_sb3.robot_envs.real.person import Person
    from zprl_sb3.robot_envs.real.tasks import Task


class Stage:
    """What episodes happen on.

    :param station: Robot and cameras, not connected
    :param task: What they are used for
    :raises RobotError: If arms or cameras are not the task's
    """

    def __init__(self, station: Station, task: Task) -> None:
        self._station, self._task = station, task
        self._robot: Any = station.robot  # a Guard, perhaps over the network, can be stopped and cleared
        self._eyes = Frames(station.cameras, task.views)
        self._connected = self._failed = False
        self._latched: str | None = None
        self._before: Counter[str] = Counter()  # of limits, when the episode began

    @property
    def frames(self) -> Images:
        """What the cameras gave last, for people."""
        return self._eyes.latest

    def connect(self) -> None:
        """Connect to robot and cameras.

        :raises RobotError: If one cannot be connected, or the arms are not the task's
        """
        self._station.connect()
        self._connected = True
        if dict(self._robot.arms) != self._task.arms:
            self.close()
            raise RobotError(
                f"The robot has the arms {dict(self._robot.arms)}, {self._task.path} says {self._task.arms}: "
                "correct arms and control.representation there"
            )

    def prepare(self, person: Person) -> bool:
        """Bring the robot to where episodes begin, and wait for the scene to be set.

        :return: Whether it is; not if the person wants no further episode
        :raises RobotError: If something is wrong with robot or cameras
        """
        if self._failed:
            person.show("preparing", "Connecting to the robot again", self.frames)
            self._connect_again()
        while self.stopped is not None and person.clears(self):
            self._clear()
        if person.quit:
            return False
        person.show("preparing", "The robot goes home: keep away from it", self.look())
        # Said before there was a robot to stop, or while the last stop was being cleared: going home asks nobody.
        person.refuse_stop(self)
        self._robot.hold()
        self._robot.home()
        ready = person.sets_scene(self)
        self._eyes.begin()
        self._before = self._counts()
        return ready

    def recover(self, person: Person, fault: Exception) -> None:
        """Hold, tell the person what is wrong, and wait a little before it is tried again.

        Nothing is let go of: arms that do not hold by themselves would fall.
        """
        self.hold()
        if isinstance(fault, RobotError) and not isinstance(fault, (StaleCamera, Stopped)):
            self._failed = True
        person.told(self, f"{fault}. Trying again")

    def observe(self) -> tuple[Values, Images]:
        """Return what the robot and its cameras tell now.

        :raises RobotError: If one does not answer, or shows what is over
        """
        values = self._robot.get_observation()
        wrong = [name for name, value in values.items() if not np.isfinite(value).all()]
        if wrong:
            raise RobotError(f"The robot tells values of {', '.join(wrong)} that are not finite")
        return values, self._eyes.read()

    def look(self) -> Mapping[str, NDArray[np.uint8]]:
        """Return what people should see of the cameras, as far as they answer."""
        if not self._connected or self._failed:
            return self.frames
        with suppress(RobotError):
            self._robot.get_observation()  # so that a robot elsewhere tells whether it was stopped there
        return self._eyes.look()

    def send(self, command: Values) -> None:
        """Tell the robot where to be.

        :raises Stopped: While it is stopped
        :raises RobotError: If it does not take it
        """
        if self._latched is not None:
            raise Stopped(self._latched)
        self._robot.send_action(command)

    def approach(self, command: Values) -> str:
        """Have the arms go slowly to where a command has them, and return what is far from there still; "" once near.

        :raises Stopped: While the robot is stopped
        :raises RobotError: If it does not take it
        """
        if self._latched is not None:
            raise Stopped(self._latched)
        here = self._robot.get_observation()
        ways = {name: distance(name, here[name], value) for name, value in command.items()}
        far = [f"{name} by {way:.2f}" for name, way in ways.items() if way > NEAR[name.rsplit("/", 1)[1]]]
        if far:
            self._robot.approach(command)
        return ", ".join(far)

    def hold(self) -> None:
        """Stay where the arms are, if the robot can still be told so; otherwise its watchdog sees to it."""
        with suppress(RobotError):
            self._robot.hold()

    def stop(self, reason: str = "A person stopped the robot") -> None:
        """Stop the robot until a person clears it. The one method that other threads may call.

        :raises RobotError: If that did not reach the robot
        """
        self._latched = reason
        if hasattr(self._robot, "stop"):
            self._robot.stop(reason)

    @property
    def stopped(self) -> str | None:
        """Why the robot is stopped; None if it is not."""
        return self._latched or getattr(self._robot, "stopped", None)

    def _clear(self) -> None:
        if hasattr(self._robot, "clear"):
            self._robot.clear()
        self._latched = None

    def limited(self) -> dict[str, int]:
        """Return how often each limit was in the way since the scene was set, as far as the robot tells."""
        return {name: count for name, count in (self._counts() - self._before).items() if count}

    def _counts(self) -> Counter[str]:
        return Counter(getattr(self._robot, "limited", {}))

    def close(self) -> None:
        """Hold, and let go of all."""
        if self._connected:
            self.hold()
        self._let_go()

    def _connect_again(self) -> None:
        for part in (self._robot, *self._station.cameras.values()):
            part.connect()
        self._failed = False

    def _let_go(self) -> None:
        self._connected = False
        with suppress(RobotError):
            self._station.disconnect()
