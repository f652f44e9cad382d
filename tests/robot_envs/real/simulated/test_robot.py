import threading
import time

import numpy as np
import pytest

from zprl_sb3.robot_envs.real import simulated
from zprl_sb3.robot_envs.real.robots import Robot, RobotError

HIGH = {"arm/position": np.array([0.4, 0.1, 0.3]), "arm/rotation": np.array([np.pi, 0, 0]), "arm/gripper": np.ones(1)}


def act(robot, action, steps=1):
    for _ in range(steps):
        robot.send_action(action)
    return robot.get_observation()


def angle(vector, other):
    from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_vector

    return np.linalg.norm(rotation_vector(matrix_of_vector(vector) @ matrix_of_vector(other).T))


def test_it_is_a_robot_of_six_joints_whose_arms_are_known_before_it_is_connected():
    robot = simulated.robot("tray", channel=0)
    assert isinstance(robot, Robot)
    assert {name: (arm.control, arm.joints, arm.gripper) for name, arm in robot.arms.items()} == {
        "left": ("pose", 6, True),
        "right": ("pose", 6, True),
    }
    with pytest.raises(RobotError, match="not connected"):
        robot.get_observation()


@pytest.mark.parametrize("turned", [0.0, 0.8, -0.8])
def test_the_arm_goes_to_a_pose_and_holds_it(connected, turned):
    from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_vector

    robot = connected()
    rotation = rotation_vector(matrix_of_vector([0, 0, turned]) @ matrix_of_vector([np.pi, 0, 0]))
    seen = act(robot, HIGH | {"arm/rotation": rotation, "arm/gripper": np.array([0.4])}, 45)
    np.testing.assert_allclose(seen["arm/position"], HIGH["arm/position"], atol=0.002)
    assert angle(seen["arm/rotation"], rotation) < 0.01
    assert seen["arm/gripper"] == pytest.approx(0.4, abs=0.02)


def test_joints_go_where_they_are_told_and_what_a_pose_led_to_is_one_of_their_poses(connected):
    joints = np.array([0.3, 0.4, 0.3, -0.2, -0.6, 0.5])
    robot = connected(control="joints")
    seen = act(robot, {"arm/joints": joints, "arm/gripper": np.ones(1)}, 45)
    np.testing.assert_allclose(seen["arm/joints"], joints, atol=0.003)
    with pytest.raises(RobotError, match="arm/joints"):
        robot.send_action(HIGH)


def test_a_target_out_of_reach_is_approached_and_nothing_becomes_unstable(connected):
    robot = connected()
    seen = act(robot, HIGH | {"arm/position": np.array([1.5, 0.0, 0.3])}, 60)
    assert all(np.isfinite(value).all() for value in seen.values())
    back = act(robot, HIGH, 90)
    np.testing.assert_allclose(back["arm/position"], HIGH["arm/position"], atol=0.005)


@pytest.mark.parametrize(
    "change",
    [
        {"arm/position": np.array([0.4, np.nan, 0.3])},
        {"arm/position": np.zeros(2)},
        {"arm/gripper": np.array([np.inf])},
        {"other/position": np.zeros(3)},
    ],
)
def test_what_is_no_command_is_refused_and_moves_nothing(connected, change):
    robot = connected()
    before = robot.get_observation()["arm/joints"]
    with pytest.raises(RobotError, match=next(iter(change))):
        robot.send_action(HIGH | change)
    np.testing.assert_array_equal(robot.get_observation()["arm/joints"], before)


def test_it_holds_where_it_is_and_comes_home_with_an_open_gripper(connected):
    robot = connected()
    home = robot.get_observation()
    act(robot, HIGH | {"arm/gripper": np.zeros(1)}, 5)  # under way
    robot.hold()
    held = robot.get_observation()
    robot.simulation._advance(500)
    moved = np.abs(robot.get_observation()["arm/position"] - held["arm/position"]).max()
    assert moved < 0.02 < np.abs(held["arm/position"] - HIGH["arm/position"]).max()
    robot.home()
    np.testing.assert_allclose(robot.get_observation()["arm/position"], home["arm/position"], atol=0.01)
    assert robot.get_observation()["arm/gripper"] > 0.95


def test_a_step_in_lock_step_is_a_period_also_where_that_is_no_whole_number_of_physics_steps(connected):
    robot = connected(lock_step=30.0)
    began = robot.simulation.time
    times = []
    for _ in range(30):
        robot.send_action(HIGH)
        times.append(robot.simulation.time - began)
    np.testing.assert_allclose(times, np.arange(1, 31) / 30, atol=0.001)


def test_a_seed_is_a_scene_and_what_follows_is_the_same_bit_by_bit(connected):
    robot = connected(faults={"drop": 0.3})

    def episode(seed):
        robot.simulation.reset(seed)
        return [act(robot, HIGH | {"arm/position": np.array([0.4, 0.1 * np.sin(k), 0.2])}) for k in range(20)]

    first, other, again = episode(3), episode(4), episode(3)
    for one, two in zip(first, again, strict=True):
        assert all((one[name] == two[name]).all() for name in one)
    assert np.abs(first[0]["orange/position"] - other[0]["orange/position"]).max() > 0.005


