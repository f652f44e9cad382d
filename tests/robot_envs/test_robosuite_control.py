"""The hastened control loop of robosuite against robosuite's own."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import zprl_sb3  # noqa: F401  # registers the environments

pytest.importorskip("robosuite")
from zprl_sb3.robot_envs import robosuite_control


def rollout(task: str) -> list[Any]:
    """Return what happens in two episodes: observations, the whole state of the physics, controls and rewards."""
    env = gym.make(f"zprl/{task}-v0")
    world: Any = env.unwrapped
    rng = np.random.default_rng(0)
    rows = []
    for seed in (1, 2):
        obs, _ = env.reset(seed=seed)
        sites = [robot.eef_site_id["right"] for robot in world.simulation.robots]
        home = np.array([[*world.data.site_xpos[k], *world.data.site_xmat[k][:6], -1] for k in sites])
        for step in range(25):
            action = home + rng.normal(0, 0.07, home.shape)
            action[:, -1] = 1 if step % 10 > 5 else -1
            obs, reward, *_ = env.step(action.ravel().astype(np.float32))
            data = world.data
            rows.append([obs["object"], obs["proprio"], data.qpos.copy(), data.qvel.copy(), data.ctrl.copy(), reward])
    env.close()
    return rows


@pytest.mark.parametrize("task", ["Square", "Transport"])
def test_not_one_bit_differs(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hastened = rollout(task)
    monkeypatch.setattr(robosuite_control, "hasten", lambda simulation: None)
    np.testing.assert_equal(hastened, rollout(task))


def test_the_arms_are_moved_by_this_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    control = robosuite_control._Arm.control
    monkeypatch.setattr(robosuite_control._Arm, "control", lambda arm: (calls.append(1), control(arm)))
    rollout("Lift")
    assert len(calls) == 2 * 25 * 24  # every physics step of an action but the first
