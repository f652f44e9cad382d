"""A steered policy and its environment as one Gymnasium environment: action Δz, observation (c, z)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import FrameStackObservation
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor

from zprl_sb3.policy import PolicyInterface, SteerablePolicy
from zprl_sb3.wrappers.action_chunk import ActionChunk
from zprl_sb3.wrappers.steering import Array, LatentSteering, NoiseKind, Steering, episode_rng

QUALITY = "render_quality"  # an attribute of environments that render images
BOX_KEY = "state"  # what a plain box observation is called in datasets and policies


class SteeringWrapper(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Steer a frozen policy in one environment. The siblings below choose what is steered.

    :param env: The environment, in its own observations and actions (an :class:`ActionChunk` is put under if missing)
    :param steering: What is steered
    :param gamma: Discount per env step, for the chunk reward
    :raises ValueError: If the policy does not fit the environment
    """

    def __init__(self, env: gym.Env[Any, Any], steering: Steering, gamma: float = 0.99) -> None:
        # No deep copy: it would double the policy's weights. Of several records only the first, a sibling's, counts.
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, steering=steering, gamma=gamma)
        super().__init__(chunked(env, steering.policy, gamma))
        check_rendering(env.get_wrapper_attr(QUALITY) if env.has_wrapper_attr(QUALITY) else None, steering.policy)
        self._given = env
        self.steering = steering
        self.steering_spec = steering.spec(gamma)
        self.observation_space = steering.observation_space
        self.action_space = steering.action_space
        self._rng = np.random.default_rng()
        self._observation: dict[str, Array] = {}

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]  # as Gymnasium's own wrappers have it
        """What ``gymnasium.make`` builds it again from; the layers between it and the given environment are its own."""
        spec = copy.deepcopy(self._given.spec)
        if spec is not None:
            spec.additional_wrappers += (self.wrapper_spec(**self._saved_kwargs),)
        return spec

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Reset; a seed fixes the layout and the flow noise of the episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        seed = info.get("episode_seed", seed)
        if seed is not None:
            self._rng = episode_rng(seed)
        return self._observe(obs), info

    def step(self, action: Array) -> tuple[dict[str, Array], SupportsFloat, bool, bool, dict[str, Any]]:
        """Execute the chunk that Δz (d,), clipped to [-1, 1], leads to from the z that was last shown.

        :raises ResetNeeded: Before the first reset
        :raises ValueError: If Δz is NaN or infinite
        :raises SimulationError: If an observation or a reward is
        """
        if not self._observation:
            raise gym.error.ResetNeeded("There is no z to steer yet: call reset() before step()")
        batch = {key: value[None] for key, value in self._observation.items()}
        chunk = self.steering.act(batch, np.asarray(action)[None], [self._rng])[0]
        obs, reward, terminated, truncated, info = self.env.step(chunk)
        return self._observe(obs), reward, terminated, truncated, info

    def _observe(self, obs: Any) -> dict[str, Array]:
        batch = {key: np.asarray(value)[None] for key, value in by_key(obs).items()}
        self._observation = {key: value[0] for key, value in self.steering.observe(batch, [self._rng]).items()}
        return {key: value.copy() for key, value in self._observation.items()}


