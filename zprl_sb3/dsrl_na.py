"""DSRL-NA: noise steering with noise aliasing, a critic of actions that teaches a critic of noise."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_wrapper

from zprl_sb3.sac import SteeringSAC, weights_of
from zprl_sb3.sac_policy import SteeringCritic, SteeringSACPolicy
from zprl_sb3.wrappers import NoiseSteering, VecSteering

ALIASING_EVERY = 2  # updates of the critic of actions for one of the critic of noise, as the authors' 20 and 10


class NoiseAliasedPolicy(SteeringSACPolicy):
    """:class:`~zprl_sb3.sac_policy.SteeringSACPolicy` with a second ensemble and its target, Q^A(c, a).

    :param chunk_dim: h * A, size of an executed chunk; the algorithm takes it from the environment
    """

    def __init__(self, *args: Any, chunk_dim: int, **kwargs: Any) -> None:
        self.chunk_dim = chunk_dim
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_critic, self.action_critic_target = self._make_action_critic(), self._make_action_critic()
        self.action_critic_target.load_state_dict(self.action_critic.state_dict())
        self.action_critic_target.set_training_mode(False)
        optimizer_class: Any = self.optimizer_class
        weights = self.action_critic.parameters()
        self.action_critic.optimizer = optimizer_class(weights, lr=lr_schedule(1), **self.optimizer_kwargs)

    def _make_action_critic(self) -> SteeringCritic:
        chunk = spaces.Box(-np.inf, np.inf, (self.chunk_dim,), np.float32)
        assert isinstance(self.observation_space, spaces.Dict)
        seen = spaces.Dict({"c": self.observation_space["c"], "z": chunk})
        return self._make_critic(observation_space=seen, action_space=chunk, scale=1.0)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"chunk_dim": self.chunk_dim}


class DSRLNA(SteeringSAC):
    """Noise steering whose target and data are actions: many w lead to the same a, and Q^A need not learn that.

    Q^A(c, a) learns as the critic of :class:`~zprl_sb3.sac.SteeringSAC` does, on the executed chunk a = a(c, w) that
    the frozen policy makes of the noise. The actor follows Q^W(c, w), which learns Q^A(c, a(c, w)) for w ~ N(0, I),
    head by head. An update runs the policy on two and a half batches, which takes most of its time.

    Arguments as :class:`~zprl_sb3.sac.SteeringSAC` has them.

    :raises ValueError: If the environment does not steer noise, and as in SteeringSAC
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MultiInputPolicy": NoiseAliasedPolicy}
    policy: NoiseAliasedPolicy
    _steering: NoiseSteering

    def _adopt(self, env: VecEnv) -> None:
        super()._adopt(env)
        batched = unwrap_vec_wrapper(env, VecSteering)
        steering = batched.steering if batched is not None else env.get_attr("steering")[0]
        if not isinstance(steering, NoiseSteering):
            raise ValueError(f"DSRL-NA steers the noise, but in this environment {steering.kind} is steered")
        self._steering = steering
        self.policy_kwargs["chunk_dim"] = steering.policy.chunk * steering.policy.action_dim

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_steering"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "policy.action_critic.optimizer"], tensors

    def _update_critic(self, batch: ReplayBufferSamples) -> dict[str, th.Tensor]:
        """L = Σ_i mean (Q^A_i(c, a) - y)² with y of Q̄^A(c', a(c', w')), w' ~ π; then Q^W, every second time."""
        with th.no_grad():
            following = self._in_actions(batch.next_observations, self.actor(batch.next_observations))
            with self._autocast():
                target = self._target(batch, self.policy.action_critic_target, *following)
        losses = self._fit(self.policy.action_critic, *self._in_actions(batch.observations, batch.actions), target)
        if self._n_updates % ALIASING_EVERY == 0:
            losses["aliasing_loss"] = self._update_noise_critic(batch.observations)
        return losses

    def _update_noise_critic(self, obs: Any) -> th.Tensor:
        """L = Σ_i mean (Q^W_i(c, w) - Q^A_i(c, a(c, w)))², w ~ N(0, I) within the bounds of what is executed."""
        assert self.steering_spec is not None
        size = (len(obs["c"]), self._steering.anchor_dim)
        delta = (self.steering_spec.warm_up_std * th.randn(size, device=self.device)).clamp(-1, 1)
        with th.no_grad(), self._autocast():
            target = self.policy.action_critic(*self._in_actions(obs, delta))
        return self._fit(self.critic, obs, delta, target)["critic_loss"]

    def _in_actions(self, obs: Any, delta: th.Tensor) -> tuple[dict[str, th.Tensor], th.Tensor]:
        """Return what Q^A takes in the places of (c, z) and Δz for the noise of Δ: (c, a) and 0."""
        chunk = self._steering.chunk(obs["c"], delta)
        return {"c": obs["c"], "z": chunk}, th.zeros_like(chunk)

    def _followed(self) -> tuple[list[th.Tensor], list[th.Tensor]]:
        return list(self.policy.action_critic_target.parameters()), weights_of(self.policy.action_critic.optimizer)

    def _set_learning_rates(self) -> None:
        super()._set_learning_rates()
        rate = self.qf_lr_schedule(self._current_progress_remaining)
        update_learning_rate(self.policy.action_critic.optimizer, rate)
