"""A robot and cameras behind ``zprl robot-server``, as if they were here."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.utils.monitor import recv_monitor_message

from zprl_sb3.robot_envs.real import messages
from zprl_sb3.robot_envs.real.keys import ClientKeys, read_client_keys
from zprl_sb3.robot_envs.real.messages import Answer, BadMessage, Request
from zprl_sb3.robot_envs.real.robots import Arm, Frame, RobotError, Station, Values
from zprl_sb3.robot_envs.real.safety import checked

KEY = "~/.config/zprl/robot.key"
TIMEOUT = 1.0  # seconds for an answer
FRESH = 0.1  # seconds for which an answer is taken for the present
HOME_POLL = 0.1  # seconds between two questions whether the robot is home
REFUSED = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: "it does not admit this client's key: add its .pub file to the server's clients/",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "the handshake failed: is the server's key in this client's file the right one?",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "the handshake failed: is that a robot server?",
}


@dataclass(frozen=True)
class Observed:
    """What one answer told.

    :param values: Where the robot is
    :param frames: What each camera saw, with its age when the answer came; or why there is no frame
    :param received: When the answer came
    :param limited: How often which limit was in the way
    :param homing: Whether the robot is on its way home
    :param home_failure: Why it did not get there
    """

    values: Values
    frames: Mapping[str, Frame | str]
    received: float
    limited: Mapping[str, int]
    homing: bool
    home_failure: str


class Connection:
    """One client of a server. Lost connections are made anew by the next call, in a new session.

    :param address: Of the server, ``tcp://HOST:PORT``
    :param keys: This client's and the server's
    :param expected: What the server must agree upon, see :func:`~zprl_sb3.robot_envs.real.safety.described`
    :param cameras: Those whose frames observations bring
    :param encoding: ``"raw"`` or ``"jpeg"``
    :param timeout: Seconds to wait for an answer
    """

    def __init__(
        self,
        address: str,
        keys: ClientKeys,
        expected: Mapping[str, Any],
        cameras: Sequence[str] = (),
        encoding: str = messages.RAW,
        timeout: float = TIMEOUT,
    ) -> None:
        self.address, self._keys, self._expected = address, keys, dict(expected)
        self._cameras, self._encoding, self._timeout = list(cameras), encoding, timeout
        self._client = os.urandom(16)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._turn = threading.RLock()  # one request at a time, from whichever thread
        self._session, self._number = b"", 0
        self._stamp = self._received = 0.0
        self._round_trips: deque[float] = deque(maxlen=1000)
        self._shown: set[str] = set()
        self.latest: Observed | None = None
        self.stopped: str | None = None
        """Why the robot is stopped, as of the last answer."""

    @property
    def round_trips(self) -> NDArray[np.float64]:
        """Seconds that the network took for the last requests (n,), without the time in the server."""
        return np.array(self._round_trips)

    def request(self, operation: str, **content: Any) -> tuple[Answer, list[bytes]]:
        """Ask the server, and return its answer and the images behind it.

        :raises Stopped: If the server says so
        :raises RobotError: If it refuses, or does not answer
        """
        with self._turn:
            if self._socket is None:
                self._open()
            answer, images = self._ask(operation, content)
            if answer.status == messages.NO_SESSION:  # the server was started anew
                self._hello()
                answer, images = self._ask(operation, content)
        messages.raise_error(answer)
        return answer, images

    def observe(self, images: bool = True) -> Observed:
        """Ask where the robot is and, unless images are not wanted, what the cameras see.

        :raises RobotError: If the server does not tell
        """
        with self._turn:
            cameras = self._cameras if images else []
            answer, parts = self.request("observe", cameras=cameras, encoding=self._encoding)
            try:
                observed = self._observed(answer, parts)
            except (BadMessage, KeyError, TypeError, IndexError) as error:
                self._drop()
                raise RobotError(f"The robot server {self.address} answers what is no observation: {error}") from error
            if images:
                self._shown.clear()
                self.latest = observed
        return observed

    def frame(self, camera: str) -> Frame:
        """Return a camera's frame of the last observation; of a new one if that was returned before, or is old.

        :raises RobotError: If there is none
        """
        with self._turn:
            latest = self.latest
            if latest is None or camera in self._shown or time.monotonic() - latest.received > FRESH:
                latest = self.observe()
            self._shown.add(camera)
            frame = latest.frames[camera]
        if isinstance(frame, str):
            raise RobotError(frame)
        return replace(frame, age=frame.age + time.monotonic() - latest.received)

    def close(self) -> None:
        """Say good-bye and close the socket; the robot holds. May be called twice, and after an error."""
        with self._turn:
            if self._socket is not None and self._session:
                with suppress(RobotError):
                    self._ask("bye", {})
            self._drop()

    def _open(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.curve_serverkey = self._keys.server.encode()
        socket.curve_publickey, socket.curve_secretkey = self._keys.public.encode(), self._keys.secret.encode()
        for option in (zmq.LINGER, zmq.IMMEDIATE):
            socket.setsockopt(option, int(option == zmq.IMMEDIATE))  # nothing waits for a connection, or outlives one
        socket.setsockopt(zmq.MAXMSGSIZE, messages.MAX_PART)
        self._monitor = socket.get_monitor_socket()
        self._socket = socket
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            self._drop()
            raise RobotError(f"{self.address} is no address of a robot server ({error})") from error
        self._hello()

    def _hello(self) -> None:
        self._session, self._number = b"", 0
        try:
            answer, _ = self._ask("hello", {"client": self._client, "expected": self._expected})
            messages.raise_error(answer)
        except RobotError:
            self._drop()
            raise
        self._session = bytes(answer.content["session"])

    def _ask(self, operation: str, content: Mapping[str, Any]) -> tuple[Answer, list[bytes]]:
        assert self._socket is not None
        self._number += operation != "hello"
        begun = time.monotonic()
        elapsed = begun - self._received if self._session else 0.0
        request = Request(operation, self._session, self._number, self._stamp, elapsed, content)
        try:
            self._send(request, begun + self._timeout)
            answer, images = self._receive(request.number, begun + self._timeout)
        except (zmq.Again, BadMessage) as error:
            why = str(error) if isinstance(error, BadMessage) else self._silence()
            self._drop()
            raise RobotError(f"The robot server {self.address} does not answer: {why}") from error
        self._received = time.monotonic()
        self._round_trips.append(max(0.0, self._received - begun - answer.took))
        self._stamp, self.stopped = answer.stamp, answer.stopped
        return answer, images

    def _send(self, request: Request, end: float) -> None:
        assert self._socket is not None
        if not self._socket.poll(_left(end), zmq.POLLOUT):
            raise zmq.Again
        self._socket.send(request.packed(), zmq.NOBLOCK)

    def _receive(self, number: int, end: float) -> tuple[Answer, list[bytes]]:
        assert self._socket is not None
        while True:
            if not self._socket.poll(_left(end)):
                raise zmq.Again
            head, *images = self._socket.recv_multipart()
            answer = messages.read_answer(head)
            if answer.number == number or (answer.number == 0 and answer.status == messages.FAILED):
                return answer, images

    def _silence(self) -> str:
        """Return why there was no answer, as far as the handshake tells."""
        assert self._monitor is not None
        reason = f"nothing for {self._timeout:g} s. Is it running, and the network up?"
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            reason = REFUSED.get(event, reason)
        return f"{reason} The robot holds meanwhile; the next call tries again"

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
        if self._monitor is not None:
            self._monitor.close(linger=0)
        self._socket = self._monitor = self.latest = None
        self._session = b""

    def _observed(self, answer: Answer, images: list[bytes]) -> Observed:
        later = self._round_trips[-1] / 2 + answer.took
        frames: dict[str, Frame | str] = {}
        parts = iter(images)
        for name, head in answer.content["frames"].items():
            frames[name] = head if isinstance(head, str) else messages.read_frame(head, next(parts), later)
        return Observed(
            values=messages.read_values(answer.content["values"]),
            frames=frames,
            received=self._received,
            limited={str(name): int(count) for name, count in answer.content["limited"].items()},
            homing=bool(answer.content["homing"]),
            home_failure=str(answer.content["home_failure"]),
        )


class RemoteRobot:
    """A robot behind a server, which keeps its limits; see :class:`~zprl_sb3.robot_envs.real.guard.Guard`.

    :param connection: To the server
    :param arms: The robot's arms
    :param watch: Only observe: another client may command
    """

    def __init__(self, connection: Connection, arms: Mapping[str, Arm], watch: bool = False) -> None:
        self.connection, self._arms, self._watch = connection, dict(arms), watch
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
        """Connect and, unless it only watches, take command.

        :raises RobotError: If the server does not answer, its task is another one, or another client commands
        """
        if self._watch:
            self.get_observation()
        else:
            self.connection.request("command")

    def get_observation(self) -> Values:
        observed = self.connection.observe()
        self._limited = observed.limited
        return observed.values

    def send_action(self, action: Values) -> None:
        command = checked(action, self._arms)
        self.connection.request("step", action=messages.packed_values(command))

    def hold(self) -> None:
        self.connection.request("hold")

    def home(self) -> None:
        """Go home; returns when it is there. The robot holds on its way if this client is no longer heard of.

        :raises Stopped: If it is stopped
        :raises RobotError: If it does not get there
        """
        self.connection.request("home")
        while (observed := self.connection.observe(images=False)).homing:
            time.sleep(HOME_POLL)
        if self.stopped is not None or observed.home_failure:
            self.connection.request("command")
            status = messages.STOPPED if self.stopped is not None else messages.FAILED
            messages.raise_error(Answer(0, status, self.stopped or observed.home_failure, 0.0, 0.0, None))

    def stop(self, reason: str) -> None:
        """Stop the robot, also where another client commands it.

        :raises RobotError: If that did not reach the server
        """
        self.connection.request("stop", reason=reason)

    def clear(self) -> None:
        """Let it move again. Only for a person who has looked at it.

        :raises Stopped: If it was stopped at the server, where it must be cleared
        """
        self.connection.request("clear")

    def disconnect(self) -> None:
        self.connection.close()


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
    watch: bool = False,
) -> Station:
    """Return the robot and the cameras of a server, not connected.

    :param address: Of the server, ``tcp://HOST:PORT``
    :param key: This client's file, as ``zprl robot-server --make-keys`` writes it
    :param arms: The arms that the robot must have
    :param cameras: The cameras that must be there
    :param enforced: The limits that it must have (:func:`~zprl_sb3.robot_envs.real.safety.described`); None: whichever
    :param encoding: Of images: ``"raw"``, or ``"jpeg"`` over slow networks, which is not what the camera gave
    :param timeout: Seconds to wait for an answer
    :param watch: Only observe
    :raises FileNotFoundError: If there is no such key
    :raises ValueError: If the key can be read by others, or is none
    """
    # Imported only here: the server's module is not needed by a client otherwise.
    from zprl_sb3.robot_envs.real.server import description

    expected = description(arms, tuple(cameras), enforced or {})
    connection = Connection(address, read_client_keys(key), expected, cameras, encoding, timeout)
    eyes = {name: RemoteCamera(connection, name) for name in cameras}
    return Station(RemoteRobot(connection, arms, watch), eyes)


def _left(end: float) -> int:
    return max(0, round((end - time.monotonic()) * 1000))
