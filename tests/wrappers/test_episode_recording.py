"""Successful episodes are recorded whole, step by step, below the chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from helpers import POINT, PointReach, PointReachImages, tiny_policy
from zprl_sb3.pretrain.recording import load_episode
from zprl_sb3.wrappers import LatentSteering, make_vec_steering
from zprl_sb3.wrappers.episode_recording import EpisodeRecorder


class Straight(PointReach):
    """The toy task with a simulator's state, which returns the same array each time."""

    def get_state(self) -> Any:
        return np.concatenate([[0.0], self.point])

    def _observe(self) -> Any:
        self.seen = getattr(self, "seen", np.zeros(4, np.float32))
        self.seen[:] = super()._observe()
        return self.seen


def walk(env: gym.Env[Any, Any], seed: int | None) -> list[tuple[Any, ...]]:
    """Walk straight to the goal and return what was seen before each action, the action, and the reward."""
    obs, steps, done = env.reset(seed=seed)[0], [], False
    inner: Any = env.unwrapped
    while not done:
        before = {key: np.array(value) for key, value in (obs.items() if isinstance(obs, dict) else [("state", obs)])}
        action = np.clip((inner.goal - inner.point) / 0.2, -1, 1).astype(np.float32)
        obs, reward, terminated, truncated, _ = env.step(action)
        steps.append((before, action, reward))
        done = terminated or truncated
    return steps


def test_a_success_is_written_as_it_was(tmp_path: Path) -> None:
    env = EpisodeRecorder(Straight(), tmp_path)
    steps = walk(env, 3)
    episode = load_episode(tmp_path / "episode_3.npz")
    assert len(steps) > 1
    np.testing.assert_array_equal(episode.observations["state"], [before["state"] for before, *_ in steps])
    np.testing.assert_array_equal(episode.next_observations["state"][:-1], episode.observations["state"][1:])
    assert np.linalg.norm(np.diff(episode.next_observations["state"][-1].reshape(2, 2), axis=0)) < env.unwrapped.reach
    np.testing.assert_array_equal(episode.actions, [action for _, action, _ in steps])
    np.testing.assert_array_equal(episode.rewards, [0.0] * (len(steps) - 1) + [1.0])
    np.testing.assert_allclose(episode.states[:, 1:], episode.observations["state"][:, :2], rtol=1e-6)
    assert (episode.seed, episode.success) == (3, True)


def test_failures_and_episodes_without_a_seed_are_not(tmp_path: Path) -> None:
    env = EpisodeRecorder(gym.wrappers.TimeLimit(PointReach(), 2), tmp_path)
    env.reset(seed=3)
    for _ in range(2):
        env.step(np.zeros(2, np.float32))
    walk(EpisodeRecorder(PointReach(), tmp_path), None)
    assert not list(tmp_path.iterdir())


def test_images_are_written_once(tmp_path: Path) -> None:
    walk(EpisodeRecorder(PointReachImages(), tmp_path), 0)
    episode = load_episode(tmp_path / "episode_0.npz")
    assert set(episode.observations) == {"point", "top_image", "hand_image"}
    assert set(episode.next_observations) == {"point"}


@pytest.mark.parametrize("subprocess", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_below_the_chunks_of_several_environments(tmp_path: Path, subprocess: bool) -> None:
    def layer(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return EpisodeRecorder(env, tmp_path)

    steering = LatentSteering(tiny_policy(), 1.0)
    env = make_vec_steering(POINT, steering, 2, subprocess=subprocess, seeded_episodes=True, layer=layer)
    try:
        env.seed(7)
        env.reset()
        successes, still = [], np.zeros((2, 3), np.float32)
        for _ in range(60):
            _, _, dones, infos = env.step(still)
            successes += [infos[k]["episode_seed"] for k in np.flatnonzero(dones) if infos[k]["is_success"]]
    finally:
        env.close()
    assert successes
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"episode_{seed}.npz" for seed in successes)
