"""Training windows cut from demonstrations: an observation (with its history) and the T actions from there on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch as th

from zprl_sb3.policy import Observation
from zprl_sb3.pretrain.demonstrations import Demonstrations


@dataclass
class Windows:
    """Every step of every episode as one window. Beyond an episode's ends its first or last entry is repeated.

    :param observations: All steps, (N, D) for each key
    :param actions: All steps, (N, A)
    :param frames: Row numbers of each window's observation history, (N, n)
    :param targets: Row numbers of each window's actions, (N, T)
    """

    observations: dict[str, th.Tensor]
    actions: th.Tensor
    frames: th.Tensor
    targets: th.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, index: th.Tensor) -> tuple[Observation, th.Tensor]:
        """Return observations (B, n, D) for each key and actions (B, T, A) of the chosen windows."""
        frames = self.frames[index]
        return {key: values[frames] for key, values in self.observations.items()}, self.actions[self.targets[index]]


def cut_windows(
    demos: Demonstrations, episodes: list[int], obs_steps: int, horizon: int, device: th.device | str = "cpu"
) -> Windows:
    """Cut the windows of some episodes.

    :param demos: The demonstrations
    :param episodes: Which of them
    :param obs_steps: n, frames of history
    :param horizon: T, actions per window
    :param device: Where the data shall lie
    """

    def join(parts: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> th.Tensor:
        return th.as_tensor(np.concatenate([parts[k] for k in episodes]), device=device)

    lengths = [len(demos.actions[k]) for k in episodes]
    starts = np.cumsum([0, *lengths[:-1]])
    frames = [_rows(start, length, 1 - obs_steps, obs_steps) for start, length in zip(starts, lengths, strict=True)]
    targets = [_rows(start, length, 0, horizon) for start, length in zip(starts, lengths, strict=True)]
    return Windows(
        observations={key: join(values) for key, values in demos.observations.items()},
        actions=join(demos.actions),
        frames=th.as_tensor(np.concatenate(frames), device=device),
        targets=th.as_tensor(np.concatenate(targets), device=device),
    )


def _rows(start: int, length: int, first: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    steps = np.arange(length)[:, None] + np.arange(first, first + count)[None]
    return start + steps.clip(0, length - 1)


def split_episodes(count: int, validation_ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Split episode numbers at random into training and validation (at least one episode each)."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    held_out = max(1, round(validation_ratio * count))
    if held_out >= count:
        raise ValueError(f"{count} demonstrations are too few to hold out {held_out} for validation")
    return sorted(order[held_out:]), sorted(order[:held_out])
