"""What a policy's network is trained to predict, and how actions are made with it: flow matching or diffusion.

Both have the same two functions. ``loss`` takes the network, normalised actions and noise w (B, T, A), times k (B,) in
{0.01, 0.02, ..., 1}, where 1 is noise and 0 are actions, and the condition (B, C); it is a mean over everything.
``sample`` returns the normalised actions (B, T, A) that noise w leads to, and draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch as th

from zprl_sb3.diffusion import Denoiser, Diffusion
from zprl_sb3.flow import LEVELS, Velocity, flow_loss, sample, time_grid

Network = Velocity
"""Prediction from noisy actions, time k and condition: (B, T, A), (B,), (B, C) or made of it -> (B, T, A)."""


@dataclass(frozen=True)
class FlowMatching:
    """Rectified flow, integrated with Euler's rule on the times 1 -> 0.01 -> 0 (:mod:`zprl_sb3.flow`).

    :param steps: K, at least 1
    :raises ValueError: If there is no step
    """

    steps: int

    def __post_init__(self) -> None:
        time_grid(self.steps)

    def loss(
        self, network: Network, actions: th.Tensor, noise: th.Tensor, times: th.Tensor, condition: th.Tensor
    ) -> th.Tensor:
        """Return ||v(a^k, k, c) - (w - a)||²."""
        return flow_loss(network, actions, noise, times, condition)

    def sample(self, network: Network, noise: th.Tensor, condition: Any) -> th.Tensor:
        """Return a^0 by Euler's rule."""
        return sample(network, noise, condition, self.steps)


@dataclass(frozen=True)
class Denoising:
    """Diffusion, trained as DDPM on 100 levels of Diffusion Policy's schedule and sampled as DDIM.

    The network predicts the actions x_0, not the noise ε: of much noise ε says next to nothing about them, and what it
    is wrong by is multiplied in the few steps of a policy that acts. They are clipped to [-1, 1] in every step.

    :param steps: K of DDIM, a divisor of 100
    :raises ValueError: If it is none
    """

    steps: int

    def __post_init__(self) -> None:
        divisors = [steps for steps in range(1, LEVELS + 1) if LEVELS % steps == 0]
        if self.steps not in divisors:
            choices = ", ".join(map(str, divisors))
            raise ValueError(
                f"A diffusion of {LEVELS} levels cannot be sampled in {self.steps} steps: choose {choices}"
            )

    @cached_property
    def diffusion(self) -> Diffusion:
        """The noise schedule, and how it is sampled from."""
        return Diffusion(
            "ddim",
            self.steps,
            LEVELS,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            timestep_spacing="trailing",
        )

    def loss(
        self, network: Network, actions: th.Tensor, noise: th.Tensor, times: th.Tensor, condition: th.Tensor
    ) -> th.Tensor:
        """Return ||x_0(x_t, k, c) - a||² with t = 100 k - 1."""
        return self.diffusion.loss(_denoiser(network, condition), actions, noise, times)

    def sample(self, network: Network, noise: th.Tensor, condition: Any) -> th.Tensor:
        """Return x_0 by DDIM with η = 0."""
        return self.diffusion.sample(_denoiser(network, condition), noise)


def time_of(t: th.Tensor) -> th.Tensor:
    """Return the time k that the network is told for a diffusion's step t, from 0 to 99."""
    return (t + 1) / LEVELS


def _denoiser(network: Network, condition: Any) -> Denoiser:
    return lambda x, t: network(x, time_of(t), condition)


OBJECTIVES: dict[str, type[FlowMatching] | type[Denoising]] = {"flow": FlowMatching, "diffusion": Denoising}
"""By the name that a policy's configuration has for them."""


@lru_cache
def objective_of(name: str, steps: int) -> FlowMatching | Denoising:
    """Return an objective, of :data:`OBJECTIVES`, with so many steps of its sampler.

    :raises ValueError: If it cannot have so many
    """
    return OBJECTIVES[name](steps)
