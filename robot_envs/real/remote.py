"""A robot and cameras behind ``zprl robot-server``, as if they were here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zprl_sb3.robot_envs.real import KEYS, messages
from zprl_sb3.robot_envs.real.connection import TIMEOUT, Connection
from zprl_sb3.robot_envs.real.keys import read_client_keys
from zprl_sb3.robot_envs.real.orders import HANGS, RECOVERY
from zprl_sb3.robot_envs.real.robots import STALE, Arm, Frame, RobotError, Station, Stopped, Values
from zprl_sb3.robot_envs.real.safety import checked

KEY = f"{KEYS}/robot.key"
POLL = 0.1  # seconds between two questions whether the robot is home, or its driver connected anew


class RemoteRobot:
    """A robot behind a server, which keeps its limits; see :class:`~zprl_sb3.robot_envs.real.guard.Guard`.

    :param connection: To the server
    :param urgent: To the same one, for stops: they wait for no answer to something else
    :param arms: The robot's arms
    """

    def __init__(self, connection: Connection, urgent: Connection, arms: Mapping[str, Arm]) -> None:
        self.connection, self._urgent, self._arms = connection, urgent, dict(arms)
        self._limited: Mapping[str, int] = {}

    @property
    def arms(self) -> Mapping[str, Arm]:
        return self._arms

    @property
    def stopped(self) -> str | None:
        """Why the robot is stopped, as of the last answer."""
        return self.connection.stopped

    @property
    def limited(self) -> Mapping[str, int]:
        """How often which limit was in the way since the server was started, as of the last observation."""
        return self._limited

    def connect(self) -> None:
        """Connect and take command.

        :raises RobotError: If the server does not answer, its task is another one, or another client commands
        """
        self.connection.request("command")
        self._urgent.open()

    def get_observation(self) -> Values:
        """Return where the arms are. How long ago that was measured includes half of the round trip.

        :raises RobotError: If that is too long, or the server does not answer
        """
        observed = self.connection.observe()
        self._limited = observed.limited
        if observed.age > STALE:
            raise RobotError(
                f"What the robot server {self.connection.address} tells of the robot is {observed.age:.1f} s old: "
                "its driver, that computer or the network is too slow"
            )
        return observed.values

    def send_action(self, action: Values) -> None:
        command = checked(action, self._arms)
        self.connection.request("step", action=messages.packed_values(command))

    def approach(self, action: Values) -> None:
        """Tell the arms where to be next, as :meth:`send_action` does, but at half of the limits' speeds."""
        command = checked(action, self._arms)
        self.connection.request("step", action=messages.packed_values(command), slow=True)

    def hold(self) -> None:
        self.connection.request("hold")

    def home(self) -> None:
        """Go home; returns when it is there. The robot holds on its way if this client is no longer heard of.

        :raises Stopped: If it is stopped
        :raises RobotError: If it does not get there
        """
        self.connection.request("home")
        while (observed := self.connection.observe(images=False)).homing:
            time.sleep(POLL)
        if self.stopped is not None:
            raise Stopped(self.stopped)
        if observed.home_failure:
            raise RobotError(observed.home_failure)

    def stop(self, reason: str) -> None:
        """Stop the robot at once, whatever else is asked meanwhile, also where another client commands it.

        :raises RobotError: If that did not reach the server
        """
        self._urgent.request("stop", reason=reason)

    def clear(self) -> None:
        """Let it move again, once a driver that failed is connected anew. Only for a person who has looked at it.

        :raises Stopped: If it was stopped at the server, where it must be cleared, or its driver fails again
        :raises RobotError: If that driver hangs
        """
        self.connection.request("clear")
        end = time.monotonic() + RECOVERY
        while self.connection.request("command")[0].content["recovers"]:
            if time.monotonic() > end:
                raise RobotError(HANGS)
            time.sleep(POLL)
        if self.stopped is not None:
            raise Stopped(self.stopped)

    def disconnect(self) -> None:
        self.connection.close()
        self._urgent.close()


class RemoteCamera:
    """A camera behind a server. Frames come with observations, in one answer.

    :param connection: To the server
    :param name: The camera's
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self._name = connection, name

    def connect(self) -> None:
        self.read()

    def read(self) -> Frame:
        """Return the frame of the last observation. Its age includes half of the round trip.

        :raises RobotError: If the camera or the server does not answer
        """
        return self._connection.frame(self._name)

    def disconnect(self) -> None:
        self._connection.close()


def remote_station(
    address: str,
    key: str | Path = KEY,
    *,
    arms: Mapping[str, Arm],
    cameras: Sequence[str] = (),
    enforced: Mapping[str, Any] | None = None,
    encoding: str = messages.RAW,
    timeout: float = TIMEOUT,
) -> Station:
    """Return the robot and the cameras of a server, not connected.

    :param address: Of the server, ``tcp://HOST:PORT``
    :param key: This client's file, as ``zprl robot-server --make-keys`` writes it
    :param arms: The arms that the robot must have
    :param cameras: The cameras that must be there
    :param enforced: The limits that it must have (:func:`~zprl_sb3.robot_envs.real.safety.described`); None: whichever
    :param encoding: Of images: ``"raw"``, or ``"jpeg"`` over slow networks, which is not what the camera gave
    :param timeout: Seconds to wait for an answer
    :raises FileNotFoundError: If there is no such key
    :raises ValueError: If the key can be read by others, or is none
    """
    expected = messages.description(arms, tuple(cameras), enforced or {})
    keys = read_client_keys(key)
    connection = Connection(address, keys, expected, cameras, encoding, timeout)
    urgent = Connection(address, keys, {}, timeout=timeout)
    eyes = {name: RemoteCamera(connection, name) for name in cameras}
    return Station(RemoteRobot(connection, urgent, arms), eyes)
