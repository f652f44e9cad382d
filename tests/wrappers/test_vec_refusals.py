"""What VecSteering refuses, and how it says what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from helpers import POINT, PUSH, PointReach, steered_points, tiny_model, tiny_policy
from zprl_sb3.wrappers import (
    ActionChunk,
    LatentSteering,
    LatentSteeringWrapper,
    SimulationError,
    VecSteering,
    find_spec,
    make_vec_steering,
)
from zprl_sb3.wrappers.process_vec_env import ProcessVecEnv

STILL = np.zeros((2, 3), np.float32)


def test_environments_that_are_not_chunked_are_refused() -> None:
    with pytest.raises(ValueError, match="needs chunked environments: build them with make_vec_steering"):
        VecSteering(DummyVecEnv([lambda: gym.make(POINT)]), LatentSteering(tiny_policy(), 0.5))


def test_chunks_of_another_length_or_discount_are_refused() -> None:
    for chunk, gamma in ((3, 0.9), (2, 0.8)):
        venv = DummyVecEnv([lambda c=chunk, g=gamma: ActionChunk(gym.make(POINT), c, g)])  # type: ignore[misc]
        with pytest.raises(ValueError, match=f"chunk={chunk}, gamma={gamma}; the steering needs chunk=2, gamma=0.9"):
            VecSteering(venv, LatentSteering(tiny_policy(), 0.5), gamma=0.9)


def test_a_policy_of_another_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="trained for zprl/Push-v0, the environment is test/PointReach-v0"):
        steered_points(tiny_policy(env_id=PUSH))
    venv = DummyVecEnv([lambda: ActionChunk(gym.make(POINT), 2)])
    with pytest.raises(ValueError, match="trained for zprl/Push-v0"):
        VecSteering(venv, LatentSteering(tiny_policy(env_id=PUSH), 0.5))


def test_no_environment_may_be_another_policys() -> None:
    gym.register("test/OtherPoint-v0", PointReach, max_episode_steps=5)
    try:
        venv = DummyVecEnv([lambda i=i: ActionChunk(gym.make(i), 2) for i in (POINT, "test/OtherPoint-v0")])  # type: ignore[misc]
    finally:
        del gym.registry["test/OtherPoint-v0"]
    with pytest.raises(ValueError, match=r"trained for .*PointReach-v0, the environment is test/OtherPoint-v0"):
        VecSteering(venv, LatentSteering(tiny_policy(env_id=POINT), 0.5))


@pytest.mark.parametrize("subprocess", [False, True])
def test_an_argument_that_the_environment_lacks_is_named(subprocess: bool) -> None:
    with pytest.raises(ValueError, match="test/PointReach-v0 has no argument 'rech'; it has by_key, reach, max_ep"):
        steered_points(env_kwargs={"max_episode_steps": 5, "reach": 0.2, "rech": 0.1}, subprocess=subprocess)


def test_an_environment_that_does_not_exist_is_named() -> None:
    with pytest.raises(gym.error.Error, match="Nowhere"):
        make_vec_steering("test/Nowhere-v0", LatentSteering(tiny_policy(), 0.5), 1)


def test_a_step_before_the_first_reset_is_refused() -> None:
    env = steered_points(n_envs=2)
    with pytest.raises(ResetNeeded, match="no z to steer yet: call reset"):
        env.step(STILL)
    env.reset()
    env.step(STILL)


def test_a_delta_that_is_not_finite_is_refused_and_one_beyond_its_box_clipped() -> None:
    shown = []
    for delta in (np.float32([[5, -2, 1], [0, 0, -9]]), np.float32([[1, -1, 1], [0, 0, -1]])):
        env = steered_points(n_envs=2)
        env.seed(1)
        env.reset()
        with pytest.raises(ValueError, match=r"Δz is not finite \(NaN or infinite in environments \[1\]\)"):
            env.step(np.float32([[0, 0, 0], [0, float("nan"), 0]]))
        shown.append(env.step(delta)[0])
    np.testing.assert_equal(shown[0], shown[1])


class Sick(PointReach):
    """Returns a reward that is not a number."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float("nan"), terminated, truncated, info


def chunked_points(cls: type[PointReach], subprocess: bool = False) -> VecEnv:
    def make() -> gym.Env[Any, Any]:
        return ActionChunk(cls(), 2, 0.9)

    return ProcessVecEnv([make]) if subprocess else DummyVecEnv([make])


def test_a_simulation_that_fails_says_so() -> None:
    env = VecSteering(chunked_points(Sick), LatentSteering(tiny_policy(), 0.5), 0.9)
    env.reset()
    with pytest.raises(SimulationError, match="a reward that is not finite, 1 env step"):
        env.step(STILL[:1])


def test_the_end_of_an_environments_process_is_told_plainly() -> None:
    env = VecSteering(chunked_points(Sick, subprocess=True), LatentSteering(tiny_policy(), 0.5), 0.9)
    env.reset()
    for _ in range(2):
        with pytest.raises(ChildProcessError, match="process of an environment has ended"):
            env.step(STILL[:1])
    env.close()


def test_a_process_that_cannot_make_its_environment_is_told_plainly() -> None:
    with pytest.raises(ChildProcessError, match="process of an environment has ended"):
        make_vec_steering("test/Nowhere-v0", LatentSteering(tiny_policy(), 0.5), 1, subprocess=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": 0.3}, r"scale \(λ\) 0.5 and 0.3"),
        ({"gamma": 0.8}, "gamma per env step 0.9 and 0.8"),
        ({"policy": tiny_policy(chunk=4)}, "chunk length 2 and 4"),
        ({"policy": tiny_policy(seed=1)}, r"base policy \(fingerprint\) \w+ and \w+"),
    ],
)
def test_environments_that_are_steered_differently_are_refused(changes: dict[str, Any], words: str) -> None:
    def make(**kwargs: Any) -> Callable[[], gym.Env[Any, Any]]:
        arguments = {"policy": tiny_policy(), "scale": 0.5, "gamma": 0.9} | kwargs
        return lambda: LatentSteeringWrapper(gym.make(POINT), **arguments)

    assert find_spec(DummyVecEnv([make(), make()])).scale == 0.5
    env = DummyVecEnv([make(), make(), make(**changes)])
    with pytest.raises(ValueError, match=f"Environments 0 and 2 are steered differently, with {words}: wrap all alike"):
        find_spec(env)
    with pytest.raises(ValueError, match="steered differently"):
        tiny_model(env)
