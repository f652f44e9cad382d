"""Demonstrations: what a leader arm shows becomes the actions of the environment that a policy will act in."""

from __future__ import annotations

from zprl_sb3.robot_envs.real.env import RealRobotEnv
from zprl_sb3.robot_envs.real.robots import Robot


def follow(env: RealRobotEnv, leader: Robot) -> str | None:
    """Run one episode that follows a leader, and return how it ended; None if no further one is wanted.

    :param env: Keeps its episodes
    :param leader: Connected. Its observation is where the arms are to be, by the names of a command
    :raises RobotError: If the leader does not answer; the episode is interrupted
    """
    _, info = env.reset()
    if info.get("quit", False):
        return None
    while True:
        _, _, terminated, truncated, info = env.step(env.action_of(leader.get_observation()))
        if terminated or truncated:
            return str(info["ending"])
