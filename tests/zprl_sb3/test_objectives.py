"""Flow matching and diffusion as a policy's objective: their losses and samples by hand."""

from __future__ import annotations

import math

import pytest
import torch as th

from helpers import tiny_policy
from zprl_sb3.flow import flow_loss, sample
from zprl_sb3.objectives import Denoising, FlowMatching, objective_of

CONDITION = th.zeros(2, 3)


def alpha_bar(t: int) -> float:
    """The cosine schedule of Nichol and Dhariwal, equation 17, with diffusers' cap on β."""
    bar = 1.0
    for s in range(t + 1):
        rate = [math.cos((step / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for step in (s, s + 1)]
        bar *= 1 - min(0.999, 1 - rate[1] / rate[0])
    return bar


def test_a_flow_is_what_it_was() -> None:
    policy = tiny_policy(sampling_steps=3)
    noise, actions, times = th.randn(2, 4, 2), th.randn(2, 4, 2), th.tensor([0.3, 1.0])
    condition = th.randn(2, policy.context_dim)
    assert policy.objective == FlowMatching(3)
    th.testing.assert_close(policy.act(condition, noise), sample(policy.unet, noise, condition, 3))
    expected = flow_loss(policy.unet, actions, noise, times, condition)
    th.testing.assert_close(policy.objective.loss(policy.unet, actions, noise, times, condition), expected)


def test_the_loss_of_diffusion_is_that_of_the_actions() -> None:
    actions, noise, seen = th.randn(2, 4, 2), th.randn(2, 4, 2), []

    def network(x: th.Tensor, times: th.Tensor, condition: th.Tensor) -> th.Tensor:
        seen.append((x, times))
        return th.zeros_like(x)

    loss = Denoising(5).loss(network, actions, noise, th.tensor([0.01, 1.0]), CONDITION)
    th.testing.assert_close(loss, actions.square().mean())
    ((x, times),) = seen
    th.testing.assert_close(times, th.tensor([0.01, 1.0]))  # as for a flow
    for row, t in enumerate((0, 99)):
        bar = alpha_bar(t)
        th.testing.assert_close(x[row], bar**0.5 * actions[row] + (1 - bar) ** 0.5 * noise[row], atol=1e-4, rtol=1e-4)


def test_samples_are_ddim_s() -> None:
    noise, times = th.randn(2, 4, 2), []

    def network(x: th.Tensor, time: th.Tensor, condition: th.Tensor) -> th.Tensor:
        times.append(round(float(time[0]), 6))
        return 0.5 * x

    x, ts = noise.double(), [99, 79, 59, 39, 19]
    result = Denoising(5).sample(network, noise, CONDITION)
    for t, following in zip(ts, [*ts[1:], None], strict=True):
        bar, after = alpha_bar(t), 1.0 if following is None else alpha_bar(following)
        epsilon = (x - bar**0.5 * 0.5 * x) / (1 - bar) ** 0.5
        x = after**0.5 * (0.5 * x).clamp(-1, 1) + (1 - after) ** 0.5 * epsilon
    th.testing.assert_close(result, x.float(), atol=1e-3, rtol=1e-3)
    assert times == [1.0, 0.8, 0.6, 0.4, 0.2]


def test_a_network_that_knows_the_actions_finds_them() -> None:
    target = th.tensor([[0.3, -0.6]]).expand(2, 4, 2)
    for steps in (1, 2, 5, 10, 50):
        actions = Denoising(steps).sample(lambda x, time, condition: target, th.randn(2, 4, 2), CONDITION)
        th.testing.assert_close(actions, target, atol=1e-4, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_stochastic_step_keeps_the_noise_level(eta: float) -> None:
    """Mean and deviation together have the variance of the next level (Song et al., equations 12 and 16)."""
    diffusion = Denoising(5).diffusion
    for t, following in ((79, 59), (39, 19)):
        bar, after = alpha_bar(t), alpha_bar(following)
        clean = th.full((1, 1, 1), 0.3)
        x = bar**0.5 * clean + (1 - bar) ** 0.5 * 0.2
        mean, std = diffusion.transition(clean, x, th.tensor([t]), eta)
        sigma = eta * ((1 - after) / (1 - bar) * (1 - bar / after)) ** 0.5
        assert float(std) == pytest.approx(sigma, rel=1e-3)
        assert float(mean) == pytest.approx(after**0.5 * 0.3 + (1 - after - sigma**2) ** 0.5 * 0.2, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("flow", 0, "at least one step, not 0"),
        ("diffusion", 0, "cannot be sampled in 0 steps: choose 1, 2, 4, 5, 10"),
        ("diffusion", 8, "cannot be sampled in 8 steps"),
        ("diffusion", 101, "cannot be sampled in 101 steps"),
    ],
)
def test_steps_that_cannot_be_sampled_are_refused(name: str, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective_of(name, steps)
    with pytest.raises(ValueError, match=message):
        tiny_policy(objective=name).set_sampling_steps(steps)
