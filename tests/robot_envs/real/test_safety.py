"""Limits: what is refused, and what becomes of commands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arms import ONE_ARM, TWO_ARMS
from zprl_sb3.robot_envs.real.robots import Arm, RobotError, Values
from zprl_sb3.robot_envs.real.safety import Limits, check_limits, checked, described
from zprl_sb3.robot_envs.real.set_points import LATE, advance, clamped, left_range, start
from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_vector

POSE: dict[str, Any] = {
    "workspace": [[0.2, -0.3, 0.0], [0.6, 0.3, 0.4]],
    "speed": 0.5,
    "acceleration": 2,
    "rotation_speed": 2.0,
    "rotation_acceleration": 8.0,
}
DOWN: dict[str, Any] = {"axis": [0, 0, -1], "angle": 0.5}
JOINTS: dict[str, Any] = {
    "joint_low": [-1.0, -2.0],
    "joint_high": [1.0, 2.0],
    "joint_speed": 1.0,
    "joint_acceleration": [4.0, 8.0],
}
HERE: Values = {
    "arm/position": np.array([0.3, 0.0, 0.2]),
    "arm/rotation": np.array([np.pi, 0.0, 0.0]),
    "arm/gripper": np.array([1.0]),
}


def command(**changes: Any) -> Values:
    return HERE | {f"arm/{name}": np.array(value, dtype=np.float64) for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 0}, "speed must be above 0"),
        ({"acceleration": -1.0}, "acceleration must be above 0"),
        ({"speed": float("nan")}, "speed must consist of numbers, not nan"),
        ({"speed": "fast"}, "speed must consist of numbers, not 'fast'"),
        ({"rotation_step": 0.0}, "rotation_step must be above 0"),
        ({"joint_acceleration": [1.0, 0.0]}, "joint_acceleration must be above 0"),
        ({"workspace": [[0.6, 0, 0], [0.2, 1, 1]]}, "workspace: each lowest value must be below"),
        ({"workspace": [[0, 0], [1, 1]]}, "workspace must be two corners of three numbers"),
        ({"joint_low": [0.0]}, "belong together"),
        ({"cone": {"axis": [0, 0, 0], "angle": 1}}, "A cone has an axis of three numbers"),
        ({"cone": {"axis": [0, 0, 1], "angle": 2}}, "an angle in"),
        ({"cone": {"axis": [0, 0, 1]}}, "A cone has an axis and an angle"),
    ],
)
def test_what_is_no_limit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**(POSE | changes))


def test_limits_that_are_missing_or_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="'arm' is told pose: its limits lack rotation_speed"):
        check_limits(ONE_ARM, {"arm": Limits(**(POSE | {"rotation_speed": None}))})
    with pytest.raises(ValueError, match=r"arms are \['left', 'right'\], but there are limits for \['left'\]"):
        check_limits(TWO_ARMS, {"left": Limits(**POSE)})
    with pytest.raises(ValueError, match="has 3 joints, but its joint_low has 2"):
        check_limits({"arm": Arm("joints", 3)}, {"arm": Limits(**JOINTS)})
    check_limits({"arm": Arm("joints", 2)}, {"arm": Limits(**JOINTS)})


def test_what_is_enforced_is_described_by_name() -> None:
    home = {"arm/position": (0.3, 0, 0.2)}
    flat = described({"arm": Limits(**POSE, cone=DOWN)}, 50.0, 1.0, home)  # type: ignore[arg-type]
    assert (flat["rate"], flat["watchdog"], flat["arm.speed"]) == (50.0, 1.0, 0.5)
    assert flat["arm.workspace"] == ((0.2, -0.3, 0.0), (0.6, 0.3, 0.4))
    assert flat["arm.cone"] == ((0.0, 0.0, -1.0), 0.5)
    assert flat["arm/position at home"] == [0.3, 0.0, 0.2]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (command(position=[np.nan, 0, 0]), "arm/position is not finite"),
        (command(gripper=[np.inf]), "arm/gripper is not finite"),
        (command(position=[0.3, 0.0]), r"arm/position has the shape \(2,\) instead of \(3,\)"),
        (command(gripper=1.0), r"arm/gripper has the shape \(\) instead of \(1,\)"),
        ({"arm/position": np.zeros(3)}, r"lacks \['arm/gripper', 'arm/rotation'\]"),
        (command(joints=np.zeros(6)), r"nothing is named \['arm/joints'\]"),
        ({}, "lacks"),
        (HERE | {"arm/position": ["a", "b", "c"]}, "arm/position is no array of numbers"),
        (HERE | {"arm/position": [[1], [2, 3], 4]}, "arm/position is no array of numbers"),
        (command(rotation=[100.0, 0, 0]), "turns more than twice around"),
    ],
)
def test_what_is_no_command_is_refused(action: Any, message: str) -> None:
    with pytest.raises(RobotError, match=message):
        checked(action, ONE_ARM)


def test_a_robot_that_does_not_tell_where_it_is_is_not_moved() -> None:
    with pytest.raises(RobotError, match="does not tell arm/gripper"):
        start({name: value for name, value in HERE.items() if name != "arm/gripper"}, ONE_ARM)


def test_commands_are_brought_into_workspace_cone_range_and_step() -> None:
    limits = {"arm": Limits(**POSE, cone=DOWN, step=0.05, rotation_step=0.2)}  # type: ignore[arg-type]
    target, hits = clamped(command(position=[1e300, 0.0, 0.2], gripper=[2.0]), start(HERE, ONE_ARM), limits)
    assert target["arm/position"] == pytest.approx([0.35, 0.0, 0.2])
    assert target["arm/gripper"] == pytest.approx([1.0])
    assert hits == {"arm/workspace", "arm/step", "arm/gripper"}
    target, hits = clamped(command(rotation=[0.0, 0.0, 0.0]), start(HERE, ONE_ARM), limits)
    turn = matrix_of_vector(target["arm/rotation"]) @ matrix_of_vector(HERE["arm/rotation"]).T
    assert np.linalg.norm(rotation_vector(turn)) == pytest.approx(0.2)
    assert hits == {"arm/cone", "arm/rotation_step"}
    target, hits = clamped(HERE, start(HERE, ONE_ARM), limits)
    assert not hits
    assert all(np.array_equal(target[name], HERE[name]) for name in HERE)


def test_joint_commands_are_brought_into_range_and_step() -> None:
    arms = {"arm": Arm("joints", 2, gripper=False)}
    limits = {"arm": Limits(**JOINTS, joint_step=[0.1, 5.0])}  # type: ignore[arg-type]
    here = start({"arm/joints": np.zeros(2)}, arms)
    target, hits = clamped({"arm/joints": np.array([0.5, 3.0])}, here, limits)
    assert target["arm/joints"] == pytest.approx([0.1, 2.0])
    assert hits == {"arm/joints", "arm/joint_step"}


def test_ranges_that_can_only_be_watched_are() -> None:
    limits = {"arm": Limits(**POSE, joint_low=(-1.0,) * 6, joint_high=(1.0,) * 6)}
    assert left_range({"arm/joints": np.zeros(6)}, ONE_ARM, limits) == []
    assert left_range({}, ONE_ARM, limits) == []
    assert "arm/joints [1.1, 0.0" in left_range({"arm/joints": np.eye(6)[0] * 1.1}, ONE_ARM, limits)[0]
    told_joints, box = {"arm": Arm("joints", 2)}, {"arm": Limits(**JOINTS, workspace=((0, 0, 0), (1, 1, 1)))}
    assert left_range({"arm/position": np.full(3, 0.5)}, told_joints, box) == []
    assert "arm/position" in left_range({"arm/position": np.array([0.5, 0.5, -0.1])}, told_joints, box)[0]


numbers = st.floats(-1e6, 1e6) | st.floats(0.0, 0.5)
commands = st.tuples(
    st.tuples(numbers, numbers, numbers),
    st.tuples(*[st.floats(-4.0, 4.0)] * 3),
    st.tuples(numbers),
    st.lists(st.floats(0.002, 0.03) | st.floats(0.03, 0.7), min_size=1, max_size=5),
    st.floats(-0.1, 0.2),
)


@settings(max_examples=40, deadline=None)
@given(orders=st.lists(commands, max_size=8))
def test_whatever_is_commanded_set_points_keep_the_limits(orders: list[Any]) -> None:
    limits = {"arm": Limits(**POSE, cone=DOWN, step=0.1)}  # type: ignore[arg-type]
    here, before = start(HERE, ONE_ARM), np.zeros(3)
    for position, rotation, gripper, dts, within in orders:
        action = checked(command(position=position, rotation=rotation, gripper=gripper), ONE_ARM)
        target, _ = clamped(action, here, limits)
        for dt in dts:
            there, _ = advance(here, target, limits, dt, within)
            point = there["arm/position"].value
            velocity = (point - here["arm/position"].value) / dt
            assert ((point >= [0.2, -0.3, 0.0]) & (point <= [0.6, 0.3, 0.4])).all()
            assert np.linalg.norm(velocity) <= 0.5 * 1.001
            assert np.linalg.norm(velocity - before) <= 2.0 * dt * 1.001
            assert -matrix_of_vector(there["arm/rotation"].value)[2, 2] >= np.cos(0.5) - 1e-6
            assert 0.0 <= there["arm/gripper"].value[0] <= 1.0
            assert abs(there["arm/gripper"].value[0] - here["arm/gripper"].value[0]) <= 2.0 * dt * 1.001
            here, before = there, velocity


def test_late_ticks_brake_and_none_moves() -> None:
    limits = {"arm": Limits(**POSE)}
    target = command(position=[0.6, 0.0, 0.2])
    here, _ = advance(start(HERE, ONE_ARM), target, limits, 0.04, 0.04)
    speed = here["arm/position"].velocity[0]
    assert speed == pytest.approx(0.08)
    assert advance(here, target, limits, 0.0, 0.1) == (here, frozenset())
    late, _ = advance(here, target, limits, LATE * 1.1, 0.1)
    assert late["arm/position"].velocity == pytest.approx([0.0, 0.0, 0.0])
