"""Server and client over real sockets: what works, and what happens when server, network or clients fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import ENFORCED, Network, client, command, free_port, guarded_station, start_process, until

from arms import ONE_ARM, TWO_ARMS, KinematicRobot, SyntheticCamera
from zprl_sb3.robot_envs.real.connection import Connection
from zprl_sb3.robot_envs.real.guard import Guard
from zprl_sb3.robot_envs.real.keys import read_client_keys, read_server_keys
from zprl_sb3.robot_envs.real.remote import RemoteRobot
from zprl_sb3.robot_envs.real.robots import Camera, Robot, RobotError, Station, Stopped
from zprl_sb3.robot_envs.real.server import RobotServer
from zprl_sb3.robot_envs.real.sessions import Sessions


@pytest.fixture
def server(keys: Path, robot: KinematicRobot) -> Iterator[RobotServer]:
    with RobotServer(guarded_station(robot), read_server_keys(keys), "tcp://127.0.0.1:*", lease=1.0) as server:
        yield server
    assert not robot.connected


@pytest.fixture
def remote(server: RobotServer, keys: Path) -> Iterator[Station]:
    with client(server.address, keys) as station:
        yield station


def remote_robot(station: Station) -> RemoteRobot:
    assert isinstance(station.robot, RemoteRobot)
    return station.robot


def x_of(robot: Robot) -> float:
    return float(robot.get_observation()["arm/position"][0])


def feed(robot: Robot, x: float, seconds: float) -> None:
    for _ in range(round(seconds * 30)):
        robot.send_action(command(x))
        time.sleep(1 / 30)


def test_a_remote_robot_is_a_robot_and_its_camera_a_camera(remote: Station) -> None:
    assert isinstance(remote.robot, Robot)
    assert isinstance(remote.cameras["front"], Camera)
    assert remote.robot.arms == ONE_ARM
    assert x_of(remote.robot) == pytest.approx(0.3)
    feed(remote.robot, 0.35, 0.7)
    assert x_of(remote.robot) == pytest.approx(0.35, abs=1e-3)


def test_observation_and_frames_come_in_one_answer(remote: Station) -> None:
    camera, connection = remote.cameras["front"], remote_robot(remote).connection
    remote.robot.get_observation()
    asked = len(connection.round_trips)
    frame = camera.read()
    assert len(connection.round_trips) == asked
    assert frame.image.shape == (48, 64, 3)
    assert np.array_equal(frame.image, SyntheticCamera()._image(frame.number))
    assert 0 < frame.age < 0.1
    time.sleep(0.05)
    assert camera.read().number > frame.number  # nobody is given the same answer's frame twice
    assert len(connection.round_trips) == asked + 1
    assert 0 < np.median(connection.round_trips) < 0.05


def test_frames_may_come_as_jpeg(server: RobotServer, keys: Path) -> None:
    with client(server.address, keys, encoding="jpeg") as station:
        frame = station.cameras["front"].read()
    exact = SyntheticCamera()._image(frame.number)
    assert frame.image.shape == exact.shape
    assert 0 < np.abs(frame.image.astype(int) - exact).mean() < 20


def test_a_frozen_camera_shows_by_the_age_of_its_frames(keys: Path) -> None:
    camera = SyntheticCamera()
    with (
        RobotServer(guarded_station(cameras={"front": camera}), read_server_keys(keys), "tcp://127.0.0.1:*") as server,
        client(server.address, keys) as station,
    ):
        camera.freeze()
        first = station.cameras["front"].read()
        time.sleep(0.2)
        second = station.cameras["front"].read()
        assert second.number == first.number
        assert second.age - first.age == pytest.approx(0.2, abs=0.1)
        camera.connected = False  # its cable is pulled
        with pytest.raises(RobotError, match="Camera front: The camera is not connected"):
            station.cameras["front"].read()
        assert x_of(station.robot) == pytest.approx(0.3)  # the robot answers all the same


def test_how_old_the_values_are_comes_over_the_network(
    remote: Station, server: RobotServer, robot: KinematicRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = remote_robot(remote).connection
    assert 0 < connection.observe().age < 0.2
    told = robot.get_observation
    monkeypatch.setattr(robot, "get_observation", lambda: (time.sleep(1.0), told())[1])
    time.sleep(0.3)
    assert connection.observe().age > 0.15
    time.sleep(0.5)
    with pytest.raises(RobotError, match=r"told nothing for 0\.\d s: its driver hangs"):
        remote.robot.get_observation()


def test_a_network_that_is_slow_is_no_present(server: RobotServer, keys: Path) -> None:
    network = Network(int(server.address.rsplit(":", 1)[1]))
    with client(network.address, keys, timeout=5.0) as station:
        station.robot.get_observation()
        network.cut()
        threading.Timer(1.2, network.mend).start()
        with pytest.raises(RobotError, match=r"tells of the robot is 0\.\d s old: its driver, that computer or the n"):
            station.robot.get_observation()
        station.robot.get_observation()
    network.close()


def test_errors_come_over_with_their_kind_and_text(remote: Station, server: RobotServer, robot: KinematicRobot) -> None:
    with pytest.raises(RobotError, match="arm/position is not finite"):
        remote.robot.send_action(command(np.nan))
    remote_robot(remote).stop("the person on the page pressed stop")
    with pytest.raises(Stopped, match=r"^the person on the page pressed stop$"):
        remote.robot.send_action(command(0.4))
    with pytest.raises(Stopped, match=r"^the person on the page pressed stop$"):
        remote.robot.home()
    assert remote_robot(remote).stopped == "the person on the page pressed stop"
    remote_robot(remote).clear()
    assert remote_robot(remote).stopped is None
    feed(remote.robot, 0.32, 0.1)
    robot.broken = True
    until(lambda: server.status().stopped is not None)
    with pytest.raises(Stopped, match="The robot's driver failed: The robot does not answer"):
        remote.robot.send_action(command(0.4))
    with pytest.raises(RobotError, match="The robot's driver failed: The robot does not answer"):
        remote.robot.get_observation()


def test_an_approach_is_at_half_the_speed(remote: Station) -> None:
    begun = time.monotonic()
    for _ in range(15):
        remote_robot(remote).approach(command(0.6))
        time.sleep(1 / 30)
    way, took = x_of(remote.robot) - 0.3, time.monotonic() - begun
    assert 0 < way <= 0.1 * took + 0.005


def test_a_driver_that_failed_is_connected_anew_by_a_clients_clear(
    remote: Station, server: RobotServer, robot: KinematicRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot.broken = True
    until(lambda: server.status().stopped is not None)
    with pytest.raises(Stopped, match="The robot's driver failed: The robot does not answer"):
        remote_robot(remote).clear()
    connect, connected = robot.connect, []

    def mend() -> None:
        time.sleep(0.7)  # longer than a client waits for an answer
        robot.broken = False
        connected.append(connect())

    monkeypatch.setattr(robot, "connect", mend)
    remote_robot(remote).clear()
    assert connected == [None]
    feed(remote.robot, 0.32, 0.1)


def test_a_stop_at_the_server_is_cleared_only_there(remote: Station, server: RobotServer) -> None:
    server.stop("Enter on the server's console")
    with pytest.raises(Stopped, match=r"Enter on the server's console. It was stopped at the server"):
        remote_robot(remote).clear()
    with pytest.raises(Stopped, match=r"^Enter on the server's console$"):
        remote.robot.send_action(command(0.32))
    server.clear()
    remote.robot.send_action(command(0.32))


def test_limits_are_kept_and_counted_at_the_server(remote: Station, server: RobotServer, robot: KinematicRobot) -> None:
    feed(remote.robot, 5.0, 2.0)
    assert max(sent["arm/position"][0] for sent in robot.commands) <= 0.6
    remote.robot.get_observation()
    assert remote_robot(remote).limited["arm/workspace"] > 50
    assert remote_robot(remote).limited["arm/speed"] > 50
    status = server.status()
    assert status.commander == "robot"
    assert status.rate == pytest.approx(30, rel=0.3)
    assert status.limited["arm/speed"] > 50


def test_home_is_waited_for(remote: Station, server: RobotServer, robot: KinematicRobot) -> None:
    feed(remote.robot, 0.35, 0.6)
    remote.robot.home()
    assert x_of(remote.robot) == pytest.approx(0.3, abs=1e-3)
    feed(remote.robot, 0.35, 0.6)
    timer = threading.Timer(0.1, server._guard.hold)
    timer.start()
    with pytest.raises(RobotError, match="did not get home: it was told to hold"):
        remote.robot.home()
    timer = threading.Timer(0.1, server.stop, ["Enter"])
    timer.start()
    with pytest.raises(Stopped, match="Enter"):
        remote.robot.home()
    assert x_of(remote.robot) > 0.31


def test_nobody_watches_the_way_home_of_a_client_that_is_gone(
    remote: Station, server: RobotServer, robot: KinematicRobot
) -> None:
    feed(remote.robot, 0.6, 1.7)
    remote_robot(remote).connection.request("home")
    remote_robot(remote).connection._drop()  # no good-bye: as if it had been killed
    until(lambda: not server._guard.homing)
    held = x_of(server._guard)
    assert 0.35 < held < 0.6
    time.sleep(0.3)
    assert x_of(server._guard) == pytest.approx(held, abs=0.01)


def test_one_client_commands_and_others_watch(remote: Station, server: RobotServer, keys: Path) -> None:
    with (
        pytest.raises(RobotError, match=r"Another client commands this robot \(robot\)"),
        client(server.address, keys, "viewer"),
    ):
        pass
    viewer = client(server.address, keys, "viewer")  # not connected, which would take command
    assert x_of(viewer.robot) == pytest.approx(0.3)
    for forbidden in (viewer.robot.hold, viewer.robot.home, remote_robot(viewer).clear):
        with pytest.raises(RobotError, match="Another client commands"):
            forbidden()
    with pytest.raises(RobotError, match="Another client commands"):
        viewer.robot.send_action(command(0.5))
    assert sorted(server.status().clients) == ["robot", "viewer"]
    remote_robot(viewer).stop("whoever sees something may stop it")
    with pytest.raises(Stopped, match="whoever sees something"):
        remote.robot.send_action(command(0.5))
    viewer.disconnect()


def test_a_stop_waits_for_no_other_answer(server: RobotServer, keys: Path) -> None:
    """The network keeps the answer to an observation back, as it may keep a large picture."""
    network = Network(int(server.address.rsplit(":", 1)[1]))
    slow = client(network.address, keys, "viewer", timeout=5.0)
    robot = remote_robot(slow)
    robot._urgent.address = server.address  # another way through the network
    robot._urgent.open()
    robot.get_observation()
    network.cut()
    asking = threading.Thread(target=robot.connection.observe)
    asking.start()
    time.sleep(0.1)
    begun = time.monotonic()
    robot.stop("a person at the page")
    assert time.monotonic() - begun < 1.0
    assert server.status().stopped == "a person at the page"
    assert asking.is_alive()
    network.mend()
    asking.join()
    slow.disconnect()
    network.close()


def test_a_client_that_is_killed_leaves_a_robot_that_holds(
    server: RobotServer, robot: KinematicRobot, keys: Path, repository: Path
) -> None:
    program = f'''
import sys, time
from pathlib import Path
from servers import client, command
station = client("{server.address}", Path("{keys}"))
station.connect()
print("connected", flush=True)
while True:
    station.robot.send_action(command(0.6))
    time.sleep(0.03)
'''
    environment = os.environ | {"PYTHONPATH": f"{repository}:{repository / 'tests/shared'}"}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"connected\n"
    until(lambda: x_of(server._guard) > 0.35)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3 + 0.2)
    held = x_of(server._guard)
    assert held < 0.5
    time.sleep(0.2)
    assert x_of(server._guard) == held
    time.sleep(0.5)
    with client(server.address, keys, "viewer") as other:
        feed(other.robot, 0.3, 0.1)


def test_a_client_that_vanishes_leaves_a_robot_that_holds_and_others_may_command(
    remote: Station, server: RobotServer, robot: KinematicRobot, keys: Path
) -> None:
    feed(remote.robot, 0.55, 0.4)
    remote_robot(remote).connection._drop()  # no good-bye: as if it had been killed
    other = client(server.address, keys, "viewer")
    with pytest.raises(RobotError, match="Another client commands"):
        other.connect()
    time.sleep(0.5)
    held = x_of(server._guard)
    assert held < 0.5
    time.sleep(0.8)
    assert x_of(server._guard) == held
    with other:
        feed(other.robot, 0.3, 0.1)
        with pytest.raises(RobotError, match=r"Another client commands this robot \(viewer\)"):
            remote.robot.send_action(command(0.5))
    remote.robot.send_action(command(0.5))  # the other one has said good-bye


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": TWO_ARMS}, r"arms is \['arm'\] at the server and \['left', 'right'\] here; left.control is missing"),
        ({"cameras": ("front", "wrist")}, "camera wrist is missing at the server"),
        (
            {"enforced": ENFORCED | {"arm.speed": 0.25}},
            "differs from this one: arm.speed is 0.2 at the server and 0.25",
        ),
        ({"enforced": ENFORCED | {"watchdog": 1}}, "watchdog is 0.3 at the server and 1.0 here"),
    ],
)
def test_another_task_is_refused_by_name(
    server: RobotServer, keys: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RobotError, match=message), client(server.address, keys, **changes):
        pass


def test_a_server_needs_a_guard(keys: Path) -> None:
    with pytest.raises(TypeError, match="put a Guard around it"):
        RobotServer(Station(KinematicRobot(), {}), read_server_keys(keys))


def test_an_address_in_use_is_told_and_the_robot_let_go_of(server: RobotServer, keys: Path) -> None:
    robot = KinematicRobot()
    with pytest.raises(OSError, match=f"cannot be bound to {server.address}"):
        RobotServer(guarded_station(robot), read_server_keys(keys), server.address).start()
    assert not robot.connected


def test_a_robot_that_cannot_be_connected_is_told_before_anything_is_served(keys: Path) -> None:
    robot = KinematicRobot()
    robot.broken = True
    with pytest.raises(RobotError, match="The robot does not answer"):
        RobotServer(guarded_station(robot), read_server_keys(keys), "tcp://127.0.0.1:*").start()


@pytest.mark.slow
def test_a_server_that_is_killed_is_told_and_found_again(keys: Path, repository: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    process = start_process(repository, keys, address)
    try:
        with client(address, keys) as station:
            feed(station.robot, 0.35, 0.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            begun = time.monotonic()
            for _ in range(2):
                with pytest.raises(RobotError, match=f"The robot server {address} does not answer: nothing for 0.5 s"):
                    station.robot.send_action(command(0.35))
            assert time.monotonic() - begun < 1.5
            process = start_process(repository, keys, address)
            until(lambda: _answers(station))
            assert x_of(station.robot) == pytest.approx(0.3, abs=0.01)  # a new robot
            feed(station.robot, 0.33, 0.3)
            assert station.cameras["front"].read().image.shape == (48, 64, 3)
    finally:
        process.kill()
        process.wait()


def _answers(station: Station) -> bool:
    try:
        station.robot.get_observation()
    except RobotError:
        return False
    return True


@pytest.mark.slow
def test_a_network_that_is_cut_for_five_seconds(server: RobotServer, robot: KinematicRobot, keys: Path) -> None:
    network = Network(int(server.address.rsplit(":", 1)[1]))
    with client(network.address, keys) as station:
        feed(station.robot, 0.55, 0.5)
        network.cut()
        cut = time.monotonic()
        with pytest.raises(RobotError, match="does not answer"):
            feed(station.robot, 0.58, 1.0)
        time.sleep(0.5)
        held = x_of(server._guard)
        assert held < 0.55
        while time.monotonic() - cut < 5.0:  # the caller tries again and again
            with pytest.raises(RobotError, match="does not answer"):
                station.robot.send_action(command(0.2))
        assert x_of(server._guard) == pytest.approx(held, abs=1e-6)
        network.mend()
        # What the network had kept back arrives now, and moves nothing.
        until(lambda: _answers(station))
        time.sleep(0.3)
        assert x_of(server._guard) == pytest.approx(held, abs=1e-6)
        assert server.status().refused >= 1
        feed(station.robot, 0.3, 0.2)
        assert x_of(station.robot) < held
    network.close()


def test_after_a_long_pause_the_same_session_goes_on(remote: Station, robot: KinematicRobot) -> None:
    feed(remote.robot, 0.31, 0.1)
    time.sleep(1.5)  # longer than watchdog and lease
    feed(remote.robot, 0.32, 0.2)
    assert x_of(remote.robot) > 0.305


def test_an_old_order_begins_no_motion_at_a_server_that_was_started_anew(
    remote: Station, server: RobotServer, robot: KinematicRobot
) -> None:
    server._requests.sessions = Sessions(1.0)  # as after a start
    with pytest.raises(RobotError, match="does not know this session"):
        remote.robot.send_action(command(0.5))
    assert not robot.commands
    assert x_of(remote.robot) == pytest.approx(0.3)
    server._requests.sessions = Sessions(1.0)
    assert x_of(remote.robot) == pytest.approx(0.3)  # to look is no motion
    feed(remote.robot, 0.32, 0.1)


def test_a_server_that_never_was_is_told(keys: Path) -> None:
    with pytest.raises(RobotError, match="Is it running, and the network up"):
        client(f"tcp://127.0.0.1:{free_port()}", keys).connect()
    with pytest.raises(RobotError, match="is no address of a robot server"):
        client("127.0.0.1", keys).connect()


def test_a_connection_is_made_only_once_it_is_needed(keys: Path) -> None:
    connection = Connection("tcp://127.0.0.1:1", read_client_keys(keys / "robot.key"), {})
    connection.close()
    connection.close()


def test_the_loop_behind_a_server_keeps_its_rate(remote: Station, server: RobotServer) -> None:
    guard = server._guard
    assert isinstance(guard, Guard)
    feed(remote.robot, 0.32, 0.6)
    assert server.status().loop.periods > 30
    assert server.status().loop.jitter_p50 < 0.005