class LatentSteeringWrapper(SteeringWrapper):
    """ZPRL's environment: Δz in [-1, 1]^d moves the frozen policy's latent to z + λΔz; the agent sees (c, z).

    One step is one **chunk** of h env steps. ``Monitor`` sits below the chunk and counts env steps.

    :param env: The environment that the policy was trained for
    :param policy: Frozen policy with a bottleneck, or the path of its checkpoint
    :param scale: λ > 0
    :param gamma: Discount per env step
    :param sample_latent: Draw z from the posterior instead of using its mean
    :param noise: ``"normal"``, or ``"zero"`` to switch the flow noise off
    :param random_crop: Crop images at random places instead of at the centre
    :raises TypeError: If the policy lacks a member of :class:`~zprl_sb3.policy.SteerablePolicy`
    :raises ValueError: If λ is not positive, or the policy has no bottleneck or does not fit the environment
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: SteerablePolicy | str | Path,
        scale: float,
        gamma: float = 0.99,
        sample_latent: bool = False,
        noise: NoiseKind = "normal",
        random_crop: bool = False,
    ) -> None:
        arguments: dict[str, Any] = {
            "policy": policy,
            "scale": scale,
            "gamma": gamma,
            "sample_latent": sample_latent,
            "noise": noise,
            "random_crop": random_crop,
        }
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, **arguments)
        super().__init__(env, LatentSteering(policy, scale, sample_latent, noise, random_crop), gamma)


def chunked(env: gym.Env[Any, Any], policy: PolicyInterface, gamma: float) -> gym.Env[Any, Any]:
    """Return the environment with Monitor, observation history and ActionChunk as the policy needs them.

    :raises ValueError: If observations, actions, id, an existing chunk or its gamma differ from the policy's
    """
    existing = unwrap_wrapper(env, ActionChunk)
    if isinstance(existing, ActionChunk):
        check_fit(env.observation_space, existing.env.action_space, policy, env_id_of(env))
        check_chunking(existing.chunk, existing.gamma, policy, gamma)
        return env
    if unwrap_wrapper(env, Monitor) is None:
        env = Monitor(env)
    if policy.obs_steps > 1:
        env = FrameStackObservation(env, policy.obs_steps, padding_type="reset")
    check_fit(env.observation_space, env.action_space, policy, env_id_of(env))
    return ActionChunk(env, policy.chunk, gamma)


def check_chunking(chunk: int, gamma: float, policy: PolicyInterface, wanted_gamma: float) -> None:
    """Raise a ValueError if an environment's ActionChunk is not the policy's."""
    if (chunk, gamma) != (policy.chunk, wanted_gamma):
        raise ValueError(
            f"The environment is chunked with chunk={chunk}, gamma={gamma}; the steering needs chunk={policy.chunk}, "
            f"gamma={wanted_gamma}. Make both the same (load_policy(path, chunk=...))"
        )


def check_fit(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], policy: PolicyInterface, env_id: str | None
) -> None:
    """Raise a ValueError that says how a policy and an environment differ, if they do."""
    # Gymnasium's "module:id" imports the module and drops it from the id.
    if env_id is not None and policy.env_id is not None and env_id != policy.env_id.rpartition(":")[2]:
        raise ValueError(
            f"The policy was trained for {policy.env_id}, the environment is {env_id}. "
            "Load the right checkpoint (or set policy.env_id = None if you mean it)"
        )
    found = {key: space.shape or () for key, space in by_key(observation_space).items()}
    for key, shape in policy.observation_shapes.items():
        wanted = tuple(shape) if policy.obs_steps == 1 else (policy.obs_steps, *shape)
        if found.get(key) != wanted:
            raise ValueError(f"The policy needs observation {key!r} of shape {wanted}, the environment has {found}")
    if action_space.shape is None or action_space.shape[-1:] != (policy.action_dim,):
        raise ValueError(f"The policy has actions of size {policy.action_dim}, the environment {action_space}")


def check_rendering(quality: str | None, policy: PolicyInterface) -> None:
    """Raise a ValueError if images are rendered otherwise than those that a policy has learned from.

    :param quality: ``render_quality`` of the environment, or None if it has none
    :param policy: Of ours, or one that does not say
    """
    learned = getattr(policy, "render_quality", None)
    if None not in (quality, learned) and quality != learned:
        raise ValueError(
            f"The policy has learned from images with render_quality={learned!r}, the environment has {quality!r}: "
            f"make it with gymnasium.make(..., render_quality={learned!r})"
        )


def env_id_of(env: gym.Env[Any, Any]) -> str | None:
    """Return the id that an environment was made by, or None."""
    spec = env.unwrapped.spec
    return spec.id if spec else None


def by_key(obs: Any) -> dict[str, Any]:
    """Return observations, or an observation space, by key; a plain box is called ``"state"``."""
    if isinstance(obs, spaces.Dict):
        return dict(obs.spaces)
    return obs if isinstance(obs, dict) else {BOX_KEY: obs}
