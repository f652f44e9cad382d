"""DPPO (arXiv 2409.00588): PPO on a diffusion policy, each of whose denoising steps is an action."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from zprl_sb3.chain_policy import ChainPolicy
from zprl_sb3.diffusion import Diffusion
from zprl_sb3.fine_tuning import FineTuning
from zprl_sb3.networks import ConditionalUnet1d
from zprl_sb3.objectives import Denoising, time_of
from zprl_sb3.policy import FlowPolicy


class DPPOPolicy(ChainPolicy):
    """The last K' steps of DDIM are tuned; a frozen copy makes those before. What is evaluated has no noise (η = 0).

    :param args: As of :class:`~zprl_sb3.chain_policy.ChainPolicy`
    :param tuned_steps: K'; None: all
    :param eta: η of DDIM while it learns; 1 draws as DDPM does
    :param min_std: Least σ of a step while it learns, of normalised actions
    :param kwargs: As of :class:`~zprl_sb3.chain_policy.ChainPolicy`
    :raises ValueError: If there are not so many steps, or σ could be 0
    """

    frozen: ConditionalUnet1d | None

    def __init__(
        self, *args: Any, tuned_steps: int | None = None, eta: float = 1.0, min_std: float = 0.1, **kwargs: Any
    ) -> None:
        if min_std <= 0:
            raise ValueError(f"min_std is positive, not {min_std}: the last step's σ would be 0")
        if tuned_steps is not None and tuned_steps < 1:
            raise ValueError(f"tuned_steps is at least 1, not {tuned_steps}")
        self.tuned_steps, self.eta, self.min_std = tuned_steps, eta, min_std
        super().__init__(*args, **kwargs)

    def _build(self) -> None:
        if not 1 <= self.steps <= self.flow.config.sampling_steps:
            raise ValueError(f"tuned_steps is 1 to {self.flow.config.sampling_steps}, not {self.tuned_steps}")
        all_tuned = self.steps == self.flow.config.sampling_steps
        self.frozen = None if all_tuned else copy.deepcopy(self.flow.unet).requires_grad_(False)

    @property
    def steps(self) -> int:
        """K'."""
        return self.tuned_steps or super().steps

    def start_from(self, base: FlowPolicy) -> None:
        """Take over the weights of the frozen policy, also for the steps that stay its own."""
        super().start_from(base)
        if self.frozen is not None:
            self.frozen.load_state_dict(base.unet.state_dict())

    def tuned(self) -> FlowPolicy | None:
        """Return the tuned policy where it makes all steps."""
        return super().tuned() if self.frozen is None else None

    def transition(self, x: th.Tensor, context: th.Tensor, steps: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return mean (B, T, A) and σ (B, 1, 1) of DDIM's steps, σ at least ``min_std``."""
        mean, std = self._denoise(self.flow.unet, x, context, self._times(x)[-self.steps :][steps], self.eta)
        return mean, std.clamp(min=self.min_std)

    def first(self, obs: Mapping[str, th.Tensor]) -> th.Tensor:
        """Return what the frozen steps have made of the noise, (B, T, A)."""
        return self._frozen_steps(obs, self.eta)

    def generate(self, obs: Mapping[str, th.Tensor]) -> th.Tensor:
        """Return the actions (B, T, A) of DDIM with η = 0."""
        context, x = self.context(obs), self._frozen_steps(obs, eta=0.0)
        for t in self._times(x)[-self.steps :]:
            x, _ = self._denoise(self.flow.unet, x, context, t.expand(len(x)), eta=0.0)
        return x

    @th.no_grad()
    def _frozen_steps(self, obs: Mapping[str, th.Tensor], eta: float) -> th.Tensor:
        x = obs["noise"]
        if self.frozen is None:
            return x
        for t in self._times(x)[: -self.steps]:
            x, std = self._denoise(self.frozen, x, obs["c"], t.expand(len(x)), eta)
            x = x + std.clamp(min=self.min_std) * th.randn_like(x) if eta else x
        return x

    def _denoise(
        self, unet: ConditionalUnet1d, x: th.Tensor, context: th.Tensor, t: th.Tensor, eta: float
    ) -> tuple[th.Tensor, th.Tensor]:
        return self._diffusion.transition(unet(x, time_of(t), context), x, t, eta)

    def _times(self, x: th.Tensor) -> th.Tensor:
        """Return the t of all steps, falling, (K,)."""
        return th.tensor(self._diffusion.steps, device=x.device)

    @property
    def _diffusion(self) -> Diffusion:
        objective = self.flow.objective
        assert isinstance(objective, Denoising)
        return objective.diffusion

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"tuned_steps": self.tuned_steps, "eta": self.eta, "min_std": self.min_std}
        return super()._get_constructor_parameters() | own


class DPPO(FineTuning):
    """PPO in two layers: the advantage of a chunk is that of each denoising step, less and less towards the noise.

    A minibatch holds chunks with all their steps (the authors draw steps of different chunks). Differences from the
    authors' code: advantages end at time-outs; the noise is not clipped at 3σ, likelihoods are not clipped; the network
    predicts x_0, not ε, and ε is not made to fit where x_0 is clipped; there is no entropy bonus, as σ does not learn.

    :param policy: ``"MultiInputPolicy"``
    :param env: As of :class:`~zprl_sb3.fine_tuning.FineTuning`, around a policy with objective ``diffusion``
    :param clip_range: ε of the last step
    :param first_clip_range: ε of the first of several; in between it rises as e^(rate i / (K' - 1))
    :param clip_rate: That rate
    :param denoising_discount: γ_d: the advantage of step i is γ_d^(K' - 1 - i) of the chunk's
    :param kwargs: As of :class:`~zprl_sb3.fine_tuning.FineTuning`, but ``ent_coef``
    :raises TypeError: For an argument that would have no effect here, as ``ent_coef``
    :raises ValueError: If ``clip_rate`` is not positive
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MultiInputPolicy": DPPOPolicy}
    objective = "diffusion"

    def __init__(
        self,
        policy: str | type[DPPOPolicy],
        env: GymEnv,
        first_clip_range: float = 0.001,
        clip_rate: float = 3.0,
        denoising_discount: float = 0.99,
        **kwargs: Any,
    ) -> None:
        if "ent_coef" in kwargs:
            raise TypeError("DPPO does not support this argument of PPO: ent_coef, as σ does not learn")
        if clip_rate <= 0:
            raise ValueError(f"clip_rate is positive, not {clip_rate}")
        self.first_clip_range, self.clip_rate = first_clip_range, clip_rate
        self.denoising_discount = denoising_discount
        super().__init__(policy, env, **kwargs)

    def _log_ratio(self, new: th.Tensor, old: th.Tensor) -> th.Tensor:
        """Return that of each step, (B, K')."""
        return (new - old) / self.policy.entries

    def _clip_ranges(self) -> th.Tensor:
        last, count = self.clip_range(self._current_progress_remaining), self.policy.steps  # type: ignore[operator]
        if count == 1:
            return self._tensor([last])
        rise = [math.expm1(self.clip_rate * step / (count - 1)) / math.expm1(self.clip_rate) for step in range(count)]
        return self._tensor([self.first_clip_range + (last - self.first_clip_range) * part for part in rise])

    def _discounts(self) -> th.Tensor:
        count = self.policy.steps
        return self._tensor([self.denoising_discount ** (count - 1 - step) for step in range(count)])
