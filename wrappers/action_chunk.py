"""Action chunks: one step of the wrapped environment runs h actions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit
from numpy.typing import NDArray

from zprl_sb3.wrappers.episode_video import EpisodeVideo
from zprl_sb3.wrappers.seeded_episodes import SeededEpisodes

TRANSPARENT = (TimeLimit, OrderEnforcing, PassiveEnvChecker, SeededEpisodes, EpisodeVideo)
"""Wrappers that leave observations as they are, beside those that count steps."""


class SimulationError(FloatingPointError):
    """The environment returned a value that is not finite. The message names the environment, the step and the key."""


class ActionChunk(gym.Wrapper[Any, NDArray[np.float32], Any, NDArray[np.float32]]):
    """Run the h actions of a chunk, stop at the end of the episode, and return the discounted chunk reward.

    The reward of a chunk is sum_i gamma^i r_i over the executed **env steps**; the matching discount between chunks is
    gamma^h. ``info["env_steps"]`` counts the executed steps. Actions outside the environment's bounds are clipped.

    Where the environment has a method ``commanded()``, which tells the places that an action sends the hands to,
    ``info["commanded"]`` holds them, (steps, hands, 3).

    Only the last observation of a chunk is returned, and where that saves drawing, it is the only one that is drawn: in
    an environment with a switch ``draw_images`` and a method ``images()``, as all with cameras here have them, unless
    a wrapper between here and there may want to see every observation.

    >>> import gymnasium as gym
    >>> env = ActionChunk(gym.make("MountainCarContinuous-v0"), chunk=4)
    >>> env.action_space.shape
    (4, 1)

    :param env: Environment with a box action space (A,)
    :param chunk: h, actions per chunk
    :param gamma: Discount per env step
    :raises ValueError: If the action space is not a flat box, the chunk is below 1, or gamma is not in (0, 1]
    """

    def __init__(self, env: gym.Env[Any, Any], chunk: int, gamma: float = 0.99) -> None:
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"ActionChunk needs an action space Box(A,), {env} has {space}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma is a discount per env step in (0, 1], not {gamma}")
        self.chunk, self.gamma = chunk, gamma
        self._low, self._high = space.low, space.high
        low, high = (np.tile(bound, (chunk, 1)) for bound in (space.low, space.high))
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self._episode_steps = 0
        self._camera_env = _camera_env(env)
        self._commanded: Any = env.get_wrapper_attr("commanded") if env.has_wrapper_attr("commanded") else lambda: None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment.

        :raises SimulationError: If the observation is NaN or infinite
        """
        self._episode_steps = 0
        self._draw_images(True)
        obs, info = self.env.reset(seed=seed, options=options)
        self._check_finite(obs, 0.0)
        return obs, info

    def step(self, action: NDArray[np.float32]) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Run one chunk (h, A), or its beginning where the episode ends in it.

        :raises SimulationError: If an observation or a reward is NaN or infinite
        """
        total, steps, commanded = 0.0, 0, []
        for low_level_action in np.clip(action, self._low, self._high):
            self._draw_images(steps == self.chunk - 1)
            obs, reward, terminated, truncated, info = self.env.step(low_level_action)
            self._episode_steps += 1
            self._check_finite(obs, reward)
            total += self.gamma**steps * float(reward)
            steps += 1
            commanded.append(self._commanded())
            if terminated or truncated:
                break
        info = info | {"env_steps": steps} | ({} if commanded[0] is None else {"commanded": np.stack(commanded)})
        return self._drawn(obs), total, terminated, truncated, info

    def _draw_images(self, draw: bool) -> None:
        if self._camera_env is not None:
            self._camera_env.draw_images = draw

    def _drawn(self, obs: Any) -> Any:
        if self._camera_env is None or self._camera_env.draw_images:
            return obs
        self._draw_images(True)
        return {**obs, **self._camera_env.images()}  # The episode has ended within the chunk.

    def _check_finite(self, obs: Any, reward: SupportsFloat) -> None:
        values = {**(obs if isinstance(obs, dict) else {"observation": obs}), "reward": reward}
        for key, value in values.items():
            if not np.isfinite(value).all():
                raise SimulationError(
                    f"{self.env} returned a {key} that is not finite, {self._episode_steps} env steps into the "
                    "episode. The simulation has become unstable: look at the actions and the model there"
                )


def layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """Return the wrappers of an environment from the outermost on, and the environment itself."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def counts_steps(layer: gym.Env[Any, Any]) -> bool:
    """Tell whether this is a wrapper that reports an episode's return and length: Gymnasium's or SB3's Monitor."""
    return isinstance(layer, RecordEpisodeStatistics) or is_monitor(layer)


def is_monitor(layer: gym.Env[Any, Any]) -> bool:
    """Tell whether this is SB3's Monitor, without the import of SB3 that brings torch along."""
    return any(cls.__module__ == "stable_baselines3.common.monitor" for cls in type(layer).__mro__)


def _camera_env(env: gym.Env[Any, Any]) -> Any:
    inner = next(layer for layer in layers(env) if not (isinstance(layer, TRANSPARENT) or counts_steps(layer)))
    return inner if hasattr(inner, "draw_images") and hasattr(inner, "images") else None
