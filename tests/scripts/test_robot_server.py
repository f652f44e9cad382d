"""``zprl robot-server`` as a program: keys, a server for a client, its console, and its end."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from people import ScriptedPerson
from robot_tasks import write
from servers import command, free_port

from zprl_sb3.robot_envs.real.env import RealRobotEnv
from zprl_sb3.robot_envs.real.keys import make_keys, read_client_keys, read_server_keys
from zprl_sb3.robot_envs.real.requests import Requests
from zprl_sb3.robot_envs.real.robots import RobotError, Station, Stopped
from zprl_sb3.robot_envs.real.tasks import load_task, make_station
from zprl_sb3.scripts import robot_server

ACTION = np.array([0.32, 0.0, 0.2, np.pi, 0.0, 0.0, 1.0], np.float32)


class Console:
    """A server in a process of its own, with what it prints and a person who types."""

    def __init__(self, repository: Path, *arguments: str) -> None:
        path = f"{repository}:{repository / 'tests/shared'}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zprl_sb3.scripts.cli", "robot-server", *arguments],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def says(self, text: str, seconds: float = 20.0) -> str:
        """Wait for a line that has a text, and return it."""
        end, seen = time.monotonic() + seconds, ""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"It did not say {text!r} but:\n{seen}") from None
            seen += line
            if text in line:
                return line

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def task(tmp_path: Path, keys: Path) -> Path:
    address = f"tcp://127.0.0.1:{free_port()}"
    return write(tmp_path, robot={"driver": "remote", "address": address, "key": str(keys / "robot.key")})


@pytest.fixture
def console(repository: Path, task: Path, keys: Path) -> Iterator[Console]:
    bind = str(load_task(task).robot["address"])
    console = Console(repository, "--task", str(task), "--keys", str(keys), "--bind", bind)
    yield console
    console.process.kill()
    console.process.wait()


def x_of(station: Station) -> float:
    return float(station.robot.get_observation()["arm/position"][0])


def test_a_task_is_served_and_a_person_stops_and_clears_it(console: Console, task: Path) -> None:
    assert "Arm arm: 6 joints and a gripper, is told poses" in console.says("Arm arm")
    assert "Cameras: front" in console.says("Cameras")
    assert str(load_task(task).robot["address"]) in console.says("Clients reach it")
    assert "keys of robot" in console.says("Admitted")
    console.says("Enter stops the robot")
    with make_station(load_task(task)) as station:
        for _ in range(20):
            station.robot.send_action(command(0.35))
            time.sleep(0.02)
        assert x_of(station) == pytest.approx(0.35, abs=0.01)
        assert station.cameras["front"].read().image.shape == (48, 64, 3)
        console.type("\n")
        line = console.says("STOPPED: ")
        assert "robot commands at" in line
        assert "clients: robot" in line
        with pytest.raises(Stopped, match=r"^Stopped by a person at the robot server$"):
            station.robot.send_action(command(0.3))
        with pytest.raises(Stopped, match="must be cleared there"):
            station.robot.clear()  # type: ignore[attr-defined]
        console.type("what\n")
        console.says("clear: let it move again")
        console.type("clear\n")
        console.says("Cleared")
        station.robot.send_action(command(0.3))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_its_end_is_orderly(console: Console, number: signal.Signals, code: int) -> None:
    console.says("nobody commands")
    console.process.send_signal(number)
    assert console.process.wait(20) == code


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_socket_fails_stops_the_robot_and_ends(
    task: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its thread dies of what nobody thought of, while the robot moves."""
    stopped: list[str | None] = []
    bind = str(load_task(task).robot["address"])

    def fail(requests: Requests) -> None:
        thread = threading.current_thread()
        threading.Thread(target=lambda: (thread.join(), stopped.append(requests._guard.stopped))).start()
        raise ZeroDivisionError("what nobody thought of")

    def move() -> None:
        with make_station(load_task(task)) as station:
            station.robot.send_action(command(0.35))
            monkeypatch.setattr(Requests, "watch_home", fail)
            time.sleep(0.3)

    person = threading.Thread(target=move)
    console = io.StringIO()  # closed from the start
    threading.Timer(1.0, person.start).start()
    with pytest.raises(RobotError, match=r"failed: ZeroDivisionError: what nobody thought of. The robot is stopped"):
        robot_server.serve(str(task), str(keys), bind, console=console)
    person.join()
    assert stopped == ["The server failed: ZeroDivisionError: what nobody thought of"]
    assert "The console is closed: nobody stops the robot here any more" in capsys.readouterr().out


