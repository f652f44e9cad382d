"""SeededEpisodes: which seed every episode has, alone and side by side, and what follows from it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from numpy.typing import NDArray

from helpers import POINT, steered_points, tiny_policy
from zprl_sb3.evaluation import Evaluation, NoSteering, evaluate
from zprl_sb3.wrappers import SeededEpisodes


class Always:
    """Answers the same Δz everywhere."""

    def __init__(self, delta: float) -> None:
        self.delta = delta

    def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[NDArray[np.float32], None]:
        return np.full_like(observation["z"], self.delta), None


def test_the_seeds_go_on_by_the_stride() -> None:
    env = SeededEpisodes(gym.make(POINT), stride=3)
    seeds = [env.reset(seed=7)[1]["episode_seed"], *(env.reset()[1]["episode_seed"] for _ in range(3))]
    assert seeds == [7, 10, 13, 16]
    assert env.reset(seed=2)[1]["episode_seed"] == 2
    assert env.reset()[1]["episode_seed"] == 5


def test_an_episode_is_the_one_of_its_seed() -> None:
    env, plain = SeededEpisodes(gym.make(POINT), stride=4), gym.make(POINT)
    env.reset(seed=1)
    np.testing.assert_array_equal(env.reset()[0], plain.reset(seed=5)[0])


def test_every_step_names_the_seed() -> None:
    env = SeededEpisodes(gym.make(POINT))
    env.reset(seed=3)
    assert [env.step(env.action_space.sample())[4]["episode_seed"] for _ in range(2)] == [3, 3]


def test_without_a_first_seed_there_is_none() -> None:
    env = SeededEpisodes(gym.make(POINT))
    assert "episode_seed" not in env.reset()[1]
    assert "episode_seed" not in env.step(env.action_space.sample())[4]


@pytest.mark.parametrize(("n_envs", "episodes"), [(1, 5), (2, 6), (3, 12)])
def test_an_evaluation_uses_exactly_the_seeds_from_the_first(n_envs: int, episodes: int) -> None:
    env = steered_points(n_envs=n_envs, seeded_episodes=True)
    result = evaluate(NoSteering(), env, seed=40, episodes=episodes)
    assert result.seeds == list(range(40, 40 + episodes))
    # The episodes differ in length, so that environments do not reach their ends together.
    assert len(set(result.lengths)) > 1 or episodes < 6


def test_an_evaluation_repeats_exactly() -> None:
    env = steered_points(n_envs=3, seeded_episodes=True)
    results: list[Evaluation] = [evaluate(Always(0.7), env, seed=9, episodes=6) for _ in range(2)]
    assert results[0] == results[1]
    assert evaluate(Always(0.7), env, seed=15, episodes=6).lengths != results[0].lengths


def test_how_many_run_side_by_side_changes_nothing() -> None:
    results = [
        evaluate(NoSteering(), steered_points(n_envs=n, seeded_episodes=True), seed=3, episodes=6) for n in (1, 2, 6)
    ]
    assert results[0] == results[1] == results[2]


def test_two_policies_meet_the_same_starts_and_the_same_noise() -> None:
    first: list[tuple[th.Tensor, th.Tensor]] = []
    for predictor in (NoSteering(), Always(1.0)):
        policy = tiny_policy()
        seen: list[th.Tensor] = []
        act = policy.act

        def note(condition: th.Tensor, noise: th.Tensor, act: Any = act, seen: list[th.Tensor] = seen) -> th.Tensor:
            seen.append(noise.clone())
            actions: th.Tensor = act(condition, noise)
            return actions

        policy.act = note  # type: ignore[method-assign,assignment]
        env = steered_points(policy, n_envs=2, seeded_episodes=True)
        env.seed(5)
        observation: Any = env.reset()
        env.step(predictor.predict(observation)[0])
        first.append((th.as_tensor(observation["c"]), seen[0]))
    (start, noise), (other_start, other_noise) = first
    assert th.equal(start, other_start)
    assert th.equal(noise, other_noise)
    assert not th.equal(noise[0], noise[1])
