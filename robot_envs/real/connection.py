"""One client's connection to ``zprl robot-server``: made anew when it was lost, one request at a time."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.utils.monitor import recv_monitor_message

from zprl_sb3.robot_envs.real import messages
from zprl_sb3.robot_envs.real.keys import ClientKeys
from zprl_sb3.robot_envs.real.messages import Answer, BadMessage, Request
from zprl_sb3.robot_envs.real.robots import Frame, RobotError, Values

TIMEOUT = 1.0  # seconds for an answer
REPEATED = ("command", "observe", "stop")  # in a new session, too; a motion is not begun there by an old order
FRESH = 0.1  # seconds for which an answer is taken for the present
REFUSED = {
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "it does not admit this client's key: put its .pub file into clients/ there.",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "the handshake failed: does this client's file hold that server's key?",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "the handshake failed: is that a robot server?",
}


@dataclass(frozen=True)
class Observed:
    """What one answer told.

    :param values: Where the robot is
    :param age: Seconds since that was measured, when the answer came
    :param frames: What each camera saw, with its age when the answer came; or why there is no frame
    :param received: When the answer came
    :param limited: How often which limit was in the way
    :param homing: Whether the robot is on its way home
    :param home_failure: Why it did not get there
    """

    values: Values
    age: float
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
            self.open()
            answer, images = self._ask(operation, content)
            if answer.status == messages.NO_SESSION:  # the server was started anew
                self._hello()
                if operation in REPEATED:
                    answer, images = self._ask(operation, content)
        messages.raise_error(answer)
        return answer, images

    def open(self) -> None:
        """Connect, if it is not.

        :raises RobotError: If the server does not answer, or its task is another one
        """
        with self._turn:
            if self._socket is None:
                self._open()

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
            age=messages.read_age(answer.content["age"]) + later,
            frames=frames,
            received=self._received,
            limited={str(name): int(count) for name, count in answer.content["limited"].items()},
            homing=bool(answer.content["homing"]),
            home_failure=str(answer.content["home_failure"]),
        )


def _left(end: float) -> int:
    return max(0, round((end - time.monotonic()) * 1000))
