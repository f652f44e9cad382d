"""A training of 20 steps on random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.policy import FlowPolicy, FlowPolicyConfig
from zprl_sb3.pretrain.loop import TrainingConfig
from zprl_sb3.pretrain.trainer import Trainer
from zprl_sb3.pretrain.windows import Windows

SETTINGS: dict[str, Any] = {
    "steps": 20,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 4,
    "betas": (0.95, 0.999),
    "weight_decay": 1e-6,
    "ema_power": 0.8,
    "ema_max": 0.9999,
    "beta": 1e-4,
    "reconstruction": 0.01,
    "validate_every": 10,
    "save_every": 10,
    "seed": 0,
}


def _windows(seed: int, count: int) -> Windows:
    """Random observations (2,) and actions (2,), horizon 4."""
    rng = np.random.default_rng(seed)
    rows = th.arange(count)[:, None]
    return Windows(
        {"state": th.as_tensor(rng.normal(size=(count, 2)).astype(np.float32))},
        th.as_tensor(rng.normal(size=(count, 2)).astype(np.float32)),
        rows,
        (rows + th.arange(4)).clamp(max=count - 1),
    )


@pytest.fixture(scope="session")
def config() -> Callable[..., TrainingConfig]:
    """Make the settings of a training, with changes."""
    return lambda **changes: TrainingConfig(**SETTINGS | changes)


@pytest.fixture(scope="session")
def untrained() -> Callable[..., FlowPolicy]:
    """Make a policy with random weights, the same every time."""

    def make(
        shapes: dict[str, tuple[int, ...]] | None = None, action_dim: int = 2, latent_dim: int = 2, **config: Any
    ) -> FlowPolicy:
        th.manual_seed(0)
        settings: dict[str, Any] = {"horizon": 4, "chunk": 2, "unet_widths": (8, 16), "time_dim": 8} | config
        policy = FlowPolicy(FlowPolicyConfig(shapes or {"state": (2,)}, action_dim, **settings))
        policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(latent_dim, hidden=16))
        return policy

    return make


@pytest.fixture(scope="session")
def trainer(untrained: Any, config: Any) -> Callable[..., Trainer]:
    """Make a training in a folder, with changes of the settings."""

    def make(folder: Path, latent_dim: int = 2, save_checkpoint: Any = None, **changes: Any) -> Trainer:
        policy = untrained(latent_dim=latent_dim)
        return Trainer(policy, _windows(0, 40), _windows(1, 12), config(**changes), folder, save_checkpoint)

    return make


@pytest.fixture(scope="session")
def whole(trainer: Any, tmp_path_factory: pytest.TempPathFactory) -> FlowPolicy:
    """Return what 20 uninterrupted steps lead to."""
    policy = trainer(tmp_path_factory.mktemp("whole")).run()
    assert isinstance(policy, FlowPolicy)
    return policy
