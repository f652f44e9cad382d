"""A driver of one arm whose name is given, as ``several`` needs it."""

from __future__ import annotations

from arms import KinematicRobot
from zprl_sb3.robot_envs.real.robots import Arm


def robot(name: str, joints: int) -> KinematicRobot:
    return KinematicRobot({name: Arm("pose", joints)})
