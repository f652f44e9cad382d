"""SteeringSAC: SB3's SAC as ZPRL trains it on a steered policy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    ReplayBufferSamples,
    RolloutReturn,
    Schedule,
)
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import nn
from torch.nn import functional as F

from zprl_sb3.bfloat16 import multiplies_bfloat16
from zprl_sb3.replay import SteeringReplayBuffer
from zprl_sb3.sac_policy import SteeringCritic, SteeringSACPolicy
from zprl_sb3.wrappers import SteeringSpec, find_spec

SelfSteeringSAC = TypeVar("SelfSteeringSAC", bound="SteeringSAC")
TARGET_HEADS = 2  # size of the random subset of critics in the target
FIRST_REACH = 0.1  # of Δz where it is annealed
NOT_SUPPORTED = ("n_steps", "optimize_memory_usage", "target_update_interval", "use_sde")


class SteeringSAC(SAC):
    """Soft actor-critic over Δz, for a steered environment. It differs from SB3's SAC as the authors' code does.

    No entropy in the target · Q(c, z + λΔz) · target: minimum over a random 2 of n critics, actor: mean over all ·
    critics bounded to (0, 1) for sparse rewards · actor, temperature and target every ``policy_delay`` critic updates ·
    own critic learning rate · clipped gradients · target entropy -d/2 · temperature from 0.01 ·
    warm-up with the base policy, Δz = 0.

    **Clocks.** ``total_timesteps``, ``learning_starts``, ``train_freq`` and callbacks count *chunks*, as SB3 counts
    steps; ``env_steps`` and ``time/env_steps`` count *env steps*. gamma, per env step, and λ belong to the wrapper;
    they are saved with the model, and an environment that differs is refused.

    :param policy: ``"MultiInputPolicy"``
    :param env: A steered environment
    :param learning_rate: Of the actor (Table V)
    :param qf_learning_rate: Of critics and temperature (Table V)
    :param buffer_size: Replay capacity in chunks
    :param learning_starts: Chunks of warm-up with Δz = 0, over all environments, without those of aborted episodes
    :param batch_size: Batch
    :param tau: Of the target critics
    :param gamma: Per env step; None takes the wrapper's, another value than the wrapper's is an error
    :param train_freq: Chunks per environment between bursts of updates
    :param gradient_steps: Critic updates per burst; -1 for ``utd`` per collected chunk
    :param utd: Critic updates per collected chunk
    :param policy_delay: Critic updates per update of actor, temperature and target
    :param max_grad_norm: Clip of the gradient norm, actor and critics separately
    :param ent_coef: Temperature, ``"auto_0.01"`` learns it from 0.01
    :param target_entropy: ``"auto"`` is -d/2
    :param overlap: Update while the environments step, if they are processes of their own: the same updates from the
        same data, but each rollout acts with the weights from before the burst that it is overlapped with
    :param autocast: Compute the hidden layers in bfloat16, which pays on processors that multiply it themselves (a
        warning tells where they do not)
    :param anneal: Chunks after the warm-up over which the reach of Δz rises from a tenth to all of λ; 0: all of it from
        the start
    :param progressive: Chunks over which the share of steered ones rises from 0 to 1, counted from the first; the
        others are the base policy's (Policy Decorator's progressive exploration). 0: all of them are steered
    :param bootstrap_timeouts: Bootstrap from the last observation at a time-out; otherwise time-outs are terminal
    :param replay_buffer_class: Replay buffer
    :param replay_buffer_kwargs: Further arguments of the replay buffer: n_steps and context_dtype of
        :class:`~zprl_sb3.replay.SteeringReplayBuffer`. Its handling of time-outs and its discount follow the above
    :param policy_kwargs: n_critics, layer_norm, bounded_critic, ...: :class:`~zprl_sb3.sac_policy.SteeringSACPolicy`
    :param kwargs: SB3's: tensorboard_log, verbose, seed, device, stats_window_size, ...
    :raises ValueError: If the environment is not steered, gamma or λ differ, ``utd``, ``anneal`` or ``progressive`` is
        negative, or a reward is outside [0, 1] while the critics are bounded
    :raises TypeError: For an argument of SB3's SAC that would have no effect here, as ``target_update_interval``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MultiInputPolicy": SteeringSACPolicy}
    policy: SteeringSACPolicy
    critic: SteeringCritic  # type: ignore[assignment]
    critic_target: SteeringCritic  # type: ignore[assignment]
    demonstrations: SteeringReplayBuffer | None = None
    """See :meth:`learn_from`."""
    forgotten = 0
    """Chunks of aborted episodes, which the replay buffer has taken back. They count for no warm-up."""

    def __init__(
        self,
        policy: str | type[SteeringSACPolicy],
        env: GymEnv,
        learning_rate: float | Schedule = 1e-4,
        qf_learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1000,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float | None = None,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = -1,
        utd: int = 1,
        policy_delay: int = 2,
        max_grad_norm: float = 50.0,
        ent_coef: str | float = "auto_0.01",
        target_entropy: str | float = "auto",
        overlap: bool = False,
        autocast: bool = False,
        anneal: int = 0,
        progressive: int = 0,
        bootstrap_timeouts: bool = False,
        replay_buffer_class: type[ReplayBuffer] = SteeringReplayBuffer,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        if refused := sorted(kwargs.keys() & set(NOT_SUPPORTED)):
            raise TypeError(f"SteeringSAC does not support these arguments of SAC: {', '.join(refused)}")
        for name, value, least in (("utd", utd, 1), ("anneal", anneal, 0), ("progressive", progressive, 0)):
            if value < least:
                raise ValueError(f"{name} is at least {least}, not {value}")
        self.qf_learning_rate, self.utd = qf_learning_rate, utd
        self.policy_delay = policy_delay
        self.max_grad_norm = max_grad_norm
        self.overlap, self.autocast = overlap, autocast
        self.anneal, self.progressive = anneal, progressive
        self._owed = 0  # updates that the last rollout has earned and the next one will make
        self.bootstrap_timeouts = bootstrap_timeouts
        self.steering_spec: SteeringSpec | None = None
        self.env_steps = 0
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,  # type: ignore[arg-type]  # None until the environment has told its own, in _adopt
            train_freq,
            gradient_steps,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            ent_coef=ent_coef,
            target_entropy=target_entropy,
            policy_kwargs=policy_kwargs,
            _init_setup_model=False,
            **kwargs,
        )
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.env is not None:
            self._adopt(self.env)
        if self.target_entropy == "auto":
            self.target_entropy = -0.5 * float(np.prod(self.action_space.shape or ()))
        self.qf_lr_schedule = FloatSchedule(self.qf_learning_rate)
        # On the way from a file, too, where bootstrap_timeouts may have been changed.
        self.replay_buffer_kwargs["handle_timeout_termination"] = self.bootstrap_timeouts
        if self.steering_spec is not None and self.replay_buffer_class is SteeringReplayBuffer:
            self.replay_buffer_kwargs["gamma"] = self.steering_spec.chunk_discount
        super()._setup_model()
        if self.steering_spec is not None:
            self.policy.set_scale(self.steering_spec.scale)
        if self.anneal:
            self.policy.set_reach(FIRST_REACH)

    def _adopt(self, env: VecEnv) -> None:
        """Take λ and gamma from the environment, or check that it has those of this model."""
        spec, normalized = find_spec(env), unwrap_vec_normalize(env)
        if normalized is not None and normalized.norm_obs:
            raise ValueError("VecNormalize would scale z, and z + λΔz would mean nothing: give it norm_obs=False")
        if normalized is not None and normalized.norm_reward and self.policy_kwargs.get("bounded_critic", True):
            raise ValueError("VecNormalize scales rewards, bounded critics need them in [0, 1]: give norm_reward=False")
        if self.steering_spec is not None:
            self.steering_spec.require_same(spec)
        if self.gamma is not None and self.gamma != spec.gamma:
            raise ValueError(
                f"gamma={self.gamma} per env step, but the wrapper discounts chunk rewards with {spec.gamma}: "
                "give gamma to the wrapper only"
            )
        self.steering_spec, self.gamma = spec, spec.gamma

    def learn_from(self, demonstrations: SteeringReplayBuffer) -> None:
        """Draw half of every batch from demonstrations. A model is saved without them: give them to a loaded one.

        :param demonstrations: Of :func:`~zprl_sb3.offline.demonstration_buffer`
        :raises ValueError: If they are made otherwise than this model's replay buffer, or a reward is outside [0, 1]
            while the critics are bounded
        """
        for name in ("n_steps", "gamma", "device"):
            theirs, mine = getattr(demonstrations, name), getattr(self.replay_buffer, name, None)
            if theirs != mine:
                raise ValueError(f"The demonstrations have {name} {theirs}, the model's replay buffer has {mine}")
        self._check_rewards(demonstrations.chunk_rewards())
        self.demonstrations = demonstrations

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "demonstrations"]

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Attach another environment.

        :param env: Steered environment with the same λ, chunk, gamma and base policy
        :param force_reset: Reset it before training goes on
        :raises ValueError: If it differs, naming in what
        """
        wrapped = self._wrap_env(env, self.verbose)
        self._adopt(wrapped)
        super().set_env(wrapped, force_reset)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update from the replay buffer, or promise to during the next rollout; a gradient step is a critic update."""
        if self.forgotten and self.num_timesteps - self.forgotten <= self.learning_starts:
            return  # there may be nothing to learn from
        if self.gradient_steps < 0:  # SB3 gives the collected chunks
            gradient_steps *= self.utd
        if self.overlap:
            self._owed += gradient_steps
        else:
            self._update(gradient_steps, batch_size)

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> RolloutReturn:
        """Collect chunks as SB3 does, and make the updates that are owed meanwhile."""
        if self._owed:
            share = math.ceil(self._owed / self.train_freq.frequency)  # type: ignore[union-attr]
            env = _Busy(env, lambda: self.finish_updates(share))
        return super().collect_rollouts(env, *args, **kwargs)

    def finish_updates(self, at_most: int | None = None) -> None:
        """Make updates that are owed, all of them unless told otherwise."""
        count = self._owed if at_most is None else min(at_most, self._owed)
        self._owed -= count
        if count:
            self._update(count, self.batch_size)
            self.policy.set_training_mode(False)

    def _update(self, gradient_steps: int, batch_size: int) -> None:
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        followed = self._followed()
        losses: list[dict[str, th.Tensor]] = []
        for _ in range(gradient_steps):
            batch = self._sample(batch_size)
            losses.append(self._update_critic(batch))
            self._n_updates += 1
            if self._n_updates % self.policy_delay == 0:
                log_prob, actor_losses = self._update_actor(batch)
                losses.append(actor_losses | self._update_temperature(log_prob))
                _follow(*followed, self.tau)
        self._log(losses)

    def _followed(self) -> tuple[list[th.Tensor], list[th.Tensor]]:
        """Return the target's weights and those that they follow."""
        return list(self.critic_target.parameters()), weights_of(self.critic.optimizer)

    def _sample(self, batch_size: int) -> ReplayBufferSamples:
        """Draw a batch; with demonstrations every second transition is one of theirs (symmetric sampling)."""
        assert self.replay_buffer is not None
        if self.demonstrations is None:
            return self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        online = self.replay_buffer.sample(batch_size - batch_size // 2, env=self._vec_normalize_env)
        offline = self.demonstrations.sample(batch_size // 2, env=self._vec_normalize_env)
        joined: ReplayBufferSamples = _joined(online, offline)
        return joined

    def _update_critic(self, batch: ReplayBufferSamples) -> dict[str, th.Tensor]:
        """L = Σ_i mean (Q_i(c, z + λΔz) - y)² with y of :meth:`_target`."""
        with th.no_grad(), self._autocast():
            next_delta = self.actor(batch.next_observations)
            target = self._target(batch, self.critic_target, batch.next_observations, next_delta)
        return self._fit(self.critic, batch.observations, batch.actions, target)

    def _target(self, batch: ReplayBufferSamples, critic: SteeringCritic, obs: Any, delta: th.Tensor) -> th.Tensor:
        """Return y = r + (1 - done) γ^h min_{j in M} Q̄_j(c', z' + λΔz') (B,), without entropy.

        With ``n_steps`` above 1, r sums the rewards of so many chunks and γ^h becomes their discount.
        """
        assert self.steering_spec is not None
        heads = np.random.permutation(len(critic.q_networks))[:TARGET_HEADS].tolist()
        next_q = critic(obs, delta, heads).amin(dim=0)
        discount = self.steering_spec.chunk_discount if batch.discounts is None else batch.discounts[:, 0]
        target: th.Tensor = batch.rewards[:, 0] + (1 - batch.dones[:, 0]) * discount * next_q
        return target

    def _fit(self, critic: SteeringCritic, obs: Any, delta: th.Tensor, target: th.Tensor) -> dict[str, th.Tensor]:
        """Step all heads towards their targets, (B,) or (n, B)."""
        with self._autocast():
            q = critic(obs, delta)
        loss = F.mse_loss(q, target.expand_as(q), reduction="none").mean(dim=1).sum()
        self._descend(critic.optimizer, loss)
        return {"critic_loss": loss.detach(), "q_mean": q.detach().mean(), "q_target": target.mean()}

    def _update_actor(self, batch: ReplayBufferSamples) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """L = mean α log π(Δz|c, z) - mean_i Q_i(c, z + λΔz); returns log π (B,) and what to log."""
        with self._autocast():
            delta, log_prob = self.actor.action_log_prob(batch.observations)
        with _frozen(weights_of(self.critic.optimizer)), self._autocast():
            q = self.critic(batch.observations, delta).mean(dim=0)
        loss = (self._temperature() * log_prob - q).mean()
        self._descend(self.actor.optimizer, loss)
        rms = delta.detach().square().mean().sqrt()
        return log_prob.detach(), {"actor_loss": loss.detach(), "entropy": -log_prob.detach().mean(), "delta_rms": rms}

    def _update_temperature(self, log_prob: th.Tensor) -> dict[str, th.Tensor]:
        """L = -α mean(log π + target entropy), with α = exp(log α)."""
        if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
            loss = -(self.log_ent_coef.exp() * (log_prob + float(self.target_entropy)).mean())
            self.ent_coef_optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            self.ent_coef_optimizer.step()
        return {"ent_coef": self._temperature()}

    def _autocast(self) -> th.autocast:
        return th.autocast(self.device.type, th.bfloat16, enabled=self.autocast)

    def _temperature(self) -> th.Tensor:
        return self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()

    def _descend(self, optimizer: th.optim.Optimizer, loss: th.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights_of(optimizer), self.max_grad_norm, foreach=True)
        optimizer.step()

    def _set_learning_rates(self) -> None:
        actor_rate = self.lr_schedule(self._current_progress_remaining)
        critic_rate = self.qf_lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", actor_rate)
        update_learning_rate(self.actor.optimizer, actor_rate)
        update_learning_rate(self.critic.optimizer, critic_rate)
        if self.ent_coef_optimizer is not None:
            update_learning_rate(self.ent_coef_optimizer, critic_rate)

    def _log(self, losses: list[dict[str, th.Tensor]]) -> None:
        """Log means over a burst of updates, with one read from the device."""
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        names = sorted({name for each in losses for name in each})
        means = [th.stack([each[name].mean() for each in losses if name in each]).mean() for name in names]
        for name, value in zip(names, th.stack(means).tolist(), strict=True):
            self.logger.record(f"train/{name}", value)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the Δz to execute and to store: the base policy's during warm-up, then samples of the actor."""
        self._begin_episode()
        if self.num_timesteps - self.forgotten < learning_starts:
            delta = self._base_delta(n_envs)
            return delta, delta
        if self.anneal:
            rise = (self.num_timesteps - learning_starts) / self.anneal
            self.policy.set_reach(min(1.0, FIRST_REACH + (1 - FIRST_REACH) * rise))
        delta, stored = super()._sample_action(learning_starts, action_noise, n_envs)
        if self.num_timesteps < self.progressive:
            steered = np.random.random((n_envs, 1)) < self.num_timesteps / self.progressive
            base = self._base_delta(n_envs)
            delta, stored = (np.where(steered, each, base) for each in (delta, stored))
        return delta, stored

    def _begin_episode(self) -> None:
        """Wait for a person who sets the scene, where the environment has deferred that (:meth:`learn`)."""
        if self.env is not None and any(info.get("deferred", False) for info in self.env.unwrapped.reset_infos):
            self._last_obs = self.env.reset()  # type: ignore[assignment]

    def _base_delta(self, n_envs: int) -> NDArray[np.float32]:
        """Return the Δz with which the base policy acts."""
        assert isinstance(self.action_space, spaces.Box)
        assert self.steering_spec is not None
        shape, std = (n_envs, *self.action_space.shape), self.steering_spec.warm_up_std
        random = std * np.random.standard_normal(shape) if std else np.zeros(shape)
        return np.clip(random, -1.0, 1.0).astype(np.float32)

    def _store_transition(
        self, replay_buffer: ReplayBuffer, buffer_action: Any, new_obs: Any, reward: NDArray[np.float32], *rest: Any
    ) -> None:
        self._check_rewards(reward)
        before = replay_buffer.size()
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, *rest)
        if isinstance(replay_buffer, SteeringReplayBuffer) and replay_buffer.size() < before:
            self.forgotten += before + 1 - replay_buffer.size()

    def _check_rewards(self, reward: NDArray[np.float32]) -> None:
        if self.critic.bounded and (reward.min() < 0 or reward.max() > 1):
            raise ValueError(
                f"The rewards of these chunks reach from {reward.min():g} to {reward.max():g}, bounded critics know "
                "returns from 0 to 1 only: for other rewards give policy_kwargs={'bounded_critic': False}"
            )

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None) -> None:
        counted = [not info.get("aborted", False) for info in infos]
        super()._update_info_buffer(
            [info for info, counts in zip(infos, counted, strict=True) if counts],
            None if dones is None else dones[counted],
        )
        self.env_steps += sum(info["env_steps"] for info in infos)
        self.logger.record("time/env_steps", self.env_steps)

    def load_replay_buffer(self, path: str | Path | BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load what ``save_replay_buffer`` wrote, onto this model's device.

        :param path: The file
        :param truncate_last_traj: SB3's, without effect here
        """
        super().load_replay_buffer(path, truncate_last_traj)
        buffer = self.replay_buffer
        if isinstance(buffer, SteeringReplayBuffer) and self.device.type != "cpu":
            buffer.device = th.device("cpu")  # where it still is, whatever SB3 says
            self.replay_buffer = buffer.moved(self.device)

    def learn(
        self: SelfSteeringSAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SteeringSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSteeringSAC:
        """Train for ``total_timesteps`` **chunks**, counted over all environments. Arguments as in SB3."""
        if self.autocast and not multiplies_bfloat16(self.device):
            warnings.warn(
                "autocast=True, but this processor does not multiply bfloat16: float32 is faster", stacklevel=2
            )
        if reset_num_timesteps:
            self.env_steps = 0
        if isinstance(self.replay_buffer, SteeringReplayBuffer):
            self.replay_buffer.require_memory()
        # What a person has judged is stored, learned from and saved before they are waited for to set the next scene.
        defers = self.env is not None and self.env.has_attr("defer_resets")
        if defers:
            self.env.env_method("defer_resets", True)  # type: ignore[union-attr]
        super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        if defers:
            self.env.env_method("defer_resets", False)  # type: ignore[union-attr]
        self.finish_updates()
        return self


def _joined(first: Any, second: Any) -> Any:
    """Return two batches as one."""
    if first is None:
        return None
    if isinstance(first, dict):
        return {key: _joined(first[key], second[key]) for key in first}
    if isinstance(first, tuple):
        return type(first)(*map(_joined, first, second))
    return th.cat([first, second])


class _Busy(VecEnvWrapper):
    """Does something useful while the environments step."""

    def __init__(self, venv: VecEnv, work: Callable[[], None]) -> None:
        super().__init__(venv)
        self.work = work

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        self.work()
        return self.venv.step_wait()


@th.no_grad()
def _follow(target: list[th.Tensor], source: list[th.Tensor], tau: float) -> None:
    """θ̄ ← θ̄ + τ(θ - θ̄), all weights in one call."""
    th._foreach_lerp_(target, source, tau)


def weights_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """Return the weights that an optimiser steps."""
    weights: list[th.Tensor] = optimizer.param_groups[0]["params"]
    return weights


@contextmanager
def _frozen(weights: list[th.Tensor]) -> Iterator[None]:
    """Gradients pass through a network, but none are computed for its weights."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
