"""The side channel of a simulation: one JSON object per line over TCP on loopback, a request and its answer.

It stands for what people do in the room of a robot without its computers: they see what is where, and put it elsewhere.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from zprl_sb3.robot_envs.real.robots import RobotError

LONGEST = 65_536
"""Bytes of a line."""
TIMEOUT = 2.0


class Channel:
    """Answers requests in threads of its own.

    :param port: On loopback; 0 takes a free one
    :param answer: Returns the answer to a request; what it says in a ValueError is answered as ``error``
    """

    def __init__(self, port: int, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._port, self._answer = port, answer
        self._server: _Server | None = None

    @property
    def address(self) -> str:
        """``tcp://127.0.0.1:PORT``.

        :raises RobotError: If it is not open
        """
        if self._server is None:
            raise RobotError("The side channel of the simulation is closed: connect the robot first")
        return f"tcp://127.0.0.1:{self._server.server_address[1]}"

    def open(self) -> None:
        """Begin to listen.

        :raises RobotError: If the port is taken
        """
        answer = self._answer

        class Handler(socketserver.StreamRequestHandler):
            disable_nagle_algorithm = True

            def handle(self) -> None:
                while line := self.rfile.readline(LONGEST):
                    self.wfile.write(json.dumps(_answered(line, answer)).encode() + b"\n")

        try:
            self._server = _Server(("127.0.0.1", self._port), Handler)
        except OSError as error:
            raise RobotError(
                f"Port {self._port} of the simulation's side channel cannot be had ({error}): is another simulation "
                "running? Give this one another `channel`"
            ) from error
        # Once it has one, it keeps it: who talks to it finds it there again after a reconnection.
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.close_all()
            self._server = None


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away in the middle of an answer is no news."""

    def close_all(self) -> None:
        self.server_close()
        for request in list(self._open):
            self.shutdown_request(request)


def _answered(line: bytes, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    try:
        if not line.endswith(b"\n"):
            raise ValueError(f"a line has at most {LONGEST} bytes")
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("a request is a JSON object")
        return answer(request)
    except (ValueError, RecursionError) as error:  # JSON's and Unicode's errors are ValueErrors
        return {"error": str(error)}


class Room:
    """The client's end: asks a simulation over its side channel, and connects anew after an error.

    :param address: ``tcp://127.0.0.1:PORT``
    :param timeout: Of a request, in seconds
    :raises ValueError: If the address is no such address
    """

    def __init__(self, address: str, timeout: float = TIMEOUT) -> None:
        parts = urlsplit(address)
        if parts.scheme != "tcp" or not parts.hostname or not parts.port:
            raise ValueError(f"The simulation's side channel has an address like tcp://127.0.0.1:5570, not {address!r}")
        self._where, self._timeout = (parts.hostname, parts.port), timeout
        self._socket: socket.socket | None = None
        self._received = b""

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to a request.

        :param do: ``"state"``, ``"reset"`` or ``"faults"``
        :param arguments: Of that
        :raises RobotError: If there is no answer in time, or it is an error
        """
        try:
            answer = self._exchange(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except (OSError, ValueError) as error:
            self.close()
            raise RobotError(f"The simulation at {self._where[0]}:{self._where[1]} does not answer: {error}") from error
        if "error" in answer:
            raise RobotError(f"The simulation refused {do!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Let go of the connection; the next request makes a new one."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._received = None, b""

    def _exchange(self, line: bytes) -> dict[str, Any]:
        if self._socket is None:
            self._socket = socket.create_connection(self._where, self._timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(line)
        while b"\n" not in self._received:
            received = self._socket.recv(LONGEST)
            if not received:
                raise ConnectionError("it closed the connection")
            self._received += received
        answer, _, self._received = self._received.partition(b"\n")
        parsed: dict[str, Any] = json.loads(answer)
        return parsed
