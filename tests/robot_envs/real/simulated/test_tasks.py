"""The two task files, and episodes of the environment on them."""

import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import yaml

from zprl_sb3.robot_envs.real import simulated
from zprl_sb3.robot_envs.real.env import RealRobotEnv
from zprl_sb3.robot_envs.real.keys import make_keys
from zprl_sb3.robot_envs.real.robots import Station
from zprl_sb3.robot_envs.real.simulated.channel import Room
from zprl_sb3.robot_envs.real.tasks import load_task, make_supervisor, make_teleoperator

TASKS = {"orange": (30.0, 7, 13), "tray": (20.0, 14, 20)}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_file_names_a_robot_that_fits_it(connected, name):
    task = load_task(f"simulated_{name}")
    rate, actions, proprio = TASKS[name]
    robot = connected(name)
    assert (task.rate, task.poses().action_space().shape, task.poses().proprio_size) == (rate, (actions,), proprio)
    assert dict(robot.arms) == task.arms
    seen = robot.get_observation()
    assert {key: seen[key].size for key in task.sensors} == task.sensors
    assert task.home is not None
    home = {key: np.array(value) for key, value in task.home.items()}
    for _ in range(60):
        robot.send_action(home)
    seen = robot.get_observation()
    for key, value in home.items():
        if not key.endswith("/rotation"):  # a half turn about x is one about -x
            np.testing.assert_allclose(seen[key], value, atol=0.002)


@pytest.mark.parametrize("name", TASKS)
def test_a_demonstrated_episode_is_a_success_of_the_environment(connected, name):
    task = load_task(f"simulated_{name}")
    robot = connected(name)
    address = robot.simulation.address
    # In lock-step nothing is waited for.
    env = RealRobotEnv(
        replace(task, rate=1e6), station=Station(robot, {}), supervisor=simulated.supervisor(address, seed=20)
    )
    leader = simulated.teleoperator(name, address)
    with closing(env):
        observation, _ = env.reset()
        assert env.observation_space.contains(observation)
        over, reward = False, 0.0
        while not over:
            observation, reward, terminated, truncated, info = env.step(env.action_of(leader.get_observation()))
            over = terminated or truncated
        assert (reward, terminated, info["is_success"]) == (1.0, True, True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def with_camera(tmp_path):
    """Write a copy of simulated_orange with a camera, on free ports."""

    def write(robot):
        port = free_port()
        content = yaml.safe_load(load_task("simulated_orange").path.read_text())
        content["robot"] = robot
        content["drivers"] = {
            "robot": {"driver": "simulated", "task": "orange", "channel": port},
            "cameras": {"front": {"driver": "simulated", "size": [110, 280]}},
        }
        content["cameras"] = {"front": {"size": [55, 140], "max_age": 5.0, "frozen_after": 5.0}}
        content["supervisor"]["address"] = content["teleoperator"]["address"] = f"tcp://127.0.0.1:{port}"
        file = tmp_path / "task.yml"
        file.write_text(yaml.safe_dump(content))
        return load_task(file)

    return write


def follow_leader(env, task, steps=45):
    """Return the first observation, the last one, and what was told last."""
    leader = make_teleoperator(task)
    first, _ = env.reset()
    for _ in range(steps):
        told = leader.get_observation()
        last, _, terminated, truncated, info = env.step(env.action_of(told))
        assert not terminated
        assert not truncated, info
    return first, last, told


def check_it_followed(first, last, told):
    assert last["front_image"].shape == (55, 140, 3)
    away = np.linalg.norm(last["proprio"][:3] - first["proprio"][:3])
    assert away > 0.05
    assert np.linalg.norm(last["proprio"][:3] - told["arm/position"]) < away


@pytest.mark.slow
def test_in_real_time_behind_its_limits_the_arm_follows_the_leader(with_camera):
    task = with_camera({"driver": "local"})
    with closing(RealRobotEnv(task, supervisor=make_supervisor(task))) as env:
        check_it_followed(*follow_leader(env, task))


@pytest.mark.slow
def test_behind_the_server_it_is_a_robot_like_any_other_whose_faults_end_an_episode(with_camera, tmp_path):
    key = make_keys(tmp_path / "keys", "robot")
    address = f"tcp://127.0.0.1:{free_port()}"
    task = with_camera({"driver": "remote", "address": address, "key": str(key)})
    command = ["robot-server", "--task", str(task.path), "--keys", str(tmp_path / "keys"), "--bind", address]
    server = subprocess.Popen(
        [sys.executable, "-m", "zprl_sb3.scripts.cli", *command], stdout=subprocess.PIPE, text=True
    )
    try:
        while "Clients reach it" not in (line := server.stdout.readline()):
            assert line, "the server has ended"
        with closing(RealRobotEnv(task, supervisor=make_supervisor(task))) as env:
            first, last, told = follow_leader(env, task)
            check_it_followed(first, last, told)
            room = Room(task.supervisor["address"])
            room.ask("faults", error="joint 3 is too hot")
            info, action = {}, env.action_of(told)
            while "ending" not in info:
                *_, info = env.step(action)
            assert info["ending"] == "aborted"
            assert "joint 3 is too hot" in info["reason"]
            room.ask("faults", error="")
            follow_leader(env, task, 3)  # it waits until the robot is well again
    finally:
        server.kill()
        server.communicate()
