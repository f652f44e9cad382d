"""``zprl robot-server``: gives a robot behind its guard, and its cameras, to clients on the network.

One thread has the socket, and has one request after the other answered (``requests.py``); none of them takes long,
because guard and cameras tell what they have. Whose key is not listed is refused by the handshake, and never gets here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import zmq
from zmq.auth.thread import ThreadAuthenticator

from zprl_sb3.robot_envs.real import ADDRESS, messages
from zprl_sb3.robot_envs.real.guard import Guard
from zprl_sb3.robot_envs.real.keys import ServerKeys
from zprl_sb3.robot_envs.real.rate import Timing
from zprl_sb3.robot_envs.real.requests import Requests
from zprl_sb3.robot_envs.real.robots import Station

DOMAIN = "zprl"
LEASE = 5.0  # seconds of silence after which another client may command
POLL = 50  # ms
QUEUE = 16  # messages of one client that may wait
HANDSHAKE = 2000  # ms


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
        self._requests = Requests(self._guard, station.cameras, keys.clients, lease)
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
        self._requests.stopped_here = reason
        self._guard.stop(reason)

    def clear(self) -> None:
        """Let it move again, whoever has stopped it. From any thread but the server's, for a person beside it.

        :raises RobotError: If its driver has failed, and cannot be connected anew
        """
        self._requests.stopped_here = None
        self._guard.clear()

    def status(self) -> ServerStatus:
        """Return how it stands. From any thread."""
        commander = self._requests.sessions.commander
        steps = np.diff(list(commander.steps)) if commander is not None else np.zeros(0)
        middle = float(np.median(steps)) if steps.size else 0.0
        return ServerStatus(
            clients=tuple(self._requests.sessions.present()),
            commander=commander.name if commander is not None else None,
            rate=1.0 / middle if middle > 0 else 0.0,
            jitter=float(np.percentile(np.abs(steps - middle), 99)) if steps.size else 0.0,
            refused=self._requests.refused,
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
                        self._requests.watch_home()
            except BaseException as error:
                if ready.done():
                    failure = f"The server failed: {type(error).__name__}: {error}"
                    self._guard.stop(failure)
                    self.failure = failure
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
            self._requests.refused += 1
            return
        answer, images = self._requests.answer(str(parts[0].get("User-Id")), parts[0].bytes, received)
        socket.send_multipart([identity.bytes, answer.packed(), *images])


class _Listed:
    """Tells pyzmq's authenticator which keys are admitted."""

    def __init__(self, keys: ServerKeys) -> None:
        self._keys = {key.encode() for key in keys.clients}

    def callback(self, _: str, key: bytes) -> bool:
        return key in self._keys
