"""The driver of xArms against a machine with the SDK's own signatures."""

from __future__ import annotations

import time

import numpy as np
import pytest

import sdks
from zprl_sb3.robot_envs.real.drivers import xarm
from zprl_sb3.robot_envs.real.drivers.xarm import XArm
from zprl_sb3.robot_envs.real.robots import Arm, Robot, RobotError

HOME = [0.0, -0.5, 0.0, 0.6, 0.0, 1.1, 0.0]


@pytest.fixture(autouse=True)
def sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    sdks.install(monkeypatch, **sdks.XARM)
    monkeypatch.setattr(xarm, "SETTLE", 0.0)
    monkeypatch.setattr(sdks.XArmAPI, "made", [])


def connected(**arguments: object) -> tuple[XArm, sdks.XArmAPI]:
    robot = XArm("192.0.2.7", HOME, **arguments)  # type: ignore[arg-type]
    robot.connect()
    return robot, sdks.XArmAPI.made[-1]


def test_it_is_a_robot() -> None:
    robot = XArm("192.0.2.7", HOME)
    assert isinstance(robot, Robot)
    assert robot.arms == {"arm": Arm("pose", 7, True)}
    assert xarm.robot(ip="192.0.2.7", home=HOME[:6], joints=6, gripper=None, name="left").arms == {
        "left": Arm("pose", 6, False)
    }


def test_connecting_changes_to_servo_mode_and_moves_nothing() -> None:
    robot, api = connected()
    assert (api.port, api.mode, api.state) == ("192.0.2.7", 1, 0)
    assert api.pose == [300.0, 0.0, 200.0, np.pi, 0.0, 0.0]
    robot.disconnect()
    robot.disconnect()
    assert api.state == 4
    assert not api.connected


def test_connected_once_more_it_ends_an_error_and_keeps_one_connection() -> None:
    robot, api = connected()
    robot.connect()
    assert not api.connected
    assert api.state == 4  # which holds
    again = sdks.XArmAPI.made[-1]
    assert again is not api
    assert (again.connected, again.mode, again.state) == (True, 1, 0)


def test_metres_and_radians() -> None:
    robot, api = connected()
    told = robot.get_observation()
    np.testing.assert_allclose(told["arm/position"], [0.3, 0.0, 0.2])
    np.testing.assert_allclose(told["arm/rotation"], [np.pi, 0.0, 0.0])
    assert told["arm/joints"].shape == (7,)
    np.testing.assert_allclose(told["arm/gripper"], [1.0])
    command = {
        "arm/position": np.array([0.31, -0.02, 0.25]),
        "arm/rotation": np.array([3.0, 0.1, 0.0]),
        "arm/gripper": np.array([1.0]),
    }
    robot.send_action(command)
    np.testing.assert_allclose(api.pose, [310.0, -20.0, 250.0, 3.0, 0.1, 0.0])
    told = robot.get_observation()
    np.testing.assert_allclose(told["arm/position"], command["arm/position"])


def test_joints() -> None:
    robot, api = connected(control="joints", gripper=None)
    robot.send_action({"arm/joints": np.array(HOME)})
    np.testing.assert_allclose(api.joints, HOME)
    told = robot.get_observation()
    np.testing.assert_allclose(told["arm/joints"], HOME)
    assert "arm/gripper" not in told


def test_holding_commands_where_the_arm_is(monkeypatch: pytest.MonkeyPatch) -> None:
    robot, api = connected()
    api.pose = [400.0, 10.0, 150.0, 3.1, 0.0, 0.0]
    robot.hold()
    np.testing.assert_allclose(api.pose, [400.0, 10.0, 150.0, 3.1, 0.0, 0.0])
    held, told = list(api.pose), []
    api.pose = [400.0, 10.0, 149.0, 3.1, 0.0, 0.0]  # it sinks a little
    monkeypatch.setattr(api, "set_servo_cartesian_aa", lambda pose, **_: told.append(pose) or 0)
    robot.hold()
    assert told == []  # to follow it would let it sink on
    robot.send_action(robot.get_observation())
    robot.hold()
    np.testing.assert_allclose(told[-1], [*api.pose[:2], 149.0, *held[3:]])


