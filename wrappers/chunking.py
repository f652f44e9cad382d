"""Environments chunked for a policy, and what must fit for that. Processes of environments import this: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics

from zprl_sb3.wrappers.action_chunk import ActionChunk, counts_steps, is_monitor, layers

if TYPE_CHECKING:
    from zprl_sb3.policy import PolicyInterface

QUALITY = "render_quality"  # an attribute of environments that render images
BOX_KEY = "state"  # what a plain box observation is called in datasets and policies


@dataclass(frozen=True)
class Interface:
    """A policy's interface without the policy: an environment's process needs no weights."""

    observation_shapes: Mapping[str, tuple[int, ...]]
    action_dim: int
    obs_steps: int
    chunk: int
    env_id: str | None


def chunked(
    env: gym.Env[Any, Any],
    policy: PolicyInterface,
    gamma: float,
    count: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] = RecordEpisodeStatistics,
) -> gym.Env[Any, Any]:
    """Return the environment with a count of env steps, observation history and ActionChunk as the policy needs them.

    :param count: SB3's Monitor, or Gymnasium's RecordEpisodeStatistics where Monitor would do as well; put around it
        unless it is there
    :raises ValueError: If observations, actions, id, an existing chunk or its gamma differ from the policy's
    """
    existing = next((layer for layer in layers(env) if isinstance(layer, ActionChunk)), None)
    if existing is not None:
        check_fit(env.observation_space, existing.env.action_space, policy, env_id_of(env))
        check_chunking(existing.chunk, existing.gamma, policy, gamma)
        return env
    # SB3 would put its Monitor outside of the chunks of a single environment that has another count.
    counted = counts_steps if count is RecordEpisodeStatistics else is_monitor
    if not any(counted(layer) for layer in layers(env)):
        env = count(env)
    env = with_history(env, policy.obs_steps)
    check_fit(env.observation_space, env.action_space, policy, env_id_of(env))
    return ActionChunk(env, policy.chunk, gamma)


def with_history(env: gym.Env[Any, Any], obs_steps: int) -> gym.Env[Any, Any]:
    """Return the environment with observations of the last ``obs_steps`` env steps."""
    return FrameStackObservation(env, obs_steps, padding_type="reset") if obs_steps > 1 else env


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
