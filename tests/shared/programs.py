"""Commands of tiny runs, for tests of the programs. Import it as ``programs``."""

from __future__ import annotations

from pathlib import Path

# A run of 60 chunks that evaluates at 0, 20, 40 and 60, and saves at 20 and 40.
TINY = [
    "n_timesteps=60",
    "n_envs=2",
    "eval_freq=20",
    "eval_episodes=2",
    "save_freq=20",
    "gamma=0.9",
    "algorithm.learning_starts=8",
    "algorithm.batch_size=8",
    "algorithm.policy_kwargs.net_arch=[8]",
    "algorithm.policy_kwargs.n_critics=2",
]
# A base policy of 60 steps that saves every 20.
TINY_BASE = [
    "model=state",
    "training=short",
    "model.unet_widths=[8,16]",
    "model.encoder_sizes=[16]",
    "training.steps=60",
    "training.batch_size=8",
    "training.save_every=20",
    "device=cpu",
]
# The same for images of 16 by 16.
TINY_IMAGE_BASE = [
    "model=small_image",
    "training=short",
    "model.horizon=4",
    "model.unet_widths=[8,16]",
    "model.crop=[12,12]",
    "model.resnet_widths=[8,16]",
    "model.image_dim=8",
    "validation_ratio=0.2",
    "training.steps=30",
    "training.batch_size=8",
    "training.save_every=10",
    "device=cpu",
]


def train_command(policy: Path, output: Path, *changes: str, seed: int = 0) -> list[str]:
    """Return the command of a tiny run of ``zprl train``."""
    return ["train", "--policy", str(policy), "--output", str(output), "--seed", str(seed), "--set", *TINY, *changes]


def pretrain_command(demos: Path, output: Path, *changes: str) -> list[str]:
    """Return the command of a tiny run of ``zprl pretrain``, without evaluation unless ``changes`` ask for it."""
    return ["pretrain", *TINY_BASE, "evaluation.episodes=0", f"demos={demos}", f"output={output}", *changes]


def image_pretrain_command(demos: Path, output: Path, *changes: str) -> list[str]:
    """Return the command of a tiny run of ``zprl pretrain`` on images, without evaluation."""
    return ["pretrain", *TINY_IMAGE_BASE, "evaluation.episodes=0", f"demos={demos}", f"output={output}", *changes]
