"""What critics promise at the first chunk of an episode, and the return that followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import obs_as_tensor

from zprl_sb3.sac import SteeringSAC

Array = NDArray[np.float32]
Observation = dict[str, Array]


@dataclass
class Episode:
    """An episode in chunks.

    :param observation: {"c": (C,), "z": (d,)} of the first chunk
    :param delta: Δz (d,) of the first chunk
    :param value: Discounted return so far
    :param discount: Of the next chunk's reward
    :param timed_out: Last observation, where a time limit ended it
    """

    observation: Observation
    delta: Array
    value: float = 0.0
    discount: float = 1.0
    timed_out: Observation | None = None


class Episodes:
    """Follows the episodes of n environments. Those that begin with a chunk of the base policy, Δz = 0, are left out.

    :param n_envs: n
    :param discount: γ^h, of a chunk
    """

    def __init__(self, n_envs: int, discount: float) -> None:
        self.discount = discount
        self._running: list[Episode | None] = [None] * n_envs
        self._ended: list[Episode] = []

    def add(
        self,
        observation: Observation,
        delta: Array,
        rewards: NDArray[Any],
        dones: NDArray[np.bool_],
        infos: Sequence[dict[str, Any]],
    ) -> None:
        """Add a chunk of each environment.

        :param observation: {"c": (n, C), "z": (n, d)}, before the chunk
        :param delta: Δz (n, d)
        :param rewards: Of the chunks (n,)
        :param dones: Whether they ended their episode (n,)
        :param infos: Theirs, with SB3's ``terminal_observation`` and ``TimeLimit.truncated``
        """
        for k, (reward, done, info) in enumerate(zip(rewards, dones, infos, strict=True)):
            episode = self._running[k]
            if episode is None:
                episode = Episode({key: values[k] for key, values in observation.items()}, delta[k])
            episode.value += episode.discount * float(reward)
            episode.discount *= self.discount
            self._running[k] = None if done else episode
            if done and episode.delta.any():
                episode.timed_out = info["terminal_observation"] if info.get("TimeLimit.truncated") else None
                self._ended.append(episode)

    def take(self) -> list[Episode]:
        """Return the episodes that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended


def first_values(model: BaseAlgorithm, episodes: Sequence[Episode]) -> tuple[Array, Array]:
    """Return Q at the episodes' first chunks (N,) by the critics of now, and the returns (N,) that followed.

    Where the critics bootstrap from time-outs, such an episode's return ends with Q at its last observation.

    :param model: An algorithm with critics
    :param episodes: N >= 1 of them
    """
    q = _q(model, [episode.observation for episode in episodes], np.stack([episode.delta for episode in episodes]))
    returns = np.array([episode.value for episode in episodes], np.float32)
    if getattr(getattr(model, "replay_buffer", None), "handle_timeout_termination", False):
        last = {k: episode.timed_out for k, episode in enumerate(episodes) if episode.timed_out is not None}
        if last:
            rows = list(last)
            returns[rows] += np.array([episodes[k].discount for k in rows]) * _q(model, list(last.values()), None)
    return q, returns


@th.no_grad()
def _q(model: Any, observations: Sequence[Observation], delta: Array | None) -> Array:
    """Return the mean of the critics (N,), for what the actor would do where Δz is None."""
    stacked = {key: np.stack([each[key] for each in observations]) for key in observations[0]}
    delta = model.predict(stacked, deterministic=True)[0] if delta is None else delta
    values = model.critic(obs_as_tensor(stacked, model.device), th.as_tensor(delta, device=model.device))
    if isinstance(model, SteeringSAC):  # (n, N); SB3's are n of (N, 1), sb3-contrib's are (N, n, quantiles)
        values = values.t()
    elif isinstance(values, tuple):
        values = th.cat(values, dim=1)
    mean: Array = values.flatten(1).mean(dim=1).cpu().numpy()
    return mean
