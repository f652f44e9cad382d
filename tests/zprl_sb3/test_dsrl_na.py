"""DSRL-NA: both critics' losses by hand, and that a model is saved with all of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from helpers import POINT, PointReach, steered_points, tiny_policy
from zprl_sb3.dsrl_na import DSRLNA
from zprl_sb3.wrappers import LatentSteeringWrapper, NoiseSteering, NoiseSteeringWrapper, make_vec_steering

B = 1.5  # the largest noise


def policy() -> Any:
    made = tiny_policy()
    made.action_normalizer.center.copy_(th.tensor([0.5, -1.0]))
    made.action_normalizer.half_range.copy_(th.tensor([2.0, 0.25]))
    return made


def make_model(**kwargs: Any) -> DSRLNA:
    env = make_vec_steering(POINT, NoiseSteering(policy(), B), 2, 0.9)
    settings: dict[str, Any] = {"learning_starts": 10, "batch_size": 16, "buffer_size": 500, "seed": 0, "device": "cpu"}
    settings |= {"policy_kwargs": {"net_arch": [16, 16], "n_critics": 3}, "replay_buffer_kwargs": {"n_steps": 1}}
    return DSRLNA("MultiInputPolicy", env, **(settings | kwargs))


@pytest.fixture
def model() -> DSRLNA:
    made = make_model()
    made.learn(40)
    return made


def chunk_by_hand(c: th.Tensor, delta: th.Tensor) -> th.Tensor:
    """The executed actions, normalised: horizon 4, chunk 2, actions of 2."""
    made = policy()
    actions = made.act(made.bottleneck.decode(made.bottleneck.encode(c)[0]), B * delta.reshape(-1, 4, 2))[:, :2]
    normalised = (actions - th.tensor([0.5, -1.0])) / th.tensor([2.0, 0.25])
    return normalised.reshape(-1, 4)


def q_by_hand(critic: Any, c: th.Tensor, rest: th.Tensor) -> th.Tensor:
    inputs = th.cat([c, rest], dim=1)
    return th.stack([0.5 * (network(inputs)[:, 0].tanh() + 1) for network in critic.q_networks])


def test_the_critic_of_actions_learns_from_the_actions_of_noise(model: DSRLNA) -> None:
    batch = model._sample(16)
    model._n_updates = 1  # an odd one: no aliasing
    th.manual_seed(3)
    np.random.seed(3)
    with th.no_grad():
        next_delta = model.actor(batch.next_observations)
        heads = np.random.permutation(3)[:2].tolist()
        next_c = batch.next_observations["c"]
        following = q_by_hand(model.policy.action_critic_target, next_c, chunk_by_hand(next_c, next_delta))
        target = batch.rewards[:, 0] + (1 - batch.dones[:, 0]) * 0.81 * following[heads].amin(dim=0)
        c = batch.observations["c"]
        q = q_by_hand(model.policy.action_critic, c, chunk_by_hand(c, batch.actions))
        expected = (q - target).square().mean(dim=1).sum()
    th.manual_seed(3)
    np.random.seed(3)
    before = [weight.clone() for weight in model.critic.parameters()]
    found = model._update_critic(batch)
    assert "aliasing_loss" not in found
    th.testing.assert_close(found["critic_loss"], expected, rtol=1e-4, atol=1e-6)
    assert all(th.equal(old, new) for old, new in zip(before, model.critic.parameters(), strict=True))


def test_the_critic_of_noise_learns_what_that_of_actions_says_of_its_actions(model: DSRLNA) -> None:
    batch = model._sample(16)
    th.manual_seed(4)
    delta = (th.randn(16, 8) / B).clamp(-1, 1)
    c = batch.observations["c"]
    with th.no_grad():
        taught = q_by_hand(model.policy.action_critic, c, chunk_by_hand(c, delta))
        expected = (q_by_hand(model.critic, c, B * delta) - taught).square().mean(dim=1).sum()
    th.manual_seed(4)
    before = [weight.clone() for weight in model.policy.action_critic.parameters()]
    th.testing.assert_close(model._update_noise_critic(batch.observations), expected, rtol=1e-4, atol=1e-6)
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.action_critic.parameters(), strict=True))


def test_repeated_it_learns_it() -> None:
    model = make_model(qf_learning_rate=3e-3)
    model.learn(40)
    batch = model._sample(64)
    losses = [model._update_noise_critic(batch.observations).item() for _ in range(300)]
    assert np.mean(losses[-20:]) < 0.2 * np.mean(losses[:20])


def test_the_target_of_actions_follows_and_both_critics_learn(model: DSRLNA) -> None:
    parts = {
        "actions": model.policy.action_critic,
        "target": model.policy.action_critic_target,
        "noise": model.critic,
        "actor": model.actor,
    }
    before = {name: [weight.clone() for weight in part.parameters()] for name, part in parts.items()}
    model.train(4, 16)
    for name, part in parts.items():
        changed = [not th.equal(old, new) for old, new in zip(before[name], part.parameters(), strict=True)]
        assert any(changed), name
    sources = dict(model.policy.action_critic.named_parameters())
    for name, target in model.policy.action_critic_target.named_parameters():
        assert not th.equal(target, sources[name])


def test_a_saved_model_goes_on_as_it_would_have(model: DSRLNA, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = DSRLNA.load(tmp_path / "model", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        th.manual_seed(0)
        np.random.seed(0)
        each.train(4, 16)
    states = [each.policy.state_dict() for each in (model, loaded)]
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(name.startswith("action_critic_target") for name in states[0])


def test_it_predicts_and_learns_in_one_environment() -> None:
    env = NoiseSteeringWrapper(PointReach(), policy(), scale=B, gamma=0.9)
    model = DSRLNA("MultiInputPolicy", env, learning_starts=5, batch_size=8, buffer_size=100, device="cpu")
    model.learn(20)
    observation, _ = env.reset(seed=0)
    delta, _ = model.predict(observation, deterministic=True)
    assert delta.shape == (8,)


def test_what_steers_something_else_is_refused() -> None:
    for env in (steered_points(), LatentSteeringWrapper(PointReach(), policy(), scale=0.5)):
        with pytest.raises(ValueError, match="DSRL-NA steers the noise, but in this environment latent is steered"):
            DSRLNA("MultiInputPolicy", env, device="cpu")  # type: ignore[arg-type]