def test_physics_follow_the_clock_on_the_wall_and_what_is_behind_or_lost_is_said(connected):
    before = time.monotonic()
    robot = connected(lock_step=None, speedup=2.0)
    after = time.monotonic()
    while robot.simulation.time < 0.5:
        time.sleep(0.01)
    first = time.monotonic()
    state = robot.simulation.state()
    last = time.monotonic()
    accounted = state["time"] / 2.0 + state["lag"] + state["lost"]
    assert first - after <= accounted + 1e-6
    assert accounted <= last - before + 1e-6


def test_physics_that_could_not_go_on_do_not_race_afterwards(connected):
    robot = connected(lock_step=None)
    with robot.simulation._lock:  # as if the computer had had no time
        time.sleep(1.0)
        stood, since = robot.simulation.time, time.monotonic()
    while robot.simulation.state()["lost"] == 0.0:
        time.sleep(0.01)
    assert robot.simulation.state()["lost"] >= 0.7
    assert robot.simulation.time - stood <= time.monotonic() - since + 0.25 + 0.01


def test_time_stands_still_while_nobody_is_connected_and_goes_on_from_there(connected):
    robot = connected(lock_step=None, speedup=4.0)
    while robot.simulation.time < 0.2:
        time.sleep(0.01)
    robot.disconnect()
    robot.disconnect()
    stood = robot.simulation.time
    assert threading.active_count() < 20
    time.sleep(0.1)
    assert robot.simulation.time == stood
    robot.connect()
    while robot.simulation.time == stood:
        time.sleep(0.01)


def test_a_robot_in_real_time_comes_home(connected):
    robot = connected(lock_step=None, speedup=5.0)
    robot.send_action(HIGH)
    while np.abs(robot.get_observation()["arm/position"] - HIGH["arm/position"]).max() > 0.01:
        time.sleep(0.01)
    robot.home()
    assert np.abs(robot.get_observation()["arm/position"] - HIGH["arm/position"]).max() > 0.05


def test_a_second_simulation_of_a_name_and_wrong_arguments_are_refused(connected):
    robot = connected()
    with pytest.raises(ValueError, match="another name"):
        simulated.robot(simulation="test", channel=0)
    with pytest.raises(RobotError, match="another `channel`"):
        connected(simulation="other", channel=int(robot.simulation.address.rpartition(":")[2]))
    for wrong, match in [
        ({"task": "egg"}, "orange, tray"),
        ({"control": "torque"}, "pose or joints"),
        ({"speedup": 0.0}, "speedup"),
        ({"faults": {"lag": 1.0}}, "no fault 'lag'"),
        ({"faults": {"drop": 2.0}}, "'drop' cannot be 2.0"),
        ({"faults": {"delay": True}}, "'delay' cannot be True"),
    ]:
        with pytest.raises(ValueError, match=match):
            simulated.robot(**({"simulation": "wrong", "channel": 0} | wrong))


def test_a_simulation_that_became_unstable_says_so_until_it_begins_anew(connected):
    robot = connected(lock_step=None, speedup=5.0)
    with robot.simulation._lock:
        robot.simulation.world.data.qvel[:] = 1e12
    reached = robot.simulation.time + 0.1
    while robot.simulation.time < reached:
        time.sleep(0.01)
    with pytest.raises(RobotError, match="became unstable"):
        robot.get_observation()
    robot.simulation.reset(1)
    reached = robot.simulation.time + 0.5
    while robot.simulation.time < reached:
        assert np.isfinite(robot.get_observation()["arm/position"]).all()


# Faults


def test_a_delayed_command_acts_later(connected):
    robot = connected(faults={"delay": 0.2})
    start = robot.get_observation()["arm/position"]
    for _ in range(6):
        assert np.abs(act(robot, HIGH)["arm/position"] - start).max() < 1e-6
    assert np.abs(act(robot, HIGH, 3)["arm/position"] - start).max() > 0.01


def test_commands_are_lost(connected):
    robot = connected(faults={"drop": 1.0})
    start = robot.get_observation()["arm/position"]
    assert np.abs(act(robot, HIGH, 10)["arm/position"] - start).max() < 1e-6
    robot.simulation.set_faults(drop=0.5)
    assert np.abs(act(robot, HIGH, 30)["arm/position"] - HIGH["arm/position"]).max() < 0.01


def test_calls_take_longer(connected):
    robot = connected(faults={"slow": 0.05})
    began = time.monotonic()
    robot.get_observation()
    robot.send_action(HIGH)
    assert time.monotonic() - began >= 0.1


def test_every_call_fails_until_the_fault_is_over(connected):
    robot = connected()
    robot.simulation.set_faults(error="joint 3 is too hot")
    for call in (robot.get_observation, robot.home, lambda: robot.send_action(HIGH)):
        with pytest.raises(RobotError, match="joint 3 is too hot"):
            call()
    robot.disconnect()
    with pytest.raises(RobotError, match="joint 3 is too hot"):
        robot.connect()
    robot.simulation.set_faults(error="")
    robot.connect()
    act(robot, HIGH)


def test_a_sensor_tells_what_is_not_a_number(connected):
    seen = connected(faults={"nan": "orange/"}).get_observation()
    assert np.isnan(seen["orange/position"]).all()
    assert all(np.isfinite(value).all() for name, value in seen.items() if name != "orange/position")
