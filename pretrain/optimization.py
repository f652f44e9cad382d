"""How the weights move in the offline loop: AdamW, its learning rate, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch as th
from torch import nn


def adamw(module: nn.Module, learning_rate: float, betas: Sequence[float], weight_decay: float) -> th.optim.AdamW:
    """Return an optimiser of all weights of a module.

    :param module: What learns
    :param learning_rate: To begin with
    :param betas: Decays of the averages of gradient and squared gradient
    :param weight_decay: Of every weight
    """
    first, second = betas
    # Fused into one pass over the weights: a third of the time on a CPU, too.
    return th.optim.AdamW(module.parameters(), learning_rate, (first, second), weight_decay=weight_decay, fused=True)


def cosine(step: int, warmup: int, total: int) -> float:
    """Return the factor of the learning rate: up to 1 in a line, then down to 0 along a cosine.

    :param step: Updates so far
    :param warmup: Updates of the way up
    :param total: Updates of the training
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def ema_decay(step: int, power: float, maximum: float) -> float:
    """Return the decay of the weights' average, 1 - (1 + step)^-power, at most ``maximum``.

    :param step: Updates of the weights so far
    :param power: How fast the average slows down
    :param maximum: Largest decay, so that it never stands still
    """
    return float(min(1 - (1 + step) ** -power, maximum))
