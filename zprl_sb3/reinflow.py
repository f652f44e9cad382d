"""ReinFlow (arXiv 2505.22094): PPO on a flow policy whose steps draw learned noise."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn

from zprl_sb3.chain_buffer import ChainSamples
from zprl_sb3.chain_policy import ChainPolicy, hidden_layers
from zprl_sb3.fine_tuning import FineTuning
from zprl_sb3.flow import time_grid


class ReinFlowPolicy(ChainPolicy):
    """x_{i+1} ~ N(x_i - (k_i - k_{i+1}) v(x_i, k_i, c), σ(c, k_i)²), on the flow's own times 1 -> 0.01 -> 0.

    The initial noise is the observation's. Its likelihood is the same before and after an update: left out, it cancels.

    :param args: As of :class:`~zprl_sb3.chain_policy.ChainPolicy`
    :param noise_arch: Hidden layers of σ's network (paper: three of 384)
    :param noise_bounds: Least and greatest σ, of normalised actions (paper: 0.08 and 0.14 for robomimic)
    :param kwargs: As of :class:`~zprl_sb3.chain_policy.ChainPolicy`
    :raises ValueError: If the bounds are not positive and in this order
    """

    def __init__(
        self,
        *args: Any,
        noise_arch: list[int] | None = None,
        noise_bounds: tuple[float, float] = (0.08, 0.14),
        **kwargs: Any,
    ) -> None:
        low, high = noise_bounds
        if not 0 < low <= high:
            raise ValueError(f"noise_bounds are the least and the greatest σ, both positive, not {noise_bounds}")
        self.noise_arch, self.noise_bounds = noise_arch or [384, 384, 384], (low, high)
        super().__init__(*args, **kwargs)

    def _build(self) -> None:
        horizon, action_dim = self.flow.noise_shape
        self.noise_net = hidden_layers([self.flow.context_dim + 1, *self.noise_arch], horizon * action_dim, nn.Tanh)

    def transition(self, x: th.Tensor, context: th.Tensor, steps: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return Euler's step and σ, both (B, T, A)."""
        times = th.tensor(time_grid(self.steps), dtype=x.dtype, device=x.device)
        now, change = times[steps], (times[steps] - times[steps + 1])[:, None, None]
        return x - change * self.flow.unet(x, now, context), self.std(context, now)

    def std(self, context: th.Tensor, times: th.Tensor) -> th.Tensor:
        """Return σ(c, k) (B, T, A), log σ² between its bounds by a tanh. The encoder does not learn from it."""
        raw = self.noise_net(th.cat([context.detach(), times[:, None]], dim=1))
        low, high = (2 * th.tensor(bound, dtype=raw.dtype).log() for bound in self.noise_bounds)
        log_var = low + (high - low) * (raw.tanh() + 1) / 2
        std: th.Tensor = (0.5 * log_var).exp().view(-1, *self.flow.noise_shape)
        return std

    def generate(self, obs: Any) -> th.Tensor:
        """Return the flow's actions (B, T, A)."""
        return self.flow.objective.sample(self.flow.unet, obs["noise"], self.context(obs))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"noise_arch": self.noise_arch, "noise_bounds": self.noise_bounds}
        return super()._get_constructor_parameters() | own


class ReinFlow(FineTuning):
    """PPO on the joint likelihood of a chain, per number that is drawn, with an entropy bonus.

    Differences from the authors' code: one grid of times for drawing chains and for their likelihoods (theirs agree for
    one step only), advantages that end at time-outs, no clipping of actions within a chain or of likelihoods.

    :param policy: ``"MultiInputPolicy"``
    :param env: As of :class:`~zprl_sb3.fine_tuning.FineTuning`
    :param w2_coef: Weight of the regulariser: mean squared distance of the executed actions from the frozen policy's
        for the same noise (the authors: for the noise 0), which bounds the Wasserstein distance W₂² from above
    :param kwargs: As of :class:`~zprl_sb3.fine_tuning.FineTuning`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MultiInputPolicy": ReinFlowPolicy}
    objective = "flow"

    def __init__(self, policy: str | type[ReinFlowPolicy], env: GymEnv, w2_coef: float = 0.0, **kwargs: Any) -> None:
        self.w2_coef = w2_coef
        super().__init__(policy, env, **kwargs)

    def _log_ratio(self, new: th.Tensor, old: th.Tensor) -> th.Tensor:
        """Return that of the whole chain, (B, 1)."""
        return (new - old).sum(dim=1, keepdim=True) / self.policy.entries.sum()

    def _clip_ranges(self) -> th.Tensor:
        return self._tensor([self.clip_range(self._current_progress_remaining)])  # type: ignore[operator]

    def _discounts(self) -> th.Tensor:
        return self._tensor([1.0])

    def _penalty(self, batch: ChainSamples) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        if not self.w2_coef:
            return super()._penalty(batch)
        distance = self.policy.delta(batch.observations, self.policy.generate(batch.observations)).square().mean()
        return self.w2_coef * distance, {"w2": distance}
