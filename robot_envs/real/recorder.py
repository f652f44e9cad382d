"""Demonstrations: what a leader arm shows becomes the actions of the environment that a policy will act in."""

from __future__ import annotations

from functools import partial
from typing import Any

from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.env import RealRobotEnv
from zprl_sb3.robot_envs.real.robots import LeaderError, Robot, RobotError


def follow(env: RealRobotEnv, leader: Robot) -> str | None:
    """Run one episode that follows a leader, and return how it ended; None if no further one is wanted.

    The leader may be anywhere: the arms go to it slowly first, and the episode begins there.

    :param env: Keeps its episodes
    :param leader: Connected. Its observation is where the arms are to be, by the names of a command
    :raises LeaderError: If the leader does not answer; the episode is interrupted
    """
    shown = partial(_shown, env, leader)
    _, info = env.reset(options={"leader": shown})
    if info.get("quit", False):
        return None
    while True:
        _, _, terminated, truncated, info = env.step(shown())
        if terminated or truncated:
            return str(info["ending"])


def _shown(env: RealRobotEnv, leader: Robot) -> NDArray[Any]:
    try:
        values = leader.get_observation()
    except RobotError as error:
        raise LeaderError(f"Whoever demonstrates does not answer: {error}") from error
    return env.action_of(values)
