"""LatentSteeringWrapper: what it accepts and refuses, where its layers lie, and which z it steers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation, TimeLimit
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.monitor import Monitor

from helpers import POINT, POINT_DICT, POINT_ID, PointReach, push_policy, tiny_policy
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.wrappers import (
    ActionChunk,
    LatentSteeringWrapper,
    SeededEpisodes,
)
from zprl_sb3.wrappers.steering import episode_rng

ZEROS = np.zeros(3, np.float32)


def point(**kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make(POINT, **kwargs)


def steered(policy: FlowPolicy | None = None, scale: float = 0.5, **kwargs: Any) -> LatentSteeringWrapper:
    return LatentSteeringWrapper(point(), policy or tiny_policy(), scale, **kwargs)


def rollout(env: LatentSteeringWrapper, delta: float, seed: int = 0) -> list[Any]:
    """Observations, rewards and ends of one episode."""
    trace: list[Any] = [env.reset(seed=seed)[0]]
    while True:
        obs, reward, terminated, truncated, _ = env.step(np.full(3, delta, np.float32))
        trace += [obs, reward, terminated, truncated]
        if terminated or truncated:
            return trace


def test_a_path_does_what_the_policy_does(tmp_path: Path) -> None:
    path = save_policy(tiny_policy(), tmp_path / "policy")
    traces = [rollout(steered(given), 0.4) for given in (tiny_policy(), path, str(path))]
    for trace in traces[1:]:
        for mine, theirs in zip(traces[0], trace, strict=True):
            np.testing.assert_equal(theirs, mine)


@pytest.mark.filterwarnings("ignore:.*(different from the unwrapped version|A Box observation space)")
def test_gymnasium_and_sb3_find_nothing_wrong_with_it() -> None:
    check_env(steered(), skip_render_check=True)
    sb3_check_env(steered())


@pytest.mark.parametrize("scale", [0, -1, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        steered(scale=scale)


def test_a_policy_without_bottleneck_is_refused() -> None:
    with pytest.raises(ValueError, match="no bottleneck"):
        steered(tiny_policy(latent_dim=None))


def test_a_step_before_the_first_reset_is_refused() -> None:
    env = steered()
    with pytest.raises(ResetNeeded, match="no z to steer yet: call reset"):
        env.step(ZEROS)
    env.reset(seed=0)
    env.step(ZEROS)


def test_a_delta_that_is_not_finite_is_refused_and_one_beyond_its_box_clipped() -> None:
    env = steered()
    env.reset(seed=1)
    with pytest.raises(ValueError, match="Δz is not finite"):
        env.step(np.float32([0, float("nan"), 0]))
    # Nothing has happened: the episode goes on as if it had not been tried.
    np.testing.assert_equal(env.step(np.float32([5, -2, 1]))[0], second(np.float32([1, -1, 1])))


def second(delta: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The second observation of the episode with seed 1."""
    env = steered()
    env.reset(seed=1)
    return env.step(delta)[0]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (tiny_policy(env_id="zprl/Push-v0"), "trained for zprl/Push-v0, the environment is test/PointReach-v0"),
        (tiny_policy(observation_shapes={"joints": (4,)}), r"needs .* 'joints' of shape \(4,\).*'state': \(4,\)"),
        (tiny_policy(observation_shapes={"state": (5,)}), r"needs .* 'state' of shape \(5,\).*'state': \(4,\)"),
        (tiny_policy(action_dim=3), r"actions of size 3, the environment Box\(-1.0, 1.0, \(2,\)"),
    ],
)
def test_a_policy_of_another_environment_is_refused_with_the_difference(policy: FlowPolicy, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        steered(policy)
    # Nor does a chunk that is there already hide the difference.
    with pytest.raises(ValueError, match=words):
        LatentSteeringWrapper(ActionChunk(point(), chunk=2), policy, 0.5)


@pytest.mark.parametrize("env_id", [None, POINT_ID, POINT])
def test_the_id_may_be_unknown_or_have_its_module_in_front(env_id: str | None) -> None:
    assert steered(tiny_policy(env_id=env_id)).spec is not None


def test_a_chunk_of_another_length_or_discount_is_refused() -> None:
    for existing, words in (
        (ActionChunk(point(), 3), "chunk=3, gamma=0.99"),
        (ActionChunk(point(), 2, 0.5), "gamma=0.5"),
    ):
        with pytest.raises(ValueError, match=rf"{words}; the steering needs chunk=2, gamma=0.99"):
            LatentSteeringWrapper(existing, tiny_policy(), 0.5)


def test_a_chunk_that_fits_is_kept() -> None:
    existing = ActionChunk(point(), 2, 0.9)
    env = LatentSteeringWrapper(existing, tiny_policy(), 0.5, gamma=0.9)
    assert env.env is existing


def test_monitor_lies_below_the_chunk_and_counts_env_steps() -> None:
    env = steered()
    assert isinstance(env.env, ActionChunk)
    assert isinstance(env.env.env, Monitor)
    env.reset(seed=0)
    executed = []
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(ZEROS)
        executed.append(info["env_steps"])
        ended = terminated or truncated
    assert info["episode"]["l"] == sum(executed) > len(executed)


def test_a_monitor_that_is_there_is_not_doubled() -> None:
    monitor = Monitor(point())
    env = LatentSteeringWrapper(monitor, tiny_policy(), 0.5)
    assert env.env.env is monitor  # type: ignore[attr-defined]


def test_its_arguments_are_recorded(tmp_path: Path) -> None:
    path = str(save_policy(tiny_policy(), tmp_path / "policy"))
    env = LatentSteeringWrapper(point(), path, 0.3, gamma=0.9, sample_latent=True, noise="zero")
    arguments = {"policy": path, "scale": 0.3, "gamma": 0.9, "sample_latent": True, "noise": "zero"}
    arguments["random_crop"] = False
    assert env._saved_kwargs == arguments
    assert env.spec is not None
    assert env.spec.additional_wrappers[-1].kwargs == arguments
    again: Any = gym.make(env.spec)
    np.testing.assert_equal(rollout(again, 0.5), rollout(env, 0.5))


def test_recording_copies_no_weights() -> None:
    policy = tiny_policy()
    assert steered(policy)._saved_kwargs["policy"] is policy


def test_a_plain_box_is_observed_as_state_and_a_dictionary_by_its_keys() -> None:
    by_key = tiny_policy(by_key=True)
    env = LatentSteeringWrapper(gym.make(POINT_DICT), by_key, 0.5)
    shown, _ = env.reset(seed=3)
    raw, _ = gym.make(POINT).reset(seed=3)
    np.testing.assert_allclose(steered().reset(seed=3)[0]["c"], raw)
    # Keys are joined in alphabetical order: goal before point.
    np.testing.assert_allclose(shown["c"], [*raw[2:], *raw[:2]])


def test_steering_by_nothing_is_the_base_policy_through_the_mean() -> None:
    policy = tiny_policy()
    assert policy.bottleneck is not None
    env, plain = steered(policy, gamma=0.9), point()
    obs, _ = plain.reset(seed=6)
    shown, _ = env.reset(seed=6)
    rng = episode_rng(6)
    ended = False
    while not ended:
        mean, _ = policy.bottleneck.encode(policy.embed({"state": th.as_tensor(obs)[None]}))
        np.testing.assert_allclose(shown["z"], mean[0], atol=1e-6)
        noise = th.as_tensor(rng.standard_normal((1, 4, 2), np.float32))
        expected = 0.0
        for k, action in enumerate(policy.act(policy.bottleneck.decode(mean), noise)[0, :2].numpy()):
            obs, reward, terminated, truncated, _ = plain.step(action)
            expected += 0.9**k * float(reward)
            if ended := terminated or truncated:
                break
        shown, reward, *ends, _ = env.step(ZEROS)
        np.testing.assert_allclose(shown["c"], obs, atol=1e-6)
        assert (reward, ends) == (pytest.approx(expected), [terminated, truncated])


def test_the_z_that_is_steered_is_the_one_that_was_shown() -> None:
    env = steered(sample_latent=True)
    shown, _ = env.reset(seed=2)
    sampled = shown["z"].copy()
    mean, std = env.steering.bottleneck.encode(th.as_tensor(shown["c"])[None])  # type: ignore[attr-defined]
    rng = episode_rng(2)
    np.testing.assert_allclose(
        (sampled - mean[0].numpy()) / std[0].numpy(), rng.standard_normal(3, np.float32), rtol=1e-4
    )
    conditions: list[th.Tensor] = []
    act = env.steering.policy.act

    def note(condition: th.Tensor, noise: th.Tensor) -> th.Tensor:
        conditions.append(condition)
        return act(condition, noise)

    env.steering.policy.act = note  # type: ignore[method-assign,assignment]
    shown["z"][:] = 99  # what the agent does with its copy is its own business
    env.step(ZEROS)
    expected = env.steering.bottleneck.decode(th.as_tensor(sampled)[None])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(conditions[0], expected)


def test_a_seed_fixes_the_whole_episode_and_its_noise() -> None:
    env = steered(sample_latent=True)
    first, second = rollout(env, 0.3, seed=4), rollout(env, 0.3, seed=4)
    np.testing.assert_equal(first, second)
    assert any((a != b).any() for a, b in zip(first[0].values(), rollout(env, 0.3, seed=5)[0].values(), strict=True))


def test_without_flow_noise_only_the_layout_differs() -> None:
    env = steered(noise="zero")
    first = rollout(env, 0.3, seed=4)
    env._rng = np.random.default_rng(12345)
    np.testing.assert_equal(rollout(env, 0.3, seed=4), first)


def test_seeded_episodes_below_it_seed_its_noise() -> None:
    env = LatentSteeringWrapper(SeededEpisodes(point(), stride=2), tiny_policy(), 0.5, sample_latent=True)
    env.reset(seed=1)
    later, _ = env.reset()
    expected, _ = steered(sample_latent=True).reset(seed=3)
    np.testing.assert_equal(later, expected)


def test_an_environment_without_an_id_is_taken_as_it_is() -> None:
    env = LatentSteeringWrapper(TimeLimit(PointReach(), 6), tiny_policy(env_id="zprl/Push-v0"), 0.5)
    assert env.reset(seed=0)[0]["c"].shape == (4,)


def test_the_simulators_environment_is_steered_by_key() -> None:
    pytest.importorskip("metaworld")
    policy = push_policy()
    env = LatentSteeringWrapper(gym.make("zprl/Push-v0", max_episode_steps=5), policy, 0.5)
    env.reset(seed=0)
    steps = [env.step(ZEROS)[4]["env_steps"] for _ in range(3)]
    assert steps == [2, 2, 1]
    with pytest.raises(ValueError, match="needs observation 'object'"):
        LatentSteeringWrapper(FlattenObservation(gym.make("zprl/Push-v0")), policy, 0.5)
