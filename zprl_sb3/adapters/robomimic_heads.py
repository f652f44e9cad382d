"""What robomimic's BC policies make of their last hidden layer: the distribution of the action, as at evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from zprl_sb3.adapters.base import AdapterError

MEAN_LIMIT, HIGHEST_DEVIATION = 9.0, 7.5  # of BC_Gaussian, before tanh; robomimic has no settings for them
LOW_NOISE = 1e-4  # deviation of BC_GMM at evaluation, unless switched off

DEVIATIONS: dict[str | None, Callable[[th.Tensor], th.Tensor]] = {
    "softplus": F.softplus,
    "exp": th.exp,
    None: lambda x: x,
}


@dataclass(frozen=True)
class Mixture:
    """K Gaussians over actions.

    :param means: (B, K, A)
    :param deviations: (B, K, A)
    :param logits: (B, K)
    """

    means: th.Tensor
    deviations: th.Tensor
    logits: th.Tensor


class Head(nn.Module):
    """From the last hidden layer to the distribution of the action.

    :param noise_dim: Numbers from a standard normal that one action takes
    """

    noise_dim: int

    def forward(self, hidden: th.Tensor) -> Mixture:
        """Return the distribution for hidden units (B, H)."""
        raise NotImplementedError


class Deterministic(Head):
    """BC: tanh of a linear layer."""

    noise_dim = 0

    def __init__(self, hidden: int, action_dim: int) -> None:
        super().__init__()
        self.action = nn.Linear(hidden, action_dim)

    def forward(self, hidden: th.Tensor) -> Mixture:
        return _single(self.action(hidden).tanh(), None)


class Gaussian(Head):
    """BC_Gaussian: the mean, unless ``low_noise_eval`` is off.

    :param settings: ``config.algo.gaussian``
    """

    def __init__(self, hidden: int, action_dim: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.mean, self.scale = nn.Linear(hidden, action_dim), nn.Linear(hidden, action_dim)
        self.low_noise, self.fixed = bool(settings["low_noise_eval"]), bool(settings["fixed_std"])
        self.initial, self.lowest = float(settings["init_std"]), float(settings["min_std"])
        self.activation = settings["std_activation"]
        _check_activation(self.activation)
        self.noise_dim = 0 if self.low_noise else action_dim

    def forward(self, hidden: th.Tensor) -> Mixture:
        mean = self.mean(hidden).clamp(-MEAN_LIMIT, MEAN_LIMIT).tanh()
        return _single(mean, None if self.low_noise else self._deviation(hidden))

    def _deviation(self, hidden: th.Tensor) -> th.Tensor:
        raw: th.Tensor = self.scale(hidden)
        deviation = th.full_like(raw, self.initial) if self.fixed else DEVIATIONS[self.activation](raw)
        if self.activation == "softplus" and not self.fixed:
            deviation = deviation * (self.initial / math.log(2.0))
        return deviation.clamp(self.lowest, HIGHEST_DEVIATION)


class GaussianMixture(Head):
    """BC_GMM: a sample, of a mixture with hardly any deviation unless ``low_noise_eval`` is off.

    :param settings: ``config.algo.gmm``
    """

    def __init__(self, hidden: int, action_dim: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.modes, self.action_dim = int(settings["num_modes"]), action_dim
        self.mean = nn.Linear(hidden, self.modes * action_dim)
        self.scale = nn.Linear(hidden, self.modes * action_dim)
        self.logits = nn.Linear(hidden, self.modes)
        self.low_noise, self.lowest = bool(settings["low_noise_eval"]), float(settings["min_std"])
        self.activation = settings["std_activation"]
        _check_activation(self.activation)
        self.noise_dim = self.modes + action_dim

    def forward(self, hidden: th.Tensor) -> Mixture:
        means, raw = (layer(hidden).unflatten(1, (self.modes, self.action_dim)) for layer in (self.mean, self.scale))
        deviations = th.full_like(raw, LOW_NOISE) if self.low_noise else DEVIATIONS[self.activation](raw) + self.lowest
        return Mixture(means.tanh(), deviations, self.logits(hidden))


def make_head(algo: Mapping[str, Any], hidden: int, action_dim: int) -> Head:
    """Return the head that ``config.algo`` describes."""
    if algo["gaussian"]["enabled"]:
        return Gaussian(hidden, action_dim, algo["gaussian"])
    if algo["gmm"]["enabled"]:
        return GaussianMixture(hidden, action_dim, algo["gmm"])
    return Deterministic(hidden, action_dim)


def draw(mixture: Mixture, noise: th.Tensor) -> th.Tensor:
    """Return actions (B, A) of a mixture, distributed as it says if the noise is from a standard normal.

    The first K numbers choose a mode by the Gumbel-max trick (the most probable one where they are 0), the last A are
    what deviates from its mean. One Gaussian needs the latter only, one without deviation none.

    :param noise: (B, K + A), (B, A) or (B, 0)
    """
    actions = mixture.means.shape[2]
    modes = mixture.means.shape[1]
    if modes == 1:
        mean, deviation = mixture.means[:, 0], mixture.deviations[:, 0]
        return mean + deviation * noise if noise.shape[1] else mean
    gumbel = -th.log(-th.special.log_ndtr(noise[:, :modes]))
    chosen = (mixture.logits + gumbel).argmax(dim=1)[:, None, None].expand(-1, 1, actions)
    mean, deviation = (part.gather(1, chosen)[:, 0] for part in (mixture.means, mixture.deviations))
    return mean + deviation * noise[:, modes:]


def _single(mean: th.Tensor, deviation: th.Tensor | None) -> Mixture:
    none = th.zeros_like(mean) if deviation is None else deviation
    return Mixture(mean[:, None], none[:, None], th.zeros_like(mean[:, :1]))


def _check_activation(name: str | None) -> None:
    if name not in DEVIATIONS:
        raise AdapterError(f"its deviation goes through {name!r}, not through one of {list(DEVIATIONS)}")
