"""The loop between driver and caller: limits, watchdog, stops, faults of drivers, and its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arms import ONE_ARM, KinematicRobot
from zprl_sb3.robot_envs.real import guard as guard_module
from zprl_sb3.robot_envs.real.guard import Guard
from zprl_sb3.robot_envs.real.robots import Arm, Robot, RobotError, Stopped, Values
from zprl_sb3.robot_envs.real.safety import Limits

HOME: dict[str, tuple[float, ...]] = {
    "arm/position": (0.3, 0.0, 0.2),
    "arm/rotation": (np.pi, 0.0, 0.0),
    "arm/gripper": (1.0,),
}
LIMITS = Limits(
    workspace=((0.2, -0.3, 0.0), (0.6, 0.3, 0.4)),
    speed=0.2,
    acceleration=2.0,
    rotation_speed=2.0,
    rotation_acceleration=8.0,
)


def guarded(robot: Robot, limits: Limits = LIMITS, home: Any = HOME) -> Guard:
    return Guard(robot, {"arm": limits}, watchdog=0.3, home=home)


def command(x: float, y: float = 0.0, z: float = 0.2) -> Values:
    return {name: np.array(value) for name, value in HOME.items()} | {"arm/position": np.array([x, y, z])}


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "It did not happen"
        time.sleep(0.005)


class TimedRobot(KinematicRobot):
    """Notes when commands came; can hang and be slow."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.times: list[float] = []
        self.threads: set[int] = set()
        self.hang = 0.0

    def connect(self) -> None:
        self.threads.add(threading.get_ident())
        super().connect()

    def get_observation(self) -> Values:
        self.threads.add(threading.get_ident())
        seconds, self.hang = self.hang, 0.0
        time.sleep(seconds)
        return super().get_observation()

    def send_action(self, action: Values) -> None:
        self.times.append(time.monotonic())
        super().send_action(action)


@pytest.fixture
def robot() -> TimedRobot:
    return TimedRobot()


@pytest.fixture
def guard(robot: TimedRobot) -> Iterator[Guard]:
    guard = guarded(robot)
    guard.connect()
    yield guard
    guard.disconnect()
    assert not robot.connected
    assert not [thread for thread in threading.enumerate() if thread.name == "zprl-guard"]


def x_of(guard: Guard) -> float:
    return float(guard.get_observation()["arm/position"][0])


def feed(guard: Guard, x: float, seconds: float) -> None:
    for _ in range(round(seconds * 30)):
        guard.send_action(command(x))
        time.sleep(1 / 30)


def test_a_guard_is_a_robot_and_only_its_thread_calls_the_driver(guard: Guard, robot: TimedRobot) -> None:
    assert isinstance(guard, Robot)
    assert guard.arms == ONE_ARM
    feed(guard, 0.4, 0.2)
    assert len(robot.threads) == 1
    assert threading.get_ident() not in robot.threads


def test_nothing_is_commanded_before_the_first_command(guard: Guard, robot: TimedRobot) -> None:
    time.sleep(0.1)
    assert robot.commands == []
    assert x_of(guard) == pytest.approx(0.3)


def test_the_driver_gets_set_points_within_the_limits(guard: Guard, robot: TimedRobot) -> None:
    feed(guard, 2.0, 2.2)
    points = np.array([sent["arm/position"] for sent in robot.commands])
    assert points[:, 0].max() <= 0.6
    assert points[-1] == pytest.approx([0.6, 0.0, 0.2], abs=1e-3)
    # The driver is called a little after the time that a set point is for: over tenths of a second that is little.
    times = np.array(robot.times)
    later = np.searchsorted(times, times + 0.3)
    pairs = [(i, j) for i, j in enumerate(later) if j < len(times)]
    speeds = [np.linalg.norm(points[j] - points[i]) / (times[j] - times[i]) for i, j in pairs]
    assert 0.15 < max(speeds) <= 0.2 * 1.15
    assert guard.limited["arm/workspace"] > 50
    assert guard.limited["arm/speed"] > 50


