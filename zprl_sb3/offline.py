"""Demonstrations as transitions with Δz = 0 (RLPD, arXiv 2302.02948)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from zprl_sb3.policy import SteerablePolicy, image_keys
from zprl_sb3.pretrain.demonstrations import (
    OBJECT,
    DemonstrationError,
    Demonstrations,
    load_demonstrations,
    read_rewards,
)
from zprl_sb3.pretrain.recording import read_collection
from zprl_sb3.pretrain.windows import cut_windows
from zprl_sb3.replay import SteeringReplayBuffer
from zprl_sb3.wrappers import Steering
from zprl_sb3.wrappers.chunking import check_rendering

BATCH = 512  # observations that are embedded at once
Arrays = dict[str, NDArray[np.float32]]


def demonstration_buffer(
    path: str | Path,
    steering: Steering,
    gamma: float,
    sparse: bool = True,
    device: th.device | str = "cpu",
    mask: str | None = None,
    **kwargs: Any,
) -> SteeringReplayBuffer:
    """Return a replay buffer full of a file's demonstrations, cut into chunks from each of their first h env steps.

    Δz is 0: what a policy that has learned from them would have done without steering, nearly. An episode's end is
    terminal, because the files need not hold the observation after the last action.

    :param path: Demonstrations of the steering's task
    :param steering: What is steered
    :param gamma: Discount per env step
    :param sparse: The environment ends with its first reward: what a file holds beyond that is left out
    :param device: Where the transitions shall be
    :param mask: Only the episodes of this mask of the file
    :param kwargs: ``n_steps`` and ``context_dtype`` of the replay buffer, which must be those of the other one
    :raises DemonstrationError: If the file cannot be used, lacks rewards or what the policy sees, or was converted from
        another project's, whose rewards are sparse, and the environment's are not
    :raises ValueError: If it is of another task, or drawn in another quality
    """
    policy, demos = steering.policy, policy_demonstrations(path, steering.policy, mask)
    if not sparse and "converted" in read_collection(path):
        raise DemonstrationError(f"{path}: converted from another project's data, it does not hold the dense rewards")
    observations, rewards = _embedded(demos, steering), read_rewards(demos)
    starts = np.cumsum([0, *map(len, rewards[:-1])]).tolist()
    lengths = [_first_success(reward) if sparse else len(reward) for reward in rewards]
    whole = zip(starts, lengths, strict=True)
    chains = [chain for start, length in whole for chain in _chains(start, length, policy.chunk)]
    buffer = SteeringReplayBuffer(
        sum(map(len, chains)) + len(chains),  # each chain's last observation takes a row more
        steering.observation_space,
        steering.action_space,
        device,
        gamma=gamma**policy.chunk,
        handle_timeout_termination=False,
        **kwargs,
    )
    reward = np.concatenate(rewards)
    for chain in chains:
        _add(buffer, chain, observations, reward, gamma)
    return buffer


def _add(
    buffer: SteeringReplayBuffer, chain: list[range], observations: Arrays, reward: NDArray[np.float32], gamma: float
) -> None:
    """Add the chunks of an episode, given by the env steps of each."""
    still = np.zeros((1, observations["z"].shape[1]), np.float32)
    for rows, following in zip(chain, [*chain[1:], None], strict=True):
        chunk = reward[rows.start : rows.stop] @ gamma ** np.arange(len(rows))
        after = rows[-1] if following is None else following.start
        here, there = ({key: values[row][None] for key, values in observations.items()} for row in (rows.start, after))
        buffer.add(here, there, still, np.array([chunk], np.float32), np.array([following is None]), [{}])


def policy_demonstrations(path: str | Path, policy: SteerablePolicy, mask: str | None = None) -> Demonstrations:
    """Return demonstrations of a policy's task with what it sees.

    :param path: The file
    :param policy: The policy
    :param mask: Only the episodes of this mask of the file
    :raises DemonstrationError: If the file cannot be used, or lacks what the policy sees
    :raises ValueError: If it is of another task, or drawn in another quality
    """
    shapes = policy.observation_shapes
    kind = "image" if image_keys(shapes) else "state" if OBJECT in shapes else None
    demos = load_demonstrations(path, kind)
    if policy.env_id is not None and demos.env_id != policy.env_id:
        raise ValueError(f"{path} has demonstrations of {demos.env_id}, the policy is for {policy.env_id}")
    check_rendering(demos.env_kwargs.get("render_quality") if kind == "image" else None, policy)
    found = {key: episodes[0].shape[1:] for key, episodes in demos.observations.items()}
    for key, shape in shapes.items():
        if found.get(key) != tuple(shape):
            raise DemonstrationError(f"{path}: the policy sees {key!r} of shape {tuple(shape)}, the file has {found}")
    return demos.select(mask) if mask else demos


def _first_success(reward: NDArray[np.float32]) -> int:
    """Return the length of an episode that ends with its first reward."""
    return int(np.argmax(reward > 0)) + 1 if (reward > 0).any() else len(reward)


def _chains(start: int, length: int, chunk: int) -> Iterator[list[range]]:
    """Return the env steps of each chunk of an episode, for each of its first env steps to begin at."""
    end = start + length
    for first in range(start, min(start + chunk, end)):
        yield [range(row, min(row + chunk, end)) for row in range(first, end, chunk)]


def _embedded(demos: Demonstrations, steering: Steering) -> Arrays:
    """Return (c, z) of every env step of every episode, one after another."""
    windows = cut_windows(demos, list(range(len(demos))), steering.policy.obs_steps, horizon=1)
    rng, parts = np.random.default_rng(0), []
    for index in th.split(th.arange(len(windows)), BATCH):
        batch = {key: values.numpy() for key, values in windows.batch(index)[0].items()}
        parts.append(steering.observe(batch, [rng] * len(index)))
    return {key: np.concatenate([part[key] for part in parts]) for key in ("c", "z")}
