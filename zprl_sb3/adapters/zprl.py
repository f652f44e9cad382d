"""Checkpoints of this package: to attach a bottleneck to a policy that was trained without, or another one."""

from __future__ import annotations

from pathlib import Path

from zprl_sb3.adapters.base import FrozenPolicy
from zprl_sb3.checkpoint import load_policy


def load(path: str | Path, chunk: int | None = None, sampling_steps: int | None = None) -> FrozenPolicy:
    """Return a policy of ``zprl pretrain`` without its bottleneck.

    :param path: Its folder
    :param chunk: h, executed actions; the checkpoint's own where None
    :param sampling_steps: Steps of the sampler; the checkpoint's own where None
    :raises CheckpointError: If it cannot be read
    """
    policy = load_policy(path, chunk, sampling_steps=sampling_steps)
    policy.bottleneck = None
    return policy
