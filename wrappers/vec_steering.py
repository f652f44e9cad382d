"""Steering for many environments at once: one batched forward of the policy for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import RecordEpisodeStatistics
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, unwrap_vec_wrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from zprl_sb3.policy import PolicyInterface
from zprl_sb3.robot_envs import check_kwargs
from zprl_sb3.wrappers.chunking import QUALITY, Interface, by_key, check_chunking, check_fit, check_rendering, chunked
from zprl_sb3.wrappers.process_vec_env import ProcessVecEnv, process_alive
from zprl_sb3.wrappers.seeded_episodes import SeededEpisodes
from zprl_sb3.wrappers.spec import SteeringSpec
from zprl_sb3.wrappers.steering import Array, Steering, episode_rng


class VecSteering(VecEnvWrapper):
    """Batched twin of :class:`~zprl_sb3.wrappers.SteeringWrapper`. One step is one **chunk** in every environment.

    The z that is steered is the one that was last shown (cached, never recomputed). ``terminal_observation`` in the
    infos is encoded too, with a draw of its own.

    :param venv: Vectorised environments that are already chunked (:func:`make_vec_steering` builds them)
    :param steering: What is steered
    :param gamma: Discount per env step, the one of the chunks
    :raises ValueError: If the environments are not chunked or the policy does not fit them
    """

    def __init__(self, venv: VecEnv, steering: Steering, gamma: float = 0.99) -> None:
        _check(venv, steering.policy, gamma)
        super().__init__(venv, steering.observation_space, steering.action_space)
        self.steering = steering
        self.steering_spec = steering.spec(gamma)
        self._rngs = [np.random.default_rng() for _ in range(venv.num_envs)]
        # They may have been seeded before: SB3's make_vec_env does so.
        self._pending_seeds: Sequence[int | None] = list(venv.unwrapped._seeds)
        self._observation: dict[str, Array] = {}
        steering.warm_up(venv.observation_space, venv.num_envs)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed layouts and flow noise; environment i gets seed + i at the next reset."""
        self._pending_seeds = self.venv.seed(seed)
        return self._pending_seeds

    def reset(self) -> VecEnvObs:
        """Reset all environments; returns {"c": (n, C), "z": (n, d)}."""
        with process_alive("an environment"):
            obs = self.venv.reset()
        for index, (info, seed) in enumerate(zip(self.venv.reset_infos, self._pending_seeds, strict=True)):
            self._reseed(index, info.get("episode_seed", seed))
        self._pending_seeds = [None] * self.num_envs
        return self._show(self.steering.observe(by_key(obs), self._rngs))

    def step_async(self, actions: Array) -> None:
        """Start the chunks that Δz (n, d), clipped to [-1, 1], lead to.

        :raises ResetNeeded: Before the first reset
        :raises ValueError: If Δz is NaN or infinite
        """
        if not self._observation:
            raise gym.error.ResetNeeded("There is no z to steer yet: call reset() before step()")
        chunks = self.steering.act(self._observation, actions, self._rngs)
        with process_alive("an environment"):
            self.venv.step_async(chunks)

    def step_wait(self) -> VecEnvStepReturn:
        """Return observations, discounted chunk rewards (n,), dones and infos.

        :raises SimulationError: If an observation or a reward is NaN or infinite
        :raises ChildProcessError: If that, or any other error, happened in a process of its own
        """
        with process_alive("an environment"):
            obs, rewards, dones, infos = self.venv.step_wait()
        ended = np.flatnonzero(dones)
        # Final observations come first: they draw from their own episode's generators before these are reseeded.
        rngs = [self._rngs[index] for index in ended]
        for index in ended:
            self._reseed(index, self.venv.reset_infos[index].get("episode_seed"))
        final = [by_key(infos[index]["terminal_observation"]) for index in ended]
        batch = {
            key: np.concatenate([*(obs_i[key][None] for obs_i in final), value]) for key, value in by_key(obs).items()
        }
        encoded = self.steering.observe(batch, rngs + self._rngs)
        for row, index in enumerate(ended):
            infos[index]["terminal_observation"] = {key: value[row] for key, value in encoded.items()}
        shown = self._show({key: value[len(ended) :] for key, value in encoded.items()})
        return shown, rewards, dones, infos

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Tell which environments have a wrapper; for Monitor, which report returns and lengths as Monitor does."""
        if wrapper_class is not Monitor:
            return self.venv.env_is_wrapped(wrapper_class, indices)
        # First the one that a process knows: to be asked for SB3's, it would have to import torch.
        counted = self.venv.env_is_wrapped(RecordEpisodeStatistics, indices)
        if all(counted):
            return counted
        return [a or b for a, b in zip(counted, self.venv.env_is_wrapped(Monitor, indices), strict=True)]

    def _reseed(self, index: int, seed: int | None) -> None:
        if seed is not None:
            self._rngs[index] = episode_rng(seed)

    def _show(self, observation: dict[str, Array]) -> VecEnvObs:
        self._observation = observation
        return {key: value.copy() for key, value in observation.items()}


def _check(venv: VecEnv, policy: PolicyInterface, gamma: float) -> None:
    if not venv.has_attr("chunk"):
        raise ValueError(
            "VecSteering needs chunked environments: build them with make_vec_steering, or put ActionChunk in"
        )
    for spec in venv.get_attr("spec"):
        check_fit(venv.observation_space, venv.action_space, policy, spec and spec.id)
    for chunk, chunk_gamma in zip(venv.get_attr("chunk"), venv.get_attr("gamma"), strict=True):
        check_chunking(chunk, chunk_gamma, policy, gamma)
    for quality in venv.get_attr(QUALITY) if venv.has_attr(QUALITY) else ():
        check_rendering(quality, policy)


def make_vec_steering(
    env_id: str,
    steering: Steering,
    n_envs: int,
    gamma: float = 0.99,
    env_kwargs: dict[str, Any] | None = None,
    subprocess: bool = False,
    seeded_episodes: bool = False,
    layer: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] | None = None,
) -> VecSteering:
    """Make n environments by id, chunk them, and steer them with one policy.

    :param env_id: Gymnasium id
    :param steering: What is steered
    :param n_envs: n
    :param gamma: Discount per env step
    :param env_kwargs: Arguments of ``gymnasium.make``
    :param subprocess: One process per environment (slow simulators, pixels) instead of all in this process
    :param seeded_episodes: Fix the seeds of **all** episodes, not only of the first (evaluation)
    :param layer: A wrapper to put directly around each environment, below all others, e.g. for videos
    :raises ValueError: If the environments lack one of ``env_kwargs``, or the policy does not fit them
    """
    check_kwargs(env_id, env_kwargs or {})
    whole = steering.policy
    policy = Interface(dict(whole.observation_shapes), whole.action_dim, whole.obs_steps, whole.chunk, whole.env_id)

    def make() -> gym.Env[Any, Any]:
        env = gym.make(env_id, **(env_kwargs or {}))
        env = layer(env) if layer else env
        env = SeededEpisodes(env, n_envs) if seeded_episodes else env
        return chunked(env, policy, gamma)

    with process_alive("an environment"):
        venv = ProcessVecEnv([make] * n_envs) if subprocess else DummyVecEnv([make] * n_envs)
    try:
        return VecSteering(venv, steering, gamma)
    except BaseException:  # Ctrl-C, too, while a policy is compiled
        venv.close()
        raise


def find_spec(env: VecEnv) -> SteeringSpec:
    """Return the steering of a vectorised environment, however it was wrapped.

    :raises ValueError: If nothing in it steers, or its environments are steered differently
    """
    steered = unwrap_vec_wrapper(env, VecSteering)
    if steered is not None:
        return steered.steering_spec
    if env.has_attr("steering_spec"):
        return _common(env.get_attr("steering_spec"))
    raise ValueError("The environment is not steered: wrap it in LatentSteeringWrapper, or in VecSteering for several")


def find_steering(env: VecEnv) -> Steering:
    """Return what a vectorised environment steers, however it was wrapped; of several wrappers the first one's.

    :raises ValueError: If nothing in it steers
    """
    steered = unwrap_vec_wrapper(env, VecSteering)
    if steered is not None:
        return steered.steering
    find_spec(env)
    steering: Steering = env.get_attr("steering", 0)[0]
    return steering


def _common(specs: Sequence[SteeringSpec]) -> SteeringSpec:
    for index, spec in enumerate(specs):
        if difference := specs[0].difference(spec):
            words, first, other = difference
            raise ValueError(
                f"Environments 0 and {index} are steered differently, with {words} {first} and {other}: wrap all alike"
            )
    return specs[0]
