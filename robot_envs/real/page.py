"""The person in the loop at a small web page of this computer: cameras, counts, buttons; for a desk or a phone."""

from __future__ import annotations

import io
import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zprl_sb3.robot_envs.real.decisions import ALWAYS, ASKED, Decisions
from zprl_sb3.robot_envs.real.page_server import is_number, listen
from zprl_sb3.robot_envs.real.robots import Status

PORT = 8420
IMAGE_PERIOD = 0.05  # seconds between two pictures of a camera, however many look


class PageSupervisor(Decisions):
    """A :class:`~zprl_sb3.robot_envs.real.robots.Supervisor` at a web page, whose address is printed.

    Only who knows the address, which holds a new random token each time, sees the page or presses a button; there is
    no encryption. Reach it from elsewhere through a tunnel (``ssh -L 8420:localhost:8420 robot-computer``), or bind it
    to a network that you trust. Pages are served by threads of their own, and pictures made when a viewer asks for one,
    so that slow viewers never slow the environment.

    :param host: Address of this computer to listen at; ``"0.0.0.0"`` for all of them
    :param port: 0 for any that is free
    :param names: Names of this computer that viewers may use besides ``localhost`` and numbers. Others are refused: a
        foreign page could have its name resolved to this computer, and speak to it as if it were its own
    :raises OSError: If the port is taken
    """

    def __init__(self, host: str = "127.0.0.1", port: int = PORT, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.token = secrets.token_urlsafe(24)
        self.names = {"localhost", host.lower(), *(name.lower() for name in names)}
        self._frames: dict[str, NDArray[np.uint8]] = {}
        self._shown = time.monotonic()
        self._pictures: dict[str, _Picture] = {}
        self._server = listen(host, port, self)
        self.closed = False
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True).start()
        print(f"Supervise at {self.url}", flush=True)
        if not _loopback(host):
            print("Whoever has this address can run the robot, and it is sent unencrypted", flush=True)

    @property
    def url(self) -> str:
        """Address of the page, with the token."""
        host, port = self._server.server_address[:2]
        address = str(host)
        if address in ("0.0.0.0", "::"):
            address = _own_address()
        return f"http://{f'[{address}]' if ':' in address else address}:{port}/{self.token}/"

    def show(self, status: Status, frames: Mapping[str, NDArray[np.uint8]]) -> None:
        """Show how it stands and what the cameras see.

        :param status: How it stands
        :param frames: RGB, uint8 (H, W, 3) by camera; they are kept, not copied, so that nobody may write into them
        """
        self.turn_to(status)
        self._frames, self._shown = dict(frames), time.monotonic()

    def close(self) -> None:
        """End the page. May be called twice."""
        if not self.closed:
            self.closed = True
            self._server.shutdown()
            self._server.server_close()

    def state(self) -> dict[str, Any]:
        """Return what the page shows, for JSON."""
        status = self.status
        asked = ASKED.get(status.phase, ()) if status else ()
        return {
            "turn": self.turn,
            "status": asdict(status) if status else None,
            "asked": [word.value for word in (*asked, *ALWAYS)],
            "unlocked": self.unlocked,
            "silent": time.monotonic() - self._shown,
            "cameras": list(self._frames),
        }

    def picture(self, name: str) -> bytes | None:
        """Return what a camera sees as a JPEG, or None: no such camera."""
        frame = self._frames.get(name)
        if frame is None:
            return None
        return self._pictures.setdefault(name, _Picture()).of(frame)


class _Picture:
    """The JPEG of one camera, made once for all who look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made = -np.inf
        self._frame: NDArray[np.uint8] | None = None
        self._jpeg = b""

    def of(self, frame: NDArray[np.uint8]) -> bytes:
        with self._lock:
            now = time.monotonic()
            if frame is not self._frame and now - self._made >= IMAGE_PERIOD:
                buffer = io.BytesIO()
                Image.fromarray(frame).save(buffer, "JPEG", quality=80)
                self._jpeg, self._frame, self._made = buffer.getvalue(), frame, now
            return self._jpeg


def _loopback(host: str) -> bool:
    return host == "localhost" or (is_number(host) and ipaddress.ip_address(host).is_loopback)


def _own_address() -> str:
    """Return the address by which this computer is known in its network, or its name. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: only the route to it is looked up
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
