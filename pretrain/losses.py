"""What one offline step draws at random, and the losses that follow from it."""

from __future__ import annotations

from typing import NamedTuple

import torch as th
from torch import nn

from zprl_sb3.bottleneck import bottleneck_loss
from zprl_sb3.flow import Velocity, sample_times, without_gradients
from zprl_sb3.policy import FlowPolicy, Observation, SteerablePolicy, image_keys


class Draws(NamedTuple):
    """The random numbers of a batch, drawn before it is computed: whoever computes only a part of it draws the same.

    :param windows: Their numbers, (B,)
    :param noise: w (B, T, A), or of whatever shape the policy's noise has
    :param times: k (B,)
    :param latent: Noise of the sampled z, (B, d)
    :param where: Where to crop the images, (B, K, 2); None: the centre
    """

    windows: th.Tensor
    noise: th.Tensor
    times: th.Tensor
    latent: th.Tensor
    where: th.Tensor | None

    def rows(self, rows: slice) -> Draws:
        """Return those of some rows of the batch."""
        return Draws(*(None if numbers is None else numbers[rows] for numbers in self))  # type: ignore[arg-type]


def draw(policy: SteerablePolicy, windows: int, batch_size: int, device: th.device) -> Draws:
    """Draw a batch from torch's generator of a device.

    :param policy: Says which sizes; with its bottleneck
    :param windows: How many there are to choose from
    :param batch_size: B
    :param device: Where the numbers shall be
    """
    assert policy.bottleneck is not None
    return Draws(
        windows=th.randint(windows, (batch_size,), device=device),
        noise=th.randn(batch_size, *policy.noise_shape, device=device),
        times=sample_times(batch_size, device),
        latent=th.randn(batch_size, policy.bottleneck.latent_dim, device=device),
        where=th.rand(batch_size, len(image_keys(policy.observation_shapes)), 2, device=device),
    )


class OfflineLosses(nn.Module):
    """The losses of a policy as one module: what ``torch.compile`` and data parallelism take.

    :param policy: With its bottleneck
    :param beta: Weight of the bottleneck's KL
    :param reconstruction: Weight of its reconstruction error
    :param autocast: Run the encoders and the U-Net in bfloat16
    """

    def __init__(self, policy: FlowPolicy, beta: float, reconstruction: float, autocast: bool = False) -> None:
        super().__init__()
        self.policy, self.beta, self.reconstruction, self.autocast = policy, beta, reconstruction, autocast
        self.objective = policy.objective  # once: what is compiled does not look it up

    def forward(self, obs: Observation, actions: th.Tensor, draws: Draws) -> dict[str, th.Tensor]:
        """Return the imitation loss, the bottleneck's losses (same noise and times), and ``total``, their sum.

        The bottleneck's gradients reach neither the encoders nor the U-Net.

        :param obs: (B, n, ...) for each key
        :param actions: (B, T, A) in environment units
        :param draws: Of the same rows
        """
        policy, noise, times = self.policy, draws.noise, draws.times
        assert policy.bottleneck is not None
        actions = policy.action_normalizer(actions)
        with self._precision(actions):
            context = policy.context(obs, draws.where).float()
        imitation = self.objective.loss(self._mixed(policy.unet), actions, noise, times, context)
        velocity = self._mixed(without_gradients(policy.unet))
        losses = bottleneck_loss(
            policy.bottleneck,
            context,
            lambda decoded: self.objective.loss(velocity, actions, noise, times, decoded),
            self.beta,
            self.reconstruction,
            draws.latent,
        )
        return {"imitation": imitation, **losses, "total": imitation + losses["total"]}

    def _mixed(self, velocity: Velocity) -> Velocity:
        # The losses and the small bottleneck stay in full precision: they cost little.
        def call(actions: th.Tensor, times: th.Tensor, condition: th.Tensor) -> th.Tensor:
            with self._precision(actions):
                return velocity(actions, times, condition).float()

        return call

    def _precision(self, tensor: th.Tensor) -> th.autocast:
        return th.autocast(tensor.device.type, th.bfloat16, enabled=self.autocast)
