"""SteeringSAC: its losses and updates against computations by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from helpers import (
    TIME_LIMIT,
    everything,
    same,
    steered_points,
    stored,
    tiny_model,
    values,
)
from zprl_sb3.replay import SteeringReplayBuffer
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.wrappers import VecSteering

GAMMA, CHUNK, LATENT, SCALE = 0.9, 2, 3, 0.5
SCHEDULE: Callable[[float], float] = lambda remaining: 1e-3 * (1 + remaining)  # noqa: E731


def trained(steps: int = 60, **kwargs: Any) -> SteeringSAC:
    """Return a model that has learned for some chunks, so that nothing is at its initial value any more."""
    return tiny_model(**kwargs).learn(steps)


def batch_of(model: SteeringSAC, size: int = 16) -> Any:
    assert isinstance(model.replay_buffer, SteeringReplayBuffer)
    return model.replay_buffer.sample(size)


def temperature_of(model: SteeringSAC) -> float:
    assert model.log_ent_coef is not None
    return math.exp(model.log_ent_coef.item())


def q_by_hand(
    critic: nn.Module, observations: dict[str, th.Tensor], delta: th.Tensor, bounded: bool = True
) -> th.Tensor:
    """Return Q (n, B) from nothing but the layers of the heads."""
    inputs = th.cat([observations["c"], observations["z"] + SCALE * delta], dim=1)
    raw = th.stack([network(inputs)[:, 0] for network in critic.q_networks])  # type: ignore[union-attr]
    return 0.5 * (raw.tanh() + 1) if bounded else raw


# --- The critic


def test_bfloat16_changes_the_hidden_layers_only_and_learns_the_same() -> None:
    """All else is float32: Q and the parameters of Δz have more digits than bfloat16 holds."""
    plain, rough = (trained(autocast=autocast) for autocast in (False, True))
    rough.policy.load_state_dict(plain.policy.state_dict())
    batch = batch_of(plain, 256)
    with th.no_grad(), rough._autocast():
        found = (
            rough.critic(batch.observations, batch.actions),
            rough.actor.get_action_dist_params(batch.observations)[0],
        )
    with th.no_grad():
        exact = (
            plain.critic(batch.observations, batch.actions),
            plain.actor.get_action_dist_params(batch.observations)[0],
        )
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.dtype == th.float32
        assert not th.equal(mine, theirs)
        assert not th.equal(mine, mine.bfloat16().float())
        th.testing.assert_close(mine, theirs, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("n_critics", [2, 5])
@pytest.mark.parametrize("bounded", [True, False])
def test_the_critic_loss_equals_the_one_by_hand(n_critics: int, bounded: bool) -> None:
    model = trained(policy_kwargs={"n_critics": n_critics, "bounded_critic": bounded})
    with th.no_grad():
        # Otherwise target and critics would be so alike that mixing them up went unnoticed.
        for weight in model.critic_target.parameters():
            weight.add_(0.05 * th.randn_like(weight))
    batch = batch_of(model)
    assert 0 < batch.dones.sum() < len(batch.dones)
    th.manual_seed(1)
    np.random.seed(1)
    heads = np.random.permutation(n_critics)[:2].tolist()
    with th.no_grad():
        next_delta = model.actor(batch.next_observations)
        next_q = q_by_hand(model.critic_target, batch.next_observations, next_delta, bounded)[heads].amin(dim=0)
        target = batch.rewards[:, 0] + (1 - batch.dones[:, 0]) * GAMMA**CHUNK * next_q
        q = q_by_hand(model.critic, batch.observations, batch.actions, bounded)
        loss = sum(((head - target) ** 2).mean() for head in q)
    th.manual_seed(1)
    np.random.seed(1)
    found = model._update_critic(batch)
    th.testing.assert_close(found["q_target"], target.mean())
    th.testing.assert_close(found["critic_loss"], loss)
    th.testing.assert_close(found["q_mean"], q.mean())


def test_the_target_knows_no_entropy() -> None:
    model = trained(policy_kwargs={"n_critics": 2})
    batch = batch_of(model)
    targets = []
    for log_temperature in (-10.0, 10.0):
        assert model.log_ent_coef is not None
        nn.init.constant_(model.log_ent_coef, log_temperature)
        th.manual_seed(1)
        targets.append(model._update_critic(batch)["q_target"])
    assert th.equal(*targets)


def test_every_pair_of_heads_is_chosen_for_the_target() -> None:
    model = trained(policy_kwargs={"n_critics": 3})
    batch = batch_of(model)
    seen: set[tuple[int, ...]] = set()
    forward = model.critic_target.forward

    def note(obs: Any, delta: th.Tensor, heads: list[int]) -> th.Tensor:
        seen.add(tuple(sorted(heads)))
        return forward(obs, delta, heads)

    model.critic_target.forward = note  # type: ignore[method-assign, assignment]
    for _ in range(40):
        model._update_critic(batch)
    assert seen == {(0, 1), (0, 2), (1, 2)}


def never_reaching(n_envs: int = 1) -> VecSteering:
    """Return episodes that always end at the time limit."""
    return steered_points(n_envs=n_envs, env_kwargs={"reach": 0.0})


def test_time_outs_are_terminal_unless_told_otherwise() -> None:
    model = tiny_model(never_reaching(), learning_starts=100).learn(20)
    chunks = TIME_LIMIT // CHUNK
    assert np.flatnonzero(stored(model).dones[:, 0]).tolist() == [chunks - 1, 2 * chunks - 1, 3 * chunks - 1]


def test_bootstrapping_goes_on_from_the_last_observation_of_the_episode() -> None:
    env = never_reaching()
    model = tiny_model(env, learning_starts=100, bootstrap_timeouts=True).learn(20)
    samples = stored(model)
    assert samples.dones.sum() == 0
    ends = [TIME_LIMIT // CHUNK - 1, 2 * TIME_LIMIT // CHUNK - 1]
    # The context is the observation itself here, (point, goal): the goal tells the episodes apart.
    last, first = samples.next_observations["c"][ends], samples.observations["c"][[end + 1 for end in ends]]
    assert th.equal(last[:, 2:], samples.observations["c"][ends][:, 2:])
    assert not th.equal(last[:, 2:], first[:, 2:])
    encoded = env.steering.bottleneck.encode(last)[0]  # type: ignore[attr-defined]
    th.testing.assert_close(samples.next_observations["z"][ends], encoded)


def test_successes_are_terminal_with_and_without_bootstrapping() -> None:
    for bootstrap in (False, True):
        env = steered_points(n_envs=1, env_kwargs={"reach": 0.8})
        model = tiny_model(env, learning_starts=100, bootstrap_timeouts=bootstrap).learn(60)
        samples = stored(model)
        successes = samples.rewards[:, 0] > 0
        assert successes.sum() > 3
        assert samples.dones[successes].all()


def test_chunk_rewards_are_discounted_inside_the_chunk() -> None:
    model = tiny_model(steered_points(n_envs=1, env_kwargs={"reach": 0.8}), learning_starts=1000).learn(200)
    rewards = {round(value, 6) for value in stored(model).rewards[:, 0].tolist()}
    assert rewards == {0.0, 1.0, GAMMA}


# --- The actor


@pytest.mark.parametrize("n_critics", [2, 5])
def test_the_actor_loss_uses_the_mean_over_all_heads(n_critics: int) -> None:
    model = trained(policy_kwargs={"n_critics": n_critics})
    batch = batch_of(model)
    th.manual_seed(1)
    with th.no_grad():
        delta, log_prob = model.actor.action_log_prob(batch.observations)
        q = q_by_hand(model.critic, batch.observations, delta)
    by_hand = (temperature_of(model) * log_prob - q.mean(dim=0)).mean()
    assert (q.mean(dim=0) - q.amin(dim=0)).mean() > 1e-4, "mean and minimum would give the same loss"
    th.manual_seed(1)
    found_log_prob, found = model._update_actor(batch)
    th.testing.assert_close(found["actor_loss"], by_hand)
    th.testing.assert_close(found_log_prob, log_prob)
    th.testing.assert_close(found["delta_rms"], delta.square().mean().sqrt())


def test_the_actor_step_gives_the_critics_no_gradient() -> None:
    model = trained()
    before = values(model.critic.parameters())
    for weight in model.critic.parameters():
        weight.grad = None
    model._update_actor(batch_of(model))
    assert all(weight.grad is None for weight in model.critic.parameters())
    assert all(weight.requires_grad for weight in model.critic.parameters()), "the critics can learn again"
    assert same(values(model.critic.parameters()), before)
    assert all(weight.grad is not None for weight in model.actor.latent_pi.parameters())


def test_the_critic_step_leaves_the_actor_alone() -> None:
    model = trained()
    before = values(model.actor.parameters())
    for weight in model.actor.parameters():
        weight.grad = None
    model._update_critic(batch_of(model))
    assert all(weight.grad is None for weight in model.actor.parameters())
    assert same(values(model.actor.parameters()), before)


def test_the_actor_climbs_where_the_critics_point() -> None:
    model = trained(ent_coef=0.0, learning_rate=1e-2)
    batch = batch_of(model)

    def mean_q() -> float:
        with th.no_grad():
            return float(model.critic(batch.observations, model.actor(batch.observations, deterministic=True)).mean())

    before = mean_q()
    for _ in range(30):
        model._update_actor(batch)
    assert mean_q() > before


# --- The temperature


def test_the_target_entropy_is_half_the_negative_size_of_the_step() -> None:
    assert tiny_model().target_entropy == -LATENT / 2
    assert tiny_model(target_entropy=-7.0).target_entropy == -7.0


def test_the_temperature_starts_at_a_hundredth() -> None:
    assert temperature_of(tiny_model()) == pytest.approx(0.01)


def test_the_temperature_descends_its_loss() -> None:
    """L = -α mean(log π + H̄), whose derivative by log α is L itself: one step of plain descent shows it."""
    model = tiny_model()
    assert model.log_ent_coef is not None
    model.ent_coef_optimizer = th.optim.SGD([model.log_ent_coef], lr=1.0)  # type: ignore[assignment]
    log_prob = th.tensor([3.0, -1.0, 4.0])
    alpha, before = temperature_of(model), model.log_ent_coef.item()
    logged = model._update_temperature(log_prob)
    expected = before + alpha * (2.0 - LATENT / 2)
    assert model.log_ent_coef.item() == pytest.approx(expected, rel=1e-5)
    assert logged["ent_coef"].item() == pytest.approx(math.exp(expected), rel=1e-5)


def test_a_fixed_temperature_stays_and_is_used() -> None:
    model = trained(ent_coef=0.3)
    assert model.ent_coef_optimizer is None
    batch = batch_of(model)
    th.manual_seed(1)
    delta, log_prob = model.actor.action_log_prob(batch.observations)
    by_hand = (0.3 * log_prob - q_by_hand(model.critic, batch.observations, delta).mean(dim=0)).mean()
    th.manual_seed(1)
    found = model._update_actor(batch)[1]["actor_loss"]
    th.testing.assert_close(found, by_hand.detach())
    assert model._update_temperature(log_prob.detach())["ent_coef"].item() == pytest.approx(0.3)


# --- The bursts of updates


@pytest.mark.parametrize("delay", [1, 3])
def test_actor_temperature_and_target_are_updated_every_policy_delay_critic_updates(delay: int) -> None:
    model = tiny_model(policy_delay=delay, learning_starts=100).learn(40)
    assert model._n_updates == 0
    assert model.log_ent_coef is not None
    parts: dict[str, Callable[[], Iterable[th.Tensor]]] = {
        "critic": model.critic.parameters,
        "actor": model.actor.parameters,
        "target": model.critic_target.parameters,
        "temperature": lambda: [model.log_ent_coef],  # type: ignore[list-item]
    }
    for update in range(1, 8):
        before = {name: values(weights()) for name, weights in parts.items()}
        model.train(1, 16)
        for name, weights in parts.items():
            moved = not same(values(weights()), before[name])
            assert moved == (name == "critic" or update % delay == 0), f"{name} at update {update}"


def test_a_burst_of_updates_equals_single_ones() -> None:
    together, one_by_one = (tiny_model(learning_starts=100, policy_delay=2).learn(40) for _ in range(2))
    assert same(everything(together), everything(one_by_one))
    for model, bursts in ((together, [6]), (one_by_one, [1] * 6)):
        th.manual_seed(1)
        np.random.seed(1)
        for gradient_steps in bursts:
            model.train(gradient_steps, 16)
    assert together._n_updates == one_by_one._n_updates == 6
    assert same(everything(together), everything(one_by_one))


def test_the_target_follows_the_critics_by_tau() -> None:
    model = tiny_model(policy_delay=1, tau=0.25, learning_starts=100).learn(40)
    before = values(model.critic_target.parameters())
    model.train(1, 16)
    for weight, target, old in zip(model.critic.parameters(), model.critic_target.parameters(), before, strict=True):
        th.testing.assert_close(target.detach(), 0.75 * old + 0.25 * weight.detach())


@pytest.mark.parametrize("overlap", [False, True])
def test_utd_is_the_updates_per_chunk(overlap: bool) -> None:
    model = tiny_model(utd=3, train_freq=5, overlap=overlap).learn(40)  # 10 of them for the warm-up
    assert model._n_updates == 3 * 30
    assert tiny_model(utd=3, gradient_steps=2, train_freq=5).learn(40)._n_updates == 2 * 3


@pytest.mark.parametrize("overlap", [False, True])
def test_aborted_episodes_are_no_warm_up(overlap: bool) -> None:
    """Those of the toy task take ten chunks here. With nothing but aborted ones there is nothing to learn from."""
    env, ended = never_reaching(), list[int]()

    def abort() -> Any:
        obs, rewards, dones, infos = VecSteering.step_wait(env)
        ended.extend([1] * bool(dones[0]))
        return obs, rewards, dones, [infos[0] | {"aborted": bool(dones[0]) and len(ended) in (1, 2, 4)}]

    env.step_wait = abort  # type: ignore[method-assign]
    chunks = TIME_LIMIT // CHUNK
    model = tiny_model(env, learning_starts=chunks + 2, overlap=overlap, buffer_size=5 * chunks).learn(3 * chunks)
    assert (model._n_updates, model.forgotten) == (0, 2 * chunks)
    assert not stored(model).actions.any()
    model.learn(2 * chunks, reset_num_timesteps=False)
    assert model.forgotten == 3 * chunks
    # Beyond the warm-up in the middle of an aborted episode, and then of one that counts.
    assert model._n_updates == (chunks - 3) + (chunks - 2)
    deltas = stored(model).actions.abs().amax(dim=1)
    assert (deltas > 0).tolist() == [False] * (chunks + 2) + [True] * (chunks - 2)


def test_one_update_per_chunk_by_default() -> None:
    assert trained(steps=60, learning_starts=20)._n_updates == 60 - 20
    assert trained(steps=60, learning_starts=20, train_freq=5, gradient_steps=3)._n_updates == 3 * 4


def plain_descent(weights: Iterable[nn.Parameter]) -> Any:
    return th.optim.SGD(list(weights), lr=1.0)


def step_length(before: list[th.Tensor], weights: Iterable[th.Tensor]) -> float:
    return float(th.cat([(a - b).flatten() for a, b in zip(before, values(weights), strict=True)]).norm())


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_gradients_of_actor_and_critics_are_clipped_each_for_itself(part: str) -> None:
    lengths = []
    for limit in (1e-4, 1e6):
        model = trained(max_grad_norm=limit)
        module = getattr(model, part)
        module.optimizer = plain_descent(module.parameters())
        before, batch = values(module.parameters()), batch_of(model)
        model._update_actor(batch) if part == "actor" else model._update_critic(batch)
        lengths.append(step_length(before, module.parameters()))
    assert lengths[0] == pytest.approx(1e-4, rel=1e-3)
    assert lengths[1] > 2e-4, "without the clip the step is longer"


@pytest.mark.parametrize("rates", [(1e-4, 3e-4), (5e-4, SCHEDULE), (SCHEDULE, 2e-4)])
def test_critics_and_temperature_have_their_own_learning_rate(rates: tuple[Any, Any]) -> None:
    model = trained(steps=60, learning_rate=rates[0], qf_learning_rate=rates[1])
    # The last burst of updates is made with the progress at its end.
    actor, critic = (SCHEDULE(0.0) if rate is SCHEDULE else rate for rate in rates)
    assert model.ent_coef_optimizer is not None
    assert model.actor.optimizer.param_groups[0]["lr"] == pytest.approx(actor)
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(critic)
    assert model.ent_coef_optimizer.param_groups[0]["lr"] == pytest.approx(critic)
