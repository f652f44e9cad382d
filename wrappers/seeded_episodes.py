"""Episodes whose seeds are known, so that evaluations repeat and compare exactly."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class SeededEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """After ``reset(seed=s)`` the following resets use s + stride, s + 2 stride, ... and every info names the seed.

    With a stride of n in each of n parallel environments, ``vec_env.seed(s)`` makes a vectorised evaluation of N
    episodes (N a multiple of n) use exactly the seeds s ... s + N - 1. The steering wrappers draw the episode's flow
    noise from ``info["episode_seed"]``, so two policies meet the same starts **and** the same noise.

    :param env: Any environment whose ``reset(seed)`` fixes the initial state
    :param stride: Distance between the seeds of consecutive episodes
    """

    def __init__(self, env: gym.Env[Any, Any], stride: int = 1) -> None:
        super().__init__(env)
        self.stride = stride
        self._seed: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset with ``seed``, or with the next one in the sequence."""
        if seed is None and self._seed is not None:
            seed = self._seed + self.stride
        self._seed = seed
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, self._name_seed(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, self._name_seed(info)

    def _name_seed(self, info: dict[str, Any]) -> dict[str, Any]:
        return info if self._seed is None else info | {"episode_seed": self._seed}
