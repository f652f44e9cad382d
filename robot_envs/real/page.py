"""The person in the loop at a small web page of this computer: cameras, counts, buttons; for a desk or a phone."""

from __future__ import annotations

import hmac
import io
import ipaddress
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zprl_sb3.robot_envs.real.decisions import ALWAYS, ASKED, Answer, Decisions, Word
from zprl_sb3.robot_envs.real.robots import Status

PORT = 8420
TEMPLATE = Path(__file__).with_name("page.html")
MAX_BODY = 1000  # bytes of what a button sends
MAX_CONNECTIONS = 64  # a browser opens up to six
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
        self._server = _listen(host, port, self)
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], page: PageSupervisor) -> None:
        self.page = page
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A viewer that went away is no error. Of others, nothing that was requested: it holds the token.
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"The page could not answer: {type(error).__name__}", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    """Answers ``GET /TOKEN/``, ``/TOKEN/state``, ``/TOKEN/camera/INDEX`` and ``POST /TOKEN/say``, and nothing else."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "zprl", ""
    timeout = 20  # seconds of silence, after which a connection is closed
    server: _Server

    def do_GET(self) -> None:
        route = self._route()
        if route is None:
            return
        if route == "":
            self._send_page()
        elif route == "state":
            self._send(HTTPStatus.OK, "application/json", json.dumps(self.server.page.state()).encode())
        elif route.startswith("camera/"):
            self._send_picture(route.removeprefix("camera/"))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is nothing here")

    def do_POST(self) -> None:
        # What follows an unread body is no request.
        self.close_connection = True
        route = self._route()
        if route is None:
            return
        if route != "say":
            self._refuse(HTTPStatus.NOT_FOUND, "There is nothing here")
            return
        said = self._read_said()
        if said is None:
            self._refuse(HTTPStatus.BAD_REQUEST, 'Send {"word": ..., "turn": ...} as JSON')
            return
        self.close_connection = False
        answer: Answer = self.server.page.say(*said)
        self._send(HTTPStatus.OK, "application/json", json.dumps(asdict(answer)).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log: each line would hold the token."""

    def _route(self) -> str | None:
        """Return what is asked for, below the token, or refuse and return None."""
        token, _, route = self.path.partition("?")[0].removeprefix("/").partition("/")
        if self.server.page.closed:  # connections from before are still open
            self.close_connection = True
            self._refuse(HTTPStatus.GONE, "The session is over")
        elif not self._own_name():
            self._refuse(
                HTTPStatus.FORBIDDEN, "This computer is not known by that name here: give its number, or names="
            )
        elif not self._own_page():
            self._refuse(HTTPStatus.FORBIDDEN, "Another page may not speak to this one")
        elif not hmac.compare_digest(token.encode(), self.server.page.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "Open the whole address that the program has printed")
        else:
            return route
        return None

    def _own_name(self) -> bool:
        # DNS rebinding needs a name; a number cannot be made to point elsewhere.
        name = _host(f"//{self.headers.get('Host', '')}")
        return name in self.server.page.names or _is_number(name)

    def _own_page(self) -> bool:
        origin = self.headers.get("Origin")
        return origin is None or urlsplit(origin).netloc == self.headers.get("Host")

    def _read_said(self) -> tuple[Word, int] | None:
        length = self.headers.get("Content-Length", "")
        # Pages elsewhere cannot send this type without asking first, and nobody answers them.
        typed = self.headers.get("Content-Type", "").partition(";")[0].strip() == "application/json"
        if not typed or not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY:
            return None
        try:
            said = json.loads(self.rfile.read(int(length)))
            word, turn = Word(said["word"]), said["turn"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return (word, turn) if type(turn) is int else None

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        page = TEMPLATE.read_text(encoding="utf-8").replace("NONCE", nonce)
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), nonce)

    def _send_picture(self, index: str) -> None:
        names = self.server.page.state()["cameras"]
        known = index.isascii() and index.isdigit() and len(index) < 4 and int(index) < len(names)
        picture = self.server.page.picture(names[int(index)]) if known else None
        if picture is None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such camera")
        else:
            self._send(HTTPStatus.OK, "image/jpeg", picture)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{text}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes, nonce: str = "") -> None:
        inline = f"'nonce-{nonce}'" if nonce else "'none'"
        policy = (
            f"default-src 'none'; script-src {inline}; style-src {inline}; img-src 'self' data:; connect-src 'self'; "
        )
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy + "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _listen(host: str, port: int, page: PageSupervisor) -> _Server:
    try:
        return _Server((host, port), page)
    except OSError as error:
        raise OSError(
            f"The page for people cannot be at {host}:{port} ({error.strerror or error}): give it another address "
            f"(supervisor: {{kind: page, host: ..., port: ...}}), port 0 for any that is free"
        ) from None


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _loopback(host: str) -> bool:
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def _own_address() -> str:
    """Return the address by which this computer is known in its network, or its name. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: only the route to it is looked up
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
