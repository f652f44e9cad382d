from __future__ import annotations

import math

import pytest
import torch as th
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from helpers import image_policy, random_observations, tiny_policy
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig, bottleneck_loss, kl_divergence
from zprl_sb3.flow import flow_loss, without_gradients
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.losses import Draws, OfflineLosses, draw


def trainable_policy(images: bool = False) -> FlowPolicy:
    """Return a policy with an MLP encoder or one of images, so that there is an encoder that gradients could reach."""
    if images:
        return image_policy().requires_grad_(True)
    return tiny_policy(encoder_sizes=(16, 8)).requires_grad_(True)


def draws_of(policy: FlowPolicy, seed: int) -> Draws:
    th.manual_seed(seed)
    return draw(policy, 8, 8, policy.device)


def losses_of(policy: FlowPolicy) -> dict[str, th.Tensor]:
    """Return the offline losses on a fixed batch with fixed noise."""
    draws = draws_of(policy, 2)
    obs, actions = random_observations(policy, 8), th.randn(8, 4, 2)
    return OfflineLosses(policy, beta=0.3, reconstruction=0.2)(obs, actions, draws)


def gradients(loss: th.Tensor, policy: FlowPolicy) -> dict[str, th.Tensor | None]:
    names, weights = zip(*policy.named_parameters(), strict=True)
    found = th.autograd.grad(loss, weights, allow_unused=True)
    return dict(zip(names, found, strict=True))


def is_policy(name: str) -> bool:
    return name.startswith(("encoder.", "image_encoders.", "unet."))


def test_the_kl_is_the_mean_of_that_of_torch() -> None:
    mean, std = th.randn(5, 3), th.rand(5, 3) + 0.1
    expected = reference_kl(Normal(mean, std), Normal(0.0, 1.0))
    assert expected.shape == (5, 3)
    th.testing.assert_close(kl_divergence(mean, 2 * std.log()), expected.mean())


def test_the_kl_does_not_grow_with_batch_or_dimensions() -> None:
    log_var = 2 * math.log(0.2)
    small = kl_divergence(th.full((1, 1), 0.5), th.full((1, 1), log_var))
    large = kl_divergence(th.full((64, 16), 0.5), th.full((64, 16), log_var))
    th.testing.assert_close(small, large)
    assert small.item() == pytest.approx(0.5 * (0.25 + 0.04 - 1 - log_var))


def test_the_standard_normal_costs_nothing() -> None:
    assert kl_divergence(th.zeros(4, 3), th.zeros(4, 3)).item() == 0


def test_a_deviation_that_underflows_costs_a_finite_amount() -> None:
    bottleneck = Bottleneck(4, BottleneckConfig(latent_dim=2, hidden=8))
    nn.init.zeros_(bottleneck.log_var.weight)
    nn.init.constant_(bottleneck.log_var.bias, -400.0)
    context = th.randn(6, 4)
    assert (bottleneck.encode(context)[1] == 0).all()
    losses = bottleneck_loss(bottleneck, context, lambda decoded: decoded.sum() * 0, 1.0, 1.0)
    mean = bottleneck.encode(context)[0]
    assert losses["kl"].item() == pytest.approx(0.5 * (mean.square().mean().item() - 1 + 400))
    losses["total"].backward()  # type: ignore[no-untyped-call]
    # The gradient leads back: a smaller log variance costs more.
    th.testing.assert_close(bottleneck.log_var.bias.grad, th.full((2,), -0.25))


def test_no_posterior_is_wider_than_the_prior_however_strange_the_context() -> None:
    bottleneck = Bottleneck(10, BottleneckConfig(4, hidden=16))
    strange = 1000 * th.randn(50, 10)
    assert (0.5 * bottleneck.posterior(strange)[1]).exp().max() > 1e6
    std = bottleneck.encode(strange)[1]
    assert std.max() == 1


def test_encoder_and_decoder_have_three_hidden_layers_and_plain_heads() -> None:
    bottleneck = Bottleneck(10, BottleneckConfig(latent_dim=4, hidden=32))
    mean, std = bottleneck.encode(th.randn(7, 10))
    assert mean.shape == std.shape == (7, 4)
    assert (std > 0).all()
    assert bottleneck.decode(mean).shape == (7, 10)
    for network, sizes in (
        (bottleneck.trunk, [(10, 32), (32, 32), (32, 32)]),
        (bottleneck.decoder, [(4, 32), (32, 32), (32, 32), (32, 10)]),
    ):
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in layers] == sizes
    assert isinstance(bottleneck.trunk[-1], nn.GELU)
    assert isinstance(bottleneck.decoder[-1], nn.Linear)