def test_home_is_planned_by_the_controller_and_servo_mode_follows() -> None:
    robot, api = connected(home_speed=0.2)
    api.gripper = 100.0
    robot.home()
    np.testing.assert_allclose(api.joints, HOME)
    assert api.calls[-4:] == ["mode 0", "home at 0.2", "mode 1", "gripper 850"]
    assert (api.mode, api.state) == (1, 0)


@pytest.mark.parametrize("code", [sdks.APIState.HAS_ERROR, sdks.APIState.STATE_NOT_READY])
def test_it_takes_commands_again_though_it_did_not_get_home(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    robot, api = connected()
    monkeypatch.setattr(api, "set_servo_angle", lambda **_: code)
    with pytest.raises(RobotError, match="refused going home"):
        robot.home()
    assert (api.mode, api.state) == (1, 0)
    robot.send_action(robot.get_observation())


def test_without_a_home() -> None:
    robot = XArm("192.0.2.7")
    robot.connect()
    with pytest.raises(RobotError, match=r"give the driver home: \[joint angles\]"):
        robot.home()
    assert sdks.XArmAPI.made[-1].mode == 1


def test_the_gripper_is_asked_and_told_seldom() -> None:
    robot, api = connected()
    command = {"arm/position": np.array([0.3, 0, 0.2]), "arm/rotation": np.array([np.pi, 0, 0])}
    end, count = time.monotonic() + 0.5, 0
    while time.monotonic() < end:
        robot.send_action(command | {"arm/gripper": np.array([0.1])})
        robot.get_observation()
        count += 1
        time.sleep(0.005)
    slow = [call for call in api.calls if "gripper" in call]
    assert count > 30
    assert len(slow) <= 8
    assert slow.count("gripper 85") == 1
    np.testing.assert_allclose(robot.get_observation()["arm/gripper"], [0.1])


def test_the_second_gripper_counts_millimetres() -> None:
    robot, api = connected(gripper="g2")
    api.gripper = 42.0
    np.testing.assert_allclose(robot.get_observation()["arm/gripper"], [0.5])


def test_errors_have_the_words_of_the_sdk() -> None:
    robot, api = connected()
    api.error_code = 31
    with pytest.raises(RobotError, match=r"192.0.2.7.*command.*31, Collision Caused Abnormal Current\. Please check"):
        robot.hold()
    api.error_code, api.state = 0, 4
    with pytest.raises(RobotError, match="code 9 STATE_NOT_READY"):
        robot.hold()


def test_an_error_that_stays_is_said_when_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    robot = XArm("192.0.2.7", HOME)
    real = sdks.XArmAPI.connect

    def collided(api: sdks.XArmAPI) -> None:
        real(api)
        api.stuck_error = 31

    monkeypatch.setattr(sdks.XArmAPI, "connect", collided)
    with pytest.raises(RobotError, match="cannot be used: controller error 31"):
        robot.connect()
    assert not sdks.XArmAPI.made[-1].connected


def test_an_arm_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdks.XArmAPI, "reachable", False)
    with pytest.raises(RobotError, match=r"No xArm answers at 192.0.2.7 \(connect socket failed\)"):
        connected()


def test_another_arm_than_expected() -> None:
    with pytest.raises(RobotError, match="has 7 joints, not 6"):
        XArm("192.0.2.7", HOME[:6], joints=6).connect()


def test_a_lost_connection() -> None:
    robot, api = connected()
    api.connected = False
    with pytest.raises(RobotError, match="no connection"):
        robot.get_observation()
    robot.disconnect()
    with pytest.raises(RobotError, match="no connection"):
        robot.hold()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"home": [0.0] * 6}, "home must be 7 finite numbers"),
        ({"home": [np.nan] * 7}, "home must be 7 finite numbers"),
        ({"control": "speed"}, "control is pose or joints"),
        ({"gripper": "hand"}, "gripper, g2 or null"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XArm("192.0.2.7", **({"home": HOME} | arguments))  # type: ignore[arg-type]
