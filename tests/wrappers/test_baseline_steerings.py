"""The steerings of the paper's baselines against hand-computed values: base chunk, flow noise, context."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_checker import check_env

from helpers import POINT, PointReach, tiny_model, tiny_policy
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.wrappers import (
    ActionSteering,
    ActionSteeringWrapper,
    EmbeddingSteering,
    EmbeddingSteeringWrapper,
    LatentSteering,
    LatentSteeringWrapper,
    NoiseSteering,
    NoiseSteeringWrapper,
    Steering,
    make_vec_steering,
)
from zprl_sb3.wrappers.baseline_steerings import STEERINGS

OBS = {"state": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
# horizon 4, chunk 2, actions of 2
DELTAS = {
    kind: np.random.default_rng(1).uniform(-1, 1, (3, size)).astype(np.float32)
    for kind, size in (("latent", 3), ("action", 4), ("noise", 8), ("embedding", 4))
}


def rngs() -> list[np.random.Generator]:
    return [np.random.default_rng(k) for k in range(3)]


def policy(**kwargs: Any) -> Any:
    made = tiny_policy(**kwargs)
    made.action_normalizer.center.copy_(th.tensor([0.5, -1.0]))
    made.action_normalizer.half_range.copy_(th.tensor([2.0, 0.25]))
    return made


def flow_noise() -> th.Tensor:
    return th.as_tensor(np.stack([rng.standard_normal((4, 2), np.float32) for rng in rngs()]))


def base_chunk(made: Any) -> th.Tensor:
    """What the base policy executes through its bottleneck, with the noise of the generators."""
    context = made.embed({"state": th.as_tensor(OBS["state"])})
    through = context if made.bottleneck is None else made.bottleneck.decode(made.bottleneck.encode(context)[0])
    chunk: th.Tensor = made.act(through, flow_noise())[:, :2]
    return chunk


@pytest.mark.parametrize("latent_dim", [3, None])
def test_policy_decorator_adds_to_the_base_chunk_in_normalised_actions(latent_dim: int | None) -> None:
    made = policy(latent_dim=latent_dim)
    steering = ActionSteering(made, 0.3)
    generators = rngs()
    shown = steering.observe(OBS, generators)
    expected = base_chunk(made)
    normalised = (expected - th.tensor([0.5, -1.0])) / th.tensor([2.0, 0.25])
    np.testing.assert_allclose(shown["z"], normalised.reshape(3, 4), atol=1e-6)
    still = steering.act(shown, np.zeros((3, 4), np.float32), generators)
    np.testing.assert_allclose(still, expected, atol=1e-6)
    moved = steering.act(shown, DELTAS["action"], generators)
    by_hand = expected.numpy() + 0.3 * DELTAS["action"].reshape(3, 2, 2) * np.float32([2.0, 0.25])
    np.testing.assert_allclose(moved, by_hand, atol=1e-6)


def test_the_base_chunk_that_is_shown_is_the_one_that_is_executed() -> None:
    """Nothing is drawn when it acts: its noise was drawn when it observed, once for each chunk."""
    steering = ActionSteering(policy(), 0.3)
    generators = rngs()
    shown = steering.observe(OBS, generators)
    first, again = (steering.act(shown, DELTAS["action"], generators) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    latent, others = LatentSteering(policy(), 0.3), rngs()
    latent.act(latent.observe(OBS, others), DELTAS["latent"], others)
    assert [rng.random() for rng in generators] == [rng.random() for rng in others]


def test_without_noise_the_base_chunk_is_that_of_no_noise() -> None:
    made = policy()
    steering = ActionSteering(made, 0.3, noise="zero")
    shown = steering.observe(OBS, rngs())
    context = made.embed({"state": th.as_tensor(OBS["state"])})
    expected = made.act(made.bottleneck.decode(made.bottleneck.encode(context)[0]), th.zeros(3, 4, 2))[:, :2]
    np.testing.assert_allclose(steering.act(shown, np.zeros((3, 4)), rngs()), expected, atol=1e-6)


def test_a_policy_without_normaliser_is_steered_in_the_environment_s_actions() -> None:
    made = policy()
    steering = ActionSteering(Without(made), 0.3)  # type: ignore[arg-type]
    shown = steering.observe(OBS, rngs())
    np.testing.assert_allclose(shown["z"], base_chunk(made).reshape(3, 4), atol=1e-6)


class Without:
    """A policy that lacks our normaliser."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> Any:
        if name == "action_normalizer":
            raise AttributeError(name)
        return getattr(self._policy, name)


