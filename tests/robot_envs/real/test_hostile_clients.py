"""Who has no key, or a key and bad intentions: nothing moves the robot, and nothing keeps others from it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import ENFORCED, Network, client, command, free_port, guarded_station, start_process, until

from arms import KinematicRobot
from zprl_sb3.robot_envs.real import messages
from zprl_sb3.robot_envs.real.connection import Connection
from zprl_sb3.robot_envs.real.keys import ClientKeys, read_client_keys, read_server_keys
from zprl_sb3.robot_envs.real.messages import VERSION, Answer, BadMessage, Request, read_answer, read_request
from zprl_sb3.robot_envs.real.robots import RobotError, Station
from zprl_sb3.robot_envs.real.server import RobotServer


@pytest.fixture
def server(keys: Path, robot: KinematicRobot) -> Iterator[RobotServer]:
    with RobotServer(guarded_station(robot), read_server_keys(keys), "tcp://127.0.0.1:*") as server:
        yield server


def works(address: str, keys: Path) -> bool:
    """Whether a client of good intentions can still command and observe."""
    with client(address, keys, timeout=2.0) as station:
        for _ in range(5):
            station.robot.send_action(command(0.32))
            time.sleep(0.03)
        return bool(station.robot.get_observation()["arm/position"][0] > 0.3)


def port_of(server: RobotServer) -> int:
    return int(server.address.rsplit(":", 1)[1])


class Raw:
    """A client that says what it wants to."""

    def __init__(self, address: str, keys: ClientKeys | None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        if keys is not None:
            self.socket.curve_serverkey = keys.server.encode()
            self.socket.curve_publickey, self.socket.curve_secretkey = keys.public.encode(), keys.secret.encode()
        self.socket.connect(address)
        self.session, self.number, self.stamp = b"", 0, 0.0

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def say(self, *parts: bytes, patience: float = 1.0) -> Answer | None:
        self.socket.send_multipart(parts)
        if not self.socket.poll(int(patience * 1000)):
            return None
        answer = read_answer(self.socket.recv_multipart()[0])
        self.stamp = answer.stamp
        return answer

    def request(self, operation: str, **content: Any) -> bytes:
        self.number += 1
        return Request(operation, self.session, self.number, self.stamp, 0.0, content).packed()

    def hello(self, client: bytes = b"0123456789abcdef") -> Raw:
        answer = self.say(Request("hello", content={"client": client, "expected": {}}).packed())
        assert answer is not None
        self.session = answer.content["session"]
        self.number = 0
        return self

    def step(self, x: float) -> bytes:
        return self.request("step", action=messages.packed_values(command(x)))


@pytest.fixture
def traitor(server: RobotServer, keys: Path) -> Iterator[Raw]:
    with Raw(server.address, read_client_keys(keys / "traitor.key")) as raw:
        yield raw


def text_of(answer: Answer | None) -> str:
    assert answer is not None
    assert answer.status == messages.FAILED
    return answer.text


# Without a key that is listed.


def test_a_key_that_is_not_listed_is_refused_by_the_handshake(server: RobotServer, keys: Path) -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    stranger = replace(read_client_keys(keys / "robot.key"), public=public, secret=secret)
    with pytest.raises(RobotError, match="it does not admit this client's key"):
        Connection(server.address, stranger, {}, timeout=1.0).request("command")
    with Raw(server.address, stranger) as raw:
        assert raw.say(raw.request("stop"), patience=0.5) is None
    assert server.status().stopped is None
    assert server.status().refused == 0  # it never got here
    assert works(server.address, keys)


def test_a_public_key_without_its_secret_is_refused(server: RobotServer, keys: Path) -> None:
    thief = replace(read_client_keys(keys / "robot.key"), secret=zmq.curve_keypair()[1].decode())
    with Raw(server.address, thief) as raw:
        assert raw.say(raw.request("stop"), patience=0.5) is None
    assert server.status().stopped is None
    assert works(server.address, keys)


def test_without_any_key_nothing_is_answered(server: RobotServer, keys: Path) -> None:
    with Raw(server.address, None) as raw:
        assert raw.say(raw.request("stop"), patience=0.5) is None
    assert server.status().stopped is None
    assert server.status().refused == 0
    assert works(server.address, keys)


def test_a_client_does_not_speak_to_another_server(server: RobotServer, keys: Path) -> None:
    wrong = replace(read_client_keys(keys / "robot.key"), server=zmq.curve_keypair()[0].decode())
    with pytest.raises(RobotError, match="does not answer"):
        Connection(server.address, wrong, {}, timeout=0.5).request("command")


def test_noise_and_silence_on_tcp_keep_nobody_out(server: RobotServer, keys: Path) -> None:
    sockets = [socket.create_connection(("127.0.0.1", port_of(server))) for _ in range(40)]
    random = np.random.default_rng(0)
    for i, each in enumerate(sockets[:20]):
        noise = random.bytes(5000) if i % 2 else b"GET / HTTP/1.1\r\n\r\n" * 100
        each.sendall(noise)
    assert works(server.address, keys)
    assert server.status().refused == 0
    for each in sockets:
        each.close()


def test_recorded_bytes_of_an_earlier_connection_move_nothing(
    server: RobotServer, robot: KinematicRobot, keys: Path
) -> None:
    network = Network(port_of(server))
    with client(network.address, keys) as station:
        for _ in range(10):
            station.robot.send_action(command(0.4))
            time.sleep(0.03)
    network.close()
    time.sleep(0.4)
    commands, held = len(robot.commands), robot.commands[-1]["arm/position"][0]
    assert len(network.sent) > 2000
    with socket.create_connection(("127.0.0.1", port_of(server))) as replay:
        replay.sendall(network.sent)
        time.sleep(0.5)
    assert len(robot.commands) > commands  # the guard goes on to hold it there
    assert robot.commands[-1]["arm/position"][0] == held
    assert server.status().refused == 0
    assert works(server.address, keys)


# With a key that is listed.

BOMBS = {
    "nothing": b"",
    "no msgpack": b"\xc1",
    "half of it": b"\x97\x01\xa4st",
    "more behind it": b"\x01\x01",
    "text that is none": b"\x91\xa2\xff\xff",
    "deep lists": b"\x91" * 60_000,
    "deep maps": b"\x81\xa1a" * 20_000,
    "four billion items": b"\xdd\xff\xff\xff\xff",
    "four billion keys": b"\xdf\xff\xff\xff\xff",
    "four gigabytes": b"\xc6\xff\xff\xff\xff",
    "four gigabytes of text": b"\xdb\xff\xff\xff\xff",
    "an extension": b"\x97\x01\xd6\xff\x00\x00\x00\x00",
    "a time before all": b"\xc7\x0c\xff" + b"\xff" * 12,
    "a map with lists for keys": b"\x81\x91\x01\x01",
    "another version": msgpack.packb([99, "hello", b"", 0, 0.0, 0.0, {}]),
    "fields too few": msgpack.packb([VERSION, "hello"]),
    "no such operation": msgpack.packb([VERSION, "__class__", b"", 0, 0.0, 0.0, {}]),
    "an operation that is none": msgpack.packb([VERSION, ["hello"], b"", 0, 0.0, 0.0, {}]),
    "a session too long": msgpack.packb([VERSION, "stop", b"0" * 1000, 0, 0.0, 0.0, {}]),
    "a number below zero": msgpack.packb([VERSION, "stop", b"", -1, 0.0, 0.0, {}]),
    "a number too large": msgpack.packb([VERSION, "stop", b"", (1 << 64) - 1, 0.0, 0.0, {}]),
    "a time that is none": msgpack.packb([VERSION, "stop", b"", 1, float("nan"), float("inf"), {}]),
    "no session": msgpack.packb([VERSION, "stop", b"", 1, 0.0, 0.0, {}]),
    "a hello without anything": msgpack.packb([VERSION, "hello", b"", 0, 0.0, 0.0, {}]),
    "a hello of wrong types": msgpack.packb([VERSION, "hello", b"", 0, 0.0, 0.0, {"client": 1, "expected": []}]),
}


@pytest.fixture(scope="module")
def attacked(keys: Path) -> Iterator[RobotServer]:
    with RobotServer(guarded_station(), read_server_keys(keys), "tcp://127.0.0.1:*") as server:
        yield server
        assert works(server.address, keys)
        assert server.status().stopped is None


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_what_is_no_request_is_refused_and_the_server_goes_on(attacked: RobotServer, keys: Path, bomb: bytes) -> None:
    before = attacked.status().refused
    with Raw(attacked.address, read_client_keys(keys / "traitor.key")) as raw:
        answer = raw.say(bomb)
        assert answer is not None
        assert answer.status in (messages.FAILED, messages.NO_SESSION)
        assert raw.hello().session  # the same connection goes on
    assert attacked.status().refused == before + 1


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (None, "values are arrays by name"),
        ([1, 2], "values are arrays by name"),
        ({"arm/position": [1.0, 2.0, 3.0]}, "no array"),
        ({"arm/position": [[3], "abc"]}, "no array"),
        ({"arm/position": [[-1], b""]}, "no array"),
        ({"arm/position": [[1 << 16, 1 << 16, 1 << 16], b""]}, "0 bytes for the shape"),
        ({"arm/position": [[3], b"\0" * 23]}, "23 bytes for the shape"),
        ({"arm/position": [[0], b""]}, "lacks"),
        ({"x" * 1000: [[3], b"\0" * 24]}, "no name"),
        (messages.packed_values(command(np.nan)), "arm/position is not finite"),
        (messages.packed_values(command(np.inf)), "arm/position is not finite"),
        (messages.packed_values({"arm/position": np.zeros(3)}), "lacks"),
        (messages.packed_values(command(0.3) | {"arm/position": np.zeros((3, 1))}), r"has the shape"),
    ],
)
def test_what_is_no_command_is_refused(server: RobotServer, traitor: Raw, action: Any, text: str) -> None:
    traitor.hello()
    assert text in text_of(traitor.say(traitor.request("step", action=action)))
    assert server.status().stopped is None


@pytest.mark.parametrize(
    ("operation", "content"),
    [
        ("observe", {"cameras": "front"}),
        ("observe", {"cameras": [["front"]]}),
        ("observe", {"cameras": ["front"], "encoding": "bmp"}),
    ],
)
def test_arguments_of_other_types_are_refused(traitor: Raw, operation: str, content: dict[str, Any]) -> None:
    traitor.hello()
    assert "Refused what is no request" in text_of(traitor.say(traitor.request(operation, **content)))


@pytest.mark.slow
def test_a_huge_message_is_not_read(keys: Path, repository: Path) -> None:
    process = start_process(repository, keys, address := f"tcp://127.0.0.1:{free_port()}")
    try:
        with Raw(address, read_client_keys(keys / "traitor.key")) as raw:
            raw.hello()
            before = psutil.Process(process.pid).memory_info().rss
            for size in (messages.MAX_REQUEST + 1, 200_000_000):
                assert raw.say(bytes(size), patience=0.5) is None
            assert psutil.Process(process.pid).memory_info().rss - before < 20_000_000
        assert works(address, keys)
    finally:
        process.kill()
        process.wait()


def test_messages_of_many_parts_are_refused(server: RobotServer, traitor: Raw, keys: Path) -> None:
    traitor.hello()
    assert traitor.say(traitor.request("stop"), *[b"\0" * 1000] * 100, patience=0.3) is None
    assert server.status().stopped is None
    assert server.status().refused == 1
    assert works(server.address, keys)


def test_a_command_that_is_sent_twice_is_obeyed_once(server: RobotServer, robot: KinematicRobot, traitor: Raw) -> None:
    traitor.hello()
    old = traitor.step(0.5)
    assert traitor.say(old).status == messages.OK  # type: ignore[union-attr]
    assert "Refused an old request: number 1 after 1" in text_of(traitor.say(old))
    assert traitor.say(traitor.step(0.3)).status == messages.OK  # type: ignore[union-attr]
    assert "Refused an old request: number 1 after 2" in text_of(traitor.say(old))
    time.sleep(0.5)
    assert robot.commands[-1]["arm/position"][0] < 0.32


def test_a_command_of_an_earlier_session_is_refused(server: RobotServer, traitor: Raw) -> None:
    traitor.hello()
    old = traitor.step(0.5)
    assert traitor.say(old).status == messages.OK  # type: ignore[union-attr]
    traitor.hello()
    for _ in range(2):
        assert traitor.say(old).status == messages.NO_SESSION  # type: ignore[union-attr]


def test_a_session_belongs_to_its_key(server: RobotServer, traitor: Raw, keys: Path) -> None:
    with client(server.address, keys) as station:
        connection = station.robot.connection  # type: ignore[attr-defined]
        traitor.session, traitor.number = connection._session, 1000
        for request in (traitor.step(0.5), traitor.request("bye"), traitor.request("stop", reason="mine")):
            assert traitor.say(request).status == messages.NO_SESSION  # type: ignore[union-attr]
        # Nor does it drive the other one out by its name for itself.
        traitor.hello(connection._client)
        station.robot.send_action(command(0.32))
    assert server.status().stopped is None


def test_a_command_that_comes_late_is_refused(server: RobotServer, traitor: Raw) -> None:
    traitor.hello()
    late = traitor.step(0.5)
    time.sleep(0.5)
    assert "Refused a command that was 0.5 s on its way" in text_of(traitor.say(late))
    early = Request("home", traitor.session, 9, traitor.stamp, 1e6, {}).packed()  # as if it had waited for days
    assert "on its way" in text_of(traitor.say(early))


def test_a_client_that_asks_and_does_not_read_keeps_nobody_out(server: RobotServer, traitor: Raw, keys: Path) -> None:
    traitor.hello()
    traitor.socket.sndtimeo = 1000
    for _ in range(2000):
        traitor.socket.send(traitor.request("observe", cameras=["front"]))
    assert works(server.address, keys)


def test_sessions_do_not_grow_without_end(server: RobotServer, traitor: Raw) -> None:
    for _ in range(100):
        traitor.hello(os.urandom(16))
    assert len(server._requests.sessions._sessions) <= 64


def test_nobody_needs_the_stopping_of_others(server: RobotServer, traitor: Raw, keys: Path) -> None:
    with client(server.address, keys) as station:
        station.robot.send_action(command(0.32))
        traitor.hello()
        for operation in ("command", "hold", "home", "clear"):
            assert "Another client commands" in text_of(traitor.say(traitor.request(operation)))
        assert "Another client commands" in text_of(traitor.say(traitor.step(0.5)))


# The parsers alone, with whatever bytes.


plain = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats()
packable = st.recursive(
    plain | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | packable.map(msgpack.packb))
def test_bytes_are_a_message_or_refused(data: bytes) -> None:
    for read in (read_request, read_answer):
        with suppress(BadMessage):
            read(data)


@settings(max_examples=100, deadline=None)
@given(packable | st.dictionaries(st.text(max_size=3), packable, max_size=3))
def test_what_was_packed_is_values_or_refused(packed: Any) -> None:
    with suppress(BadMessage):
        messages.read_values(packed)


def test_what_is_sent_is_what_is_read() -> None:
    request = Request("step", b"0" * 16, 7, 1.5, 0.25, {"action": messages.packed_values(command(0.4))})
    read = read_request(request.packed())
    assert read == request
    values = messages.read_values(read.content["action"])
    assert all(np.array_equal(values[name], value) for name, value in command(0.4).items())
    answer = Answer(7, messages.STOPPED, "why", 2.0, 0.001, "why", {"a": [1, "b", b"c"]})
    assert read_answer(answer.packed()) == answer
    assert messages.differences(ENFORCED, ENFORCED) == []


@pytest.fixture(autouse=True)
def _no_traceback_of_ours(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert "Traceback" not in capfd.readouterr().err


def test_stations_are_left_in_order(server: RobotServer, keys: Path) -> None:
    station: Station = client(server.address, keys)
    station.connect()
    station.disconnect()
    station.disconnect()
    until(lambda: server.status().commander is None)
