"""The driver of LeRobot's robots against one that keeps LeRobot's contract (0.4.4) without being one."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zprl_sb3.robot_envs.real.drivers import lerobot
from zprl_sb3.robot_envs.real.drivers.lerobot import LeRobotArm, LeRobotCamera, LeRobotLeader
from zprl_sb3.robot_envs.real.robots import Arm, Camera, Robot, RobotError

MOTORS = ["shoulder_pan", "shoulder_lift", "elbow_flex"]
HOME = [0.0, -0.4, 0.8]


class Follower:
    """What LeRobot's base class asks of a robot: an arm of three motors in degrees, a gripper, and a camera."""

    def __init__(self) -> None:
        self.now = {"shoulder_pan.pos": 10.0, "shoulder_lift.pos": 0.0, "elbow_flex.pos": 0.0, "gripper.pos": 50.0}
        self.is_connected, self.is_calibrated = False, True
        self.mute = False  # until it is connected anew
        self.config = SimpleNamespace()
        self.fastest = 1000.0  # degrees per command
        self.sent: list[dict[str, float]] = []

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(self.now, float), "front": (480, 640, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(self.now, float)

    def connect(self, calibrate: bool = True) -> None:
        if self.is_connected:
            raise ConnectionError("already connected")
        assert not calibrate, "calibration asks questions"
        self.is_connected, self.mute = True, False

    def get_observation(self) -> dict[str, Any]:
        if not self.is_connected or self.mute:
            raise ConnectionError("not connected")
        return {**self.now, "front": np.zeros((480, 640, 3), dtype=np.uint8)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        if not self.is_connected:
            raise ConnectionError("There is no status packet!")
        assert set(action) == set(self.now)
        assert all(type(value) is float for value in action.values())
        self.sent.append(action)
        for key, value in action.items():
            self.now[key] += float(np.clip(value - self.now[key], -self.fastest, self.fastest))
        return action

    def disconnect(self) -> None:
        if not self.is_connected:
            raise ConnectionError("not connected")
        self.is_connected = False


def connected(**arguments: Any) -> tuple[LeRobotArm, Follower]:
    follower = Follower()
    robot = LeRobotArm(follower, MOTORS, HOME, **({"home_speed": 5.0} | arguments))
    robot.connect()
    return robot, follower


def test_it_is_a_robot() -> None:
    robot = lerobot.robot(robot="some:Robot", motors=MOTORS, home=HOME, name="left")
    assert isinstance(robot, Robot)
    assert robot.arms == {"left": Arm("joints", 3, True)}


def test_degrees_are_radians_and_per_cents_are_one() -> None:
    robot, follower = connected()
    told = robot.get_observation()
    assert set(told) == {"arm/joints", "arm/gripper"}
    np.testing.assert_allclose(told["arm/joints"], [np.radians(10.0), 0.0, 0.0])
    np.testing.assert_allclose(told["arm/gripper"], [0.5])
    robot.send_action({"arm/joints": np.array([0.0, np.pi / 2, -0.1]), "arm/gripper": np.array([0.25])})
    assert follower.now == pytest.approx(
        {"shoulder_pan.pos": 0.0, "shoulder_lift.pos": 90.0, "elbow_flex.pos": np.degrees(-0.1), "gripper.pos": 25.0}
    )


def test_normalized_positions_are_shares_of_the_range() -> None:
    robot, follower = connected(unit="normalized")
    np.testing.assert_allclose(robot.get_observation()["arm/joints"], [0.1, 0.0, 0.0])
    robot.send_action({"arm/joints": np.array([-1.0, 0.5, 0.0]), "arm/gripper": np.array([1.0])})
    assert follower.now["shoulder_pan.pos"] == -100.0


def test_home_is_reached_in_small_steps() -> None:
    robot, follower = connected()
    robot.home()
    np.testing.assert_allclose(robot.get_observation()["arm/joints"], HOME)
    steps = np.diff([[sent[f"{motor}.pos"] for motor in MOTORS] for sent in follower.sent], axis=0)
    assert np.abs(np.radians(steps)).max() <= 5.0 / lerobot.HOME_RATE + 1e-9
    assert follower.now["gripper.pos"] == 100.0


def test_a_blocked_motor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot, "HOME_PATIENCE", 0.1)
    robot, follower = connected()
    follower.fastest = 0.1
    with pytest.raises(RobotError, match=r"elbow_flex is 0\.\d\d away from home: is it blocked"):
        robot.home()


def test_holding_does_not_give_way() -> None:
    robot, follower = connected()
    robot.hold()
    follower.now["shoulder_lift.pos"] -= 3.0  # its weight
    robot.hold()
    assert len(follower.sent) == 1


def test_an_uncalibrated_robot_is_refused() -> None:
    follower = Follower()
    follower.is_calibrated = False
    with pytest.raises(RobotError, match="run lerobot-calibrate"):
        LeRobotArm(follower, MOTORS, HOME).connect()
    assert not follower.is_connected


def test_motors_must_be_the_robots() -> None:
    with pytest.raises(RobotError, match=r"has elbow_flex.pos, .*name shoulder_lift.pos, shoulder_pan.pos"):
        LeRobotArm(Follower(), MOTORS[:2], HOME[:2], gripper=None).connect()


def test_errors_are_named() -> None:
    robot, follower = connected()
    follower.is_connected = False
    with pytest.raises(RobotError, match="LeRobot, observing it: ConnectionError: not connected"):
        robot.get_observation()
    with pytest.raises(RobotError, match="LeRobot, commanding it: ConnectionError: There is no status packet"):
        robot.send_action({"arm/joints": np.zeros(3), "arm/gripper": np.zeros(1)})
    robot.disconnect()
    robot.disconnect()
    with pytest.raises(RobotError, match="no connection"):
        robot.get_observation()


def test_connected_once_more_it_does_not_go_limp() -> None:
    robot, follower = connected()
    follower.config = SimpleNamespace(disable_torque_on_disconnect=True)
    limp: list[bool] = []
    let_go = follower.disconnect
    follower.disconnect = lambda: (limp.append(follower.config.disable_torque_on_disconnect), let_go())  # type: ignore
    robot.connect()  # it answers: a glitch
    assert limp == []
    follower.mute = True
    robot.connect()
    assert limp == [False]
    assert follower.is_connected
    assert follower.config.disable_torque_on_disconnect
    robot.disconnect()
    assert limp == [False, True]


def test_without_lerobot_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(ImportError, match='pip install "lerobot"'):
        LeRobotArm("lerobot.robots.so_follower:SO101Follower", MOTORS, HOME).connect()
    with pytest.raises(RobotError, match="is not module:class"):
        LeRobotArm("so101_follower", MOTORS, HOME).connect()


class Leader(Follower):
    """What LeRobot's base class asks of a teleoperator."""

    def get_action(self) -> dict[str, float]:
        return self.now


def test_a_leader_arm_tells_where_to_be() -> None:
    arm = Leader()
    leader = lerobot.teleoperator(leader=arm, motors=MOTORS)
    assert isinstance(leader, LeRobotLeader)
    assert isinstance(leader, Robot)
    leader.connect()
    told = leader.get_observation()
    np.testing.assert_allclose(told["arm/joints"], [np.radians(10.0), 0.0, 0.0])
    np.testing.assert_allclose(told["arm/gripper"], [0.5])
    leader.hold()
    leader.home()
    assert arm.sent == []
    with pytest.raises(RobotError, match="where a person moves it"):
        leader.send_action(told)
    leader.disconnect()
    assert not arm.is_connected


def test_without_a_home() -> None:
    follower = Follower()
    robot = LeRobotArm(follower, MOTORS)
    robot.connect()
    with pytest.raises(RobotError, match=r"give the driver home: \[joint angles\]"):
        robot.home()
    assert follower.sent == []


class Webcam:
    """What LeRobot's base class asks of a camera."""

    def __init__(self) -> None:
        self.is_connected = False
        self.count = 0

    def connect(self, warmup: bool = True) -> None:
        self.is_connected = True

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        time.sleep(0.02)
        self.count += 1
        if self.count == 5:
            raise TimeoutError("Timed out waiting for frame from camera")
        return np.full((4, 6, 3), self.count, dtype=np.uint8)

    def disconnect(self) -> None:
        self.is_connected = False


def test_its_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zprl_sb3.robot_envs.real.drivers.grabbing.AGAIN", 0.05)
    webcam = Webcam()
    camera = LeRobotCamera(webcam)
    assert isinstance(camera, Camera)
    camera.connect()
    time.sleep(0.4)
    frame = camera.read()
    assert frame.image.shape == (4, 6, 3)
    assert frame.number > 5  # it went on after the fault
    assert frame.age < 0.2
    camera.disconnect()
    assert not webcam.is_connected