def test_dsrl_chooses_the_flow_noise_of_the_whole_horizon() -> None:
    made = policy()
    steering = NoiseSteering(made, 1.5)
    generators = rngs()
    shown = steering.observe(OBS, generators)
    assert shown["z"].shape == (3, 8)
    assert not shown["z"].any()
    context = made.embed({"state": th.as_tensor(OBS["state"])})
    condition = made.bottleneck.decode(made.bottleneck.encode(context)[0])
    noise = 1.5 * th.as_tensor(DELTAS["noise"]).reshape(3, 4, 2)
    expected = made.act(condition, noise)[:, :2]
    np.testing.assert_allclose(steering.act(shown, DELTAS["noise"], generators), expected, atol=1e-6)
    assert [rng.random() for rng in generators] == [rng.random() for rng in rngs()]
    with pytest.raises(ValueError, match="leaves nothing to steer"):
        NoiseSteering(made, 1.5, noise="zero")


def test_in_dsrl_s_warm_up_the_base_policy_acts_and_its_noise_is_stored() -> None:
    spec = NoiseSteering(policy(), 1.5).spec(0.9)
    assert spec.warm_up_std == 1 / 1.5
    assert LatentSteering(policy(), 1.5).spec(0.9).warm_up_std == 0
    model = tiny_model(steered(NoiseSteering(policy(), 1.5)), learning_starts=400, seed=0)
    delta, stored = model._sample_action(400, n_envs=500)
    np.testing.assert_array_equal(delta, stored)
    noise = 1.5 * delta
    inside = np.abs(noise) < 1.5
    assert 0.84 < inside.mean() < 0.89  # of a standard normal: 0.866
    assert noise[inside].std() == pytest.approx(0.75, abs=0.05)  # of one within those bounds
    assert np.abs(noise).max() <= 1.5


def steered(steering: Steering) -> Any:
    return make_vec_steering(POINT, steering, 2, 0.9)


def test_progressive_exploration_steers_a_rising_share_of_the_chunks() -> None:
    model = tiny_model(steered(ActionSteering(policy(), 0.3)), learning_starts=0, progressive=1000)
    for chunks, share in ((0, 0.0), (250, 0.25), (999, 0.999), (1000, 1.0), (5000, 1.0)):
        model.num_timesteps = chunks
        model._last_obs = {key: np.repeat(value[:1], 2000, axis=0) for key, value in model.env.reset().items()}  # type: ignore[union-attr]
        delta, stored = model._sample_action(0, n_envs=2000)
        moved = delta.any(axis=1)
        assert moved.mean() == pytest.approx(share, abs=0.03)
        np.testing.assert_array_equal(moved, stored.any(axis=1))


def test_policy_decorator_s_critic_judges_the_sum() -> None:
    """The second of its inputs is the base chunk plus λΔa, in normalised actions."""
    model = tiny_model(steered(ActionSteering(policy(), 0.3)))
    obs = {"c": th.randn(5, 4), "z": th.randn(5, 4)}
    delta = th.rand(5, 4) * 2 - 1
    inputs = th.cat([obs["c"], obs["z"] + 0.3 * delta], dim=1)
    by_hand = th.stack([0.5 * (network(inputs)[:, 0].tanh() + 1) for network in model.critic.q_networks])
    th.testing.assert_close(model.critic(obs, delta), by_hand)


WRAPPERS = {
    "latent": LatentSteeringWrapper,
    "action": ActionSteeringWrapper,
    "noise": NoiseSteeringWrapper,
    "embedding": EmbeddingSteeringWrapper,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_every_wrapper_is_an_environment_that_sac_learns_in(kind: str) -> None:
    env = WRAPPERS[kind](PointReach(), policy(), scale=0.3, gamma=0.9)  # type: ignore[operator]
    assert env.steering_spec == STEERINGS[kind](policy(), 0.3).spec(0.9)
    check_env(env)
    model: SteeringSAC = tiny_model(env)
    before = [weight.clone() for weight in model.actor.parameters()]
    model.learn(40)
    assert any(not th.equal(old, new) for old, new in zip(before, model.actor.parameters(), strict=True))


def test_a_model_of_one_steering_is_refused_by_another() -> None:
    model = tiny_model(EmbeddingSteeringWrapper(PointReach(), policy(), scale=0.3, gamma=0.9))
    other = ActionSteeringWrapper(PointReach(), policy(), scale=0.3, gamma=0.9)
    with pytest.raises(ValueError, match="steering embedding, the environment has action"):
        model.set_env(other)


def test_a_wrapper_can_be_made_again_from_its_spec() -> None:
    gym.register("test/Steered-v0", entry_point=PointReach)
    try:
        env = ActionSteeringWrapper(gym.make("test/Steered-v0"), policy(), scale=0.3, gamma=0.9)
        assert env.spec is not None
        again: Any = gym.make(env.spec)
        assert again.get_wrapper_attr("steering_spec") == env.steering_spec
    finally:
        del gym.registry["test/Steered-v0"]


def test_embedding_steering_needs_no_bottleneck() -> None:
    assert EmbeddingSteering(policy(latent_dim=None), 0.1).anchor_dim == 4
