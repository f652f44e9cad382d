"""Environments in processes of their own: SB3's commands, without SB3 and torch."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from helpers import PUSH, tiny_policy
from zprl_sb3.wrappers import LatentSteering, make_vec_steering
from zprl_sb3.wrappers.process_vec_env import ProcessVecEnv


def make_car() -> gym.Env[Any, Any]:
    import gymnasium

    return gymnasium.make("MountainCarContinuous-v0", max_episode_steps=3)


def test_it_does_what_environments_in_this_process_do() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (7, 2, 1)).astype(np.float32)
    results = []
    for cls in (ProcessVecEnv, DummyVecEnv):
        env = cls([make_car] * 2)
        env.seed(3)
        steps: list[Any] = [env.reset()]
        for action in actions:
            obs, rewards, dones, infos = env.step(action)
            ends = [(info["TimeLimit.truncated"], info.get("terminal_observation")) for info in infos]
            steps.append((obs, rewards.astype(np.float32), dones, *ends))
        results.append(steps)
        env.close()
    np.testing.assert_equal(results[0], results[1])


def test_it_answers_for_its_environments() -> None:
    env = ProcessVecEnv([make_car] * 2)
    assert env.env_is_wrapped(TimeLimit) == [True, True]
    assert env.env_is_wrapped(RecordEpisodeStatistics) == [False, False]
    assert (env.has_attr("goal_velocity"), env.has_attr("nothing")) == (True, False)
    env.set_attr("mark", 5, indices=[1])
    assert env.get_attr("mark", indices=[1]) == [5]
    env.reset()
    assert env.env_method("has_wrapper_attr", "mark") == [False, True]
    env.close()
    assert not any(process.is_alive() for process in env.processes)


def test_its_processes_import_neither_torch_nor_sb3() -> None:
    class Imports(gym.Wrapper[Any, Any, Any, Any]):
        @property
        def imported(self) -> list[str]:
            import sys

            return [name for name in ("torch", "stable_baselines3", "mujoco") if name in sys.modules]

    policy = tiny_policy(env_id=PUSH, observation_shapes={"object": (17,), "proprio": (9,)}, action_dim=4)
    env = make_vec_steering(PUSH, LatentSteering(policy, 0.5), 1, 0.99, subprocess=True, layer=Imports)
    env.reset()
    while not (result := env.step(np.zeros((1, env.action_space.shape[0]), np.float32)))[2].all():  # type: ignore[index]
        pass
    assert result[3][0]["episode"]["l"] == 200  # env steps, counted there
    assert env.env_is_wrapped(Monitor) == [True]
    assert env.get_attr("imported") == [["mujoco"]]
    env.close()


def failing(seconds: float = 0.0) -> gym.Env[Any, Any]:
    class Failing(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            import time

            time.sleep(seconds)
            if not seconds:
                raise ConnectionError("the robot is gone")
            return self.env.step(action)

    return Failing(make_car())


def test_after_an_environment_failed_it_closes() -> None:
    env = ProcessVecEnv([make_car, failing])
    env.reset()
    with pytest.raises((EOFError, ConnectionError)):
        env.step(np.zeros((2, 1), np.float32))
    for _ in range(2):
        env.close()
        assert not any(process.is_alive() for process in env.processes)


def test_it_closes_in_the_middle_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zprl_sb3.wrappers.process_vec_env.PATIENCE", 0.5)
    env = ProcessVecEnv([make_car, lambda: failing(60.0)])
    env.reset()
    env.step_async(np.zeros((2, 1), np.float32))
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 30
    assert not any(process.is_alive() for process in env.processes)


def test_any_environment_that_cannot_be_made_is_noticed_at_once() -> None:
    def none() -> gym.Env[Any, Any]:
        raise ValueError("no such environment")

    with pytest.raises((EOFError, ConnectionError)):
        ProcessVecEnv([make_car, none])
