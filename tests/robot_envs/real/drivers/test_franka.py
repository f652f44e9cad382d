"""The driver of Franka's arms against a machine with franky's own signatures."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

import sdks
from zprl_sb3.robot_envs.real.drivers.franka import Franka
from zprl_sb3.robot_envs.real.robots import Arm, Robot, RobotError

HOME = [0.0, -0.78, 0.0, -2.36, 0.0, 1.57, 0.78]
robots: list[Franka] = []


@pytest.fixture(autouse=True)
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    sdks.install(monkeypatch, **sdks.FRANKY)
    monkeypatch.setattr(sdks.FrankyRobot, "made", [])
    monkeypatch.setattr(sdks.FrankyGripper, "made", [])
    yield
    while robots:
        robots.pop().disconnect()


def connected(**arguments: object) -> tuple[Franka, sdks.FrankyRobot]:
    robot = Franka("192.0.2.8", HOME, **arguments)  # type: ignore[arg-type]
    robots.append(robot)
    robot.connect()
    return robot, sdks.FrankyRobot.made[-1]


def command(gripper: float) -> dict[str, np.ndarray]:
    return {
        "arm/position": np.array([0.45, 0.1, 0.2]),
        "arm/rotation": np.array([0.0, 0.0, np.pi / 2]),
        "arm/gripper": np.array([gripper]),
    }


def test_it_is_a_robot() -> None:
    assert isinstance(Franka("192.0.2.8", HOME), Robot)
    assert Franka("192.0.2.8", HOME, control="joints", gripper=False, name="right").arms == {
        "right": Arm("joints", 7, False)
    }


def test_the_controller_follows_targets_from_where_the_arm_is() -> None:
    robot, franka = connected(stiffness=[600.0, 30.0])
    assert franka.realtime_config == "enforce"
    assert franka.tracker.stiffness == (600.0, 30.0)
    assert franka.tracker.targets == []
    told = robot.get_observation()
    np.testing.assert_allclose(told["arm/position"], [0.4, 0.0, 0.3])
    np.testing.assert_allclose(told["arm/rotation"], [np.pi, 0.0, 0.0], atol=1e-9)
    robot.send_action(command(1.0))
    (target,) = franka.tracker.targets
    np.testing.assert_allclose(target.translation, [0.45, 0.1, 0.2])
    np.testing.assert_allclose(np.abs(target.quaternion), [0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-12)
    told = robot.get_observation()
    np.testing.assert_allclose(told["arm/rotation"], [0.0, 0.0, np.pi / 2], atol=1e-9)


def test_joints() -> None:
    robot, franka = connected(control="joints", gripper=False, realtime=False)
    assert franka.realtime_config == "ignore"
    robot.send_action({"arm/joints": np.array(HOME)})
    np.testing.assert_allclose(robot.get_observation()["arm/joints"], HOME)
    assert "arm/gripper" not in robot.get_observation()


def test_holding_looks_up_the_pose_once() -> None:
    robot, franka = connected()
    robot.send_action(command(1.0))
    robot.hold()
    robot.hold()
    assert len(franka.tracker.targets) == 2
    robot.send_action(command(1.0))
    robot.hold()
    assert len(franka.tracker.targets) == 4


def test_home_ends_the_controller_and_starts_it_again() -> None:
    robot, franka = connected()
    before = franka.tracker
    robot.home()
    np.testing.assert_allclose(franka.current_joint_positions, HOME)
    assert franka.tracker is not before
    assert franka.is_in_control
    robot.send_action(command(1.0))


def test_a_home_run_that_takes_too_long() -> None:
    robot, franka = connected()
    franka.slow = True
    with pytest.raises(RobotError, match="not home after"):
        robot.home()


def test_the_gripper_obeys_one_command_after_the_other() -> None:
    robot, _ = connected()
    gripper = sdks.FrankyGripper.made[-1]
    # Around the middle nothing is changed; grasping, opening and grasping again within the time of one command is one.
    for opening in (0.5, 0.45, 0.55):
        robot.send_action(command(opening))
    time.sleep(0.2)
    assert gripper.commands == []
    robot.send_action(command(0.0))
    time.sleep(0.15)
    robot.send_action(command(1.0))
    robot.send_action(command(0.0))
    time.sleep(0.4)
    assert gripper.commands == ["grasp"]
    np.testing.assert_allclose(robot.get_observation()["arm/gripper"], [0.03 / 0.08])
    robot.send_action(command(1.0))
    time.sleep(0.3)
    assert gripper.commands == ["grasp", "open"]


def test_a_gripper_that_did_not_take_a_command_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    grasp, refusals = sdks.FrankyGripper.grasp_async, ["the connection was lost"]

    def refuse_once(gripper: sdks.FrankyGripper, *args: object, **kwargs: object) -> object:
        if refusals:
            raise RuntimeError(refusals.pop())
        return grasp(gripper, *args, **kwargs)

    monkeypatch.setattr(sdks.FrankyGripper, "grasp_async", refuse_once)
    robot, _ = connected()
    robot.send_action(command(0.0))
    time.sleep(0.3)
    assert refusals == []
    assert sdks.FrankyGripper.made[-1].commands == ["grasp"]


def test_a_controller_that_ended_says_why() -> None:
    robot, franka = connected()
    franka.is_in_control, franka.fault = False, 'libfranka: Move command aborted: ["cartesian_reflex"]'
    with pytest.raises(RobotError, match=r"192\.0\.2\.8, commanding it: FrankyError: .*cartesian_reflex"):
        robot.send_action(command(1.0))
    franka.fault = None
    with pytest.raises(RobotError, match="switch FCI on"):
        robot.send_action(command(1.0))
    with pytest.raises(RobotError, match="switch FCI on"):
        robot.send_action(command(1.0))


def test_a_robot_that_does_not_answer() -> None:
    robot = Franka("nowhere", HOME)
    with pytest.raises(RobotError, match="connecting to it: FrankyError: libfranka: Connection error"):
        robot.connect()
    with pytest.raises(RobotError, match="no connection"):
        robot.get_observation()
    robot.disconnect()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="home must be 7"):
        Franka("192.0.2.8", HOME[:6])
    with pytest.raises(ValueError, match="control is pose or joints"):
        Franka("192.0.2.8", HOME, control="torque")
