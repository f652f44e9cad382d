from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from zprl_sb3 import sac_policy
from zprl_sb3.chains import can_chain, run_chains
from zprl_sb3.sac_policy import SteeringSACPolicy

CONTEXT, LATENT, BATCH = 7, 3, 64


def make_policy(**kwargs: Any) -> SteeringSACPolicy:
    sizes = {"c": CONTEXT, "z": LATENT}
    observation_space = spaces.Dict({key: spaces.Box(-np.inf, np.inf, (size,)) for key, size in sizes.items()})
    th.manual_seed(0)
    return SteeringSACPolicy(observation_space, spaces.Box(-1, 1, (LATENT,)), lambda _: 1e-3, **kwargs)


def log_std_head(policy: SteeringSACPolicy) -> nn.Linear:
    return cast(nn.Linear, policy.actor.log_std)


def observations(seed: int = 0) -> dict[str, th.Tensor]:
    generator = th.Generator().manual_seed(seed)
    return {"c": th.randn(BATCH, CONTEXT, generator=generator), "z": th.randn(BATCH, LATENT, generator=generator)}


@pytest.mark.parametrize("n_critics", [2, 5])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("scale", [0.1, 0.5, (0.2, 1.7, 0.3)])
def test_q_judges_where_the_policy_acts_from_whichever_step_led_there(
    n_critics: int, layer_norm: bool, bounded: bool, scale: Any
) -> None:
    critic = make_policy(scale=scale, n_critics=n_critics, layer_norm=layer_norm, bounded_critic=bounded).critic
    obs = observations()
    delta = th.rand(BATCH, LATENT) * 2 - 1
    # As the steering itself computes it, in NumPy.
    steered = obs["z"].numpy() + np.float32(scale) * delta.numpy()
    there = {"c": obs["c"], "z": th.as_tensor(steered)}
    q = critic(obs, delta)
    assert q.shape == (n_critics, BATCH)
    assert th.equal(q, critic(there, th.zeros_like(delta)))
    assert not th.equal(q, critic(obs, th.zeros_like(delta)))


def test_q_is_computed_from_the_context_and_the_steered_latent_by_each_head() -> None:
    critic = make_policy(scale=0.5, n_critics=3).critic
    obs, delta = observations(), th.rand(BATCH, LATENT)
    inputs = th.cat([obs["c"], obs["z"] + 0.5 * delta], dim=1)
    by_hand = th.stack([0.5 * (th.tanh(network(inputs)[:, 0]) + 1) for network in critic.q_networks])
    th.testing.assert_close(critic(obs, delta), by_hand)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_heads_at_once_are_those_one_by_one(layer_norm: bool, learns: bool) -> None:
    """In a chain on a CPU, all at once on a GPU, or layer by layer as PyTorch does."""
    networks = list(make_policy(n_critics=3, layer_norm=layer_norm).critic.q_networks.double())
    for weight in (weight for network in networks for weight in network.parameters()):
        # Also those that start as ones and zeros.
        weight.data.add_(0.1 * th.rand(weight.shape, generator=th.Generator().manual_seed(1)))
        weight.requires_grad_(learns)
    obs = {key: value.double() for key, value in observations().items()}
    found = []
    for way in (in_chains, sac_policy._values_at_once, layer_by_layer):
        delta = th.rand(BATCH, LATENT, generator=th.Generator().manual_seed(0)).requires_grad_()
        values = way(networks, obs["c"], obs["z"] + delta)
        weights = [weight for network in networks for weight in network.parameters()] if learns else []
        found.append((values, *th.autograd.grad(values.square().mean(), [delta, *weights])))
    assert found[0][0].shape == (3, BATCH)
    for other in found[1:]:
        for one, its in zip(found[0], other, strict=True):
            th.testing.assert_close(one, its, rtol=1e-6, atol=1e-7)


def in_chains(networks: Any, context: th.Tensor, latent: th.Tensor) -> th.Tensor:
    assert can_chain(networks[0], th.device("cpu"))
    return sac_policy._values(networks, run_chains([network[:-1] for network in networks], context, latent))


