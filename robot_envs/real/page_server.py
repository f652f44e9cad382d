"""How the page for people is served: by threads, to those who know its address, and to nobody's page but its own."""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from zprl_sb3.robot_envs.real.decisions import Word

if TYPE_CHECKING:
    from zprl_sb3.robot_envs.real.page import PageSupervisor

TEMPLATE = Path(__file__).with_name("page.html")
MAX_BODY = 1000  # bytes of what a button sends
MAX_CONNECTIONS = 64  # a browser opens up to six


class PageServer(ThreadingHTTPServer):
    """Answers viewers of a page, each connection in a thread of its own.

    Where there is no room for one more, the oldest that has not shown the token makes room, so that strangers, however
    many and however slow, cannot keep a person's STOP out.

    :param address: Host and port
    :param page: What is shown, and who is told what is said
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], page: PageSupervisor) -> None:
        self.page = page
        self._lock = threading.Lock()
        self._open = 0
        self._strangers: dict[socket.socket, None] = {}  # in the order in which they came
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._lock:
            if self._open >= MAX_CONNECTIONS:
                if not self._strangers:
                    return False
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                with suppress(OSError):  # it may be closed already
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open += 1
            self._strangers[request] = None
        return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open -= 1
                self._strangers.pop(request, None)

    def has_token(self, request: socket.socket) -> None:
        """Let a connection stay that has shown the token."""
        with self._lock:
            self._strangers.pop(request, None)

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
    server: PageServer

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
        answer = self.server.page.say(*said)
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
            self.server.has_token(self.connection)
            return route
        return None

    def _own_name(self) -> bool:
        # DNS rebinding needs a name; a number cannot be made to point elsewhere.
        name = _host(f"//{self.headers.get('Host', '')}")
        return name in self.server.page.names or is_number(name)

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


def listen(host: str, port: int, page: PageSupervisor) -> PageServer:
    """Return a server that is bound to an address, and serves nobody yet.

    :raises OSError: If the address is taken, or not of this computer
    """
    try:
        return PageServer((host, port), page)
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


def is_number(name: str) -> bool:
    """Return whether a host is named by its address, which nobody can have resolved to another one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