def test_the_heads_are_mean_and_log_variance() -> None:
    bottleneck = Bottleneck(4, BottleneckConfig(latent_dim=2, hidden=8))
    nn.init.zeros_(bottleneck.log_var.weight)
    nn.init.constant_(bottleneck.log_var.bias, math.log(0.25))
    context = th.randn(3, 4)
    mean, std = bottleneck.encode(context)
    th.testing.assert_close(std, th.full((3, 2), 0.5))
    same_mean, log_var = bottleneck.posterior(context)
    assert th.equal(same_mean, mean)
    th.testing.assert_close(log_var, th.full((3, 2), math.log(0.25)))


def test_the_loss_adds_up_its_weighted_parts_on_one_sampled_latent() -> None:
    bottleneck = Bottleneck(4, BottleneckConfig(latent_dim=2, hidden=8))
    context, actions, noise, times = th.randn(6, 4), th.randn(6, 4, 2), th.randn(6, 4, 2), th.rand(6)

    def velocity(a: th.Tensor, k: th.Tensor, condition: th.Tensor) -> th.Tensor:
        return a + condition.sum(dim=1)[:, None, None]

    th.manual_seed(3)
    losses = bottleneck_loss(
        bottleneck, context, lambda c: flow_loss(velocity, actions, noise, times, c), beta=0.3, reconstruction=0.2
    )
    th.manual_seed(3)
    mean, log_var = bottleneck.posterior(context)
    std = (0.5 * log_var).exp()
    decoded = bottleneck.decode(mean + std * th.randn(6, 2))
    th.testing.assert_close(losses["bottleneck"], flow_loss(velocity, actions, noise, times, decoded))
    th.testing.assert_close(losses["reconstruction"], ((decoded - context) ** 2).mean())
    th.testing.assert_close(losses["kl"], reference_kl(Normal(mean, std), Normal(0.0, 1.0)).mean())
    th.testing.assert_close(losses["total"], losses["bottleneck"] + 0.3 * losses["kl"] + 0.2 * losses["reconstruction"])


@pytest.mark.parametrize("images", [False, True])
def test_the_bottleneck_gives_no_gradient_to_encoder_and_unet(images: bool) -> None:
    policy = trainable_policy(images)
    assert policy.bottleneck is not None
    context = policy.context(random_observations(policy, 8))
    assert context.requires_grad, "the encoder would learn from what depends on the context"
    batch = th.randn(8, 4, 2), th.randn(8, 4, 2), th.rand(8)
    velocity = without_gradients(policy.unet)
    loss = bottleneck_loss(policy.bottleneck, context, lambda c: flow_loss(velocity, *batch, c), 0.3, 0.2)["total"]
    found = gradients(loss, policy)
    for name, gradient in found.items():
        if is_policy(name):
            assert gradient is None, f"{name} got a gradient from the bottleneck"
        else:
            assert gradient is not None, name
            assert gradient.abs().sum() > 0, f"{name} does not learn"


@pytest.mark.parametrize("images", [False, True])
def test_the_bottleneck_leaves_the_imitation_gradients_bit_for_bit(images: bool) -> None:
    policy = trainable_policy(images)
    alone = gradients(losses_of(policy)["imitation"], policy)
    beside = gradients(losses_of(policy)["total"], policy)
    compared = [name for name in alone if is_policy(name)]
    assert any(name.startswith("image_encoders." if images else "encoder.") for name in compared)
    for name in compared:
        before, after = alone[name], beside[name]
        assert before is not None
        assert after is not None
        assert before.abs().sum() > 0, name
        assert th.equal(before, after), name


def test_imitation_does_not_train_the_bottleneck() -> None:
    policy = trainable_policy()
    for name, gradient in gradients(losses_of(policy)["imitation"], policy).items():
        assert is_policy(name) or gradient is None, name


def test_imitation_and_bottleneck_share_noise_and_times() -> None:
    policy = trainable_policy()
    assert policy.bottleneck is not None
    # A decoder that answers the context itself turns the bottleneck's flow loss into the imitation loss.
    policy.bottleneck.posterior = lambda context: (  # type: ignore[method-assign]
        context,
        th.full_like(context, -400.0),
    )
    policy.bottleneck.decode = lambda latent: latent  # type: ignore[method-assign]
    draws = draws_of(policy, 1)._replace(latent=th.zeros(8, policy.context_dim))
    losses = OfflineLosses(policy, 0.0, 0.2)({"state": th.randn(8, 1, 4)}, th.randn(8, 4, 2), draws)
    th.testing.assert_close(losses["bottleneck"], losses["imitation"])