def layer_by_layer(networks: Any, context: th.Tensor, latent: th.Tensor) -> th.Tensor:
    return th.stack([network(th.cat([context, latent], dim=1))[:, 0] for network in networks])


def test_layers_that_chains_do_not_know_are_computed_as_well() -> None:
    obs, delta = observations(), th.rand(BATCH, LATENT)
    policy = make_policy(activation_fn=nn.ELU, n_critics=3)
    assert not can_chain(policy.critic.q_networks[0], policy.device)
    by_hand = layer_by_layer(policy.critic.q_networks, obs["c"], obs["z"] + delta)
    th.testing.assert_close(policy.critic(obs, delta), 0.5 * (by_hand.tanh() + 1))
    assert policy.actor(obs).shape == (BATCH, LATENT)


def test_chosen_heads_are_those_of_the_whole_ensemble() -> None:
    critic = make_policy(n_critics=5).critic
    obs, delta = observations(), th.rand(BATCH, LATENT)
    assert th.equal(critic(obs, delta, [4, 1]), critic(obs, delta)[[4, 1]])


def test_a_bounded_critic_stays_within_the_returns_of_a_sparse_task() -> None:
    for bounded in (True, False):
        critic = make_policy(bounded_critic=bounded, layer_norm=False).critic
        with th.no_grad():
            for network in critic.q_networks:
                nn.init.constant_(network[-1].bias, 3.0)  # type: ignore[index]
        q = critic(observations(), th.zeros(BATCH, LATENT))
        assert bool((q <= 1).all()) == bounded
        assert bool((q > 2).all()) != bounded


@pytest.mark.parametrize("layer_norm", [False, True])
def test_critics_have_the_paper_s_layers_and_layer_norm_after_each_hidden_one(layer_norm: bool) -> None:
    policy = make_policy(layer_norm=layer_norm, n_critics=2)
    hidden = [nn.Linear, nn.LayerNorm, nn.GELU] if layer_norm else [nn.Linear, nn.GELU]
    for network in policy.critic.q_networks:
        assert [type(layer) for layer in network] == 3 * hidden + [nn.Linear]  # type: ignore[attr-defined]
        assert network[0].in_features == CONTEXT + LATENT  # type: ignore[index]
    widths = [layer.out_features for layer in policy.actor.latent_pi if isinstance(layer, nn.Linear)]
    assert widths == [256, 256, 256]


def test_the_target_starts_as_a_copy_of_the_critics() -> None:
    policy = make_policy(n_critics=3)
    for weight, target in zip(policy.critic.parameters(), policy.critic_target.parameters(), strict=True):
        assert th.equal(weight, target)
        assert weight is not target


def test_the_actor_starts_near_no_steering_with_a_log_std_of_minus_4() -> None:
    actor = make_policy().actor
    mean, log_std, _ = actor.get_action_dist_params(observations())
    assert mean.abs().max() < 0.1
    th.testing.assert_close(log_std, th.full_like(log_std, -4.0), atol=0.3, rtol=0)
    assert actor(observations()).abs().max() < 0.2


def test_the_heads_start_orthogonal_and_small_and_the_hidden_layers_orthogonal() -> None:
    policy = make_policy()
    actor = policy.actor
    hidden = [layer for layer in actor.latent_pi if isinstance(layer, nn.Linear)]
    layers: list[tuple[nn.Linear, float]] = [(layer, math.sqrt(2)) for layer in hidden]
    layers += [(cast(nn.Linear, actor.mu), 0.01), (log_std_head(policy), 0.01)]
    for layer, gain in layers:
        weight = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        th.testing.assert_close(weight @ weight.T, gain**2 * th.eye(len(weight)), atol=1e-5, rtol=1e-4)
        assert layer.bias.abs().max() == 0


