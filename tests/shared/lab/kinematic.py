"""A driver: the kinematic robot and the synthetic camera of ``arms.py``, and a leader arm without motors."""

from __future__ import annotations

import numpy as np

from arms import ONE_ARM, TWO_ARMS, KinematicRobot, SyntheticCamera
from zprl_sb3.robot_envs.real.robots import Values


def robot(arms: int = 1) -> KinematicRobot:
    return KinematicRobot({1: ONE_ARM, 2: TWO_ARMS}[arms])


def camera(height: int = 48, width: int = 64) -> SyntheticCamera:
    return SyntheticCamera((height, width))


class Leader(KinematicRobot):
    """Is moved on a line by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def get_observation(self) -> Values:
        self.asked += 1
        values = super().get_observation()
        return values | {"arm/position": np.array([0.3 + 0.002 * (self.asked % 20), 0.0, 0.2])}


def teleoperator() -> Leader:
    return Leader()
