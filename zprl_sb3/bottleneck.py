"""The variational information bottleneck (VIB): context c -> latent z -> reconstructed context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch as th
from torch import nn
from torch.nn import functional as F

from zprl_sb3.networks import mlp


@dataclass(frozen=True)
class BottleneckConfig:
    """Settings of the bottleneck.

    :param latent_dim: d, size of z (paper: 16, transport and real robots 32)
    :param hidden: Width of the three hidden layers of encoder and decoder
    """

    latent_dim: int = 16
    hidden: int = 256


class Bottleneck(nn.Module):
    """p(z|c) = N(mean(c), diag std(c)^2) and the decoder g(z). Each has three hidden GELU layers and a linear head.

    :param context_dim: C, size of the context
    :param config: Sizes
    """

    def __init__(self, context_dim: int, config: BottleneckConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_dim = config.latent_dim
        hidden = [config.hidden] * 3
        self.trunk = mlp([context_dim, *hidden], activate_last=True)
        self.mean = nn.Linear(config.hidden, config.latent_dim)
        self.log_var = nn.Linear(config.hidden, config.latent_dim)
        self.decoder = mlp([config.latent_dim, *hidden, context_dim])

    def encode(self, context: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return mean and standard deviation (B, d) of the posterior of contexts (B, C), the deviation at most 1.

        Where the policy was trained a posterior is hardly ever wider than the prior. Far from there, in the context of
        a fallen can, the network's log variance rose to 40, and samples of z to 10⁹.
        """
        mean, log_var = self.posterior(context)
        return mean, (0.5 * log_var.clamp(max=0.0)).exp()

    def posterior(self, context: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return mean and log variance (B, d); the logarithm stays finite where the deviation underflows to 0."""
        features = self.trunk(context)
        return self.mean(features), self.log_var(features)

    def decode(self, latent: th.Tensor) -> th.Tensor:
        """Return the condition (B, C) for the action generator from latents (B, d)."""
        condition: th.Tensor = self.decoder(latent)
        return condition


def kl_divergence(mean: th.Tensor, log_var: th.Tensor) -> th.Tensor:
    """KL(N(mean, exp(log_var)) || N(0, I)), as a **mean** over batch and dimensions."""
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).mean()


def bottleneck_loss(
    bottleneck: Bottleneck,
    context: th.Tensor,
    generator_loss: Callable[[th.Tensor], th.Tensor],
    beta: float,
    reconstruction: float,
    latent_noise: th.Tensor | None = None,
) -> dict[str, th.Tensor]:
    """The generator's loss through the decoder + beta KL + reconstruction error of c. Trains only the bottleneck.

    The context is detached here; ``generator_loss`` must not pass gradients to the generator's weights (see
    :func:`zprl_sb3.flow.without_gradients`), so the policy learns as if the bottleneck were not there.

    :param context: c (B, C)
    :param generator_loss: Loss of the actions that a decoded latent (B, C) leads to; with flow matching
        ||v(a^k, k, g(z)) - (w - a)||^2, with noise and times of the imitation loss
    :param beta: Weight of the KL (paper: 1e-4 ... 2e-4)
    :param reconstruction: Weight of the mean squared error between g(z) and c (authors' code: 0.01)
    :param latent_noise: (B, d) for the sample of z; drawn from a standard normal where None
    :return: ``bottleneck`` (the generator's loss), ``kl``, ``reconstruction`` and their weighted sum ``total``
    """
    context = context.detach()
    mean, log_var = bottleneck.posterior(context)
    if latent_noise is None:
        latent_noise = th.randn_like(mean)
    decoded = bottleneck.decode(mean + (0.5 * log_var).exp() * latent_noise)
    loss = generator_loss(decoded)
    kl = kl_divergence(mean, log_var)
    error = F.mse_loss(decoded, context)
    return {"bottleneck": loss, "kl": kl, "reconstruction": error, "total": loss + beta * kl + reconstruction * error}