@pytest.mark.parametrize("bounds", [(-10.0, 2.0), (-8.0, 1.0)])
@pytest.mark.parametrize("side", [0, 1])
def test_log_std_stays_in_its_bounds(bounds: tuple[float, float], side: int) -> None:
    policy = make_policy() if bounds == (-10, 2) else make_policy(log_std_bounds=bounds)
    push, bound = (-1e3, 1e3)[side], bounds[side]
    actor = policy.actor
    nn.init.constant_(log_std_head(policy).bias, push)
    _, log_std, _ = actor.get_action_dist_params(observations())
    th.testing.assert_close(log_std, th.full_like(log_std, bound))


def test_steps_and_their_likelihood_are_those_of_a_tanh_gaussian() -> None:
    policy = make_policy()
    actor = policy.actor
    nn.init.constant_(log_std_head(policy).bias, math.atanh(0.5))  # log σ = -1: wide enough for the tanh to matter
    mean, log_std, _ = actor.get_action_dist_params(observations())
    delta, log_prob = actor.action_log_prob(observations())
    assert (delta.abs() < 1).all()
    gaussian = th.distributions.Normal(mean, log_std.exp())
    squashed: Any = th.distributions.TransformedDistribution(gaussian, [th.distributions.TanhTransform()])
    th.testing.assert_close(log_prob, squashed.log_prob(delta).sum(dim=1), atol=1e-3, rtol=1e-4)
    th.testing.assert_close(actor(observations(), deterministic=True), mean.tanh())


def test_a_smaller_reach_shrinks_the_steps_and_leaves_their_likelihood() -> None:
    policy = make_policy()
    found = []
    for reach in (1.0, 0.25):
        policy.set_reach(reach)
        th.manual_seed(0)
        found.append((*policy.actor.action_log_prob(observations()), policy.actor(observations(), deterministic=True)))
    (delta, log_prob, mean), (small, same_log_prob, small_mean) = found
    th.testing.assert_close(small, 0.25 * delta)
    th.testing.assert_close(small_mean, 0.25 * mean)
    assert th.equal(same_log_prob, log_prob)


def test_a_policy_is_rebuilt_from_its_own_parameters() -> None:
    changes: dict[str, Any] = {"layer_norm": True, "bounded_critic": False, "net_arch": [8], "log_std_bounds": (-5, 1)}
    policy = make_policy(scale=0.3, n_critics=4, **changes)
    parameters = policy._get_constructor_parameters()
    rebuilt = SteeringSACPolicy(**parameters)
    assert rebuilt.actor.log_std_bounds == (-5, 1)
    rebuilt.load_state_dict(policy.state_dict())
    obs, delta = observations(), th.rand(BATCH, LATENT)
    assert th.equal(rebuilt.critic(obs, delta), policy.critic(obs, delta))
    assert th.equal(rebuilt.actor(obs, deterministic=True), policy.actor(obs, deterministic=True))


def test_a_scale_that_is_set_later_is_the_one_of_critics_and_targets() -> None:
    late, early = make_policy(), make_policy(scale=0.3)
    late.set_scale(0.3)
    obs, delta = observations(), th.rand(BATCH, LATENT)
    assert th.equal(late.critic(obs, delta), early.critic(obs, delta))
    assert th.equal(late.critic_target(obs, delta), early.critic_target(obs, delta))
    assert late._get_constructor_parameters()["scale"] == 0.3


@pytest.mark.parametrize(
    ("optimizer", "arguments", "fused"),
    [(th.optim.Adam, {"eps": 1e-5}, True), (th.optim.Adam, {"fused": False}, False), (th.optim.SGD, None, None)],
)
def test_any_optimiser_will_do(optimizer: Any, arguments: dict[str, Any] | None, fused: bool | None) -> None:
    policy = make_policy(optimizer_class=optimizer, optimizer_kwargs=arguments)
    (group,) = policy.actor.optimizer.param_groups
    assert isinstance(policy.actor.optimizer, optimizer)
    assert group.get("fused") == fused
    assert {**group, **(arguments or {})} == group


def test_a_features_extractor_is_refused() -> None:
    with pytest.raises(TypeError, match="embedding already"):
        make_policy(features_extractor_class=FlattenExtractor)
