"""Normalisation of observations by mean and deviation, from statistics that belong to a policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch as th
from numpy.typing import NDArray
from torch import nn

from zprl_sb3.adapters.base import AdapterError, check_context

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Of D values that a policy sees.

    :param mean: (D,)
    :param deviation: √(variance + ε), (D,)
    :param limit: What is normalised is clipped to ±limit
    :raises AdapterError: If mean and deviation are of different sizes, not finite, or a deviation is not positive
    """

    mean: Array
    deviation: Array
    limit: float = math.inf

    def __post_init__(self) -> None:
        if self.mean.shape != self.deviation.shape or self.mean.ndim != 1:
            raise AdapterError(f"the statistics are of different sizes, {self.mean.shape} and {self.deviation.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.deviation).all() and (self.deviation > 0).all()):
            raise AdapterError("the statistics are not finite, or have a deviation that is not positive")


class Standardizer(nn.Module):
    """clip((x − mean)/deviation) in double precision, as the projects compute it; (B, D) -> (B, D) float32.

    :param dim: D
    :param statistics: None leaves x as it is
    :raises AdapterError: If the statistics are of another size, or D is more than a context may have
    """

    def __init__(self, dim: int, statistics: Statistics | None) -> None:
        super().__init__()
        check_context(dim)  # before anything of this size is made
        if statistics is None:
            statistics = Statistics(np.zeros(dim), np.ones(dim))
        if len(statistics.mean) != dim:
            raise AdapterError(f"the statistics are of {len(statistics.mean)} values, the policy's input has {dim}")
        self.mean: th.Tensor
        self.deviation: th.Tensor
        self.limit: th.Tensor
        for name in ("mean", "deviation", "limit"):
            self.register_buffer(name, th.tensor(getattr(statistics, name), dtype=th.float64))
        self.features = dim

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Normalise (B, D)."""
        return ((x.double() - self.mean) / self.deviation).clamp(-self.limit, self.limit).float()
