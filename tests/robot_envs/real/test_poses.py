"""Actions become commands, and values what a policy sees, without jumps."""

from __future__ import annotations

import numpy as np
import pytest

from zprl_sb3.robot_envs.real.poses import ActionError, Poses, nearest_vector
from zprl_sb3.robot_envs.real.robots import Arm, Values
from zprl_sb3.robot_envs.rotations import matrix_of_vector

ARM = {"arm": Arm("pose", 6)}
SEEN = ("arm/position", "arm/rotation", "arm/gripper")


def values(rotation: tuple[float, float, float] = (0.1, 0.2, 0.3)) -> Values:
    return {
        "arm/position": np.array([0.3, 0.0, 0.2]),
        "arm/rotation": np.array(rotation),
        "arm/joints": np.zeros(6),
        "arm/gripper": np.array([0.5]),
    }


def same_rotation(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(matrix_of_vector(a), matrix_of_vector(b), atol=1e-6))


@pytest.mark.parametrize(("representation", "size"), [("axis_angle", 7), ("rotation_6d", 10), ("quaternion", 8)])
@pytest.mark.parametrize("rotation", [(0.1, 0.2, 0.3), (np.pi, 0.0, 0.0), (0.0, -3.1, 0.2), (0.0, 0.0, 0.0)])
def test_a_pose_survives_the_way_to_the_policy_and_back(
    representation: str, size: int, rotation: tuple[float, float, float]
) -> None:
    poses = Poses(ARM, representation, SEEN)
    action = poses.action(values(rotation))
    assert action.shape == (size,) == poses.action_space().shape
    assert poses.action_space().contains(action)
    command = poses.command(action)
    assert set(command) == {"arm/position", "arm/rotation", "arm/gripper"}
    np.testing.assert_allclose(command["arm/position"], [0.3, 0.0, 0.2], atol=1e-6)
    np.testing.assert_allclose(command["arm/gripper"], [0.5])
    assert same_rotation(command["arm/rotation"], np.array(rotation))
    assert np.linalg.norm(command["arm/rotation"]) <= np.pi + 1e-6


@pytest.mark.parametrize("representation", ["axis_angle", "quaternion", "rotation_6d"])
def test_what_is_seen_does_not_jump_where_the_gripper_points_down(representation: str) -> None:
    poses = Poses(ARM, representation, ("arm/rotation",))
    seen = []
    for angle in np.linspace(np.pi - 0.2, np.pi + 0.2, 41):  # past π, where the short vector turns round
        short = angle if angle <= np.pi else angle - 2 * np.pi
        seen.append(poses.observe(values((short, 0.0, 0.0))))
    assert np.abs(np.diff(seen, axis=0)).max() < 0.03


def test_every_episode_tells_a_rotation_alike() -> None:
    poses = Poses(ARM, "axis_angle", ("arm/rotation",))
    first = poses.observe(values((-np.pi + 0.01, 0.0, 0.0)))
    np.testing.assert_allclose(first, [np.pi + 0.01, 0.0, 0.0], rtol=1e-6)
    poses.begin()
    np.testing.assert_array_equal(poses.observe(values((-np.pi + 0.01, 0.0, 0.0))), first)


def test_nearest_vector_is_the_same_rotation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        vector, near = rng.normal(size=3), 3 * rng.normal(size=3)
        found = nearest_vector(vector, near)
        assert same_rotation(found, vector)
        assert np.linalg.norm(found - near) <= np.linalg.norm(nearest_vector(vector, vector) - near) + 1e-9


def test_two_arms_come_one_after_the_other() -> None:
    arms = {"left": Arm("pose", 7), "right": Arm("pose", 7, gripper=False)}
    poses = Poses(arms, "axis_angle", ("left/gripper", "right/joints"))
    assert poses.action_space().shape == (13,)
    command = poses.command(np.arange(13.0) / 10)
    np.testing.assert_allclose(command["left/gripper"], [0.6])
    np.testing.assert_allclose(command["right/position"], [0.7, 0.8, 0.9])
    np.testing.assert_allclose(poses.positions(command), [[0.0, 0.1, 0.2], [0.7, 0.8, 0.9]])
    assert poses.proprio_size == 8


def test_joints_are_bounded_as_the_task_says() -> None:
    arms = {"arm": Arm("joints", 2)}
    poses = Poses(arms, "joints", ("arm/joints",), bounds={"arm/joints": ([-1.0, -2.0], [1.0, 2.0])})
    np.testing.assert_allclose(poses.action_space().low, [-1.0, -2.0, 0.0])
    assert poses.positions(poses.command([0.1, 0.2, 1.0])) is None


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3), "7 numbers"),
        (np.array([0, 0, 0, 0, 0, 0, np.nan]), "not finite"),
        (np.array([np.inf, 0, 0, 0, 0, 0, 0]), "not finite"),
    ],
)
def test_what_is_no_action_is_refused(action: np.ndarray, message: str) -> None:
    with pytest.raises(ActionError, match=message):
        Poses(ARM, "axis_angle", SEEN).command(action)


@pytest.mark.parametrize("representation", ["rotation_6d", "quaternion"])
def test_what_is_no_rotation_is_refused(representation: str) -> None:
    poses = Poses(ARM, representation, SEEN)
    with pytest.raises(ActionError, match="rotation"):
        poses.command(np.zeros(poses.action_size))


def test_names_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"no 'arm/force'.*arm/position"):
        Poses(ARM, "axis_angle", ("arm/force",))
    with pytest.raises(ValueError, match="takes pose, actions are joints"):
        Poses(ARM, "joints", SEEN)
