"""What clients ask of a robot's server, and what they are answered. Knows no socket."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from zprl_sb3.robot_envs.real import messages
from zprl_sb3.robot_envs.real.guard import Guard
from zprl_sb3.robot_envs.real.messages import Answer, BadMessage, Request
from zprl_sb3.robot_envs.real.robots import Camera, RobotError, Stopped
from zprl_sb3.robot_envs.real.sessions import NoSession, Session, Sessions

HOME_SILENCE = 1.0  # seconds of silence after which nobody is thought to watch the way home
COMMANDS = ("command", "step", "home", "clear")  # too late they are refused

Result = tuple[dict[str, Any], list[bytes]]


class Requests:
    """Answers one request after the other, of clients whose keys the handshake has proved.

    :param guard: The robot
    :param cameras: By name
    :param clients: Public keys of those who are admitted, with their names
    :param lease: Seconds of silence of the client that commands, after which another one may
    """

    def __init__(self, guard: Guard, cameras: Mapping[str, Camera], clients: Mapping[str, str], lease: float) -> None:
        self._guard, self._cameras, self._clients = guard, cameras, clients
        self.sessions = Sessions(lease)
        self.refused = 0
        """Requests that were refused."""
        self.stopped_here: str | None = None
        """Why a person beside the robot has stopped it, which no client clears."""

    def answer(self, user: str, data: bytes, received: float) -> tuple[Answer, list[bytes]]:
        """Return the answer to a request, and the images behind it.

        :param user: The client's public key
        :param data: The request
        :param received: When it came, by ``time.monotonic()``
        """
        number, content, images = 0, dict[str, Any](), list[bytes]()
        try:
            request = messages.read_request(data)
            number = request.number
            content, images = self._result(user, request, received)
            status, text = messages.OK, ""
        except Exception as error:
            self.refused += 1
            status, text = _failure(error)
        now = time.monotonic()
        return Answer(number, status, text, now, now - received, self._guard.stopped, content), images

    def watch_home(self) -> None:
        """Have the robot hold on its way home where the client that sent it there is no longer heard of."""
        if not self._guard.homing:
            return
        commander = self.sessions.commander
        if commander is None or time.monotonic() - commander.seen > HOME_SILENCE:
            self._guard.hold()

    def _result(self, user: str, request: Request, received: float) -> Result:
        if request.operation == "hello":
            return self._hello(user, request.content)
        session = self.sessions.find(user, request.session, request.number)
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
        session = self.sessions.open(user, client, self._clients.get(user, user))
        return {"session": session.id}, []

    def _command(self, session: Session, _: Mapping[str, Any]) -> Result:
        self.sessions.command(session)
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
        self.sessions.command(session)
        (self._guard.approach if content.get("slow") else self._guard.send_action)(action)
        session.steps.append(session.seen)
        return {}, []

    def _hold(self, session: Session, _: Mapping[str, Any]) -> Result:
        self.sessions.command(session)
        self._guard.hold()
        return {}, []

    def _go_home(self, session: Session, _: Mapping[str, Any]) -> Result:
        self.sessions.command(session)
        self._guard.start_home()
        return {}, []

    def _stop(self, _: Session, content: Mapping[str, Any]) -> Result:
        self._guard.stop(str(content.get("reason"))[:500])  # whoever is admitted
        return {}, []

    def _clear(self, session: Session, _: Mapping[str, Any]) -> Result:
        if self.stopped_here is not None:
            raise Stopped(f"{self.stopped_here}. It was stopped at the server, and must be cleared there")
        self.sessions.command(session)
        self._guard.start_clear()
        return {}, []

    def _bye(self, session: Session, _: Mapping[str, Any]) -> Result:
        if self.sessions.commander is session:
            self._guard.hold()
        self.sessions.close(session)
        return {}, []


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
