"""A steered policy and its environment as one Gymnasium environment: action Δz, observation (c, z)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.monitor import Monitor

from zprl_sb3.policy import SteerablePolicy
from zprl_sb3.wrappers.baseline_steerings import ActionSteering, EmbeddingSteering, NoiseSteering, WeightSteering
from zprl_sb3.wrappers.chunking import QUALITY, by_key, check_rendering, chunked
from zprl_sb3.wrappers.spec import Scale
from zprl_sb3.wrappers.steering import Array, LatentSteering, NoiseKind, Steering, episode_rng


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
        super().__init__(chunked(env, steering.policy, gamma, Monitor))
        check_rendering(env.get_wrapper_attr(QUALITY) if env.has_wrapper_attr(QUALITY) else None, steering.policy)
        self._given = env
        self.steering = steering
        self.steering_spec = steering.spec(gamma)
        self.observation_space = steering.observation_space
        self.action_space = steering.action_space
        self._rng = np.random.default_rng()
        self._observation: dict[str, Array] = {}
        steering.warm_up(self.env.observation_space, 1)

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
    :param scale: λ > 0, or one of each dimension of z
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
        scale: Scale,
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


class _WithoutBottleneck(SteeringWrapper):
    """The arguments that the wrappers below have in common.

    :param env: The environment that the policy was trained for
    :param policy: Frozen policy, or the path of its checkpoint
    :param scale: λ > 0
    :param gamma: Discount per env step
    :param noise: ``"normal"``, or ``"zero"`` to switch the flow noise off
    :param random_crop: Crop images at random places instead of at the centre
    """

    steering_class: ClassVar[type[Steering]]

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: SteerablePolicy | str | Path,
        scale: Scale,
        gamma: float = 0.99,
        noise: NoiseKind = "normal",
        random_crop: bool = False,
    ) -> None:
        arguments: dict[str, Any] = {"policy": policy, "scale": scale, "gamma": gamma}
        arguments |= {"noise": noise, "random_crop": random_crop}
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, **arguments)
        super().__init__(env, self.steering_class(policy, scale, noise, random_crop), gamma)


class ActionSteeringWrapper(_WithoutBottleneck):
    """Policy Decorator's environment: Δa in [-1, 1]^(h A) is added, times λ, to the base chunk; the agent sees (c, a).

    Arguments as :class:`LatentSteeringWrapper` has them; λ is in the policy's normalised actions.
    """

    steering_class = ActionSteering


class EmbeddingSteeringWrapper(_WithoutBottleneck):
    """ResEmb's environment: Δc in [-1, 1]^C moves the context to c + λΔc, without a bottleneck; the agent sees (c, c).

    Arguments as :class:`LatentSteeringWrapper` has them.
    """

    steering_class = EmbeddingSteering


class WeightSteeringWrapper(_WithoutBottleneck):
    """The environment of ReinFlow and DPPO: Δ is how far a chunk of other weights is from the frozen policy's.

    Arguments as :class:`LatentSteeringWrapper` has them; λ is 1.
    """

    steering_class = WeightSteering


class NoiseSteeringWrapper(_WithoutBottleneck):
    """DSRL's environment: Δ in [-1, 1]^(T A), times the scale b, is the flow noise; the agent sees (c, 0).

    Arguments as :class:`LatentSteeringWrapper` has them; the policy should have eight or more sampling steps.
    """

    steering_class = NoiseSteering
