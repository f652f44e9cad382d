"""The action generator's network: a 1-D U-Net over the chunk, conditioned by FiLM on time and observation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from zprl_sb3.convolutions import Conv1d, ConvTranspose1d
from zprl_sb3.flow import LEVELS

Film = list[th.Tensor]
"""What a condition contributes to the FiLM layers, one tensor (B, 2 O) for each in the order in which they run."""

KERNEL = 5
MAX_GROUPS, MIN_GROUP_SIZE = 8, 16


def mlp(sizes: Sequence[int], *, activate_last: bool = False) -> nn.Sequential:
    """Return linear layers of the given sizes with GELU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.GELU()]
    return nn.Sequential(*(layers if activate_last else layers[:-1]))


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the flow time k, through a small MLP; (B,) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequencies: th.Tensor
        frequencies = th.exp(-math.log(10_000) * th.arange(dim // 2) / (dim // 2 - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))

    def forward(self, times: th.Tensor) -> th.Tensor:
        # The frequencies are made for integer levels up to LEVELS, not for times up to 1.
        phases = LEVELS * times[:, None] * self.frequencies
        embedding: th.Tensor = self.net(th.cat([phases.sin(), phases.cos()], dim=1))
        return embedding


def _conv_block(inputs: int, outputs: int) -> nn.Sequential:
    # 8 groups from 128 channels on, as in the paper. Smaller groups, in narrow networks, would normalise away the noise
    # that the velocity must reproduce: chunks would then depend on w where they should not.
    groups = max(1, min(MAX_GROUPS, outputs // MIN_GROUP_SIZE))
    convolution = Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2)
    return nn.Sequential(convolution, nn.GroupNorm(groups, outputs), nn.Mish())


class ResidualBlock(nn.Module):
    """Two convolutions with FiLM (scale and bias per channel) between them, and a skip connection.

    FiLM is linear in Mish of [time, condition]. The condition's part stays the same from step to step of a sampler.
    """

    film: Any

    def __init__(self, inputs: int, outputs: int, time_dim: int, condition_dim: int) -> None:
        super().__init__()
        self.time_dim = time_dim
        self.first = _conv_block(inputs, outputs)
        self.second = _conv_block(outputs, outputs)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(time_dim + condition_dim, 2 * outputs))
        self.skip = Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def of_condition(self, condition: th.Tensor) -> th.Tensor:
        """Return the condition's part of FiLM (B, 2 O), from Mish of it (B, C)."""
        return F.linear(condition, self.film[1].weight[:, self.time_dim :], self.film[1].bias)

    def forward(self, x: th.Tensor, time: th.Tensor, of_condition: th.Tensor) -> th.Tensor:
        """Return (B, O, L) for x (B, I, L), Mish of the time's embedding and the condition's part."""
        film = th.addmm(of_condition, time, self.film[1].weight[:, : self.time_dim].t())
        scale, bias = film[:, :, None].chunk(2, dim=1)
        output: th.Tensor = self.second(scale * self.first(x) + bias) + self.skip(x)
        return output


class ConditionalUnet1d(nn.Module):
    """Velocity v(a^k, k, c) of the flow (paper: widths 128-256-512, kernel 5, 8 groups, time embedding 128).

    Each width but the last is followed by a halving of the horizon, so the horizon must be a multiple of
    ``2 ** (len(widths) - 1)``: of 4 for three widths.

    :param action_dim: A, size of one action
    :param condition_dim: C, size of the context c
    :param widths: Channels per level, 16 or multiples of 16
    :param time_dim: Size of the time embedding
    """

    def __init__(self, action_dim: int, condition_dim: int, widths: Sequence[int], time_dim: int = 128) -> None:
        super().__init__()
        self.time_embedding = TimeEmbedding(time_dim)
        levels = list(zip([action_dim, *widths[:-1]], widths, strict=True))
        self.down = nn.ModuleList(_level(inputs, outputs, time_dim, condition_dim) for inputs, outputs in levels)
        self.downsample = nn.ModuleList(Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = _level(widths[-1], widths[-1], time_dim, condition_dim)
        self.upsample = nn.ModuleList(
            ConvTranspose1d(width, width, 4, stride=2, padding=1) for width in reversed(widths[1:])
        )
        self.up = nn.ModuleList(
            _level(below + skip, skip, time_dim, condition_dim)
            for below, skip in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)
        )
        self.head = nn.Sequential(_conv_block(widths[0], widths[0]), Conv1d(widths[0], action_dim, 1))

    def film(self, condition: th.Tensor) -> Film:
        """Return what a condition (B, C) contributes to all FiLM layers, once for all times."""
        activated = F.mish(condition)
        return [block.of_condition(activated) for block in self.modules() if isinstance(block, ResidualBlock)]

    def forward(self, actions: th.Tensor, times: th.Tensor, condition: th.Tensor | Film) -> th.Tensor:
        """Return the velocity (B, T, A) at noisy actions (B, T, A), times (B,) and condition (B, C), or its film."""
        film = iter(self.film(condition) if isinstance(condition, th.Tensor) else condition)
        time = F.mish(self.time_embedding(times))
        x = actions.transpose(1, 2)
        skips: list[th.Tensor] = []
        for index, level in enumerate(self.down):
            x = _run(level, x, time, film)
            if index < len(self.downsample):
                skips.append(x)
                x = self.downsample[index](x)
        x = _run(self.middle, x, time, film)
        for upsample, level in zip(self.upsample, self.up, strict=True):
            x = _run(level, th.cat([upsample(x), skips.pop()], dim=1), time, film)
        output: th.Tensor = self.head(x).transpose(1, 2)
        return output


def _level(inputs: int, outputs: int, *film_dims: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(inputs, outputs, *film_dims), ResidualBlock(outputs, outputs, *film_dims)])


def _run(level: nn.Module, x: th.Tensor, time: th.Tensor, film: Iterator[th.Tensor]) -> th.Tensor:
    for block in level.children():
        x = block(x, time, next(film))
    return x
