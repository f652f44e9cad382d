"""``zprl robot-server``: gives a robot behind its guard, and its cameras, to clients on the network.

One thread has the socket, and answers one request after the other; none of them takes long, because guard and cameras
tell what they have. Whose key is not listed is refused by the handshake, and never gets here.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq
from zmq.auth.thread import ThreadAuthenticator

from zprl_sb3.robot_envs.real import ADDRESS, messages
from zprl_sb3.robot_envs.real.guard import Guard
from zprl_sb3.robot_envs.real.keys import ServerKeys
from zprl_sb3.robot_envs.real.messages import Answer, BadMessage, Request
from zprl_sb3.robot_envs.real.rate import Timing
from zprl_sb3.robot_envs.real.robots import Camera, RobotError, Station, Stopped
from zprl_sb3.robot_envs.real.sessions import NoSession, Session, Sessions

DOMAIN = "zprl"
LEASE = 5.0  # seconds of silence after which another client may command
HOME_SILENCE = 1.0  # seconds of silence after which nobody is thought to watch the way home
POLL = 50  # ms
QUEUE = 16  # messages of one client that may wait
HANDSHAKE = 2000  # ms
COMMANDS = ("command", "step", "home", "clear")  # too late they are refused

Result = tuple[dict[str, Any], list[bytes]]


@dataclass(frozen=True)
class ServerStatus:
    """How it stands at a server.

    :param clients: Names of the clients that have said something in the last seconds
    :param commander: The one that commands
    :param rate: Commands per second of the latest ones; 0 if there are none
    :param jitter: 99th percentile of how far the time between two of them was from their median, in seconds
    :param refused: Requests that were refused since the start
    :param loop: How well the guard keeps its rate
    :param limited: How often which limit was in the way
    :param stopped: Why the robot is stopped
    """

    clients: tuple[str, ...]
    commander: str | None
    rate: float
    jitter: float
    refused: int
    loop: Timing
    limited: Mapping[str, int]
    stopped: str | None


class RobotServer:
    """Serves a robot until it is closed.

    :param station: A :class:`~zprl_sb3.robot_envs.real.guard.Guard` as its robot, and cameras; not connected
    :param keys: Its own keys and the clients that are admitted
    :param bind: Address to bind to; a port ``*`` is any that is free, see :attr:`address`
    :param lease: Seconds of silence of the client that commands, after which another one may
    :raises TypeError: If there is no guard before the robot
    """

    def __init__(self, station: Station, keys: ServerKeys, bind: str = ADDRESS, lease: float = LEASE) -> None:
        if not isinstance(station.robot, Guard):
            raise TypeError("A server gives nobody a robot without limits: put a Guard around it")
        self._station, self._keys, self.bind = station, keys, bind
        self._guard = station.robot
        self._cameras: Mapping[str, Camera] = station.cameras
        self._sessions = Sessions(lease)
        self._refused = 0
        self._console: str | None = None  # a stop that no client clears
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.address = ""
        """Where it is bound to, once it was started."""
        self.failure: str | None = None
        """Why it serves nobody any more, though it was not closed; the robot is stopped then."""

    def __enter__(self) -> RobotServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Connect robot and cameras, and serve them.

        :raises RobotError: If one of them cannot be connected
        :raises OSError: If the address cannot be bound to
        """
        self._station.connect()
        ready: Future[str] = Future()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="zprl-server", daemon=True)
        self._thread.start()
        try:
            self.address = ready.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Serve no longer; the robot holds and is let go of. May be called twice."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._station.disconnect()

    def stop(self, reason: str) -> None:
        """Stop the robot. From any thread, for a person beside it: no client can clear that."""
        self._console = reason
        self._guard.stop(reason)

    def clear(self) -> None:
        """Let it move again, whoever has stopped it. From any thread but the server's, for a person beside it.

        :raises RobotError: If its driver has failed, and cannot be connected anew
        """
        self._console = None
        self._guard.clear()

    def status(self) -> ServerStatus:
        """Return how it stands. From any thread."""
        commander = self._sessions.commander
        steps = np.diff(list(commander.steps)) if commander is not None else np.zeros(0)
        middle = float(np.median(steps)) if steps.size else 0.0
        return ServerStatus(
            clients=tuple(self._sessions.present()),
            commander=commander.name if commander is not None else None,
            rate=1.0 / middle if middle > 0 else 0.0,
            jitter=float(np.percentile(np.abs(steps - middle), 99)) if steps.size else 0.0,
            refused=self._refused,
            loop=self._guard.timing,
            limited=self._guard.limited,
            stopped=self._guard.stopped,
        )

    # The rest runs in the thread that has the socket.

    def _serve(self, ready: Future[str]) -> None:
        with zmq.Context() as context:
            authenticator = ThreadAuthenticator(context)
            try:
                authenticator.start()
                authenticator.configure_curve_callback(DOMAIN, _Listed(self._keys))
                with self._bound(context) as socket:
                    ready.set_result(socket.getsockopt_string(zmq.LAST_ENDPOINT))
                    while not self._closing.is_set():
                        if socket.poll(POLL):
                            self._receive(socket)
                        self._watch_home()
            except BaseException as error:
                if ready.done():
                    self.failure = f"The server failed: {type(error).__name__}: {error}"
                    self._guard.stop(self.failure)
                    raise
                ready.set_exception(error)
            finally:
                authenticator.stop()

    def _bound(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.ROUTER)
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self._keys.public.encode(), self._keys.secret.encode()
        # Enforced, so that nobody is admitted if the authenticator were not there.
        socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
        options = {
            zmq.ZAP_ENFORCE_DOMAIN: 1,
            zmq.MAXMSGSIZE: messages.MAX_REQUEST,
            zmq.RCVHWM: QUEUE,
            zmq.SNDHWM: QUEUE,
            zmq.HANDSHAKE_IVL: HANDSHAKE,
            zmq.HEARTBEAT_IVL: 1000,
            zmq.HEARTBEAT_TIMEOUT: 5000,
            zmq.LINGER: 0,
        }
        for option, value in options.items():
            socket.setsockopt(option, value)
        try:
            socket.bind(self.bind)
        except zmq.ZMQError as error:
            socket.close()
            raise OSError(error.errno, f"The server cannot be bound to {self.bind} ({error})") from error
        return socket

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        identity, *parts = socket.recv_multipart(copy=False)
        received = time.monotonic()
        if len(parts) != 1:
            self._refused += 1
            return
        number, content, images = 0, dict[str, Any](), list[bytes]()
        try:
            request = messages.read_request(parts[0].bytes)
            number = request.number
            content, images = self._result(str(parts[0].get("User-Id")), request, received)
            status, text = messages.OK, ""
        except Exception as error:
            self._refused += 1
            status, text = _failure(error)
        now = time.monotonic()
        answer = Answer(number, status, text, now, now - received, self._guard.stopped, content)
        socket.send_multipart([identity.bytes, answer.packed(), *images])

    def _result(self, user: str, request: Request, received: float) -> Result:
        if request.operation == "hello":
            return self._hello(user, request.content)
        session = self._sessions.find(user, request.session, request.number)
        if request.operation in COMMANDS:
            self._check_delay(request, received)
        return self._operations()[request.operation](session, request.content)

    def _operations(self) -> dict[str, Callable[[Session, Mapping[str, Any]], Result]]:
        return {
            "command": self._command,
            "observe": self._observe,
            "step": self._step,
            "hold": self._hold,
            "home": self._go_home,
            "stop": self._stop,
            "clear": self._clear,
            "bye": self._bye,
        }

    def _check_delay(self, request: Request, received: float) -> None:
        """Refuse what a network has kept back. Each computer's times are only compared with its own."""
        late = received - request.stamp - request.elapsed
        if abs(late) > self._guard.watchdog:  # below 0 by as much as the clocks run apart
            raise RobotError(f"Refused a command that was {late:.1f} s on its way, more than the watchdog waits")

    def _hello(self, user: str, content: Mapping[str, Any]) -> Result:
        client, expected = content.get("client"), content.get("expected")
        if not (isinstance(client, bytes) and len(client) == 16 and isinstance(expected, dict)):
            raise BadMessage("a client says who it is and what it expects")
        found = messages.description(self._guard.arms, tuple(self._cameras), self._guard.enforced)
        if wrong := messages.differences(expected, found):
            raise RobotError(f"The server's task differs from this one: {'; '.join(wrong)}")
        session = self._sessions.open(user, client, self._keys.clients.get(user, user))
        return {"session": session.id}, []

    def _command(self, session: Session, _: Mapping[str, Any]) -> Result:
        self._sessions.command(session)
        return {"recovers": self._guard.recovers}, []

    def _observe(self, _: Session, content: Mapping[str, Any]) -> Result:
        wanted = content.get("cameras", [])
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            raise BadMessage("cameras are names")
        values, age = self._guard.observe()
        frames, images = {}, list[bytes]()
        for name in dict.fromkeys(wanted):
            frames[name], image = self._frame(name, str(content.get("encoding", messages.RAW)))
            images += [image] if image else []
        told: dict[str, Any] = {"limited": dict(self._guard.limited), "homing": self._guard.homing}
        told |= {"frames": frames, "home_failure": self._guard.home_failure}
        return {"values": messages.packed_values(values), "age": age, **told}, images

    def _frame(self, name: str, encoding: str) -> tuple[dict[str, Any] | str, bytes]:
        if encoding not in (messages.RAW, messages.JPEG):
            raise BadMessage("an unknown encoding of images")
        if name not in self._cameras:
            return f"The server has no camera {name!r}", b""
        try:
            return messages.packed_frame(self._cameras[name].read(), encoding)
        except Exception as error:  # of a driver; robot and other cameras answer all the same
            return f"Camera {name}: {error}", b""

    def _step(self, session: Session, content: Mapping[str, Any]) -> Result:
        action = messages.read_values(content.get("action"))
        self._sessions.command(session)
        (self._guard.approach if content.get("slow") else self._guard.send_action)(action)
        session.steps.append(session.seen)
        return {}, []

    def _hold(self, session: Session, _: Mapping[str, Any]) -> Result:
        self._sessions.command(session)
        self._guard.hold()
        return {}, []

    def _go_home(self, session: Session, _: Mapping[str, Any]) -> Result:
        self._sessions.command(session)
        self._guard.start_home()
        return {}, []

    def _stop(self, _: Session, content: Mapping[str, Any]) -> Result:
        self._guard.stop(str(content.get("reason"))[:500])  # whoever is admitted
        return {}, []

    def _clear(self, session: Session, _: Mapping[str, Any]) -> Result:
        if self._console is not None:
            raise Stopped(f"{self._console}. It was stopped at the server, and must be cleared there")
        self._sessions.command(session)
        self._guard.start_clear()
        return {}, []

    def _bye(self, session: Session, _: Mapping[str, Any]) -> Result:
        if self._sessions.commander is session:
            self._guard.hold()
        self._sessions.close(session)
        return {}, []

    def _watch_home(self) -> None:
        if not self._guard.homing:
            return
        commander = self._sessions.commander
        if commander is None or time.monotonic() - commander.seen > HOME_SILENCE:
            self._guard.hold()


def _failure(error: Exception) -> tuple[str, str]:
    """Return which kind of error a client is told, and its text."""
    if isinstance(error, NoSession):
        return messages.NO_SESSION, str(error)
    if isinstance(error, Stopped):
        return messages.STOPPED, str(error)
    if isinstance(error, BadMessage):
        return messages.FAILED, f"Refused what is no request: {error}"
    if not isinstance(error, RobotError):  # a fault of ours, which must not end the server
        traceback.print_exception(error)
        return messages.FAILED, f"The server failed: {type(error).__name__}: {error}"
    return messages.FAILED, str(error)


class _Listed:
    """Tells pyzmq's authenticator which keys are admitted."""

    def __init__(self, keys: ServerKeys) -> None:
        self._keys = {key.encode() for key in keys.clients}

    def callback(self, _: str, key: bytes) -> bool:
        return key in self._keys
