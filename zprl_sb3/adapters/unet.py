"""Diffusion Policy's 1-D U-Net, as its descendants have it too. The names are LeRobot's.

Chi et al. 2023, "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion". Unlike our own (``networks.py``)
it joins a skip connection before it doubles the resolution, so that the first level's is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch as th
from torch import nn

from zprl_sb3.convolutions import Conv1d, ConvTranspose1d

FINAL_GROUPS = 8  # of the last GroupNorm, whatever the others have


class StepEmbedding(nn.Module):
    """Sines and cosines of the diffusion step; (B,) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequencies: th.Tensor
        half = dim // 2
        self.register_buffer("frequencies", th.exp(-math.log(10_000) / (half - 1) * th.arange(half)), persistent=False)

    def forward(self, steps: th.Tensor) -> th.Tensor:
        phases = steps[:, None] * self.frequencies
        return th.cat([phases.sin(), phases.cos()], dim=-1)


class ConvolutionBlock(nn.Module):
    """Convolution, GroupNorm and Mish, (B, C, T) -> (B, C', T)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.block = nn.Sequential(convolution, nn.GroupNorm(groups, outputs), nn.Mish())

    def forward(self, x: th.Tensor) -> th.Tensor:
        output: th.Tensor = self.block(x)
        return output


class ResidualBlock(nn.Module):
    """Two convolutions with FiLM between them, and a skip connection.

    :param inputs: Channels
    :param outputs: Channels
    :param condition_dim: Size of what the FiLM is made from
    :param kernel: Of the convolutions
    :param groups: Of their GroupNorms
    :param scales: FiLM has scales too; without it only shifts
    """

    def __init__(self, inputs: int, outputs: int, condition_dim: int, kernel: int, groups: int, scales: bool) -> None:
        super().__init__()
        self.scales = scales
        self.conv1 = ConvolutionBlock(inputs, outputs, kernel, groups)
        self.conv2 = ConvolutionBlock(outputs, outputs, kernel, groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, outputs * (2 if scales else 1)))
        self.residual_conv = Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: th.Tensor, condition: th.Tensor) -> th.Tensor:
        film = self.cond_encoder(condition)[:, :, None]
        output = self.conv1(x)
        if self.scales:
            scale, shift = film.chunk(2, dim=1)
            output = scale * output + shift
        else:
            output = output + film
        result: th.Tensor = self.conv2(output) + self.residual_conv(x)
        return result


class Unet1d(nn.Module):
    """The denoiser: what a network predicts from noisy actions, the diffusion step and the observation.

    :param action_dim: A
    :param context_dim: C
    :param widths: Channels per level
    :param step_dim: Size of the step's embedding
    :param kernel: Of the convolutions
    :param groups: Of their GroupNorms
    :param scales: FiLM has scales, not only shifts
    """

    def __init__(
        self,
        action_dim: int,
        context_dim: int,
        widths: Sequence[int],
        step_dim: int,
        kernel: int,
        groups: int,
        scales: bool,
    ) -> None:
        super().__init__()

        def pair(inputs: int, outputs: int) -> list[nn.Module]:
            sizes = ((inputs, outputs), (outputs, outputs))
            return [ResidualBlock(*size, step_dim + context_dim, kernel, groups, scales) for size in sizes]

        self.diffusion_step_encoder = nn.Sequential(
            StepEmbedding(step_dim), nn.Linear(step_dim, 4 * step_dim), nn.Mish(), nn.Linear(4 * step_dim, step_dim)
        )
        self.down_modules, self.up_modules = nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in pairwise([action_dim, *widths]):
            last = len(self.down_modules) == len(widths) - 1
            halve = nn.Identity() if last else Conv1d(outputs, outputs, 3, stride=2, padding=1)
            self.down_modules.append(nn.ModuleList([*pair(inputs, outputs), halve]))
        self.mid_modules = nn.ModuleList(pair(widths[-1], widths[-1]))
        for inputs, outputs in pairwise(reversed(widths)):
            double = ConvTranspose1d(outputs, outputs, 4, stride=2, padding=1)
            self.up_modules.append(nn.ModuleList([*pair(2 * inputs, outputs), double]))
        self.final_conv = nn.Sequential(
            ConvolutionBlock(widths[0], widths[0], kernel, FINAL_GROUPS), Conv1d(widths[0], action_dim, 1)
        )

    def forward(self, actions: th.Tensor, steps: th.Tensor, context: th.Tensor) -> th.Tensor:
        """Return the prediction (B, T, A) for noisy actions (B, T, A), steps (B,) and contexts (B, C)."""
        condition = th.cat([self.diffusion_step_encoder(steps), context], dim=-1)
        x, skips = actions.transpose(1, 2), []
        for level in self.down_modules:
            first, second, halve = level.children()
            x = second(first(x, condition), condition)
            skips.append(x)
            x = halve(x)
        for block in self.mid_modules:
            x = block(x, condition)
        for level in self.up_modules:
            first, second, double = level.children()
            x = first(th.cat([x, skips.pop()], dim=1), condition)
            x = double(second(x, condition))
        prediction: th.Tensor = self.final_conv(x).transpose(1, 2)
        return prediction