def test_what_is_no_command_is_refused_and_the_arm_goes_on_to_the_last_one(guard: Guard) -> None:
    guard.send_action(command(0.32))
    with pytest.raises(RobotError, match="arm/position is not finite"):
        guard.send_action(command(np.nan))
    with pytest.raises(RobotError, match="lacks"):
        guard.send_action({"arm/position": np.zeros(3)})
    assert guard.stopped is None
    until(lambda: x_of(guard) == pytest.approx(0.32, abs=1e-3))


def test_without_commands_the_watchdog_holds(guard: Guard, robot: TimedRobot) -> None:
    feed(guard, 0.55, 0.3)
    time.sleep(0.3 + 0.25)
    held = robot.commands[-1]["arm/position"][0]
    assert 0.3 < held < 0.5
    time.sleep(0.2)
    assert robot.commands[-1]["arm/position"][0] == held
    assert guard.limited["watchdog"] >= 1
    assert guard.stopped is None
    feed(guard, 0.31, 0.2)  # a new command moves it again
    assert robot.commands[-1]["arm/position"][0] < held


def test_hold_brakes_and_stays(guard: Guard, robot: TimedRobot) -> None:
    feed(guard, 0.55, 0.5)
    guard.hold()
    time.sleep(0.25)
    held = robot.commands[-1]["arm/position"][0]
    time.sleep(0.1)
    assert robot.commands[-1]["arm/position"][0] == held < 0.5


def test_a_stop_is_at_once_and_latched_until_it_is_cleared(guard: Guard, robot: TimedRobot) -> None:
    feed(guard, 0.55, 0.3)
    guard.stop("a person pressed the button")
    until(lambda: robot.holds > 0, 0.2)
    sent = len(robot.commands)
    guard.stop("something else")
    with pytest.raises(Stopped, match="a person pressed the button"):
        guard.send_action(command(0.5))
    with pytest.raises(Stopped, match="a person pressed the button"):
        guard.home()
    time.sleep(0.1)
    assert len(robot.commands) == sent
    here = x_of(guard)
    guard.clear()
    assert guard.stopped is None
    time.sleep(0.1)
    assert len(robot.commands) == sent  # it waits for a new command
    guard.send_action(command(0.55))
    until(lambda: len(robot.commands) > sent)
    assert robot.commands[sent]["arm/position"][0] == pytest.approx(here, abs=0.005)


def test_a_drivers_error_stops_and_is_told_with_its_reason(guard: Guard, robot: TimedRobot) -> None:
    guard.send_action(command(0.4))
    robot.broken = True
    until(lambda: guard.stopped is not None)
    assert guard.stopped == "The robot's driver failed: The robot does not answer"
    with pytest.raises(Stopped, match="The robot does not answer"):
        guard.send_action(command(0.4))
    with pytest.raises(RobotError, match="The robot does not answer"):
        guard.get_observation()
    robot.broken = False
    until(lambda: guard._orders._failure is None)
    assert x_of(guard) > 0.29
    assert guard.stopped  # still, though it answers again
    guard.clear()
    feed(guard, 0.4, 0.1)


