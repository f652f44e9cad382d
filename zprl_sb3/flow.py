"""Flow matching between an action chunk (k = 0) and Gaussian noise (k = 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

LEVELS = 100  # training times are {1/LEVELS, 2/LEVELS, ..., 1}

Velocity = Callable[[th.Tensor, th.Tensor, Any], th.Tensor]
"""v(a^k, k, condition): (B, T, A), (B,), (B, C) or what a network has made of it -> (B, T, A)."""


def sample_times(batch_size: int, device: th.device, generator: th.Generator | None = None) -> th.Tensor:
    """Draw training times k uniformly from {0.01, 0.02, ..., 1}; shape (B,)."""
    levels = th.randint(1, LEVELS + 1, (batch_size,), device=device, generator=generator)
    return levels.float() / LEVELS


def interpolate(actions: th.Tensor, noise: th.Tensor, times: th.Tensor) -> th.Tensor:
    """Return a^k = (1 - k) a + k w for actions and noise (B, T, A) and times (B,)."""
    k = times[:, None, None]
    return (1 - k) * actions + k * noise


def flow_loss(
    velocity: Velocity, actions: th.Tensor, noise: th.Tensor, times: th.Tensor, condition: th.Tensor
) -> th.Tensor:
    """Flow-matching loss ||v(a^k, k, c) - (w - a)||^2, as a mean over everything."""
    noisy_actions = interpolate(actions, noise, times)
    return F.mse_loss(velocity(noisy_actions, times, condition), noise - actions)


def time_grid(steps: int) -> list[float]:
    """Return the sampler's times: ``steps`` values from 1 down to 0.01, then 0. Two steps give 1 -> 0.01 -> 0.

    :raises ValueError: If ``steps`` is below 1
    """
    if steps < 1:
        raise ValueError(f"The sampler needs at least one step, not {steps}")
    last = 1.0 / LEVELS
    return [1.0 - (1.0 - last) * step / max(1, steps - 1) for step in range(steps)] + [0.0]


def sample(velocity: Velocity, noise: th.Tensor, condition: Any, steps: int) -> th.Tensor:
    """Integrate the flow from noise (B, T, A) to an action chunk (B, T, A) with Euler's rule.

    a^{k_m} = a^{k_{m+1}} - (k_{m+1} - k_m) v(a^{k_{m+1}}, k_{m+1}, c)
    """
    grid = time_grid(steps)
    actions = noise
    for later, earlier in zip(grid[:-1], grid[1:], strict=True):
        times = th.full((len(actions),), later, device=actions.device)
        actions = actions - (later - earlier) * velocity(actions, times, condition)
    return actions


def without_gradients(module: nn.Module) -> Velocity:
    """Return ``module`` as a function whose gradients reach its inputs but not its weights."""
    tensors = {name: tensor.detach() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}

    def call(*inputs: th.Tensor) -> th.Tensor:
        output: th.Tensor = th.func.functional_call(module, tensors, inputs)
        return output

    return call
