from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("mujoco")

from zprl_sb3.robot_envs.real import simulated
from zprl_sb3.robot_envs.real.simulated.driver import SimulatedRobot

RATES = {"orange": 30.0, "tray": 20.0}


@pytest.fixture
def connected() -> Iterator[Callable[..., SimulatedRobot]]:
    """Make robots that are connected, in lock-step unless told otherwise, on free ports."""
    robots = []

    def make(task: str = "orange", **arguments: Any) -> SimulatedRobot:
        arguments = {"channel": 0, "simulation": "test", "lock_step": RATES[task]} | arguments
        robots.append(simulated.robot(task, **arguments))
        robots[-1].connect()
        return robots[-1]

    yield make
    for robot in robots:
        robot.disconnect()
