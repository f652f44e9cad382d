"""The environment with a robot behind its limits, in this process and behind a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from people import ScriptedPerson

from zprl_sb3.robot_envs.real.env import RealRobotEnv
from zprl_sb3.robot_envs.real.keys import make_keys, read_server_keys
from zprl_sb3.robot_envs.real.robots import Signal
from zprl_sb3.robot_envs.real.server import RobotServer
from zprl_sb3.robot_envs.real.tasks import load_task, local_station

ACTION = np.array([0.35, 0.05, 0.25, np.pi, 0.0, 0.0, 0.5], np.float32)
FAR = np.array([0.9, 0.9, 0.9, np.pi, 0.0, 0.0, 0.5], np.float32)


@pytest.fixture
def served(tmp_path: Path, write_task: Callable[..., Path]) -> Iterator[tuple[RobotServer, Path]]:
    """Return a server and the task of its clients."""
    key = make_keys(tmp_path / "keys", "robot")
    server = RobotServer(
        local_station(load_task(write_task())), read_server_keys(tmp_path / "keys"), "tcp://127.0.0.1:*"
    )
    with server:
        robot = {"driver": "remote", "address": server.address, "key": str(key)}
        yield server, write_task("client", robot=robot, drivers=None, rate=30, max_episode_steps=30)


def test_an_episode_behind_a_server(served: tuple[RobotServer, Path], tmp_path: Path) -> None:
    person = ScriptedPerson([{20: Signal.SUCCESS}])
    # Closed whatever happens: one that stays open hangs the tests after it.
    with closing(RealRobotEnv(served[1], episodes=tmp_path / "episodes", supervisor=person)) as env:
        first, _ = env.reset()
        reward, began = 0.0, time.perf_counter()
        while not reward:
            obs, reward, _, truncated, info = env.step(ACTION)
            assert not truncated, info
        assert time.perf_counter() - began > 20 / 30 - 0.1  # not faster; on a busy machine it may take longer
        np.testing.assert_allclose(obs["proprio"][:3], ACTION[:3], atol=0.03)
        assert not np.array_equal(obs["front_image"], first["front_image"])
        assert info["timing"]["jitter_p50"] < 0.01


def test_limits_are_counted_by_episode(served: tuple[RobotServer, Path]) -> None:
    env = RealRobotEnv(served[1], supervisor=ScriptedPerson([{10: Signal.FAILURE}, {2: Signal.FAILURE}]))
    counts = []
    for action in (FAR, ACTION * 0 + env.action_space.low * 0 + np.array([0.3, 0, 0.2, np.pi, 0, 0, 1], np.float32)):
        env.reset()
        over = False
        while not over:
            _, _, over, truncated, info = env.step(action)
            assert not truncated, info
        counts.append(info["limited"])
    env.close()
    assert counts[0].get("arm/speed", 0) > 0
    assert counts[1].get("arm/speed", 0) == 0


def test_a_server_that_goes_away_costs_the_episode(
    served: tuple[RobotServer, Path], write_task: Callable[..., Path], tmp_path: Path
) -> None:
    server, task = served
    person = ScriptedPerson()
    env = RealRobotEnv(task, supervisor=person)
    env.reset()
    env.step(ACTION)
    address = server.address
    server.close()
    _, _, _, truncated, info = env.step(ACTION)
    assert (truncated, info["aborted"]) == (True, True)
    again: list[Any] = []
    show = person.show

    def restart(status: Any, frames: Any) -> None:
        show(status, frames)
        if "Trying again" in status.message and not again:
            station = local_station(load_task(write_task()))
            again.append(RobotServer(station, read_server_keys(tmp_path / "keys"), address))
            again[0].start()

    person.show = restart  # type: ignore[method-assign]
    env.reset()
    assert env.step(ACTION)[3] is False
    env.close()
    again[0].close()


def test_a_stop_at_the_server_is_cleared_there(served: tuple[RobotServer, Path]) -> None:
    server, task = served
    person = ScriptedPerson()
    env = RealRobotEnv(task, supervisor=person)
    env.reset()
    env.step(ACTION)
    server.stop("Stopped by a person at the robot server")
    info = env.step(ACTION)[4]
    assert info["aborted"]
    assert "at the robot server" in info["reason"]
    show, seen = person.show, []

    def clear(status: Any, frames: Any) -> None:
        show(status, frames)
        seen.append(status.phase)
        if seen.count("stopped") == 3:
            server.clear()

    person.show = clear  # type: ignore[method-assign]
    env.reset()
    assert "at the robot server" in next(each.message for each in person.shown if each.phase == "stopped")
    assert env.step(ACTION)[3] is False
    env.close()
