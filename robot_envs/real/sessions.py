"""Who speaks with a robot's server, and which one of them commands."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from zprl_sb3.robot_envs.real.robots import RobotError

MOST = 64  # sessions; the one that has been silent for longest makes room
PRESENT = 5.0  # seconds of silence after which a client is not counted any more


class NoSession(RobotError):
    """A request of a session that the server does not know (any more)."""


@dataclass
class Session:
    """A client since its last ``hello``.

    :param id: Random, 16 bytes
    :param user: The client's public key, as the handshake has proved it
    :param client: What the client calls itself, random, 16 bytes: the same one after it has lost the connection
    :param name: For people
    :param seen: When it last said something, by the server's clock
    :param number: Of its last request
    :param steps: When its last commands came
    """

    id: bytes
    user: str
    client: bytes
    name: str
    seen: float
    number: int = 0
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=200))


class Sessions:
    """The sessions of a server.

    :param lease: Seconds of silence after which another client may command
    :param clock: Seconds
    """

    def __init__(self, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease, self._clock = lease, clock
        self._sessions: dict[bytes, Session] = {}
        self._commander: Session | None = None

    @property
    def commander(self) -> Session | None:
        """The one that commands, if it is not silent for too long."""
        holder = self._commander
        return holder if holder is not None and self._clock() - holder.seen <= self._lease else None

    def present(self) -> list[str]:
        """Return the names of the clients that have said something lately."""
        now = self._clock()
        names = [session.name for session in list(self._sessions.values()) if now - session.seen < PRESENT]
        return list(dict.fromkeys(names))  # each has a second session, for stops

    def open(self, user: str, client: bytes, name: str) -> Session:
        """Return a new session. It takes the place of the one that the client had, whose requests are then refused.

        :param user: The client's public key
        :param client: What it calls itself
        :param name: For people
        """
        session = Session(os.urandom(16), user, client, name, self._clock())
        for old in [old for old in self._sessions.values() if (old.user, old.client) == (user, client)]:
            del self._sessions[old.id]
            if self._commander is old:
                self._commander = session
        while len(self._sessions) >= MOST:
            self.close(min(self._sessions.values(), key=lambda each: each.seen))
        self._sessions[session.id] = session
        return session

    def find(self, user: str, id_: bytes, number: int) -> Session:
        """Return the session of a request, which must be newer than all before.

        :raises NoSession: If there is none of this client
        :raises RobotError: For an old request
        """
        session = self._sessions.get(id_)
        if session is None or session.user != user:
            raise NoSession("The server does not know this session: it has been started anew, or the client has")
        if number <= session.number:
            raise RobotError(f"Refused an old request: number {number} after {session.number}")
        session.number, session.seen = number, self._clock()
        return session

    def command(self, session: Session) -> None:
        """Let a session command.

        :raises RobotError: If another one does
        """
        holder = self.commander
        if holder is not None and holder is not session:
            raise RobotError(
                f"Another client commands this robot ({holder.name}): "
                f"end it, or wait until it has been silent for {self._lease:g} s"
            )
        self._commander = session

    def close(self, session: Session) -> None:
        """Forget a session."""
        self._sessions.pop(session.id, None)
        if self._commander is session:
            self._commander = None