class Latching(TimedRobot):
    """Keeps its error until it is connected anew, as controllers do; which it refuses where told to."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = False
        self.slow = 0.0

    def connect(self) -> None:
        time.sleep(self.slow)
        if self.refuses:
            raise RobotError("The button is still pressed")
        self.broken = False
        super().connect()


def test_a_driver_that_failed_is_connected_anew_when_a_person_clears_it() -> None:
    robot = Latching()
    guard = guarded(robot)
    guard.connect()
    feed(guard, 0.32, 0.1)
    robot.broken = robot.refuses = True
    until(lambda: guard.stopped is not None)
    with pytest.raises(Stopped, match="The robot's driver failed: The button is still pressed"):
        guard.clear()
    assert guard.stopped == "The robot's driver failed: The button is still pressed"
    robot.refuses = False
    guard.clear()
    assert guard.stopped is None
    assert robot.connected
    assert len(robot.threads) == 1  # by the thread that owns it
    feed(guard, 0.34, 0.3)
    assert x_of(guard) > 0.32
    guard.disconnect()


def test_a_stop_while_a_driver_is_connected_anew_is_not_lost() -> None:
    robot = Latching()
    guard = guarded(robot)
    guard.connect()
    robot.broken, robot.slow = True, 0.3
    until(lambda: guard.stopped is not None)
    threading.Timer(0.1, guard.stop, ["the button"]).start()
    with pytest.raises(Stopped, match=r"^the button$"):
        guard.clear()
    time.sleep(0.4)
    assert guard.stopped == "the button"
    robot.slow = 0.0
    guard.clear()
    feed(guard, 0.32, 0.1)
    guard.disconnect()


def test_connecting_fails_with_the_drivers_error_and_leaves_no_thread(robot: TimedRobot) -> None:
    robot.broken = True
    guard = guarded(robot)
    with pytest.raises(RobotError, match="The robot does not answer"):
        guard.connect()
    assert not [thread for thread in threading.enumerate() if thread.name == "zprl-guard"]
    with pytest.raises(RobotError, match="not connected"):
        guard.get_observation()
    robot.broken = False
    guard.connect()
    guard.disconnect()
    guard.disconnect()


def test_a_driver_that_hangs_is_told_and_the_robot_does_not_jump_afterwards(guard: Guard, robot: TimedRobot) -> None:
    feed(guard, 0.55, 0.3)
    _, age = guard.observe()
    assert 0 <= age < 0.3
    robot.hang = 1.2
    time.sleep(0.4)
    assert guard.observe()[1] > 0.2
    time.sleep(0.4)
    with pytest.raises(RobotError, match=r"told nothing for 0\.\d s: its driver hangs"):
        guard.get_observation()
    sent = len(robot.commands)
    until(lambda: guard.limited.get("stall", 0) >= 1)
    guard.send_action(command(0.55))
    until(lambda: len(robot.commands) > sent)
    steps = np.diff([sent["arm/position"][0] for sent in robot.commands])
    assert np.abs(steps).max() <= 0.02


def test_a_driver_that_hangs_is_not_connected_to_once_more(
    guard: Guard, robot: TimedRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "END", 0.1)
    monkeypatch.setattr(guard_module, "PATIENCE", 0.1)
    robot.hang = 1.5
    until(lambda: robot.hang == 0.0)
    for refused in (guard.disconnect, guard.connect):
        with pytest.raises(RobotError, match="does not return"):
            refused()
    with pytest.raises(RobotError, match="not connected"):
        guard.send_action(command(0.4))
    until(lambda: not robot.connected)  # once it has come back it is let go of
    guard.disconnect()
    guard.connect()
    feed(guard, 0.4, 0.1)


def test_a_new_connection_clears_no_stop(guard: Guard) -> None:
    guard.stop("a person pressed the button")
    guard.disconnect()
    guard.connect()
    with pytest.raises(Stopped, match="a person pressed the button"):
        guard.home()
    guard.clear()
    feed(guard, 0.4, 0.1)


def test_home_is_reached_under_half_the_speed(guard: Guard, robot: TimedRobot) -> None:
    feed(guard, 0.36, 0.6)
    sent = len(robot.commands)
    begun = time.monotonic()
    guard.home()
    assert time.monotonic() - begun > 0.06 / 0.1 - 0.15
    assert x_of(guard) == pytest.approx(0.3, abs=1e-3)
    assert robot.homes == 0
    steps = np.diff([command["arm/position"][0] for command in robot.commands[sent:]])
    assert steps.max() <= 0.01


def test_the_way_home_ends_with_a_stop_or_a_hold(guard: Guard) -> None:
    feed(guard, 0.5, 1.2)
    for end, error, message in (
        (lambda: guard.stop("button"), Stopped, "button"),
        (guard.hold, RobotError, "did not get home: it was told to hold"),
    ):
        guard.clear()
        guard.start_home()
        with pytest.raises(RobotError, match="on its way home"):
            guard.send_action(command(0.5))
        timer = threading.Timer(0.1, end)
        timer.start()
        with pytest.raises(error, match=message):
            guard.await_home()
        timer.join()
        assert not guard.homing
    assert x_of(guard) > 0.35


def test_disconnecting_ends_the_way_home(robot: TimedRobot) -> None:
    guard = guarded(robot)
    guard.connect()
    feed(guard, 0.5, 1.0)
    guard.start_home()
    timer = threading.Timer(0.1, guard.disconnect)
    timer.start()
    with pytest.raises(RobotError, match="it was disconnected"):
        guard.await_home()
    timer.join()
    assert not robot.connected


def test_a_hold_that_fails_is_tried_again(guard: Guard, robot: TimedRobot) -> None:
    feed(guard, 0.5, 0.2)
    robot.broken = True
    guard.stop("button")
    time.sleep(0.1)
    assert robot.holds == 0
    robot.broken = False
    until(lambda: robot.holds == 1)
    assert guard.stopped == "button"


def test_without_a_home_of_the_task_the_driver_brings_it_there(robot: TimedRobot) -> None:
    guard = guarded(robot, home=None)
    guard.connect()
    guard.home()
    assert robot.homes == 1
    guard.disconnect()


def test_a_home_outside_the_limits_is_refused(robot: TimedRobot) -> None:
    with pytest.raises(ValueError, match="Home is outside the limits: arm/workspace"):
        guarded(robot, home=HOME | {"arm/position": (0.3, 0.0, 0.9)})
    with pytest.raises(ValueError, match=r"Home is no place for this robot: .*lacks"):
        guarded(robot, home={"arm/position": (0.3, 0.0, 0.2)})


def test_joints_that_leave_their_range_stop_the_robot_once(robot: TimedRobot) -> None:
    robot._target["arm/joints"] = robot._now["arm/joints"] = np.full(6, 1.2)
    guard = guarded(robot, replace(LIMITS, joint_low=(-1.0,) * 6, joint_high=(1.0,) * 6))
    guard.connect()
    assert "arm/joints [1.2" in (guard.stopped or "")
    guard.clear()  # by a person, who moves it back
    feed(guard, 0.32, 0.1)
    guard.disconnect()


def test_joints_are_commanded_under_their_limits() -> None:
    robot = KinematicRobot({"arm": Arm("joints", 6)})
    limits = Limits(joint_low=(-0.1,) * 6, joint_high=(0.1,) * 6, joint_speed=0.5, joint_acceleration=5.0)
    guard = Guard(robot, {"arm": limits})
    guard.connect()
    for _ in range(20):
        guard.send_action({"arm/joints": np.array([1.0, -1.0, 0.05, 0.0, 0.0, 0.0]), "arm/gripper": np.ones(1)})
        time.sleep(1 / 30)
    assert guard.get_observation()["arm/joints"] == pytest.approx([0.1, -0.1, 0.05, 0.0, 0.0, 0.0], abs=1e-3)
    guard.disconnect()
    assert np.abs([sent["arm/joints"] for sent in robot.commands]).max() <= 0.1
    assert guard.limited["arm/joints"] > 5


def test_disconnecting_brakes_and_holds(robot: TimedRobot) -> None:
    guard = guarded(robot)
    guard.connect()
    feed(guard, 0.55, 0.4)
    guard.disconnect()
    assert robot.holds == 1
    steps = np.diff([command["arm/position"][0] for command in robot.commands])
    assert steps[-1] < steps.max() / 2


def test_the_loop_keeps_its_rate(guard: Guard) -> None:
    time.sleep(0.7)
    assert guard.timing.periods > 15
    guard._loop._window -= 10.0  # a new window begins
    until(lambda: guard._loop._timing is not None)
    time.sleep(0.1)
    assert guard.timing.periods > 15
    assert guard.timing.jitter_p50 < 0.005


def test_a_program_that_is_ended_holds(repository: Path) -> None:
    program = f"""
import signal, sys, time
sys.path.insert(0, {str(repository / "tests/shared")!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_guard import KinematicRobot, command, guarded
class Told(KinematicRobot):
    def hold(self):
        print("holds", flush=True)
        super().hold()
    def disconnect(self):
        print("disconnects", flush=True)
        super().disconnect()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
guard = guarded(Told())
guard.connect()
guard.send_action(command(0.5))
print("moves", flush=True)
time.sleep(20)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=repository, stdout=-1, stderr=-3, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "moves\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out == "holds\ndisconnects\n"
