"""Episodes recorded while they are run, to train on. Processes of environments import this: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from zprl_sb3.pretrain.recording import Episode, save_episode
from zprl_sb3.wrappers.chunking import by_key


class EpisodeRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """Write each episode that ends in success, or each one, as ``episode_<seed>.npz``, one entry an **env step**.

    Belongs directly around the environment, below every chunk, so that it sees every observation and action.

    :param env: Its infos tell ``is_success`` at an episode's end; its ``get_state()`` is kept where it has one
    :param folder: Where the files go; it is there already
    :param failures: Write failures too
    """

    def __init__(self, env: gym.Env[Any, Any], folder: str | Path, failures: bool = False) -> None:
        super().__init__(env)
        self.folder, self.failures = Path(folder), failures
        self._seed = -1
        self._observations: list[dict[str, Any]] = []
        self._states: list[Any] = []
        self._taken: list[tuple[Any, float]] = []  # action and reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and begin a recording. Without a seed nothing is recorded: the file would have no name."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._seed = -1 if seed is None else seed
        self._observations, self._states, self._taken = [_copied(obs)], [self._state()], []
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and write the episode if this was its end and, unless failures are written too, a success.

        :raises KeyError: If the info at an episode's end does not tell ``is_success``
        :raises OSError: If the episode cannot be written
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._taken.append((np.array(action), float(reward)))
        self._observations.append(_copied(obs))
        self._states.append(self._state())
        if (terminated or truncated) and (info["is_success"] or self.failures) and self._seed >= 0:
            save_episode(self.folder / f"episode_{self._seed}.npz", self._episode(bool(info["is_success"])))
        return obs, reward, terminated, truncated, info

    def _state(self) -> Any:
        return self.env.get_wrapper_attr("get_state")() if self.env.has_wrapper_attr("get_state") else np.zeros(0)

    def _episode(self, success: bool) -> Episode:
        seen = {key: np.stack([obs[key] for obs in self._observations]) for key in self._observations[0]}
        actions, rewards = zip(*self._taken, strict=True)
        return Episode(
            observations={key: values[:-1] for key, values in seen.items()},
            next_observations={key: values[1:] for key, values in seen.items() if values.ndim != 4},  # no image twice
            actions=np.stack(actions),
            rewards=np.array(rewards),
            states=np.stack(self._states[:-1]),
            seed=self._seed,
            quality="",
            success=success,
        )


def _copied(obs: Any) -> dict[str, Any]:
    # An environment may return the same array each time, with other content.
    return {key: np.array(value) for key, value in by_key(obs).items()}
