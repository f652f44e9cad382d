"""Denoising diffusion of action chunks, as policies of ours and, through ``diffusers``, of other projects have it.

x_0 is the chunk, x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε its noisy form. A network predicts from x_t and t either ε, x_0 or the
velocity v = √ᾱ_t ε − √(1 − ᾱ_t) x_0. Sources: Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Nichol and Dhariwal 2021
(cosine schedule), Salimans and Ho 2022 (velocity).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from torch.nn import functional as F

Denoiser = Callable[[th.Tensor, th.Tensor], th.Tensor]
"""Prediction of a network from x_t (B, T, A) and t, integers (B,): (B, T, A)."""

SAMPLERS = ("ddpm", "ddim")
SCHEDULES = ("squaredcos_cap_v2", "linear", "scaled_linear")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")
MAX_BETA = 0.999  # of the cosine schedule, whose last β would be 1

ONLY = {"variance_type": "fixed_small", "thresholding": False, "trained_betas": None, "rescale_betas_zero_snr": False}
"""Settings of ``diffusers`` that have one value here. Dynamic thresholding and the like are made for pictures."""
UNUSED = {"dynamic_thresholding_ratio", "sample_max_value"}


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule and how it is sampled from. The names, and defaults, are those of ``diffusers``.

    :param sampler: ``"ddpm"`` draws noise in every step, ``"ddim"`` (η = 0) only the first
    :param sampling_steps: K
    :param num_train_timesteps: N, of t from 0 to N − 1
    :param beta_start: β_0, where the schedule is linear
    :param beta_end: β_{N−1}
    :param beta_schedule: One of :data:`SCHEDULES`; ``"scaled_linear"`` is linear in √β
    :param prediction_type: One of :data:`PREDICTIONS`, see above
    :param clip_sample: Whether the predicted x_0 is clipped in every step of the sampler
    :param clip_sample_range: to ± this
    :param set_alpha_to_one: DDIM's last step leads to x_0 (ᾱ = 1), not to x at t = 0
    :param steps_offset: Added to the sampled t, with ``"leading"`` spacing
    :param timestep_spacing: Which K of the N steps are sampled, one of :data:`SPACINGS`
    :raises ValueError: If a name is none of those, or there are no such steps
    """

    sampler: str
    sampling_steps: int
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    timestep_spacing: str = "leading"

    def __post_init__(self) -> None:
        choices = {
            "sampler": SAMPLERS,
            "beta_schedule": SCHEDULES,
            "prediction_type": PREDICTIONS,
            "timestep_spacing": SPACINGS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if not 1 <= self.sampling_steps <= self.num_train_timesteps:
            raise ValueError(
                f"A diffusion trained with {self.num_train_timesteps} steps cannot be sampled in {self.sampling_steps} "
                f"(choose 1 to {self.num_train_timesteps})"
            )
        if max(self.steps) >= self.num_train_timesteps:
            raise ValueError(f"steps_offset {self.steps_offset} leads beyond the {self.num_train_timesteps} steps")

    @classmethod
    def of(cls, settings: Mapping[str, Any], sampler: str, sampling_steps: int | None = None) -> Diffusion:
        """Return the diffusion of a scheduler's settings.

        :param settings: Arguments of a scheduler of ``diffusers``
        :param sampler: ``"ddpm"`` or ``"ddim"``
        :param sampling_steps: None: as many as it was trained with
        :raises ValueError: If there are settings that ask for anything else than what is here
        """
        others = {name: value for name, value in settings.items() if name not in {field.name for field in fields(cls)}}
        for name, value in others.items():
            if name not in UNUSED and not (name in ONLY and value == ONLY[name]):
                raise ValueError(f"The noise scheduler's setting {name}={value!r} is not supported")
        own = {name: value for name, value in settings.items() if name not in others}
        if sampling_steps is None:
            sampling_steps = own.get("num_train_timesteps", cls.num_train_timesteps)
        return cls(**{**own, "sampler": sampler, "sampling_steps": sampling_steps})

    @cached_property
    def alphas_bar(self) -> th.Tensor:
        """ᾱ_t = ∏ (1 − β_s) over s ≤ t; (N,)."""
        return (1 - self._betas()).cumprod(0)

    def _betas(self) -> th.Tensor:
        steps = self.num_train_timesteps
        if self.beta_schedule == "linear":
            return th.linspace(self.beta_start, self.beta_end, steps)
        if self.beta_schedule == "scaled_linear":
            return th.linspace(self.beta_start**0.5, self.beta_end**0.5, steps) ** 2
        times = th.arange(steps + 1, dtype=th.float64) / steps
        bars = th.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - bars[1:] / bars[:-1]).clamp(max=MAX_BETA).float()

    @cached_property
    def steps(self) -> list[int]:
        """The t that are sampled at, falling."""
        total, count = self.num_train_timesteps, self.sampling_steps
        times: NDArray[Any]
        if self.timestep_spacing == "leading":
            times = np.arange(count)[::-1] * (total // count) + self.steps_offset
        elif self.timestep_spacing == "trailing":
            times = np.arange(total, 0, -total / count)[:count].round() - 1  # rounding makes 30 of 29
        else:
            times = np.linspace(0, total - 1, count).round()[::-1]
        return [int(time) for time in times]

    def noise_shape(self, horizon: int, action_dim: int) -> tuple[int, ...]:
        """Return the shape of the noise of one prediction: (T, A) for DDIM, (K, T, A) for DDPM."""
        return (horizon, action_dim) if self.sampler == "ddim" else (len(self.steps), horizon, action_dim)

    def sample(self, denoiser: Denoiser, noise: th.Tensor) -> th.Tensor:
        """Return x_0 (B, T, A).

        :param denoiser: The network, under its condition
        :param noise: From a standard normal. DDIM: x_{N−1}, (B, T, A). DDPM: that and the noise of every step but the
            last, (B, K, T, A)
        """
        x, *fresh = [noise] if self.sampler == "ddim" else noise.unbind(1)
        for index, t in enumerate(self.steps):
            prediction = denoiser(x, th.full((len(x),), t, device=x.device))
            if self.sampler == "ddim":
                x = self._ddim(prediction, x, t)
            else:
                x = self._ddpm(prediction, x, index, fresh[index] if index < len(fresh) else th.zeros_like(x))
        return x

    def _ddim(self, prediction: th.Tensor, x: th.Tensor, t: int) -> th.Tensor:
        return self.transition(prediction, x, th.full((len(x),), t, device=x.device), eta=0.0)[0]

    def transition(self, prediction: th.Tensor, x: th.Tensor, t: th.Tensor, eta: float) -> tuple[th.Tensor, th.Tensor]:
        """Return mean (B, T, A) and deviation σ (B, 1, 1) of what DDIM's step leads to (Song et al., eqs. 12 and 16).

        :param prediction: Of the network for x and t, (B, T, A)
        :param x: x_t (B, T, A)
        :param t: Of the sampled steps, (B,)
        :param eta: η: 0 is DDIM's own σ = 0, 1 that of DDPM
        """
        bars = self.alphas_bar.to(x.device)
        alpha_bar, target = bars[t][:, None, None], self._earlier(bars, t)[:, None, None]
        clean, epsilon = self._parts(prediction, x, alpha_bar)
        std = eta * ((1 - target) / (1 - alpha_bar) * (1 - alpha_bar / target)).sqrt()
        return target.sqrt() * clean + (1 - target - std**2).clamp(min=0).sqrt() * epsilon, std

    def _earlier(self, bars: th.Tensor, t: th.Tensor) -> th.Tensor:
        """Return ᾱ where DDIM's step from t leads to (B,)."""
        earlier = t - self.num_train_timesteps // self.sampling_steps
        last = th.ones_like(bars[:1]) if self.set_alpha_to_one else bars[:1]
        return th.where(earlier >= 0, bars[earlier.clamp(min=0)], last)

    def _ddpm(self, prediction: th.Tensor, x: th.Tensor, index: int, fresh: th.Tensor) -> th.Tensor:
        """Ho et al., equations 6 and 7, between two of the sampled steps."""
        alpha_bar = self.alphas_bar[self.steps[index]]
        clean, _ = self._parts(prediction, x, alpha_bar)
        final = index + 1 == len(self.steps)
        target = self.alphas_bar.new_tensor(1.0) if final else self.alphas_bar[self.steps[index + 1]]
        alpha = alpha_bar / target
        mean = target.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - target) * x
        variance = (1 - target) / (1 - alpha_bar) * (1 - alpha)
        return mean / (1 - alpha_bar) + variance.sqrt() * fresh

    def _parts(self, prediction: th.Tensor, x: th.Tensor, alpha_bar: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return x_0, clipped, and ε (not made to fit the clipped one, as diffusers has it)."""
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if self.prediction_type == "epsilon":
            clean, epsilon = (x - noise * prediction) / signal, prediction
        elif self.prediction_type == "sample":
            clean, epsilon = prediction, (x - signal * prediction) / noise
        else:
            clean, epsilon = signal * x - noise * prediction, signal * prediction + noise * x
        limit = self.clip_sample_range if self.clip_sample else math.inf
        return clean.clamp(-limit, limit), epsilon

    def loss(self, denoiser: Denoiser, actions: th.Tensor, noise: th.Tensor, times: th.Tensor) -> th.Tensor:
        """Return the loss it was trained with: the squared error of the prediction, as a mean over everything.

        :param denoiser: The network, under its condition
        :param actions: x_0, (B, T, A)
        :param noise: As :meth:`sample` takes it, of which the first part is ε here
        :param times: (B,) in (0, 1]; t is N times that, less one
        """
        epsilon = noise if self.sampler == "ddim" else noise[:, 0]
        t = (times * self.num_train_timesteps).round().long().clamp(min=1) - 1
        alpha_bar = self.alphas_bar.to(times.device)[t][:, None, None]
        signal, scale = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        targets = {"epsilon": epsilon, "sample": actions, "v_prediction": signal * epsilon - scale * actions}
        return F.mse_loss(denoiser(signal * actions + scale * epsilon, t), targets[self.prediction_type])
