"""Training windows cut from demonstrations: an observation (with its history) and the T actions from there on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from zprl_sb3.policy import Observation
from zprl_sb3.pretrain.demonstrations import Demonstrations, StoredImages

Part = NDArray[Any] | StoredImages

MEMORY_SHARE = 0.5  # of a GPU's free memory that the images may take; the rest is for the training itself


@dataclass
class Windows:
    """Every step of every episode as one window. Beyond an episode's ends its first or last entry is repeated.

    :param observations: All steps, for each key vectors (N, D) or images (N, H, W, 3) in uint8. Images too large for
        the device may lie in the main memory
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

    @property
    def device(self) -> th.device:
        """Where batches are."""
        return self.targets.device

    def batch(self, index: th.Tensor) -> tuple[Observation, th.Tensor]:
        """Return observations (B, n, ...) for each key and actions (B, T, A) of the chosen windows."""
        frames = self.frames[index]
        return {key: _rows(values, frames) for key, values in self.observations.items()}, self.actions[
            self.targets[index]
        ]


def _rows(values: th.Tensor, rows: th.Tensor) -> th.Tensor:
    chosen = values.index_select(0, rows.flatten().to(values.device))
    return chosen.to(rows.device).reshape(*rows.shape, *values.shape[1:])


def cut_windows(
    demos: Demonstrations,
    episodes: list[int],
    obs_steps: int,
    horizon: int,
    device: th.device | str = "cpu",
    first: int = 0,
) -> Windows:
    """Cut the windows of some episodes.

    :param demos: The demonstrations
    :param episodes: Which of them
    :param obs_steps: n, frames of history
    :param horizon: T, actions per window
    :param device: Where the data shall lie, as far as it has room
    :param first: The first of these actions, counted from the present step; below 0 for past ones
    """
    device = th.device(device)
    lengths = [len(demos.actions[k]) for k in episodes]
    starts = np.cumsum([0, *lengths[:-1]])
    frames = [_numbers(start, length, 1 - obs_steps, obs_steps) for start, length in zip(starts, lengths, strict=True)]
    targets = [_numbers(start, length, first, horizon) for start, length in zip(starts, lengths, strict=True)]
    chosen = {key: [values[k] for k in episodes] for key, values in demos.observations.items()}
    home = device if _fits(chosen, device) else th.device("cpu")
    return Windows(
        observations={key: _join(parts, home if _is_image(parts) else device) for key, parts in chosen.items()},
        actions=_join([demos.actions[k] for k in episodes], device),
        frames=th.as_tensor(np.concatenate(frames), device=device),
        targets=th.as_tensor(np.concatenate(targets), device=device),
    )


def _numbers(start: int, length: int, first: int, count: int) -> NDArray[np.int64]:
    steps = np.arange(length)[:, None] + np.arange(first, first + count)[None]
    return start + steps.clip(0, length - 1)


def _is_image(parts: Sequence[Part]) -> bool:
    return parts[0].ndim == 4


def _fits(observations: dict[str, list[Part]], device: th.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = th.cuda.mem_get_info(device)
    size = sum(part.nbytes for parts in observations.values() if _is_image(parts) for part in parts)
    return size < MEMORY_SHARE * free


def _join(parts: Sequence[Part], device: th.device) -> th.Tensor:
    # Episode by episode into its place: joined first and then moved, images would be in memory twice.
    dtype = th.as_tensor(np.empty(0, parts[0].dtype)).dtype
    whole = th.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=dtype, device=device)
    start = 0
    for part in parts:
        whole[start : start + len(part)] = th.as_tensor(part[:])
        start += len(part)
    return whole


def split_episodes(count: int, validation_ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Split episode numbers at random into training and validation (at least one episode each)."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    held_out = max(1, round(validation_ratio * count))
    if held_out >= count:
        raise ValueError(f"{count} demonstrations are too few to hold out {held_out} for validation")
    return sorted(order[held_out:]), sorted(order[:held_out])
