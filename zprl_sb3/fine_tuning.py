"""PPO on the weights of a policy that makes its actions in steps: what ReinFlow and DPPO have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import nn
from torch.nn import functional as F

from zprl_sb3.chain_buffer import ChainRolloutBuffer, ChainSamples
from zprl_sb3.chain_policy import ChainPolicy
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.wrappers import SteeringSpec, find_spec, find_steering

SelfFineTuning = TypeVar("SelfFineTuning", bound="FineTuning")
REFUSED = (
    "gamma",
    "vf_coef",
    "clip_range_vf",
    "use_sde",
    "sde_sample_freq",
    "normalize_advantage",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
)


class FineTuning(PPO):
    """PPO on all weights of a copy of the environment's frozen policy, encoders included; on c, not the bottleneck.

    Rollouts, callbacks, logs and saving are SB3's. The likelihood of a chunk is that of the chain of steps that made it
    (:class:`~zprl_sb3.chain_policy.ChainPolicy`); how steps weigh in the loss is a subclass's.

    V after a time-out is discounted by γ^h, also where the last chunk was cut short.

    **Clocks.** ``total_timesteps``, ``n_steps`` and callbacks count *chunks*; ``env_steps``, ``time/env_steps`` count
    *env steps*. The discount is the wrapper's, γ^h per chunk.

    :param policy: ``"MultiInputPolicy"``
    :param env: Environment of a :class:`~zprl_sb3.wrappers.steering.WeightSteering`
    :param learning_rate: Of the policy
    :param vf_learning_rate: Of V
    :param n_steps: Chunks per environment between updates
    :param batch_size: Chunks in a minibatch, with all their steps
    :param n_epochs: Passes over a rollout
    :param gae_lambda: λ of the advantages
    :param clip_range: Of the ratio, per number that is drawn (see :meth:`_log_ratio`)
    :param ent_coef: Weight of the entropy per number that is drawn
    :param max_grad_norm: Clip of the gradient norm, policy and V separately
    :param target_kl: The policy stays for the rest of a rollout after a batch with ``approx_kl``, of the ratio per
        number, above 1.5 times this; None: never. Of N numbers the KL of a chunk is up to N² times that
    :param critic_warmup: Rollouts from which only V learns
    :param bootstrap_timeouts: Whether the return goes on, after a time-out, with V of the last observation. With a
        reward for success only it should not: V of being stuck would lead to itself, and nothing tell of the failure
    :param policy_kwargs: Of the policy
    :param kwargs: SB3's: tensorboard_log, verbose, seed, device, stats_window_size
    :raises TypeError: For an argument of SB3's PPO that would have no effect here, as ``gamma``
    :raises ValueError: If the environment's weights are not what is tuned, or its policy has the wrong objective
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    objective: ClassVar[str]
    """Of the base policy."""
    policy: ChainPolicy  # type: ignore[assignment]
    rollout_buffer: ChainRolloutBuffer

    def __init__(
        self,
        policy: str | type[ChainPolicy],
        env: GymEnv,
        learning_rate: float | Schedule = 1e-4,
        vf_learning_rate: float | Schedule = 1e-3,
        n_steps: int = 100,
        batch_size: int = 100,
        n_epochs: int = 5,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.01,
        ent_coef: float = 0.0,
        max_grad_norm: float = 25.0,
        target_kl: float | None = None,
        critic_warmup: int = 0,
        bootstrap_timeouts: bool = True,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if refused := sorted(kwargs.keys() & set(REFUSED)):
            raise TypeError(f"{type(self).__name__} does not support these arguments of PPO: {', '.join(refused)}")
        self.vf_learning_rate, self.critic_warmup = vf_learning_rate, critic_warmup
        self.bootstrap_timeouts = bootstrap_timeouts
        self.steering_spec: SteeringSpec | None = None
        self.env_steps = 0
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,
            learning_rate,
            n_steps,
            batch_size,
            n_epochs,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            target_kl=target_kl,
            rollout_buffer_class=ChainRolloutBuffer,
            policy_kwargs=policy_kwargs,
            _init_setup_model=False,
            **kwargs,
        )
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        base = None if self.env is None else self._adopt(self.env)
        if base is not None:
            self.policy_kwargs = {**self.policy_kwargs, "config": asdict(base.config)}
        config = self.policy_kwargs["config"]
        steps = self.policy_kwargs.get("tuned_steps") or config["sampling_steps"]
        self.rollout_buffer_kwargs = {"latents": (steps + 1, config["horizon"], config["action_dim"])}
        self.vf_lr_schedule = FloatSchedule(self.vf_learning_rate)
        super()._setup_model()
        if base is not None:
            self.policy.start_from(base)

    def _adopt(self, env: VecEnv) -> FlowPolicy:
        """Take the discount from the environment, or check that it is this model's, and return its frozen policy."""
        spec, policy, normalized = find_spec(env), find_steering(env).policy, unwrap_vec_normalize(env)
        if spec.kind != "weights":
            raise ValueError(
                f"{type(self).__name__} tunes weights, this environment steers with {spec.kind!r}: take WeightSteering"
            )
        assert isinstance(policy, FlowPolicy)
        if policy.config.objective != self.objective:
            raise ValueError(
                f"{type(self).__name__} tunes a policy with objective {self.objective}, not {policy.config.objective}"
                ": pretrain one with model=diffusion (states: model=state_diffusion) for DPPO, without it for ReinFlow"
            )
        if normalized is not None and normalized.norm_obs:
            raise ValueError("The policy normalises what it sees itself: give VecNormalize norm_obs=False")
        if self.steering_spec is not None:
            self.steering_spec.require_same(spec)
        self.steering_spec, self.gamma = spec, spec.chunk_discount
        return policy

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Attach another environment.

        :param env: With the same chunk, discount and base policy
        :param force_reset: Reset it before training goes on
        :raises ValueError: If it differs, naming in what
        """
        wrapped = self._wrap_env(env, self.verbose)
        self._adopt(wrapped)
        super().set_env(wrapped, force_reset)

    def train(self) -> None:
        """Update from the rollout."""
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        tuned = self._n_updates >= self.critic_warmup * self.n_epochs
        losses: list[dict[str, th.Tensor]] = []
        for batch in self._batches():
            losses.append(self._update_value(batch))
            if tuned:
                losses.append(self._update_policy(batch))
                tuned = self.target_kl is None or float(losses[-1]["approx_kl"]) <= 1.5 * self.target_kl
        self._n_updates += self.n_epochs
        self._log(losses)

    def _batches(self) -> Iterator[ChainSamples]:
        for _ in range(self.n_epochs):
            yield from self.rollout_buffer.get(self.batch_size)

    def _update_value(self, batch: ChainSamples) -> dict[str, th.Tensor]:
        """L = mean (V(c) - R)²."""
        loss = F.mse_loss(self.policy.predict_values(batch.observations)[:, 0], batch.returns)
        self._descend(self.policy.value_optimizer, loss)
        return {"value_loss": loss.detach()}

    def _update_policy(self, batch: ChainSamples) -> dict[str, th.Tensor]:
        """L = -mean min(r A, clip(r) A) - α entropy, with what a method adds."""
        log_prob, entropy = self.policy.evaluate(batch.observations, batch.chain.latents)
        log_ratio = self._log_ratio(log_prob, batch.chain.log_prob)
        advantages = _normalized(batch.advantages)[:, None] * self._discounts()
        surrogate, clipped = clipped_surrogate(log_ratio, advantages, self._clip_ranges())
        penalty, more = self._penalty(batch)
        self._descend(self.policy.optimizer, penalty - surrogate - self.ent_coef * entropy.mean())
        kl = (log_ratio.exp() - 1 - log_ratio).detach().mean()
        losses = {"surrogate": surrogate, "entropy": entropy.mean(), "approx_kl": kl, "clip_fraction": clipped} | more
        return {name: value.detach() for name, value in losses.items()}

    def _log_ratio(self, new: th.Tensor, old: th.Tensor) -> th.Tensor:
        """Return log r (B, G) of G groups of steps, **per number that is drawn**, as both papers' codes have it.

        A chunk draws dozens of numbers; the mean keeps one clip range good for every horizon and action.

        :param new: Log-probabilities of the K steps by the policy that learns, (B, K)
        :param old: By the one that has acted
        """
        raise NotImplementedError

    def _clip_ranges(self) -> th.Tensor:
        """Return the clip range of each group (G,)."""
        raise NotImplementedError

    def _discounts(self) -> th.Tensor:
        """Return the factor of the advantage of each group (G,)."""
        raise NotImplementedError

    def _penalty(self, batch: ChainSamples) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """Return what a method adds to the loss, and to the logs."""
        return batch.returns.new_zeros(()), {}

    def _tensor(self, values: list[float]) -> th.Tensor:
        return th.tensor(values, device=self.device)

    def _descend(self, optimizer: th.optim.Optimizer, loss: th.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.max_grad_norm, foreach=True)
        optimizer.step()

    def _set_learning_rates(self) -> None:
        for name, schedule, optimizer in (
            ("learning_rate", self.lr_schedule, self.policy.optimizer),
            ("vf_learning_rate", self.vf_lr_schedule, self.policy.value_optimizer),
        ):
            rate = schedule(self._current_progress_remaining)
            self.logger.record(f"train/{name}", rate)
            update_learning_rate(optimizer, rate)

    def _log(self, losses: list[dict[str, th.Tensor]]) -> None:
        """Log means over a rollout's updates."""
        for name in sorted({name for each in losses for name in each}):
            self.logger.record(f"train/{name}", float(th.stack([each[name] for each in losses if name in each]).mean()))
        buffer = self.rollout_buffer
        variance = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", float(variance))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        self.env_steps += sum(info["env_steps"] for info in infos)
        self.logger.record("time/env_steps", self.env_steps)
        if not self.bootstrap_timeouts:  # collect_rollouts looks at them next
            for info in infos:
                info["TimeLimit.truncated"] = False

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "policy.value_optimizer"], tensors

    def learn(
        self: SelfFineTuning,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "FineTuning",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfFineTuning:
        """Train for ``total_timesteps`` **chunks**, counted over all environments. Arguments as in SB3."""
        if reset_num_timesteps:
            self.env_steps = 0
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


def clipped_surrogate(
    log_ratio: th.Tensor, advantages: th.Tensor, clip_ranges: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """Return mean min(r A, clip(r, 1 - ε, 1 + ε) A), and the share of ratios r beyond their ε.

    :param log_ratio: log r (B, G)
    :param advantages: A (B, G)
    :param clip_ranges: ε (G,)
    """
    ratio = log_ratio.exp()
    clipped = th.minimum(th.maximum(ratio, 1 - clip_ranges), 1 + clip_ranges)
    beyond = ((ratio - 1).abs() > clip_ranges).float().mean()
    return th.minimum(ratio * advantages, clipped * advantages).mean(), beyond


def _normalized(advantages: th.Tensor) -> th.Tensor:
    if len(advantages) < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
