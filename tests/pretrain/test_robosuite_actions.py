"""Actions of robosuite's controllers as poses: the oracle is robosuite's own controller."""

import numpy as np
import pytest

from recordings import OLD_CONTROLLER, hand, new_controller, reset_for_robosuite, robosuite_env
from zprl_sb3.pretrain.robosuite_actions import ArmController, check_actions, read_controllers, to_poses
from zprl_sb3.robot_envs.rotations import matrix_of_6d, matrix_of_vector, rotation_vector

pytest.importorskip("robosuite")

RELATIVE = ArmController(absolute=False, in_base=False)
ABSOLUTE = ArmController(absolute=True, in_base=False)


def goals(env, in_base):
    """Return the poses in the world that robosuite's controllers are after."""
    for robot in env.simulation.robots:
        controller = robot.composite_controller.part_controllers["right"]
        origin, frame = robot.composite_controller.get_controller_base_pose("right")
        position, rotation = controller.goal_pos, controller.goal_ori
        yield (origin + frame @ position, frame @ rotation) if in_base else (position, rotation)


def actions_of(env, absolute, in_base, rng):
    """Return an action for all arms: any relative one, or an absolute one near the hand."""
    actions = []
    for k, robot in enumerate(env.simulation.robots):
        values = rng.uniform(-0.9, 0.9, 6)
        if absolute:
            origin, frame = robot.composite_controller.get_controller_base_pose("right") if in_base else (0, np.eye(3))
            turn = frame.T @ hand(env, k)[1] @ matrix_of_vector(0.2 * values[3:])
            values = np.append(frame.T @ (hand(env, k)[0] - origin) + 0.02 * values[:3], rotation_vector(turn))
        actions.append(np.append(values, rng.choice([-1.0, 1.0])))
    return np.concatenate(actions)


@pytest.mark.parametrize("in_base", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("task", ["lift", pytest.param("transport", marks=pytest.mark.slow)])
def test_poses_are_what_robosuites_controller_aims_at(task, absolute, in_base):
    env, rng = robosuite_env(task), np.random.default_rng(0)
    reset_for_robosuite(env, 0, absolute, in_base)
    controllers = [ArmController(absolute, in_base)] * len(env.simulation.robots)
    for _ in range(4):
        env.set_state(env.get_state())  # robosuite leaves positions one step of the physics behind
        action = actions_of(env, absolute, in_base, rng)
        poses = to_poses(env, controllers, action).reshape(-1, 10)
        env.simulation.step(action)
        for pose, (position, rotation), gripper in zip(poses, goals(env, in_base), action[6::7], strict=True):
            np.testing.assert_allclose(pose[:3], position, atol=1e-6)
            np.testing.assert_allclose(matrix_of_6d(pose[3:9]), rotation, atol=1e-6)
            assert pose[9] == gripper


def test_limits_scale_relative_actions():
    wide = ArmController(False, False, (-np.full(6, 2.0), np.full(6, 2.0)), (-np.full(6, 0.1), np.full(6, 0.1)))
    here = np.array([0.1, 0.2, 0.9]), np.eye(3)
    position, rotation = wide.goal(np.array([1.0, -2.0, 9.0, 0, 0, 0]), here, here)
    np.testing.assert_allclose(position - here[0], [0.05, -0.1, 0.1], atol=1e-12)
    np.testing.assert_allclose(rotation, np.eye(3), atol=1e-12)


def only(config, version="1.5.2", **kwargs):
    (controller,) = read_controllers({"controller_configs": config}, version, 1, **kwargs)
    return controller.absolute, controller.in_base


def test_old_and_new_configurations_are_told_apart():
    absolute = OLD_CONTROLLER | {"control_delta": False}
    assert only(OLD_CONTROLLER, "1.4.1") == (False, False)
    assert only(absolute, "1.4.1") == only(absolute, "") == (True, False)
    # From 1.5 on control_delta is ignored, and the frame is the base's unless it is said.
    assert only(absolute, "1.5.0") == only(absolute, "1.10") == (False, True)
    assert only(new_controller()) == (False, True)
    assert only(new_controller(input_type="absolute", input_ref_frame="world"), "") == (True, False)
    nested = {"type": "BASIC", "body_parts": {"arms": {"right": new_controller()["body_parts"]["right"]}}}
    assert only(nested) == (False, True)
    assert only(new_controller(), absolute=True) == (True, False)


def test_one_configuration_serves_both_arms_and_limits_are_read():
    config = OLD_CONTROLLER | {"output_max": 0.2, "output_min": -0.2}
    first, second = read_controllers({"controller_configs": [config], "robots": ["Panda"]}, "1.4.1", 2)
    assert first.outputs[1].tolist() == second.outputs[1].tolist() == [0.2] * 6
    assert first.inputs[0].tolist() == [-1.0] * 6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"controller_configs": OLD_CONTROLLER, "control_freq": 10}, "10 Hz, but .* 20 Hz"),
        ({"controller_configs": OLD_CONTROLLER, "robots": ["Sawyer"]}, "recorded with Sawyer"),
        ({}, "controller_configs does not say"),
        ({"controller_configs": [OLD_CONTROLLER] * 2}, "2 entries for 1 arm"),
        ({"controller_configs": OLD_CONTROLLER | {"type": "JOINT_POSITION"}}, "type JOINT_POSITION"),
        ({"controller_configs": {"body_parts": {}}}, "controller_configs does not say"),
        ({"controller_configs": {"body_parts": {"right": {}}}}, "type None"),
        ({"controller_configs": OLD_CONTROLLER | {"impedance_mode": "variable"}}, "impedance_mode variable"),
        ({"controller_configs": OLD_CONTROLLER | {"kp": 300}}, "kp 300"),
    ],
)
def test_another_robot_controller_or_rate_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        read_controllers(kwargs, "1.4.1", 1)


def test_actions_that_no_controller_was_given_are_refused():
    fitting = np.full((3, 7), 1.0)
    check_actions([RELATIVE], fitting)
    check_actions([ABSOLUTE], 3 * fitting)
    with pytest.raises(ValueError, match=r"1\.100, but .* takes -1 to 1.*--absolute"):
        check_actions([RELATIVE], 1.1 * fitting)
    with pytest.raises(ValueError, match="2 arms need 14 values"):
        check_actions([RELATIVE, ABSOLUTE], fitting)
