"""Two robots as one."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from arms import KinematicRobot
from zprl_sb3.robot_envs.real.drivers import several
from zprl_sb3.robot_envs.real.drivers.several import Several
from zprl_sb3.robot_envs.real.robots import Arm, Robot, RobotError


def two() -> tuple[KinematicRobot, KinematicRobot, Several]:
    left, right = KinematicRobot({"left": Arm("pose", 6)}), KinematicRobot({"right": Arm("joints", 7, gripper=False)})
    return left, right, Several({"left": left, "right": right})


def test_each_is_told_what_is_its_own() -> None:
    left, right, both = two()
    assert isinstance(both, Robot)
    assert both.arms == {"left": Arm("pose", 6), "right": Arm("joints", 7, gripper=False)}
    both.connect()
    assert {"left/position", "right/joints"} <= set(both.get_observation())
    action = {
        "left/position": np.array([0.3, 0.0, 0.25]),
        "left/rotation": np.array([np.pi, 0.0, 0.0]),
        "left/gripper": np.array([1.0]),
        "right/joints": np.zeros(7),
    }
    both.send_action(action)
    assert set(left.commands[-1]) == {"left/position", "left/rotation", "left/gripper"}
    assert set(right.commands[-1]) == {"right/joints"}
    both.home()
    assert (left.homes, right.homes) == (1, 1)
    both.disconnect()
    assert not left.connected
    assert not right.connected


def test_if_one_cannot_be_connected_the_other_is_let_go() -> None:
    left, right, both = two()
    with patch.object(right, "connect", side_effect=RobotError("no answer")), pytest.raises(RobotError, match="answer"):
        both.connect()
    assert not left.connected


def test_connected_once_more_none_is_let_go_of() -> None:
    left, right, both = two()
    both.connect()
    with patch.object(right, "connect", side_effect=RobotError("no answer")), pytest.raises(RobotError, match="answer"):
        both.connect()
    assert left.connected
    both.connect()


@pytest.mark.parametrize("error", [RobotError("no answer"), TypeError("no answer")])  # as an SDK may raise
def test_all_hold_whatever_becomes_of_one(error: Exception) -> None:
    left, right, both = two()
    both.connect()
    with patch.object(left, "hold", side_effect=error), pytest.raises(RobotError, match="no answer"):
        both.hold()
    assert right.holds == 1


def test_arms_need_names_of_their_own() -> None:
    left, _, _ = two()
    with pytest.raises(ValueError, match="left, left"):
        Several({"left": left, "right": left})
    with pytest.raises(ValueError, match="none"):
        Several({})


def test_as_a_task_file_has_it() -> None:
    both = several.robot(
        left={"driver": "xarm", "ip": "192.0.2.7", "home": [0.0] * 7},
        right={"driver": "franka", "ip": "192.0.2.8", "home": [0.0] * 7},
    )
    assert both.arms == {"left": Arm("pose", 7), "right": Arm("pose", 7)}
    mixed = several.robot(left={"driver": "xarm", "ip": "192.0.2.7"}, right={"driver": "lab.one_armed", "joints": 5})
    assert mixed.arms == {"left": Arm("pose", 7), "right": Arm("pose", 5)}  # a module of the user's
    with pytest.raises(ValueError, match=r"left: there is no 'frnaka' .*; there are xarm, franka, lerobot, several"):
        several.robot(left={"driver": "frnaka", "ip": "192.0.2.7"})
    with pytest.raises(ValueError, match=r"left: there is no 'lab.two_armed'"):
        several.robot(left={"driver": "lab.two_armed"})
    with pytest.raises(ValueError, match="left: 'opencv' is a driver, but not of a robot"):
        several.robot(left={"driver": "opencv", "index": 0})
    with pytest.raises(ValueError, match="left must be a table with driver"):
        several.robot(left={"ip": "192.0.2.7"})
