from __future__ import annotations

import pytest
import torch as th

from zprl_sb3.flow import flow_loss, interpolate, sample, sample_times, time_grid, without_gradients
from zprl_sb3.networks import ConditionalUnet1d

BATCH, HORIZON, ACTIONS = 3, 4, 2
NO_CONDITION = th.zeros(BATCH, 1)


def noise(seed: int = 0) -> th.Tensor:
    return th.randn(BATCH, HORIZON, ACTIONS, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def test_two_steps_run_over_the_times_of_the_paper() -> None:
    assert time_grid(2) == pytest.approx([1.0, 0.01, 0.0], abs=1e-8)
    assert time_grid(2)[-1] == 0.0


def test_one_step_runs_from_noise_to_actions() -> None:
    assert time_grid(1) == [1.0, 0.0]


@pytest.mark.parametrize("steps", [3, 5, 20, 100])
def test_more_steps_divide_the_way_to_the_last_level_evenly(steps: int) -> None:
    grid = th.tensor(time_grid(steps), dtype=th.float64)
    assert len(grid) == steps + 1
    gaps = grid[:-1] - grid[1:]
    th.testing.assert_close(gaps[:-1], th.full((steps - 1,), 0.99 / (steps - 1), dtype=th.float64), atol=1e-6, rtol=0)
    assert gaps[-1].item() == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_sampler_without_steps_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"at least one step, not {steps}"):
        time_grid(steps)


def test_training_times_are_the_hundred_levels_above_zero_and_equally_likely() -> None:
    times = sample_times(100_000, th.device("cpu"), th.Generator().manual_seed(0))
    assert times.shape == (100_000,)
    levels = (100 * times).round().long()
    th.testing.assert_close(levels / 100, times)
    counts = th.bincount(levels)[1:]
    assert len(counts) == 100
    assert levels.min() == 1
    # Each level has 1000 +- 31 draws; six standard deviations are passed once in millions of seeds.
    assert counts.min() > 800
    assert counts.max() < 1200


def test_the_sampler_only_asks_at_times_it_was_trained_at_when_it_makes_the_steps_of_the_paper() -> None:
    trained = th.arange(1, 101) / 100
    for time in time_grid(2)[:-1]:
        assert th.isclose(trained, th.tensor(time), atol=1e-7, rtol=0).any()


def test_interpolation_runs_from_actions_at_0_to_noise_at_1() -> None:
    actions, w = noise(1), noise(2)
    th.testing.assert_close(interpolate(actions, w, th.zeros(BATCH)), actions)
    th.testing.assert_close(interpolate(actions, w, th.ones(BATCH)), w)
    mixed = interpolate(actions, w, th.tensor([0.0, 0.25, 1.0], dtype=th.float64))
    th.testing.assert_close(mixed[0], actions[0])
    th.testing.assert_close(mixed[1], 0.75 * actions[1] + 0.25 * w[1])
    th.testing.assert_close(mixed[2], w[2])


def test_the_loss_is_the_mean_squared_error_against_noise_minus_actions() -> None:
    actions, w, times = noise(1), noise(2), th.full((BATCH,), 0.3, dtype=th.float64)
    perfect = flow_loss(lambda *_: w - actions, actions, w, times, NO_CONDITION)
    assert perfect.item() == 0
    nothing = flow_loss(lambda a, *_: th.zeros_like(a), actions, w, times, NO_CONDITION)
    by_hand = ((w - actions) ** 2).sum() / (BATCH * HORIZON * ACTIONS)
    th.testing.assert_close(nothing, by_hand)


def test_the_loss_shows_the_network_the_noisy_actions_their_times_and_the_condition() -> None:
    actions, w, times = noise(1), noise(2), th.tensor([0.1, 0.5, 1.0], dtype=th.float64)
    condition = th.randn(BATCH, 5)
    seen: list[tuple[th.Tensor, ...]] = []

    def velocity(*inputs: th.Tensor) -> th.Tensor:
        seen.append(inputs)
        return inputs[0]

    flow_loss(velocity, actions, w, times, condition)
    for found, expected in zip(seen[0], (interpolate(actions, w, times), times, condition), strict=True):
        th.testing.assert_close(found, expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_the_flow_to_a_single_action_is_integrated_exactly_with_any_number_of_steps(steps: int) -> None:
    """Data at one point a*: v(x, k) = (x - a*) / k, whose solutions are straight lines."""
    target = noise(3)
    found = sample(lambda x, k, _: (x - target) / k[:, None, None], noise(), NO_CONDITION, steps)
    th.testing.assert_close(found, target, atol=1e-5, rtol=0)


def gaussian_error(steps: int, mean: float = 0.7, std: float = 0.4) -> float:
    """Error of the sampler on data N(m, s²), where the flow carries noise w to m + s w.

    a^k has mean (1-k) m and variance (1-k)² s² + k², so v(x, k) = E[w - a | a^k = x] is linear in x.
    """

    def velocity(x: th.Tensor, k: th.Tensor, _: th.Tensor) -> th.Tensor:
        k = k[:, None, None].double()
        slope = (k - (1 - k) * std**2) / ((1 - k) ** 2 * std**2 + k**2)
        return -mean + slope * (x - (1 - k) * mean)

    return float((sample(velocity, noise(), NO_CONDITION, steps) - (mean + std * noise())).abs().max())


def test_the_flow_to_a_gaussian_converges_at_first_order() -> None:
    errors = [gaussian_error(steps) for steps in (6, 12, 24, 48)]
    assert errors[-1] < 0.05
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 1.7 < coarse / fine < 2.5, f"Euler's error halves when the steps double, here {errors}"


def test_the_sampler_hands_every_row_its_own_condition_and_one_time_each() -> None:
    condition = th.tensor([[1.0], [2.0], [-3.0]], dtype=th.float64)
    shapes = []

    def velocity(x: th.Tensor, k: th.Tensor, c: th.Tensor) -> th.Tensor:
        shapes.append((k.shape, k[0].item()))
        return c[:, :, None].expand_as(x)

    found = sample(velocity, noise(), condition, 2)
    th.testing.assert_close(found, noise() - condition[:, :, None])
    assert shapes == [((BATCH,), 1.0), ((BATCH,), pytest.approx(0.01))]


def test_without_gradients_computes_the_same_but_leaves_the_weights_alone() -> None:
    network = ConditionalUnet1d(ACTIONS, 1, (16, 32), time_dim=8)
    x, times = noise().float().requires_grad_(), th.full((BATCH,), 0.5)
    output = without_gradients(network)(x, times, NO_CONDITION)
    ordinary = network(x, times, NO_CONDITION)
    assert th.equal(output, ordinary)
    th.autograd.backward(output.square().sum())
    assert all(weight.grad is None for weight in network.parameters())
    assert all(weight.requires_grad for weight in network.parameters())
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert th.equal(x.grad, th.autograd.grad(ordinary.square().sum(), x)[0])


def test_without_gradients_follows_the_weights_at_the_time_it_is_made() -> None:
    network = ConditionalUnet1d(ACTIONS, 1, (16, 32), time_dim=8)
    inputs = noise().float(), th.full((BATCH,), 0.5), NO_CONDITION
    with th.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5)
        assert th.equal(without_gradients(network)(*inputs), network(*inputs))
