"""Q at the first chunk of an episode, and the return that followed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import TD3

from helpers import steered_points, tiny_model
from zprl_sb3.returns import Episode, Episodes, first_values

ONE = np.ones(3, np.float32)


def chunk(number: float, n_envs: int = 2) -> dict[str, Any]:
    return {"c": np.full((n_envs, 4), number, np.float32), "z": np.full((n_envs, 3), number, np.float32)}


def test_returns_are_discounted_by_chunk_and_begin_anew_with_each_episode() -> None:
    episodes = Episodes(2, discount=0.5)
    delta = np.stack([ONE, ONE / 2])
    for number, (rewards, dones) in enumerate((([0, 1], [0, 0]), ([0, 0], [0, 1]), ([1, 4], [1, 1]))):
        infos: list[dict[str, Any]] = [{}, {}]
        episodes.add(chunk(number), delta, np.array(rewards), np.array(dones, bool), infos)
    second, first, third = episodes.take()
    assert (second.value, first.value, third.value) == (1, 0.25, 4)
    assert (second.discount, first.discount, third.discount) == (0.25, 0.125, 0.5)
    assert [episode.observation["z"][0] for episode in (second, first, third)] == [0, 0, 2]
    np.testing.assert_array_equal(third.delta, ONE / 2)
    assert episodes.take() == []


def test_episodes_that_the_base_policy_begins_are_left_out() -> None:
    episodes = Episodes(1, discount=0.5)
    for delta, done in ((0 * ONE, False), (ONE, True), (ONE, True)):
        episodes.add(chunk(0, 1), delta[None], np.ones(1), np.array([done]), [{}])
    assert [episode.value for episode in episodes.take()] == [1]


def test_only_time_outs_keep_their_last_observation() -> None:
    episodes, last = Episodes(2, discount=0.5), {"c": np.zeros(4, np.float32), "z": np.zeros(3, np.float32)}
    infos = [{"terminal_observation": last, "TimeLimit.truncated": cut} for cut in (True, False)]
    episodes.add(chunk(0), np.stack([ONE, ONE]), np.zeros(2), np.array([True, True]), infos)
    assert [episode.timed_out is last for episode in episodes.take()] == [True, False]


@pytest.mark.parametrize("bootstrap", [False, True])
def test_q_is_the_mean_of_the_critics_and_a_time_out_ends_with_it_where_they_bootstrap(bootstrap: bool) -> None:
    model = tiny_model(bootstrap_timeouts=bootstrap)
    begin, last = ({key: values[0] for key, values in chunk(number).items()} for number in (0.5, -0.5))
    q, returns = first_values(model, [Episode(begin, ONE, 0.3, 0.4, last), Episode(last, -ONE, 1.0, 0.4)])

    def value(observation: dict[str, Any], delta: Any) -> float:
        obs = {key: th.as_tensor(values)[None] for key, values in observation.items()}
        return model.critic(obs, th.as_tensor(delta).reshape(1, 3)).mean().item()

    assert q == pytest.approx([value(begin, ONE), value(last, -ONE)], rel=1e-5)
    rest = 0.4 * value(last, model.predict(last, deterministic=True)[0]) if bootstrap else 0.0
    assert rest != 0 or not bootstrap
    assert returns == pytest.approx([0.3 + rest, 1.0], rel=1e-5)


def test_critics_of_sb3_are_asked_too() -> None:
    model = TD3("MultiInputPolicy", steered_points(), device="cpu", seed=0, policy_kwargs={"net_arch": [8]})
    begin = {key: values[0] for key, values in chunk(0.5).items()}
    q, _ = first_values(model, [Episode(begin, ONE)] * 3)
    with th.no_grad():
        pair = model.critic({key: th.as_tensor(values)[None] for key, values in begin.items()}, th.as_tensor(ONE)[None])
    assert q == pytest.approx([float(sum(pair)) / 2] * 3, rel=1e-5)
