"""Policies that see several frames: what c holds, and where a history begins."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from helpers import POINT, POINT_DICT, tiny_policy
from zprl_sb3.wrappers import LatentSteering, LatentSteeringWrapper, make_vec_steering
from zprl_sb3.wrappers.steering import episode_rng

ZEROS = np.zeros(3, np.float32)


def test_history_is_the_last_frames_and_begins_with_the_first_one_repeated() -> None:
    policy = tiny_policy(obs_steps=2)
    env = LatentSteeringWrapper(gym.make(POINT), policy, 0.5)
    raw, _ = gym.make(POINT).reset(seed=1)
    shown, _ = env.reset(seed=1)
    assert policy.context_dim == 8
    np.testing.assert_allclose(shown["c"], [*raw, *raw])
    chunk = env.steering.act({key: value[None] for key, value in shown.items()}, ZEROS[None], [episode_rng(1)])[0]
    shown, *_ = env.step(ZEROS)
    plain = gym.make(POINT)
    plain.reset(seed=1)
    frames = [plain.step(action)[0] for action in chunk]
    np.testing.assert_allclose(shown["c"], np.concatenate(frames[-2:]), atol=1e-6)


def test_history_forgets_the_last_episode() -> None:
    env = LatentSteeringWrapper(gym.make(POINT), tiny_policy(obs_steps=3), 0.5)
    env.reset(seed=1)
    for _ in range(2):
        env.step(ZEROS)
    frames = env.reset(seed=2)[0]["c"].reshape(3, 4)
    np.testing.assert_allclose(frames, [gym.make(POINT).reset(seed=2)[0]] * 3)
    later = env.step(ZEROS)[0]["c"].reshape(3, 4)
    # Two of the frames are new after a chunk of two.
    np.testing.assert_array_equal(later[0], frames[-1])
    assert (later[1] != later[0]).any()


def test_history_works_by_key_too() -> None:
    env = LatentSteeringWrapper(gym.make(POINT_DICT), tiny_policy(by_key=True, obs_steps=3), 0.5)
    assert env.reset(seed=1)[0]["c"].shape == (12,)
    assert env.step(ZEROS)[0]["c"].shape == (12,)


@pytest.mark.parametrize("by_key", [False, True])
def test_every_episode_begins_with_a_history_of_its_own(by_key: bool) -> None:
    policy, env_id = tiny_policy(by_key=by_key, obs_steps=3), POINT_DICT if by_key else POINT
    env = make_vec_steering(env_id, LatentSteering(policy, 0.5), 3, 0.9)
    assert env.observation_space["c"].shape == (3 * 4,)  # type: ignore[index]
    env.seed(4)
    shown: Any = env.reset()
    began, dones = 0, np.ones(3, bool)
    for _ in range(20):
        for frames in shown["c"][dones].reshape(-1, 3, 4):
            began += 1
            np.testing.assert_array_equal(frames, [frames[0]] * 3)
        for frames in shown["c"][~dones].reshape(-1, 3, 4):
            assert (frames[1] != frames[2]).any()
        shown, _, dones, infos = env.step(np.zeros((3, 3), np.float32))
        for k in np.flatnonzero(dones):
            last = infos[k]["terminal_observation"]["c"].reshape(3, 4)
            assert (last[1] != last[2]).any()
    assert began > 6