class Told:
    """A server that notes what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stop(self, reason: str) -> None:
        self.said.append(reason)

    def clear(self) -> None:
        self.said.append("clear")


STOP = "Stopped by a person at the robot server"


def test_a_console_that_cannot_be_read_stops_the_robot(capsys: pytest.CaptureFixture[str]) -> None:
    server, typed = Told(), io.TextIOWrapper(io.BytesIO(b"clear\n" + bytes([0xFF, 0xFE, 10])), "utf-8")
    typed._CHUNK_SIZE = 6  # type: ignore[attr-defined]  # what is typed comes line by line
    robot_server._listen(server, typed)  # type: ignore[arg-type]
    assert server.said[0] == "clear"
    assert server.said[1].startswith("The console of the robot server cannot be read any more: 'utf-8' codec")
    assert "STOPPED: the console cannot be read any more" in capsys.readouterr().out


def test_what_is_typed_counts_though_nobody_reads_the_answers() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    server = Told()
    with contextlib.redirect_stdout(Broken()):
        robot_server._listen(server, io.StringIO("stop\nclear\nstop\n"))  # type: ignore[arg-type]
    assert server.said == [STOP, "clear", STOP]


def test_a_task_that_differs_is_refused_by_name(console: Console, task: Path, tmp_path: Path) -> None:
    console.says("Enter stops the robot")
    served = load_task(task)
    limits: dict[str, Any] = {"arm": served.limits["arm"] | {"speed": 3.0}, "watchdog": 0.5}
    other = load_task(write(tmp_path, "other", robot=served.robot, limits=limits))
    with pytest.raises(RobotError, match=r"arm.speed is 2.0 at the server and 3.0 here"), make_station(other):
        pass


def test_keys_are_made_for_their_owner_only(zprl: Any, tmp_path: Path) -> None:
    code, out, _ = zprl("robot-server", "--make-keys", tmp_path / "keys")
    assert code == 0
    assert f"Wrote {tmp_path}/keys/robot.key" in out
    for name in ("server.key", "robot.key"):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600
    server = (tmp_path / "keys/server.key").read_bytes()
    code, _, err = zprl("robot-server", "--make-keys", tmp_path / "keys")
    assert code == 1
    assert "robot.key exists" in err
    assert zprl("robot-server", "--make-keys", tmp_path / "keys", "--client", "laptop")[0] == 0
    assert (tmp_path / "keys/server.key").read_bytes() == server
    keys = read_server_keys(tmp_path / "keys")
    assert sorted(keys.clients.values()) == ["laptop", "robot"]
    client = read_client_keys(tmp_path / "keys/laptop.key")
    assert client.server == keys.public
    assert keys.clients[client.public] == "laptop"


@pytest.mark.parametrize("name", ["server", "../robot", "a b", ""])
def test_a_clients_name_is_a_name(zprl: Any, tmp_path: Path, name: str) -> None:
    code, _, err = zprl("robot-server", "--make-keys", tmp_path, "--client", name)
    assert code == 1
    assert "A client's name consists of" in err


def test_keys_that_cannot_be_used_are_named(zprl: Any, task: Path, keys: Path, tmp_path: Path) -> None:
    code, _, err = zprl("robot-server", "--task", task, "--keys", tmp_path / "none")
    assert code == 1
    assert f"There is no key {tmp_path}/none/server.key: make it with zprl robot-server --make-keys" in err
    (keys / "server.key").chmod(0o644)
    code, _, err = zprl("robot-server", "--task", task, "--keys", keys)
    assert code == 1
    assert "can be read by others than its owner: chmod 600" in err
    (keys / "robot.key").write_text('{"public": 1}')
    with pytest.raises(ValueError, match=r"robot\.key is no file of keys"):
        make_station(load_task(task))


def test_an_address_that_is_none_is_told(zprl: Any, task: Path, keys: Path) -> None:
    code, _, err = zprl("robot-server", "--task", task, "--keys", keys, "--bind", "nowhere")
    assert code == 1
    assert "The server cannot be bound to nowhere" in err


def test_a_demonstrated_command_arrives_as_it_was_sent(console: Console, task: Path) -> None:
    console.says("Enter stops the robot")
    with make_station(load_task(task)) as station:
        station.robot.home()
        assert np.allclose(station.robot.get_observation()["arm/position"], [0.3, 0.0, 0.2])


@pytest.mark.slow
def test_an_environment_goes_on_when_its_server_was_killed(console: Console, task: Path, repository: Path) -> None:
    console.says("Enter stops the robot")
    person = ScriptedPerson()
    env = RealRobotEnv(task, supervisor=person)
    env.reset()
    env.step(ACTION)
    console.process.send_signal(signal.SIGKILL)
    console.process.wait()
    truncated, info = False, {}
    while not truncated:
        *_, terminated, truncated, info = env.step(ACTION)
        assert not terminated
    assert info["aborted"]
    assert "does not answer: nothing for" in info["reason"]
    served = load_task(task)
    keys = Path(str(served.robot["key"])).parent
    again = Console(repository, "--task", str(task), "--keys", str(keys), "--bind", str(served.robot["address"]))
    try:
        obs, _ = env.reset()  # waits until there is a server
        assert obs["proprio"][:3] == pytest.approx([0.3, 0.0, 0.2], abs=1e-3)
        steps = 0
        while not truncated or steps == 0:
            *_, truncated, info = env.step(ACTION)
            steps += 1
        assert steps == served.max_episode_steps
    finally:
        env.close()
        again.process.kill()
        again.process.wait()
