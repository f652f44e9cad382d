"""The steered simulator is an ordinary environment: stock algorithms train on it, and both checkers pass it."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_env_of_gymnasium
from sb3_contrib import TQC
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from helpers import PUSH, push_policy, same, values
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.wrappers import LatentSteeringWrapper

pytest.importorskip("metaworld")


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    return push_policy()


@pytest.fixture
def env(policy: FlowPolicy) -> LatentSteeringWrapper:
    return LatentSteeringWrapper(gym.make(PUSH, max_episode_steps=20), policy, scale=0.2, sample_latent=True)


OFF_POLICY: dict[str, Any] = {"learning_starts": 10, "batch_size": 8, "buffer_size": 100}
ON_POLICY: dict[str, Any] = {"n_steps": 16, "batch_size": 8, "n_epochs": 1}


@pytest.mark.parametrize(
    ("algorithm", "settings"), [(SAC, OFF_POLICY), (TD3, OFF_POLICY), (TQC, OFF_POLICY), (PPO, ON_POLICY)]
)
def test_stock_algorithms_train_on_the_steered_simulator(
    algorithm: Any, settings: dict[str, Any], env: LatentSteeringWrapper, policy: FlowPolicy
) -> None:
    fingerprint = policy.fingerprint()
    model = algorithm("MultiInputPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, **settings)
    before = values(model.policy.parameters())
    model.learn(32)
    assert model.num_timesteps == 32
    assert not same(before, model.policy.parameters())
    assert all(weight.isfinite().all() for weight in model.policy.parameters())
    assert policy.fingerprint() == fingerprint
    # Monitor is below the chunk of 2 actions: episodes have 20 env steps, which are 10 of the algorithm's.
    assert len(model.ep_info_buffer) == 3
    assert {episode["l"] for episode in model.ep_info_buffer} == {20}
    delta, _ = model.predict(env.reset(seed=1)[0], deterministic=True)
    assert delta.shape == env.action_space.shape
    assert (np.abs(delta) <= 1).all()


def complaints(recorded: list[warnings.WarningMessage]) -> list[str]:
    """Return the warnings but for two: that a wrapper is checked, and that contexts and latents are unbounded."""
    harmless = ("is different from the unwrapped version", "value is -infinity", "value is infinity")
    texts = [str(warning.message) for warning in recorded]
    return [text for text in texts if not any(words in text for words in harmless)]


@pytest.mark.parametrize("check", [check_env_of_gymnasium, check_env_of_sb3])
def test_the_steered_simulator_passes_the_checker(check: Any, env: LatentSteeringWrapper) -> None:
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        check(env)
    assert complaints(recorded) == []
