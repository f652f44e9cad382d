"""Chains of ReinFlow and DPPO against brute force: step by step, in double precision."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch as th

from helpers import image_policy, tiny_policy
from zprl_sb3.chain_policy import ChainPolicy
from zprl_sb3.dppo import DPPOPolicy
from zprl_sb3.flow import time_grid
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.reinflow import ReinFlowPolicy
from zprl_sb3.wrappers import WeightSteering
from zprl_sb3.wrappers.steering import RAW

BATCH, HORIZON, CHUNK, ACTION = 3, 4, 2, 2
STEPS = [1, 2, 4, 10]


def made(cls: type[ChainPolicy], base: FlowPolicy, **kwargs: Any) -> Any:
    steering = WeightSteering(base)
    settings = {"config": asdict(base.config), "net_arch": [8]} | kwargs
    policy = cls(steering.observation_space, steering.action_space, lambda _: 1e-3, **settings)
    policy.start_from(base)
    return policy


def reinflow(steps: int, **kwargs: Any) -> ReinFlowPolicy:
    policy: ReinFlowPolicy = made(ReinFlowPolicy, tiny_policy(sampling_steps=steps), noise_arch=[8], **kwargs)
    with th.no_grad():
        policy.noise_net[-1].weight.mul_(8.0)  # so that σ differs between numbers, steps and contexts
    return policy


def dppo(steps: int, **kwargs: Any) -> DPPOPolicy:
    base = tiny_policy(objective="diffusion", sampling_steps=steps)
    policy: DPPOPolicy = made(DPPOPolicy, base, **kwargs)
    return policy


def observations(policy: ChainPolicy, seed: int = 0) -> dict[str, th.Tensor]:
    generator = th.Generator().manual_seed(seed)
    obs = {RAW + "state": th.randn(BATCH, 1, 4, generator=generator)}
    obs["noise"] = th.randn(BATCH, HORIZON, ACTION, generator=generator).to(policy.counted.dtype)
    obs["c"] = policy.flow.context({"state": obs[RAW + "state"]}).detach()
    obs["z"] = policy.generate(obs)[:, :CHUNK].flatten(1).detach()
    return obs


def gaussian(x: float, mean: float, std: float) -> float:
    return -((x - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))


def total(after: th.Tensor, mean: th.Tensor, std: th.Tensor, last: bool) -> float:
    """Number by number; of the last step only the executed actions."""
    rows = range(CHUNK if last else HORIZON)
    return sum(gaussian(after[t, a].item(), mean[t, a].item(), std[t, a].item()) for t in rows for a in range(ACTION))


@pytest.mark.parametrize("steps", STEPS)
def test_reinflow_s_likelihood_is_the_product_of_its_steps_on_the_sampler_s_own_times(steps: int) -> None:
    policy = reinflow(steps)
    obs = observations(policy)
    chain = policy.sample(obs)
    latents = chain.latents.double()
    assert latents.shape == (BATCH, steps + 1, HORIZON, ACTION)
    th.testing.assert_close(latents[:, 0], obs["noise"].double(), rtol=0, atol=0)
    double = reinflow(steps).double()
    double.load_state_dict(policy.state_dict())
    grid, low, high = time_grid(steps), 2 * math.log(0.08), 2 * math.log(0.14)
    context = double.context(obs)
    for step in range(steps):
        time = th.full((BATCH,), grid[step], dtype=th.float64)
        x, after = latents[:, step], latents[:, step + 1]
        mean = x - (grid[step] - grid[step + 1]) * double.flow.unet(x, time, context)
        raw = double.noise_net(th.cat([context, time[:, None]], dim=1)).tanh().view_as(x)
        std = ((low + (high - low) * (raw + 1) / 2) / 2).exp()
        assert 0.08 < std.min().item() < std.max().item() < 0.14
        for row in range(BATCH):
            expected = total(after[row], mean[row], std[row], last=step == steps - 1)
            assert chain.log_prob[row, step].item() == pytest.approx(expected, rel=1e-4, abs=1e-3)
            got = double.evaluate(obs, latents)[0][row, step].item()
            assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("steps", "tuned"), [(1, None), (2, None), (4, 2), (5, None), (10, 3)])
def test_dppo_s_steps_are_ddim_s_with_a_floor_of_their_deviation(steps: int, tuned: int | None) -> None:
    policy = dppo(steps, tuned_steps=tuned, min_std=0.15)
    obs, count = observations(policy), tuned or steps
    chain = policy.sample(obs)
    latents = chain.latents.double()
    assert latents.shape == (BATCH, count + 1, HORIZON, ACTION)
    double = dppo(steps, tuned_steps=tuned, min_std=0.15).double()
    double.load_state_dict(policy.state_dict())
    diffusion = policy._diffusion
    bars = [*(float(diffusion.alphas_bar[t]) for t in diffusion.steps[-count:]), 1.0]
    context = double.context(obs)
    for step, t in enumerate(diffusion.steps[-count:]):
        bar, after = bars[step], bars[step + 1]
        x = latents[:, step]
        clean = double.flow.unet(x, th.full((BATCH,), (t + 1) / 100, dtype=th.float64), context)
        epsilon = (x - bar**0.5 * clean) / (1 - bar) ** 0.5
        sigma = ((1 - after) / (1 - bar) * (1 - bar / after)) ** 0.5
        mean = after**0.5 * clean.clamp(-1, 1) + max(0.0, 1 - after - sigma**2) ** 0.5 * epsilon
        std = th.full_like(mean, max(sigma, 0.15))
        for row in range(BATCH):
            expected = total(latents[row, step + 1], mean[row], std[row], last=step == count - 1)
            assert chain.log_prob[row, step].item() == pytest.approx(expected, rel=1e-3, abs=1e-2)
            got = double.evaluate(obs, latents)[0][row, step].item()
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-3)  # the schedule is of single precision


@pytest.mark.parametrize("make", [reinflow, dppo])
@pytest.mark.parametrize("steps", STEPS)
def test_before_an_update_the_ratio_is_one(make: Any, steps: int) -> None:
    policy = make(steps).double()
    obs = observations(policy)
    chain = policy.sample(obs)
    new, _ = policy.evaluate(obs, chain.latents)
    th.testing.assert_close((new - chain.log_prob).exp(), th.ones_like(new), rtol=0, atol=1e-12)
    single = make(steps)
    chain = single.sample(obs := observations(single))
    ratio = (single.evaluate(obs, chain.latents)[0] - chain.log_prob).sum(dim=1).exp()
    th.testing.assert_close(ratio, th.ones(BATCH), rtol=0, atol=2e-4)


@pytest.mark.parametrize("make", [reinflow, dppo])
def test_what_is_not_executed_has_no_part_in_the_likelihood(make: Any) -> None:
    policy = make(4)
    obs = observations(policy)
    chain = policy.sample(obs)
    other = chain.latents.clone()
    other[:, -1, CHUNK:] += 1.0
    th.testing.assert_close(policy.evaluate(obs, other)[0], policy.evaluate(obs, chain.latents)[0])
    other[:, -2, CHUNK:] += 0.1  # but what an earlier step has made of them has
    assert not th.allclose(policy.evaluate(obs, other)[0], policy.evaluate(obs, chain.latents)[0])
    assert policy.entries.tolist() == [8, 8, 8, 4]


def test_samples_have_the_moments_that_their_likelihood_says() -> None:
    policy = reinflow(1)
    obs = {key: values[:1].expand(4000, *values.shape[1:]) for key, values in observations(policy).items()}
    drawn = policy.sample(obs).latents[:, -1]
    mean, std = policy.transition(obs["noise"][:1], policy.context(obs)[:1], th.zeros(1, dtype=th.long))
    th.testing.assert_close(drawn.mean(dim=0), mean[0], atol=0.01, rtol=0)
    th.testing.assert_close(drawn.std(dim=0), std[0], atol=0.005, rtol=0)


def test_the_entropy_is_that_of_a_gaussian_number() -> None:
    _, entropy = (policy := dppo(1, min_std=0.2)).evaluate(obs := observations(policy), policy.sample(obs).latents)
    th.testing.assert_close(entropy, th.full((BATCH,), 0.5 * math.log(2 * math.pi * math.e * 0.04)))
    narrow, wide = reinflow(2, noise_bounds=(0.01, 0.011)), reinflow(2, noise_bounds=(0.5, 0.6))
    entropies = [policy.evaluate(obs, policy.sample(obs).latents)[1].mean() for policy in (narrow, wide)]
    assert entropies[0] < 0.5 * math.log(2 * math.pi * math.e * 0.011**2) + 1e-5
    assert entropies[1] > 0.5 * math.log(2 * math.pi * math.e * 0.5**2) - 1e-5


@pytest.mark.parametrize("make", [reinflow, dppo])
def test_without_noise_it_starts_as_the_frozen_policy(make: Any) -> None:
    policy = make(4)
    base = tiny_policy(sampling_steps=4, objective=policy.flow.config.objective)
    obs = observations(policy)
    th.testing.assert_close(policy.generate(obs), base.act(base.embed({"state": obs[RAW + "state"]}), obs["noise"]))
    delta = policy._predict(obs, deterministic=True)
    th.testing.assert_close(delta, th.zeros(BATCH, CHUNK * ACTION), atol=1e-6, rtol=0)
    assert policy._predict(obs).abs().max() > 0.01


def test_the_first_steps_stay_those_of_the_frozen_policy() -> None:
    policy = dppo(4, tuned_steps=2)
    obs = observations(policy)
    before, base = policy._frozen_steps(obs, eta=0.0), policy.generate(obs)
    th.manual_seed(1)
    drawn = policy.first(obs)
    with th.no_grad():
        for weight in policy.flow.parameters():
            weight.add_(0.05 * th.randn_like(weight))
    th.testing.assert_close(policy._frozen_steps(obs, eta=0.0), before)
    th.manual_seed(1)
    th.testing.assert_close(policy.first(obs), drawn)
    assert not th.allclose(policy.generate(obs), base, atol=1e-2)
    learned = {id(weight) for weight in policy.optimizer.param_groups[0]["params"]}
    assert policy.frozen is not None
    assert not learned & {id(weight) for weight in [*policy.frozen.parameters(), *policy.value_net.parameters()]}
    assert learned == {id(weight) for weight in policy.flow.parameters()}
    assert policy.tuned() is None
    assert dppo(4).tuned() is not None


def test_all_of_an_image_policy_learns() -> None:
    policy = made(ReinFlowPolicy, base := image_policy(), noise_arch=[8])
    policy.observation_space.seed(0)
    obs = {key: th.as_tensor(space.sample())[None] for key, space in policy.observation_space.spaces.items()}
    obs["c"] = base.embed({key: obs[RAW + key] for key in base.observation_shapes}, obs["where"])
    # The frozen policy's chunk of the same crops is what it starts with.
    obs["z"] = base.objective.sample(base.unet, obs["noise"], obs["c"])[:, : policy.chunk].flatten(1).detach()
    assert policy._predict(obs, deterministic=True).abs().max() < 1e-5
    with th.no_grad():  # as while collecting: else the gradients with respect to the means cancel
        chain = policy.sample(obs)
    (policy.evaluate(obs, chain.latents)[0].sum() + policy.predict_values(obs).sum()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in policy.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reinflow(2, noise_bounds=(0.2, 0.1)), "the least and the greatest σ, both positive"),
        (lambda: reinflow(2, noise_bounds=(0.0, 0.1)), "both positive"),
        (lambda: dppo(4, tuned_steps=5), "tuned_steps is 1 to 4, not 5"),
        (lambda: dppo(4, tuned_steps=0), "tuned_steps is at least 1, not 0"),
        (lambda: dppo(4, min_std=0.0), "min_std is positive"),
    ],
)
def test_what_has_no_likelihood_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
