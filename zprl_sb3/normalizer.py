"""Min-max normalisation whose limits travel in the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch as th
from torch import nn

MIN_RANGE = 1e-4  # below this a dimension is a constant with noise: shifted, never stretched


class Normalizer(nn.Module):
    """Map each dimension linearly so that the fitted data lie in [-1, 1]; constant dimensions become 0.

    :param dim: Size D of the last axis
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.center: th.Tensor
        self.half_range: th.Tensor
        self.register_buffer("center", th.zeros(dim))
        self.register_buffer("half_range", th.ones(dim))

    def fit(self, data: th.Tensor, unscaled: Sequence[int] = ()) -> Normalizer:
        """Take the limits from data (N, D).

        :param data: What to fit
        :param unscaled: Dimensions that stay as they are
        """
        low, high = data.amin(dim=0), data.amax(dim=0)
        self.center.copy_((low + high) / 2)
        self.half_range.copy_(th.where(high - low < MIN_RANGE, th.ones_like(low), (high - low) / 2))
        for dimension in unscaled:
            self.center[dimension], self.half_range[dimension] = 0, 1
        return self

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Normalise (..., D)."""
        return (x - self.center) / self.half_range

    def inverse(self, x: th.Tensor) -> th.Tensor:
        """Undo the normalisation of (..., D)."""
        return x * self.half_range + self.center
